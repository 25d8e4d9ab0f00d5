"""The exact verifier for small networks: mixed-integer programming with HiGHS.

Every spike that bounds leave open is a binary variable. With the membrane in ``[l, u]`` around the
threshold, spike and carried membrane lie in the tetrahedron whose four facets are written down
here, and for a whole spike exactly on what the neuron does, with the threshold belonging to both
sides. That closed set gives the lower bound; it may lie below what any input reaches, where
membranes meet thresholds. Inputs are sought in a set that keeps away from thresholds, and count
only once the network itself has been run on them.

HiGHS computes in floating point with tolerances of 1e-6: unlike the bounds of ``snnkern.certify``
the lower ends here are not rounded outwards. Its presolve is off, which has given wrong optima.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from snnkern import functional, reference
from snnkern.certify import ibp
from snnkern.models import SpikingNetwork
from snnkern.nn import LIF, Direct, NormLIF, TimeDistributed, evaluation_mode
from snnkern.nn.reading import divided_by, flattened, runs_as, scale_and_shift
from snnkern.reference import Interval

# What HiGHS may be off by.
TOLERANCE = 1e-5
# How far from a threshold the membranes of a sought input stay, tried one after the other.
DISTANCES = (1e-4, 1e-5)


class Exact(NamedTuple):
    """What is known of margins, each ``[N, K - 1]``, j ascending without y.

    Attributes:
        lower: no input of the box has a margin that is smaller by more than ``TOLERANCE``.
        found: the smallest margin of an input that was found and run through the network; infinite
            where there is none.
        inputs: these, ``[N, K - 1, C, H, W]``.
    """

    lower: Tensor
    found: Tensor
    inputs: Tensor


class _Layer(NamedTuple):
    """Neurons, and the currents that reach them: ``weight @ before + bias``."""

    weight: Any
    bias: Any
    low: Any  # [T, neurons], of membranes
    high: Any
    surely: Any  # of spikes
    maybe: Any
    leak: Any
    threshold: Any
    reset: str
    v_reset: float
    v_init: float


def margins(
    model: SpikingNetwork,
    lower: Tensor,
    upper: Tensor,
    y: Tensor,
    *,
    within: Interval | None = None,
    wanted: Tensor | None = None,
    time_limit: float = 60.0,
    progress: bool = False,
) -> Exact:
    """The least margins over boxes of images, of networks with direct coding.

    Args:
        model: a ``snnkern.models.SpikingNetwork`` of a few dozen neurons, hard, soft or no reset.
        lower: images ``[N, C, H, W]``, the lower ends of the boxes.
        upper: the upper ends.
        y: the class whose margins are wanted, ``[N]`` int64.
        within: where inputs may be that are found, boxes that lie in the others: those as well
            unless given. HiGHS may step over an end, and is put back before the network is run.
        wanted: which margins to solve for, ``[N, K - 1]`` bool; the others are infinite. All unless
            given.
        time_limit: seconds for a margin, at least; where they are over, the ends are further apart.
        progress: show a progress bar.

    Raises:
        TypeError: a network or a layer that cannot be written down.
        ImportError: SciPy is not installed.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "method='exact' solves mixed-integer programs with SciPy, which is not installed: "
            "`pip install scipy`"
        ) from error
    if not runs_as(model.encoder, Direct) or model.encoder.is_relu:
        raise TypeError(
            f"model has the encoder {model.encoder}, expected Direct of a spiking network"
        )
    if not runs_as(model.layers, nn.Sequential):
        raise TypeError(
            f"model has a {type(model.layers).__name__} of layers, expected nn.Sequential"
        )
    double = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    found = []
    within = Interval(lower, upper) if within is None else within
    rows = tqdm(range(len(y)), desc="exact", unit="image", disable=not progress)
    with torch.no_grad(), evaluation_mode(model):
        for n in rows:
            part = slice(n, n + 1)
            box = Interval(lower[part].cpu().double(), upper[part].cpu().double())
            chosen = None if wanted is None else wanted[n]
            ends = Interval(within.lower[part], within.upper[part])
            found.append(_of_image(model, double, box, ends, y[part].cpu(), chosen, time_limit))
    return Exact(*(torch.stack(parts).to(lower.device) for parts in zip(*found, strict=True)))


def _of_image(
    model: SpikingNetwork,
    double: SpikingNetwork,
    box: Interval,
    within: Interval,
    y: Tensor,
    wanted: Tensor | None,
    time_limit: float,
) -> Exact:
    layers = flattened([double.layers])
    head, before = ibp.split_head(layers)
    chain, last = _written_down(double, before, box)
    target = head(last, y)
    weights, T = target.weights[0].numpy(), double.encoder.timesteps
    constant = torch.zeros_like(target.constant[0])
    if not ibp.counts_spikes(layers):
        final = layers[-1]
        assert isinstance(final, TimeDistributed)
        if (bias := getattr(final.module, "bias", None)) is not None:
            constant = T * (bias[y] - bias[ibp.other_classes(y, len(bias))[0]])
    divisor = divided_by(double.readout, T)
    others = ibp.other_classes(y, weights.shape[0] + 1)[0]
    lowest = torch.full((len(others),), math.inf, dtype=torch.float64)
    reached = lowest.clone()
    images = within.lower.expand(len(others), *box.lower.shape[1:]).clone()
    for k, other in enumerate(others.tolist()):
        if wanted is not None and not bool(wanted[k]):
            continue
        total, _ = _solve(chain, box, weights[k], 0.0, time_limit)
        if total == math.inf:  # every input solves this one: whoever finds none is wrong
            total = -math.inf
        lowest[k] = (total + constant[k].item()) / divisor
        for distance in DISTANCES:
            _, point = _solve(chain, box, weights[k], distance, time_limit)
            if point is None:
                continue
            # As it is given back, to the last bit, the network judges it.
            image = torch.from_numpy(point).view(box.lower.shape).to(within.lower)
            image = image.maximum(within.lower).minimum(within.upper)
            logits = model(image)[0].cpu().double()
            margin = (logits[y] - logits[other]).squeeze(0)
            if margin < reached[k]:
                reached[k], images[k] = margin, image[0]
            if reached[k] <= lowest[k] + 1e-4:
                break
    return Exact(lowest, reached, images)


def _written_down(
    net: SpikingNetwork, layers: list[nn.Module], box: Interval
) -> tuple[list[_Layer], Interval]:
    """Matrices and bounds of all layers of neurons, and the bounds of the last one's spikes."""
    chain: list[_Layer] = []
    parts: list[Callable[[Tensor], Tensor]] = [net.normalize]
    features = box.lower.shape[1:]
    seen = ibp.propagate(net.encoder, ibp.propagate(net.normalize, box))
    for layer in flattened(layers):
        if not (runs_as(layer, LIF) or runs_as(layer, NormLIF)):
            if any(isinstance(part, LIF) for part in layer.modules()):
                raise TypeError(
                    f"model holds a {type(layer).__name__} with neurons in it, expected layers one "
                    "after the other"
                )
            parts.append(layer.module if isinstance(layer, TimeDistributed) else _one_step(layer))
            seen = ibp.propagate(layer, seen)
            continue
        if isinstance(layer, NormLIF):
            scale, shift = scale_and_shift(layer)
            shape = (-1, *(1,) * (seen.lower.dim() - 3))
            parts.append(_scaling(scale.view(shape), shift.view(shape)))
            before_neurons = ibp.scaled(layer, seen)
        else:
            before_neurons = seen
        neuron = ibp.neuron_options(layer)
        if neuron["reset"] not in ("hard", "soft", "none"):
            raise TypeError(
                f"model holds a LIF with reset={neuron['reset']!r}, expected hard, soft or none"
            )
        weight, bias = _matrix(parts, features)
        low, high = functional.interval_lif(
            before_neurons.lower, before_neurons.upper, **neuron, return_membranes=True
        )[2:]
        seen = ibp.propagate(layer, seen)
        features = seen.lower.shape[2:]
        leak, threshold = (
            reference.broadcast(torch.as_tensor(neuron[name]).double(), seen.lower)
            .expand(features)
            .flatten()
            .numpy()
            for name in ("leak", "threshold")
        )
        ends = (t.flatten(1).numpy() for t in (low, high, seen.lower, seen.upper))
        lowest, highest, surely, maybe = ends
        chain.append(
            _Layer(
                weight,
                bias,
                lowest,
                highest,
                surely,
                maybe,
                leak,
                threshold,
                neuron["reset"],
                neuron["v_reset"],
                neuron["v_init"],
            )
        )
        parts = []
    if not chain:
        raise TypeError("model has no spiking neurons, expected some before its readout")
    if any(not runs_as(p, nn.Identity) for p in parts if isinstance(p, nn.Module)):
        raise TypeError("model has layers between its last neurons and its last linear layer")
    return chain, seen


def _scaling(scale: Tensor, shift: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: scale * x + shift


def _one_step(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x.unsqueeze(0)).squeeze(0)


def _matrix(parts: list[Callable[[Tensor], Tensor]], features: torch.Size) -> tuple[Any, Any]:
    """The affine map of a chain of modules, between flattened features."""
    count = math.prod(features)
    x = torch.cat([torch.zeros(1, count), torch.eye(count)]).double().view(-1, *features)
    for part in parts:
        x = part(x)
    x = x.flatten(1)
    return (x[1:] - x[0]).T.numpy(), x[0].numpy()


class _Program:
    """Rows and columns of a mixed-integer program, as they come."""

    def __init__(self) -> None:
        self.low: list[float] = []
        self.high: list[float] = []
        self.integer: list[int] = []
        self.entries: list[tuple[int, int, float]] = []
        self.least: list[float] = []
        self.most: list[float] = []

    def variable(self, low: float, high: float, integer: bool = False) -> int:
        self.low.append(low)
        self.high.append(high)
        self.integer.append(int(integer))
        return len(self.low) - 1

    def row(self, terms: list[tuple[int, float]], least: float, most: float) -> None:
        self.entries += [(len(self.least), column, factor) for column, factor in terms if factor]
        self.least.append(least)
        self.most.append(most)

    def solve(self, costs: dict[int, float], time_limit: float) -> tuple[float, Any]:
        """The least sum, from below, and where it is reached; None where nothing was found."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        rows, columns, factors = zip(*self.entries, strict=True)
        matrix = csr_array((factors, (rows, columns)), shape=(len(self.least), len(self.low)))
        cost = np.zeros(len(self.low))
        for column, factor in costs.items():
            cost[column] = factor
        result = milp(
            cost,
            integrality=self.integer,
            bounds=Bounds(self.low, self.high),
            constraints=LinearConstraint(matrix, self.least, self.most),
            options={"presolve": False, "mip_rel_gap": 0, "time_limit": time_limit},
        )
        if result.status == 2:  # nothing stays that far from all thresholds
            return math.inf, None
        bound = result.mip_dual_bound if any(self.integer) else result.fun
        return -math.inf if bound is None else float(bound), result.x


def _solve(
    chain: list[_Layer], box: Interval, weights: Any, distance: float, time_limit: float
) -> tuple[float, Any]:
    """The least weighted sum of the last spikes over time, and the image that has it.

    Membranes stay ``distance`` away from thresholds, on both sides.
    """
    program = _Program()
    image = [
        program.variable(low, high)
        for low, high in zip(
            box.lower.flatten().tolist(), box.upper.flatten().tolist(), strict=True
        )
    ]
    timesteps = len(chain[0].low)
    before: list[list[int]] = [image] * timesteps
    for layer in chain:
        before = _neurons(program, layer, before, distance)
    costs: dict[int, float] = {}
    for step in before:
        for column, factor in zip(step, weights.tolist(), strict=True):
            costs[column] = costs.get(column, 0.0) + factor
    bound, point = program.solve(costs, time_limit)
    return bound, None if point is None else point[: len(image)]


def _neurons(
    program: _Program, layer: _Layer, before: list[list[int]], distance: float
) -> list[list[int]]:
    """Adds a layer; the columns of its spikes, ``[T][neurons]``."""
    spikes: list[list[int]] = []
    count = len(layer.bias)
    # The state carried into a step, as terms of columns, and as a number.
    carried: list[tuple[list[tuple[int, float]], float]] = [([], layer.v_init)] * count
    for t, columns in enumerate(before):
        step = []
        after = []
        for i in range(count):
            low, high = float(layer.low[t, i]), float(layer.high[t, i])
            leak, threshold = float(layer.leak[i]), float(layer.threshold[i])
            surely, maybe = bool(layer.surely[t, i]), bool(layer.maybe[t, i])
            membrane = program.variable(low, high)
            terms, number = carried[i]
            currents = list(zip(columns, (-layer.weight[i]).tolist(), strict=True))
            own = [(membrane, 1.0), *currents, *((column, -leak * f) for column, f in terms)]
            constant = float(layer.bias[i]) + leak * number
            program.row(own, constant, constant)
            spike = program.variable(float(surely), float(maybe), integer=surely != maybe)
            step.append(spike)
            unsure = surely != maybe
            under, over = threshold - distance, threshold + distance
            if unsure and layer.reset != "hard":
                program.row([(membrane, 1.0), (spike, -(high - under))], -math.inf, under)
                program.row([(membrane, 1.0), (spike, -(over - low))], low, math.inf)
            if layer.reset == "soft":
                after.append(([(membrane, 1.0), (spike, -threshold)], 0.0))
            elif layer.reset == "none" or not maybe:
                after.append(([(membrane, 1.0)], 0.0))
            elif surely:
                after.append(([], layer.v_reset))
            else:
                kept = program.variable(min(low, 0.0), max(high, 0.0))
                program.row([(kept, 1.0), (spike, low)], low, math.inf)
                program.row([(kept, 1.0), (spike, under)], -math.inf, under)
                program.row([(kept, 1.0), (membrane, -1.0), (spike, over)], -math.inf, 0.0)
                program.row([(kept, 1.0), (membrane, -1.0), (spike, high)], 0.0, math.inf)
                after.append(([(kept, 1.0), (spike, layer.v_reset)], 0.0))
        carried = after
        spikes.append(step)
    return spikes
