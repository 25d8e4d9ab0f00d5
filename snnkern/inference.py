"""Networks made ready for deployment on the CPU: spikes stay bits from layer to layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern import functional
from snnkern.autograd import Geometry, is_constant
from snnkern.functional import check_options
from snnkern.models import SpikingNetwork
from snnkern.nn import (
    LIF,
    Direct,
    NormLIF,
    RateCoding,
    Residual,
    SharedDropout,
    TimeDistributed,
    events,
    packed,
)
from snnkern.nn.neuron import OPTIONS
from snnkern.nn.reading import divided_by, flattened, runs_as, scale_and_shift


class Spikes(NamedTuple):
    """Spikes of N samples over T steps as bits, channels last.

    Attributes:
        packed: ``[N * T, ceil(H * W * C / 8)]`` uint8.
        timesteps: T.
        maps: C, H, W.
    """

    packed: Tensor
    timesteps: int
    maps: tuple[int, int, int]

    @property
    def size(self) -> list[int]:
        """Of all as images."""
        return [len(self.packed), *self.maps]

    @property
    def strides(self) -> list[int]:
        """Of all as images."""
        channels, height, width = self.maps
        return [channels * height * width, 1, width * channels, channels]

    def unpacked(self) -> Tensor:
        """``[N * T, C, H, W]`` float32."""
        op = torch.ops.snnkern.unpack_spikes
        spikes: Tensor = op(self.packed, self.size, self.strides, torch.float32)
        return spikes

    def density(self, pool: Sequence[int]) -> float:
        """The share of windows of ``pool`` in which something spikes.

        Where they pool, that of two samples.
        """
        if math.prod(pool) == 1:
            return events.density_of(self.packed, math.prod(self.size))
        samples = self.packed.unflatten(0, (-1, self.timesteps))
        some = samples[:: (len(samples) + 1) // 2].flatten(0, 1)
        spikes = self._replace(packed=some).unpacked()
        return F.max_pool2d(spikes, tuple(pool)).mean().item()

    @classmethod
    def of(cls, spikes: Tensor, timesteps: int) -> Spikes:
        """Of ``[N * T, C, H, W]``."""
        _, channels, height, width = spikes.shape
        spikes = spikes.contiguous(memory_format=torch.channels_last)
        return cls(functional.pack_spikes(spikes), timesteps, (channels, height, width))


class Affine(NamedTuple):
    """A convolution, or a linear layer of whole maps, and what normalises it.

    Attributes:
        weight: ``[K, C, height, width]``; of a linear layer ``[K, features]``, channels first.
        bias: ``[K]``.
        stride, padding, dilation: of the convolution.
        pool: height and width of the windows whose mean it sees.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    pool: tuple[int, int] = (1, 1)

    def scaled(self, scale: Tensor, shift: Tensor | float = 0.0) -> Affine:
        """This, times ``scale`` for every output, plus ``shift``."""
        scale = scale.expand(len(self.weight))
        by_output = scale.view(-1, *(1,) * (self.weight.dim() - 1))
        return self._replace(weight=self.weight * by_output, bias=self.bias * scale + shift)

    def kernel(self, maps: tuple[int, int, int]) -> Tensor:
        """The weight as that of a convolution of pooled maps ``[C, H, W]``."""
        if self.weight.dim() == 4:
            return self.weight
        return self.weight.view(len(self.weight), *maps)

    def geometry(self, *, unpooled: bool) -> Geometry:
        """Stride, padding and dilation; ``unpooled``: where pooling is part of the kernel."""
        if self.weight.dim() == 2:
            # The kernel is as large as the maps and has one output, whatever the stride. By a
            # stride of 1 the op would sum what its columns add to neighbours, which are not there.
            return (2, 2), (0, 0), (1, 1)
        high, wide = self.pool if unpooled else (1, 1)
        stride, padding = ((pair[0] * high, pair[1] * wide) for pair in (self.stride, self.padding))
        return stride, padding, self.dilation

    def of_images(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, K, H', W']`` of any numbers."""
        if self.pool != (1, 1):
            x = F.avg_pool2d(x, self.pool)
        if self.weight.dim() == 2:
            return F.linear(x.flatten(1), self.weight, self.bias)[..., None, None]
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)


def _maps(x: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = x.shape
    return channels, height, width


class Rows:
    """An affine layer of spikes: its weights as the ops take them, made once the maps are known."""

    def __init__(self, affine: Affine) -> None:
        self.affine = affine
        self._made: dict[tuple[tuple[int, int, int], bool], Tensor] = {}

    def of(self, spikes: Spikes, *, unpooled: bool = False) -> Tensor:
        """For spikes of these maps; ``unpooled``: pooling is part of the kernel.

        Raises:
            ValueError: the maps do not fit.
        """
        channels, height, width = spikes.maps
        high, wide = self.affine.pool
        weight = self.affine.weight
        maps = channels, height // high, width // wide
        fits = weight.shape[1] == (channels if weight.dim() == 4 else math.prod(maps))
        if height % high or width % wide or not fits:
            raise ValueError(
                f"the images make maps of {channels}x{height}x{width}, where the model pools by "
                f"{high}x{wide} and takes {weight.shape[1]} inputs"
            )
        if (maps, unpooled) not in self._made:
            kernel = self.affine.kernel(maps) / (high * wide)
            if unpooled:
                kernel = kernel.repeat_interleave(high, 2).repeat_interleave(wide, 3)
            block = functional.spike_block(kernel, self.affine.geometry(unpooled=unpooled))
            rows = torch.ops.snnkern.spike_rows(kernel.contiguous(), block)
            self._made[maps, unpooled] = rows
        return self._made[maps, unpooled]

    def currents(self, spikes: Spikes) -> Tensor:
        """``[N * T, H', W', K]``."""
        affine = self.affine
        result: Tensor = torch.ops.snnkern.spike_conv2d(
            spikes.packed,
            None,
            spikes.size,
            spikes.strides,
            self.of(spikes, unpooled=True),
            affine.bias,
            len(affine.bias),
            *affine.geometry(unpooled=True),
        )
        return result.permute(0, 2, 3, 1)

    def outputs(self, spikes: Spikes) -> tuple[int, int, int]:
        """The maps of its currents."""
        affine = self.affine
        _, kernel_height, _, kernel_width, _ = self.of(spikes).shape
        height, width = (
            (extent // pool + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for extent, pool, kernel, stride, padding, dilation in zip(
                spikes.maps[1:],
                affine.pool,
                (kernel_height, kernel_width),
                affine.stride,
                affine.padding,
                affine.dilation,
                strict=True,
            )
        )
        return len(affine.bias), height, width


class DenseLayer:
    """Neurons behind an affine layer of any numbers, in dense products."""

    def __init__(self, affine: Affine, layer: LIF) -> None:
        self.affine = affine
        acting = {name: value.detach().clone() for name, value in layer.dynamics().items()}
        self.options = LIF.neuron_options(layer) | acting | {"spike_format": "bits"}

    def __call__(self, x: Tensor) -> Spikes:
        """Of the encoder's ``[T, N, C, H, W]``; what stays the same at every step runs once."""
        steps = x[:1] if is_constant(x) else x
        current = self.affine.of_images(steps.transpose(0, 1).flatten(0, 1))
        return self._fire(current, len(steps), len(x))

    def of_spikes(self, spikes: Spikes, more: Tensor | None) -> Spikes:
        """``more`` ``[N * T, H', W', K]`` comes on top of their current."""
        current = self.affine.of_images(spikes.unpacked().contiguous())
        if more is not None:
            current = current + more.permute(0, 3, 1, 2)
        return self._fire(current, spikes.timesteps, spikes.timesteps)

    def _fire(self, current: Tensor, steps: int, timesteps: int) -> Spikes:
        """Of currents ``[N * steps, K, H, W]``, where one step is held for all."""
        current = current.contiguous(memory_format=torch.channels_last)
        held = timesteps if steps < timesteps else None
        spikes = [
            functional.lif(sample.unsqueeze(1), timesteps=held, **self.options)
            for sample in current.unflatten(0, (-1, steps))
        ]
        return Spikes(torch.cat(spikes), timesteps, _maps(current))


class SpikingLayer:
    """Neurons behind an affine layer of spikes, in one op: no current leaves the cache.

    Where spikes are so dense that products cost less, it multiplies.
    """

    def __init__(self, affine: Affine, layer: LIF) -> None:
        self.rows = Rows(affine)
        self.dense = DenseLayer(affine, layer)

        def in_memory_order(value: Tensor) -> Tensor:
            value = value.detach()
            return (value.permute(1, 2, 0) if value.dim() == 3 else value).flatten()

        acting = {name: in_memory_order(value) for name, value in layer.dynamics().items()}
        names = (layer.decay_name, "threshold", "synapse_decay")
        self.parameters = [acting.get(name) for name in names]
        self.v_init = layer.v_init
        chosen = {name: getattr(layer, name) for name in OPTIONS if name != "backend"}
        chosen |= {"return_state": False, "dtype": torch.float32}
        self.dynamics = check_options(**chosen).dynamics

    def __call__(self, spikes: Spikes, current: Tensor | None = None) -> Spikes:
        """``current`` ``[N * T, H', W', K]`` comes on top of that of the spikes."""
        affine = self.rows.affine
        maps = self.rows.outputs(spikes)
        pools = math.prod(affine.pool) > 1
        share = events.share(spikes.density(affine.pool), spikes.maps[0], graded=pools)
        if share >= events.WORTH:
            return self.dense.of_spikes(spikes, current)
        start = torch.full((math.prod(maps),), self.v_init) if self.v_init else None
        packed = torch.ops.snnkern.spike_conv2d_lif(
            spikes.packed,
            spikes.timesteps,
            spikes.size,
            affine.pool,
            self.rows.of(spikes),
            affine.bias,
            current,
            *affine.geometry(unpooled=False),
            *self.parameters,
            start,
            None,
            *self.dynamics,
        )
        return Spikes(packed, spikes.timesteps, maps)


class ResidualLayer:
    """Neurons behind the sum of a branch and a shortcut."""

    def __init__(
        self,
        branch: list[Stage],
        last: SpikingLayer,
        shortcut: Rows | None,
        past: float,
        pool: tuple[int, int],
    ) -> None:
        self.branch, self.last, self.shortcut = branch, last, shortcut
        self.past, self.pool = past, pool

    def __call__(self, spikes: Spikes) -> Spikes:
        """A shortcut without weights is the mean over windows of ``pool``, times ``past``."""
        if self.shortcut is not None:
            current = self.shortcut.currents(spikes)
        else:
            pooled = F.avg_pool2d(spikes.unpacked(), self.pool)
            current = self.past * pooled.permute(0, 2, 3, 1)
        for stage in self.branch:
            spikes = stage(spikes)
        return self.last(spikes, current)


class MaxPool:
    """The largest of every window of spikes."""

    def __init__(self, layer: nn.MaxPool2d) -> None:
        self.layer = nn.MaxPool2d(
            layer.kernel_size, layer.stride, layer.padding, layer.dilation, False, layer.ceil_mode
        )

    def __call__(self, spikes: Spikes) -> Spikes:
        """Spikes again."""
        return Spikes.of(self.layer(spikes.unpacked()), spikes.timesteps)


Stage = Callable[[Spikes], Spikes]


class Reader:
    """Reads layers one after the other and makes stages of them."""

    def __init__(self, *, of_spikes: bool = True) -> None:
        """``of_spikes``: whether that is what the first layer sees."""
        self.stages: list[Any] = []
        self.affine: Affine | None = None
        self._of_spikes = of_spikes
        self._pool = (1, 1)
        self._flat = False
        self._residual: tuple[list[Stage], Rows | None, float, tuple[int, int]] | None = None

    def read(self, layers: list[nn.Module]) -> Reader:
        """All of them, in their order.

        Raises:
            TypeError: a layer, or an order of layers, for which there is no rule.
        """
        for layer in flattened(layers):
            inner = layer.module if runs_as(layer, TimeDistributed) else layer
            if inner is not layer and any(isinstance(part, LIF) for part in inner.modules()):
                raise self._refuse("neurons in a TimeDistributed, which takes steps for samples,")
            for kind, rule in _RULES.items():
                if runs_as(inner, kind):
                    rule(self, inner)
                    break
            else:
                raise TypeError(
                    f"model holds a {type(inner).__name__}, expected layers that can be compiled: "
                    + ", ".join(kind.__name__ for kind in _RULES)
                )
        return self

    @property
    def incomplete(self) -> bool:
        """Whether something was read that only a later layer can finish."""
        return (
            not self._of_spikes or self._residual is not None or self._flat or self._pool != (1, 1)
        )

    def _refuse(self, what: str) -> TypeError:
        return TypeError(f"model holds {what}, which cannot be compiled")

    def skip(self, layer: nn.Module) -> None:
        """What changes nothing in evaluation."""

    def pool(self, layer: nn.AvgPool2d) -> None:
        """The mean over windows, which the next layer sees."""
        size, stride, padding = (_pair(v) for v in (layer.kernel_size, layer.stride, layer.padding))
        if size != stride or padding != (0, 0) or layer.divisor_override or layer.ceil_mode:
            raise self._refuse(f"{layer}, whose windows are not side by side")
        if self.affine or self._flat:
            raise self._refuse(f"{layer} behind a layer without neurons")
        self._pool = self._pool[0] * size[0], self._pool[1] * size[1]

    def max_pool(self, layer: nn.MaxPool2d) -> None:
        """Of spikes alone."""
        if (
            self.affine
            or self._flat
            or self._pool != (1, 1)
            or not self._of_spikes
            or layer.return_indices
        ):
            raise self._refuse(f"{layer} elsewhere than behind neurons")
        self.stages.append(MaxPool(layer))

    def flatten(self, layer: nn.Flatten) -> None:
        """From maps to features."""
        if layer.start_dim != 1 or layer.end_dim != -1:
            raise self._refuse(f"{layer}")
        self._flat = True

    def conv(self, layer: nn.Conv2d) -> None:
        """A convolution."""
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise self._refuse(f"{layer}")
        weight = layer.weight.detach()
        if layer.groups > 1:
            inputs = weight.shape[1]
            whole = weight.new_zeros(len(weight), layer.groups, *weight.shape[1:])
            group = torch.arange(len(weight)) // (len(weight) // layer.groups)
            whole[torch.arange(len(weight)), group] = weight
            weight = whole.view(len(weight), layer.groups * inputs, *weight.shape[2:])
        self._add(layer, weight, _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation))

    def linear(self, layer: nn.Linear) -> None:
        """A linear layer, which sees whole maps."""
        self._add(layer, layer.weight.detach())

    def _add(
        self, layer: nn.Conv2d | nn.Linear, weight: Tensor, *geometry: tuple[int, int]
    ) -> None:
        if self.affine is not None or (self._flat and geometry):
            raise self._refuse(f"{layer} behind a layer without neurons")
        no_bias = weight.new_zeros(len(weight))
        bias = no_bias if layer.bias is None else layer.bias.detach()
        self.affine = Affine(weight, bias, *geometry)._replace(pool=self._pool)
        self._pool, self._flat = (1, 1), False

    def norm(self, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        """Folded into the layer before."""
        if self._residual is not None:
            raise self._refuse(f"{layer} behind a sum")
        if self.affine is None:
            raise self._refuse(f"{layer} without a layer before it")
        self.affine = self.affine.scaled(*(t.detach() for t in scale_and_shift(layer)))

    def residual(self, layer: Residual) -> None:
        """A branch and a shortcut, which neurons must follow."""
        if self.affine or self._flat or not self._of_spikes:
            raise self._refuse(f"a {type(layer).__name__} elsewhere than behind neurons")
        past, through = 1.0, 1.0
        if layer.branch_weights is not None:
            past, through = layer.branch_weights.tolist()
        branch, shortcut = Reader(), Reader()
        for reader, part in ((branch, layer.branch), (shortcut, layer.shortcut)):
            reader._pool = self._pool
            reader.read([part])
        identity = shortcut.affine is None and shortcut._pool == self._pool
        unfinished = branch.incomplete or (shortcut.incomplete and not identity)
        if branch.affine is None or shortcut.stages or unfinished:
            raise self._refuse(
                f"a {type(layer).__name__} whose branch ends with neurons, or whose shortcut is "
                "more than a convolution"
            )
        rows = shortcut.affine and Rows(shortcut.affine.scaled(torch.tensor(past)))
        self._residual = branch.stages, rows, past, self._pool
        self._pool = (1, 1)
        self.affine = branch.affine.scaled(torch.tensor(through))

    def neurons(self, layer: LIF) -> None:
        """Ends a stage."""
        if layer.stateful or layer.return_state:
            raise self._refuse(f"LIF({layer.extra_repr()}), which is more than spikes of one call,")
        if isinstance(layer, NormLIF) and self._residual is not None:
            raise self._refuse("a NormLIF behind a sum")
        if isinstance(layer, NormLIF) and self.affine is not None:
            self.affine = self.affine.scaled(*(t.detach() for t in scale_and_shift(layer)))
        if self.affine is None:
            raise self._refuse("neurons without a convolution or linear layer before them")
        affine, self.affine = self.affine, None
        if not self._of_spikes:
            self.stages.append(DenseLayer(affine, layer))
            self._of_spikes = True
        elif self._residual is not None:
            branch, shortcut, past, pool = self._residual
            last = SpikingLayer(affine, layer)
            self.stages.append(ResidualLayer(branch, last, shortcut, past, pool))
            self._residual = None
        else:
            self.stages.append(SpikingLayer(affine, layer))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


_RULES: dict[type[nn.Module], Callable[[Reader, Any], None]] = {
    nn.Identity: Reader.skip,
    nn.Dropout: Reader.skip,
    nn.Dropout2d: Reader.skip,
    SharedDropout: Reader.skip,
    nn.AvgPool2d: Reader.pool,
    packed.AvgPool2d: Reader.pool,
    nn.MaxPool2d: Reader.max_pool,
    packed.MaxPool2d: Reader.max_pool,
    nn.Flatten: Reader.flatten,
    nn.Conv2d: Reader.conv,
    packed.Conv2d: Reader.conv,
    nn.Linear: Reader.linear,
    packed.Linear: Reader.linear,
    nn.BatchNorm1d: Reader.norm,
    nn.BatchNorm2d: Reader.norm,
    Residual: Reader.residual,
    LIF: Reader.neurons,
    NormLIF: Reader.neurons,
}


class CompiledNetwork(nn.Module):
    """A network of bits, ``[N, C, H, W] -> [N, K]``; see ``compile_inference``.

    Attributes:
        timesteps: T.
    """

    def __init__(
        self, normalize: nn.Module, encoder: Direct | RateCoding, reader: Reader, divisor: int
    ) -> None:
        super().__init__()
        self.normalize, self.encoder = normalize, encoder
        self.timesteps = encoder.timesteps
        self._stages = reader.stages
        self._last = reader.affine and Rows(reader.affine)
        self._divisor = divisor

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Raises:
            TypeError: images of another dtype than float32, or on another device than the CPU.
            ValueError: images of another shape than the network takes.
        """
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != 4 or not len(x):
            raise TypeError(
                f"x is {x.dtype} {list(x.shape)} on {x.device}, expected at least one image "
                "[N, C, H, W] of float32 on the CPU"
            )
        spikes: Any = self.encoder(self.normalize(x))
        for stage in self._stages:
            spikes = stage(spikes)
        steps = spikes.unpacked() if self._last is None else self._last.currents(spikes)
        return steps.reshape(len(x), self.timesteps, -1).sum(1) / self._divisor


def compile_inference(model: nn.Module) -> CompiledNetwork:
    """A copy of a trained network for deployment on the CPU, which computes spike by spike.

    Normalisation is folded into weights. A layer is one op: it adds up the weights of inputs that
    spiked, and what comes out goes through the neurons, over all time steps, before it leaves the
    cache; between layers spikes are bits. Pooling by means is done on the way, by adding what falls
    into a window. The less a network spikes, the faster it is; a layer whose input is dense
    multiplies.

    Spikes are those of ``model`` in evaluation mode except where folding and another order of sums
    round a membrane to the other side of its threshold.

    Args:
        model: a ``snnkern.models.SpikingNetwork`` on the CPU, float32, with direct or rate coding:
            convolutions, linear layers, batch norm behind these, average pooling of maps that it
            divides, max pooling, residual branches with neurons behind their sum, and any neurons.

    Returns:
        A module for inference alone, with weights of its own.

    Raises:
        TypeError: a model, or a layer in it, that cannot be compiled.
    """
    parts = ["normalize", "encoder", "layers", "readout"]
    if not runs_as(model, SpikingNetwork) or [n for n, _ in model.named_children()] != parts:
        raise TypeError(
            f"model is a {type(model).__name__}, expected a snnkern.models.SpikingNetwork that "
            "runs its parts in their order"
        )
    for name, value in model.state_dict().items():
        if value.is_floating_point() and (value.dtype, value.device.type) != (torch.float32, "cpu"):
            raise TypeError(
                f"model has {name} of {value.dtype} on {value.device}, expected float32 on the CPU"
            )
    if model.timesteps == 0:
        raise TypeError("model has timesteps=0, expected a spiking network: this one is of ReLUs")
    network = copy.deepcopy(model).eval().requires_grad_(False)
    encoder = network.encoder
    if not (runs_as(encoder, Direct) or runs_as(encoder, RateCoding)):
        raise TypeError(
            f"model has a {type(encoder).__name__} as encoder, expected Direct or RateCoding"
        )
    reader = Reader(of_spikes=False).read([network.layers])
    if reader.incomplete:
        raise TypeError("model ends in pooling or a sum, expected neurons or an affine layer")
    divisor = divided_by(network.readout, encoder.timesteps)
    return CompiledNetwork(network.normalize, encoder, reader, divisor)
