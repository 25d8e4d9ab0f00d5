"""From a trained ReLU network to a spiking one of the same weights: the thresholds balanced.

Layer by layer, the threshold becomes as high as the pre-activations that the layer sees while all
layers before it spike at theirs: Sengupta et al. 2019, with the variants of Sharmin et al. 2020,
Kundu et al. 2021 and Ozdenizci & Legenstein 2023.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from snnkern._checks import check_int, check_number
from snnkern.autograd import is_constant
from snnkern.functional import pack_if_spikes, unpack_spikes
from snnkern.models import SpikingNetwork
from snnkern.nn import LIF, NormLIF, RateCoding, check_stateless, evaluation_mode

Statistic = Literal["maximum", "percentile", "step-percentile"]
NormStatistics = Literal["reestimate", "reset"]
Norm = _BatchNorm | NormLIF
Source = Callable[[], Tensor]


def convert(
    ann: SpikingNetwork,
    loader: Iterable[tuple[Tensor, Tensor]],
    timesteps: int = 8,
    *,
    statistic: Statistic = "percentile",
    percentile: float = 99.7,
    batches: int = 10,
    calibration_timesteps: int | None = None,
    calibration_leak: float | None = None,
    scale: float = 0.3,
    layers: int | Collection[str] | None = None,
    norm: NormStatistics = "reestimate",
    block_maximum: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SpikingNetwork:
    """A spiking copy of a trained ReLU network; ``ann`` stays as it is.

    The weights are those of ``ann``. Every layer of neurons, in the order in which images reach
    them, gets one threshold: the statistic of its pre-activations over a batch, or where there are
    several the largest over them, while the layers before it spike at the thresholds already found.
    At the end these are multiplied by ``scale``. They stand in the neurons, as ``threshold``; where
    that is learnt, as ``min_threshold`` at least.

    Biases stay as they are too, although they belong to inputs of another size than spikes are: the
    networks of the papers have batch norm, or no biases, or are finetuned.

    Batch norm keeps weights and biases, and while calibrating normalises by the batch: the running
    statistics of ``ann`` are those of rectified inputs, not of spikes.

    Args:
        ann: a network with ``timesteps=0``. A layer of neurons that it calls twice gets the
            threshold of the first call.
        loader: batches of images ``[N, C, H, W]`` and labels, which are not looked at.
        timesteps: T of the spiking network.
        statistic: ``"maximum"`` (Sengupta et al. 2019; Sharmin et al. 2020); ``"percentile"`` over
            all pre-activations of a batch, all steps together (Ozdenizci & Legenstein 2023);
            ``"step-percentile"``, the largest over the steps of the percentile of one step (DIET,
            Rathi & Roy 2020; Kundu et al. 2021).
        percentile: of n values the one of rank ``round(percentile / 100 * (n - 1))``.
        batches: how many of ``loader`` are used, the first ones; all where it has fewer.
            Ozdenizci & Legenstein 2023 print 10 and run 11.
        calibration_timesteps: T while calibrating, 100 in Ozdenizci & Legenstein 2023; that of the
            network by default. Memory grows with it and the size of a batch; the spikes of the last
            layer done, or the last two, are kept as bits for all batches.
        calibration_leak: of all neurons while calibrating; each one's own by default.
        scale: what the thresholds found are multiplied by, so that few steps suffice: 0.3 for
            CIFAR-10 and 0.1 for CIFAR-100 in Ozdenizci & Legenstein 2023; 0.7 in Rathi et al. 2020,
            0.3 in Rathi & Roy 2020.
        layers: which layers of neurons to balance: the first so many, all where there are fewer,
            or those of these names; others keep their thresholds, and ``scale`` does not act on
            them. The residual networks of Sharmin et al. 2020 and Kundu et al. 2021 balance the
            three of the stem.
        norm: running statistics of the result: ``"reestimate"``: averages over the same batches,
            seen by the network as it is returned, which can then be used. ``"reset"``: means of 0
            and variances of 1, with which Ozdenizci & Legenstein 2023 begin to finetune: until they
            have moved, evaluation mode, and so an attack, sees a network that means nothing.
        block_maximum: the name of the module whose children are the residual blocks,
            ``"layers.blocks"`` in ``snnkern.models``: there a threshold is at least those of the
            layers before it in its block. This is what the code of Ozdenizci & Legenstein 2023 does
            to the second layer of every block, by mistake; for comparison.
        seed: of the spikes that an encoder draws.
        progress: show a progress bar.

    Raises:
        TypeError: ``ann`` is no ``SpikingNetwork``.
        ValueError: ``ann`` spikes already; an option with a value that it cannot have; no batches;
            a layer that is never reached, or whose statistic is not above 0, so that nothing in it
            would ever fire.
    """
    if not isinstance(ann, SpikingNetwork):
        raise TypeError(f"ann is a {type(ann).__name__}, expected a snnkern.models.SpikingNetwork")
    if ann.timesteps != 0:
        raise ValueError(f"ann has timesteps={ann.timesteps}, expected 0: a ReLU network")
    check_stateless(ann)
    calibration_timesteps = timesteps if calibration_timesteps is None else calibration_timesteps
    check_int("timesteps", timesteps, 1)
    check_int("calibration_timesteps", calibration_timesteps, 1)
    check_int("batches", batches, 1)
    check_number("percentile", percentile, low=0, high=100, open_low=True)
    check_number("scale", scale, low=0, open_low=True)
    for name, value, known in (("statistic", statistic, Statistic), ("norm", norm, NormStatistics)):
        if value not in typing.get_args(known):
            expected = ", ".join(typing.get_args(known))
            raise ValueError(f"{name} is {value!r}, expected one of {expected}")
    neurons = {name: m for name, m in ann.named_modules() if isinstance(m, LIF)}
    if not neurons:
        raise ValueError("ann holds no neurons, expected some to balance")
    if isinstance(layers, int):
        check_int("layers", layers, 1)
    elif layers is not None and (isinstance(layers, str) or not set(layers) <= set(neurons)):
        raise ValueError(f"layers is {layers!r}, expected names among {', '.join(neurons)}")
    if block_maximum is not None and not any(n.startswith(f"{block_maximum}.") for n in neurons):
        raise ValueError(
            f"block_maximum is {block_maximum!r}, expected the name of a module of ann that holds "
            f"some of its neurons, {', '.join(neurons)}"
        )
    if calibration_leak is not None:
        check_number("calibration_leak", calibration_leak, low=0, high=1)
        if any(neuron.decay_name != "leak" for neuron in neurons.values()):
            raise ValueError(
                f"calibration_leak is {calibration_leak}, expected None: the neurons of ann do not "
                'all have charge="leak"'
            )

    model = copy.deepcopy(ann)
    device = next(model.parameters()).device
    with torch.random.fork_rng([]):  # a loader draws from it, whatever its own generator
        images = [x.to(device) for x, _ in islice(loader, batches)]
    if not images:
        raise ValueError("loader is empty, expected at least one batch")
    names = set(neurons) if layers is None or isinstance(layers, int) else set(layers)
    count = min(layers, len(names)) if isinstance(layers, int) else len(names)
    norms = [m for m in model.modules() if isinstance(m, Norm) and m.running_mean is not None]
    passes = count + bool(norms and norm == "reestimate")
    with (
        torch.no_grad(),
        evaluation_mode(model),
        tqdm(
            total=passes * len(images), desc="convert", unit="batch", disable=not progress, delay=1
        ) as bar,
    ):
        model.timesteps = calibration_timesteps
        balance = _Balance(model, names, _measure(statistic, percentile), block_maximum, bar)
        with _batch_statistics(norms), _leak(balance.neurons.values(), calibration_leak):
            balance.find(count, [_encoded(model, x, seed + i) for i, x in enumerate(images)])
        for name, threshold in balance.found.items():
            balance.set(name, scale * threshold)
        model.timesteps = timesteps
        for module in norms:
            module.reset_running_stats()
        if norms and norm == "reestimate":
            momenta = [module.momentum for module in norms]
            for i, x in enumerate(images):
                for module in norms:
                    module.train()
                    module.momentum = 1 / (i + 1)
                model.layers(_encoded(model, x, seed + i)())
                bar.update()
            for module, momentum in zip(norms, momenta, strict=True):
                module.momentum = momentum
    return model


class _Reached(Exception):  # noqa: N818  no error
    """Images reached a layer that is to be balanced: what stands behind it need not run."""

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__(name)
        self.name = name
        self.value = value


class _Balance:
    """Finds thresholds, and sets them in the neurons of ``model``.

    Layers in an ``nn.Sequential`` run on what the last one that spikes gave, kept as bits, so that
    the way from the images is not gone again for every threshold.

    Args:
        model: changed in place.
        names: of the layers of neurons to balance.
        measure: the statistic of pre-activations, and how many times one step was seen.
        block_maximum: see ``convert``.
        bar: updated for every batch and threshold.
    """

    def __init__(
        self,
        model: SpikingNetwork,
        names: set[str],
        measure: Callable[[Tensor, int], Tensor],
        block_maximum: str | None,
        bar: Any,
    ) -> None:
        self.model = model
        self.neurons = {name: m for name, m in model.named_modules() if isinstance(m, LIF)}
        self.names = names
        self.measure = measure
        self.block_maximum = block_maximum
        self.bar = bar
        self.found: dict[str, float] = {}

    def find(self, count: int, sources: list[Source]) -> None:
        """Balances so many layers, the first ones that ``sources`` reach."""
        handles = [
            neuron.register_forward_pre_hook(self._hook_for(name))
            for name, neuron in self.neurons.items()
            if name in self.names
        ]
        chain = _chain(self.model.layers)
        start = 0
        try:
            for end, layer in enumerate(chain, 1):
                if not any(isinstance(module, LIF) for module in layer.modules()):
                    continue
                part = nn.Sequential(*chain[start:end])
                while len(self.found) < count and self._open(part):
                    if not self._find_next(part, sources):
                        break  # what is left in it is never called
                if len(self.found) == count:
                    return
                spikes = _spikes(part, sources)
                if spikes is not None:
                    sources, start = spikes, end
        finally:
            for handle in handles:
                handle.remove()
        missed = ", ".join(name for name in self.neurons if name in self.names - set(self.found))
        raise ValueError(f"ann never calls {missed}, expected layers of neurons that images reach")

    def set(self, name: str, value: float) -> None:
        """Sets a threshold, where it is learnt not below the least."""
        neuron = self.neurons[name]
        learnt = isinstance(neuron.threshold, nn.Parameter)
        neuron.threshold.fill_(max(value, neuron.min_threshold) if learnt else value)

    def _open(self, part: nn.Module) -> bool:
        """Whether ``part`` has layers that are still to be balanced."""
        still = {self.neurons[name] for name in self.names - set(self.found)}
        return not still.isdisjoint(part.modules())

    def _find_next(self, part: nn.Module, sources: list[Source]) -> bool:
        """Balances the next layer that images reach in ``part``, if there is one."""
        values = []
        name = ""
        for source in sources:
            try:
                part(source())
            except _Reached as reached:
                name = reached.name
                values.append(reached.value)
                self.bar.set_postfix_str(name, refresh=False)
                self.bar.update()
            else:
                return False
        largest = torch.stack(values).max().item()
        if not largest > 0:
            raise ValueError(
                f"the pre-activations of {name} have the statistic {largest:g}, expected one above "
                "0: no neuron there would fire; a higher percentile may help, or where spikes are "
                "delayed, more calibration_timesteps"
            )
        if block := self._block(name):
            before = [value for other, value in self.found.items() if self._block(other) == block]
            largest = max([largest, *before])
        self.found[name] = largest
        self.set(name, largest)
        return True

    def _block(self, name: str) -> str:
        """The residual block of a layer, where it has one and that matters."""
        prefix = f"{self.block_maximum}."
        return name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else ""

    def _hook_for(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name not in self.found:
                assert isinstance(module, LIF)
                x = inputs[0]
                copies = len(x) if is_constant(x) else 1
                raise _Reached(name, self.measure(module.current(x[: len(x) // copies]), copies))

        return hook


def _chain(module: nn.Module) -> list[nn.Module]:
    """What runs one after the other in ``module``."""
    if type(module) is not nn.Sequential or module._forward_pre_hooks or module._forward_hooks:
        return [module]
    return [part for child in module for part in _chain(child)]


def _measure(statistic: Statistic, percentile: float) -> Callable[[Tensor, int], Tensor]:
    """The statistic of pre-activations ``[T, N, ...]`` that stand for so many copies of them."""

    def measure(x: Tensor, copies: int) -> Tensor:
        if statistic == "maximum":
            return x.amax()
        if statistic == "step-percentile":
            steps, copies = x.flatten(1), 1
        else:
            steps = x.reshape(1, -1)
        rank = round(percentile / 100 * (copies * steps.shape[1] - 1)) // copies
        return steps.kthvalue(rank + 1, 1).values.max()

    return measure


def _encoded(model: SpikingNetwork, x: Tensor, seed: int) -> Source:
    """What the layers of ``model`` see of the images, the same whenever it is asked for."""

    def encode() -> Tensor:
        draws = {}
        if isinstance(model.encoder, RateCoding):
            draws["generator"] = torch.Generator(x.device).manual_seed(seed)
        encoded: Tensor = model.encoder(model.normalize(x), **draws)
        return encoded

    return encode


def _spikes(part: nn.Module, sources: list[Source]) -> list[Source] | None:
    """What ``part`` makes of the sources, kept as bits; None where that is not spikes."""
    kept: list[Source] = []
    for source in sources:
        spikes = part(source()).contiguous()
        packed = pack_if_spikes(spikes)
        if packed is None:
            return None
        kept.append(partial(unpack_spikes, packed, spikes.shape, spikes.dtype))
    return kept


@contextmanager
def _batch_statistics(norms: list[Norm]) -> Iterator[None]:
    """Within the block norms normalise by the batch, and keep the statistics they have."""
    kept = [(module, module.running_mean, module.running_var) for module in norms]
    for module in norms:
        module.running_mean = module.running_var = None
    yield
    for module, mean, var in kept:
        module.running_mean, module.running_var = mean, var


@contextmanager
def _leak(neurons: Iterable[LIF], leak: float | None) -> Iterator[None]:
    """Within the block all neurons have this leak, unless it is None."""
    if leak is None:
        yield
        return
    tensors: list[Tensor] = [getattr(neuron, neuron.decay_name) for neuron in neurons]
    kept = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.fill_(leak)
    yield
    for tensor, value in zip(tensors, kept, strict=True):
        tensor.copy_(value)
