"""Networks that the tests of the upper floors share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from python_tests.helpers import golden
from snnkern import IF, LIF, NormLIF, functional
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import MeanReadout, RateCoding, SumReadout, TimeDistributed
from snnkern.surrogate import Triangle

READOUTS: dict[str, type[nn.Module]] = {"mean": MeanReadout, "sum": SumReadout}


def fc_layers(widths: tuple[int, ...], **neuron: Any) -> nn.Sequential:
    """Flatten, then linear layers with neurons between them."""
    layers: list[nn.Module] = [TimeDistributed(nn.Flatten())]
    for before, after in pairwise(widths):
        layers += [TimeDistributed(nn.Linear(before, after)), LIF(**neuron)]
    return nn.Sequential(*layers[:-1])


def tiny_net(timesteps: int = 3, seed: int = 0, classes: int = 3, **neuron: Any) -> SpikingNetwork:
    """2x2 grey images, eight hidden neurons."""
    options: dict[str, Any] = {"leak": 0.5, "threshold": 0.5} | neuron
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = fc_layers((4, 8, classes), **options)
        for parameter in layers.parameters():
            nn.init.normal_(parameter, std=0.8)
    return SpikingNetwork(timesteps, Normalize([0.5], [0.5]), layers, MeanReadout())


def linear_net(weight: Tensor, bias: Tensor) -> nn.Module:
    """A linear classifier of flattened images: its worst case is known."""
    classifier = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), classifier)


def rat_smallnet() -> tuple[SpikingNetwork, dict[str, nn.Module]]:
    """The float64 network of golden data snnrat_smallnet, and its layers by their names there."""
    data = golden("snnrat_smallnet")
    parts: dict[str, nn.Module] = {
        "layer1.0": nn.Conv2d(3, 6, 3, padding=1),
        "layer1.1": nn.BatchNorm2d(6),
        "layer2.0": nn.Conv2d(6, 8, 3, padding=1),
        "layer2.1": nn.BatchNorm2d(8),
        "classifier.1": nn.Linear(32, 16),
        "classifier.3": nn.Linear(16, 12),
        "classifier.5": nn.Linear(12, 5),
    }
    layers = nn.Sequential(
        TimeDistributed(nn.Sequential(parts["layer1.0"], parts["layer1.1"])),
        IF(),
        TimeDistributed(nn.AvgPool2d(2)),
        TimeDistributed(parts["layer2.0"]),
        TimeDistributed(parts["layer2.1"]),
        IF(),
        TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Flatten())),
        TimeDistributed(parts["classifier.1"]),
        IF(),
        TimeDistributed(parts["classifier.3"]),
        IF(),
        TimeDistributed(parts["classifier.5"]),
    )
    mean, std = data["norm_mean"], data["norm_std"]
    normalize = Normalize(mean.tolist(), std.tolist())
    net = SpikingNetwork(int(data["T"]), normalize, layers, MeanReadout()).double()
    normalize.mean.copy_(torch.from_numpy(mean).reshape(-1, 1, 1))
    normalize.std.copy_(torch.from_numpy(std).reshape(-1, 1, 1))
    for name, part in parts.items():
        state = {
            key.removeprefix(f"sd.{name}."): torch.from_numpy(value)
            for key, value in data.items()
            if key.startswith(f"sd.{name}.")
        }
        part.load_state_dict(state, strict=False)
    return net, parts


class Times(nn.Module):
    """Multiplies by a mask: dropout whose draw is given."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def deep_net(
    data: dict[str, NDArray[Any]],
    neurons: Sequence[LIF],
    masks: dict[str, Tensor] | None,
    readout: nn.Module,
) -> tuple[SpikingNetwork, list[nn.Module]]:
    """The float64 network of golden data hire_*, hybrid_* and sharmin_*; its weighted layers."""
    convs = [nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in ((3, 6), (6, 8), (8, 8))]
    linears = [nn.Linear(i, o, bias=False) for i, o in ((32, 16), (16, 5))]
    drop = {name: nn.Identity() if masks is None else Times(masks[name]) for name in ("5", "11")}
    layers = nn.Sequential(
        TimeDistributed(convs[0]),
        neurons[0],
        TimeDistributed(nn.AvgPool2d(2)),
        TimeDistributed(convs[1]),
        neurons[1],
        drop["5"],
        TimeDistributed(convs[2]),
        neurons[2],
        TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Flatten())),
        TimeDistributed(linears[0]),
        neurons[3],
        drop["11"],
        TimeDistributed(linears[1]),
    )
    timesteps = int(data.get("T_total", data.get("T")))  # type: ignore[arg-type]
    net = SpikingNetwork(timesteps, Normalize([0.0] * 3, [1.0] * 3), layers, readout).double()
    parts: list[nn.Module] = [*convs, *linears]
    names = ("features.0", "features.3", "features.6", "classifier.0", "classifier.3")
    for name, part in zip(names, parts, strict=True):
        part.get_parameter("weight").detach().copy_(torch.from_numpy(data[f"sd.{name}.weight"]))
    return net, parts


def hire_net(
    data: dict[str, NDArray[Any]], masks: dict[str, Tensor] | None = None
) -> tuple[SpikingNetwork, list[nn.Module], list[LIF]]:
    """The float64 network of golden data hire_*, its layers with weights, and its neurons."""
    neurons = [
        LIF(
            float(data[f"sd.leak.l{key}"]),
            float(data[f"sd.threshold.t{key}"]),
            learn_leak=True,
            learn_threshold=True,
            reset="soft",
            detach_reset=True,
            strict=True,
            surrogate=Triangle(scale=0.3, normalized=True),
        )
        for key in data["keys"]
    ]
    net, parts = deep_net(data, neurons, masks, SumReadout())
    if "norm_mean" in data:
        for name in ("mean", "std"):
            value = torch.from_numpy(data[f"norm_{name}"]).reshape(-1, 1, 1)
            net.normalize.get_buffer(name).copy_(value)
    return net, parts, neurons


class GivenSpikes(RateCoding):
    """Signed Poisson coding whose draws are those that gave the spikes of the papers' code.

    Args:
        spikes: of each forward pass in turn, ``[T, N, ...]``.
    """

    def __init__(self, *spikes: Tensor) -> None:
        super().__init__(len(spikes[0]), "signed_poisson")
        self.spikes = list(spikes)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        fired = self.spikes.pop(0).to(x)
        draws = torch.where(fired != 0, 0.0, 1.0).to(x)
        coded = functional.encode(x, coding=self.coding, draws=draws)
        assert torch.equal(coded, fired)
        return coded


def hybrid_net(
    data: dict[str, NDArray[Any]],
    *spikes: NDArray[Any],
    masks: dict[str, Tensor] | None = None,
    readout: str = "mean",
) -> tuple[SpikingNetwork, list[nn.Module]]:
    """The float64 network of golden data hybrid_* and sharmin_* as the models of the paper are."""
    neurons = [
        LIF(
            torch.from_numpy(data["leak"]),
            torch.from_numpy(data[f"th.{key}"]),
            reset="delayed_soft",
            delayed_spike=True,
            detach_reset=True,
            strict=True,
            surrogate=Triangle(scale=0.3, normalized=True),
        )
        for key in (0, 3, 6, 9)
    ]
    net, parts = deep_net(data, neurons, masks, READOUTS[readout]())
    nn.init.constant_(net.normalize.get_buffer("mean"), float(data.get("mean", 0)))
    nn.init.constant_(net.normalize.get_buffer("std"), float(data.get("std", 1)))
    net.encoder = GivenSpikes(*map(torch.from_numpy, spikes))
    return net, parts


def robustconv_net(data: dict[str, NDArray[Any]]) -> SpikingNetwork:
    """The float64 network of golden data robustconv_attacks."""

    def threshold(name: str) -> dict[str, Any]:
        return {"threshold": float(data[f"sd.{name}.v_th"]), "learn_threshold": True}

    parts: dict[str, nn.Module] = {
        "features.0": nn.Conv2d(3, 6, 3, padding=1),
        "features.1": NormLIF(6, leak=1.0, **threshold("features.2")),
        "features.4": nn.Conv2d(6, 8, 3, padding=1),
        "features.5": NormLIF(8, leak=1.0, **threshold("features.6")),
        "classifier.1": nn.Linear(32, 16),
        "classifier.4": nn.Linear(16, 12),
        "classifier.7": nn.Linear(12, 5),
    }
    layers = nn.Sequential(
        TimeDistributed(parts["features.0"]),
        parts["features.1"],
        TimeDistributed(nn.AvgPool2d(2)),
        TimeDistributed(parts["features.4"]),
        parts["features.5"],
        TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Flatten())),
        TimeDistributed(parts["classifier.1"]),
        IF(**threshold("classifier.2")),
        TimeDistributed(parts["classifier.4"]),
        IF(**threshold("classifier.5")),
        TimeDistributed(parts["classifier.7"]),
    )
    normalize = Normalize(data["norm_mean"].tolist(), data["norm_std"].tolist())
    net = SpikingNetwork(int(data["T"]), normalize, layers, MeanReadout()).double()
    for name in ("mean", "std"):
        value = torch.from_numpy(data[f"norm_{name}"]).reshape(-1, 1, 1)
        normalize.get_buffer(name).copy_(value)
    for name, part in parts.items():
        state = {
            key.removeprefix(f"sd.{name}."): torch.from_numpy(value)
            for key, value in data.items()
            if key.startswith(f"sd.{name}.")
        }
        part.load_state_dict(state, strict=False)
    return net


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that an attack or a bound must leave as it was."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "wanted": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "gradient": [getattr(module, "gradient_mode", None) for module in model.modules()],
        "carried": [getattr(module, "_state", None) for module in model.modules()],
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    for name, value in after["state"].items():
        assert torch.equal(value, before["state"][name]), name
    for had, has in zip(before["grads"], after["grads"], strict=True):
        assert (had is None) == (has is None)
        assert had is None or torch.equal(had, has)
    for had, has in zip(before["carried"], after["carried"], strict=True):
        assert had is has
    for what in ("modes", "wanted", "hooks", "gradient"):
        assert after[what] == before[what], what
