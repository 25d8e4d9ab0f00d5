from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from python_tests.helpers import assert_within, golden
from python_tests.networks import assert_unchanged, fc_layers, hire_net, snapshot, tiny_net
from snnkern import LIF, NormLIF, convert, evaluate
from snnkern.data import digits, loader
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import MeanReadout, RateCoding, TimeDistributed
from snnkern.training import fit

Batches = list[tuple[Tensor, Tensor]]


def thresholds(model: nn.Module) -> list[float]:
    return [m.threshold.item() for m in model.modules() if isinstance(m, LIF)]


def leak_of(neuron: LIF) -> float:
    return float(neuron.dynamics()["leak"].detach())


def batches(count: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batches:
    draws = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(shape, generator=draws, dtype=dtype), torch.zeros(shape[0], dtype=torch.int64))
        for _ in range(count)
    ]


def converted(ann: SpikingNetwork, data: Any, *arguments: Any, **options: Any) -> SpikingNetwork:
    return convert(ann, data, *arguments, **{"progress": False} | options)


# The authors' numbers


def test_hire_calib() -> None:
    data = golden("hire_calib") | {"keys": np.array(["0", "3", "6", "9"])}
    ann, _, _ = hire_net(data)
    ann.timesteps = 0
    snn = converted(
        ann,
        [(torch.from_numpy(data["x"]), None)],
        int(data["T"]),
        statistic="step-percentile",
        calibration_leak=1.0,
        scale=1.0,
    )
    assert_within(torch.tensor(thresholds(snn)), torch.from_numpy(data["thresholds"]), 1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_robustconv_calib_vgg(fused: bool) -> None:
    data = golden("robustconv_calib_vgg")
    weights = {
        name: torch.from_numpy(value)
        for name, value in data.items()
        if name.startswith("sd.") and not name.endswith("v_th")
    }
    layers: list[nn.Module] = []
    for i, o, at in ((3, 6, 0), (6, 8, 4)):
        conv = nn.Conv2d(i, o, 3, padding=1, bias=False).double()
        norm = NormLIF(o, leak=1.0, learn_threshold=True) if fused else nn.BatchNorm2d(o)
        norm.double()
        with torch.no_grad():
            conv.weight.copy_(weights[f"sd.features.{at}.weight"])
            norm.get_parameter("weight").copy_(weights[f"sd.features.{at + 1}.weight"])
            norm.get_parameter("bias").copy_(weights[f"sd.features.{at + 1}.bias"])
            norm.get_buffer("running_mean").fill_(7)  # of the ReLU network, not to be used
        layers.append(TimeDistributed(conv))
        layers += [norm] if fused else [TimeDistributed(norm), LIF(1.0)]
        layers.append(TimeDistributed(nn.AvgPool2d(2)))
    layers.append(TimeDistributed(nn.Flatten()))
    for i, o, at in ((32, 16, 1), (16, 12, 4), (12, 5, 7)):
        linear = nn.Linear(i, o, bias=False).double()
        linear.weight.detach().copy_(weights[f"sd.classifier.{at}.weight"])
        layers += [TimeDistributed(linear), LIF(1.0, learn_threshold=True)]
    normalize = Normalize(data["norm_mean"].tolist(), data["norm_std"].tolist()).double()
    for name in ("mean", "std"):
        normalize.get_buffer(name).copy_(torch.from_numpy(data[f"norm_{name}"]).reshape(-1, 1, 1))
    ann = SpikingNetwork(0, normalize, nn.Sequential(*layers[:-1]), MeanReadout())
    snn = converted(
        ann,
        [(torch.from_numpy(x), None) for x in data["batches"]],
        8,
        batches=11,
        calibration_timesteps=int(data["Tc"]),
        scale=0.3,
    )
    assert snn.timesteps == 8
    expected = torch.from_numpy(data["thresholds_scaled"])
    assert_within(torch.tensor(thresholds(snn)), expected, 1e-6)


# Against a plain computation


class Plain:
    """Thresholds of Flatten, then Linear [norm] LIF over and over, step by step."""

    def __init__(self, ann: SpikingNetwork, data: Batches, timesteps: int, options: Any) -> None:
        self.options = options
        self.found: list[float] = []
        # [T, N, features] of every batch, as the next layer sees them
        seen = [(x.flatten(1) - 0.5) / 0.5 for x, _ in data]
        spikes = [x.repeat(timesteps, 1, 1) for x in seen]
        linear: nn.Linear | None = None
        norm: nn.BatchNorm1d | None = None
        for module in ann.layers.modules():
            if isinstance(module, nn.Linear):
                linear, norm = module, None
            elif isinstance(module, nn.BatchNorm1d):
                norm = module
            elif isinstance(module, LIF):
                assert linear is not None
                currents = [s @ linear.weight.T + linear.bias for s in spikes]
                if norm is not None or isinstance(module, NormLIF):
                    currents = [self.normalised(c, norm or module) for c in currents]
                self.found.append(max(map(self.statistic, currents)))
                spikes = [self.fire(c, module, self.found[-1]) for c in currents]

    def normalised(self, x: Tensor, norm: Any) -> Tensor:
        mean = x.mean((0, 1))
        var = (x - mean).square().mean((0, 1))
        out: Tensor = (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
        return out

    def statistic(self, x: Tensor) -> float:
        def rank(values: Tensor) -> float:
            ordered = sorted(values.flatten().tolist())
            at = round(self.options["percentile"] / 100 * (len(ordered) - 1))
            return float(ordered[at])

        if self.options["statistic"] == "maximum":
            return x.max().item()
        if self.options["statistic"] == "percentile":
            return rank(x)
        return max(map(rank, x))

    def fire(self, x: Tensor, neuron: LIF, threshold: float) -> Tensor:
        leak = self.options["calibration_leak"]
        leak = leak_of(neuron) if leak is None else leak
        u, out = torch.zeros_like(x[0]), []
        for current in x:
            v = leak * u + current
            s = ((v > threshold) if neuron.strict else (v >= threshold)).to(x)
            u = v - threshold * s if neuron.reset == "soft" else v * (1 - s)
            out.append(s)
        return torch.stack(out)


def chain(widths: list[int], norms: list[str], seed: int, **neuron: Any) -> SpikingNetwork:
    layers: list[nn.Module] = [TimeDistributed(nn.Flatten())]
    features = 6
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for width, norm in zip(widths, norms, strict=True):
            layers.append(TimeDistributed(nn.Linear(features, width)))
            if norm == "module":
                layers.append(TimeDistributed(nn.BatchNorm1d(width)))
            fused = norm == "fused"
            layers.append(NormLIF(width, **neuron) if fused else LIF(**neuron))
            features = width
        layers.append(TimeDistributed(nn.Linear(features, 3)))
        # Nested, as the parts of larger networks.
        nested = nn.Sequential(
            nn.Sequential(*layers[:2]), nn.Sequential(nn.Sequential(*layers[2:4]), *layers[4:])
        )
        net = SpikingNetwork(0, Normalize([0.5], [0.5]), nested, MeanReadout())
        for parameter in net.parameters():
            if parameter.dim():
                nn.init.normal_(parameter)
    return net.double()


@settings(max_examples=60)
@given(
    depth=st.integers(1, 3),
    width=st.integers(5, 9),
    norm=st.sampled_from(["", "module", "fused"]),
    statistic=st.sampled_from(["maximum", "percentile", "step-percentile"]),
    percentile=st.sampled_from([100, 99.7, 95, 83.3]),
    leak=st.sampled_from([1.0, 0.9]),
    calibration_leak=st.sampled_from([None, 1.0, 0.5]),
    neuron=st.fixed_dictionaries(
        {
            "reset": st.sampled_from(["hard", "soft"]),
            "strict": st.booleans(),
            "learn_threshold": st.booleans(),
            "learn_leak": st.booleans(),
        }
    ),
    shape=st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_computation(
    depth: int,
    width: int,
    norm: str,
    statistic: Any,
    percentile: float,
    leak: float,
    calibration_leak: float | None,
    neuron: dict[str, Any],
    shape: tuple[int, int, int],
    seed: int,
) -> None:
    """Thresholds are values that occur: so that those neurons fire in both, sums are exact."""
    count, size, timesteps = shape
    ann = chain([width] * depth, [""] * (depth - 1) + [norm], seed, leak=leak, **neuron)
    data = batches(count, size, 1, 2, 3, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (*ann.parameters(), *(x for x, _ in data)):
            if tensor.dim():
                tensor.mul_(64).round_().div_(64)
    options = {
        "statistic": statistic,
        "percentile": percentile,
        "calibration_leak": calibration_leak,
    }
    with torch.no_grad():
        expected = Plain(ann, data, timesteps, options).found
    for scale in (1.0, 0.4):
        try:
            snn = converted(ann, data, 2, calibration_timesteps=timesteps, scale=scale, **options)
        except ValueError:
            assert min(expected) <= 0
            return
        assert thresholds(snn) == pytest.approx([scale * value for value in expected], rel=1e-6)
        assert all(leak_of(m) == pytest.approx(leak) for m in snn.modules() if type(m) is LIF)


# Networks that are no chain


class Residual(nn.Module):
    """Two layers of neurons; the shortcut joins before the second, or behind a last product."""

    def __init__(self, features: int, spiking: bool) -> None:
        super().__init__()
        # In another order than they are called in.
        self.second_neuron = LIF(1.0)
        self.first_neuron = LIF(1.0)
        self.first = TimeDistributed(nn.Linear(features, features))
        self.second = TimeDistributed(nn.Linear(features, features))
        self.first.module.weight.detach().mul_(3)  # type: ignore[operator]
        self.spiking = spiking

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor
        if self.spiking:
            out = self.second_neuron(self.second(self.first_neuron(self.first(x))) + x)
        else:
            out = self.second(self.second_neuron(self.first(self.first_neuron(x)))) + x
        return out


def residual_net(spiking: bool) -> SpikingNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = TimeDistributed(nn.Sequential(nn.Flatten(), nn.Linear(6, 8)))
        layers = [
            stem,
            LIF(1.0),
            Residual(8, spiking),
            Residual(8, spiking),
            LIF(1.0),
            nn.Identity(),
        ]
        return SpikingNetwork(0, Normalize([0.5], [0.5]), nn.Sequential(*layers), MeanReadout())


def one_by_one(snn: SpikingNetwork, data: Batches, order: list[str], block: bool) -> list[float]:
    """The whole network again for every threshold; maximum."""
    for name in order:
        seen: list[float] = []
        neuron: Any = snn.get_submodule(name)
        hook = neuron.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].max()))
        for x, _ in data:
            snn(x)
        hook.remove()
        found = max(seen)
        if block and name.endswith("second_neuron"):
            before: Any = snn.get_submodule(name.replace("second", "first"))
            found = max(found, before.threshold)
        neuron.threshold.fill_(found)
    return [float(snn.get_submodule(name).threshold) for name in order]  # type: ignore[arg-type]


@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize("block", [True, False])
def test_residual_networks(spiking: bool, block: bool) -> None:
    ann, ann_as_it_was = residual_net(spiking), residual_net(spiking)
    data = batches(2, 4, 1, 2, 3)
    blocks = [f"layers.{i}.{n}_neuron" for i in (2, 3) for n in ("first", "second")]
    order = ["layers.1", *blocks, "layers.4"]
    blocks_of = "layers" if block else None
    snn = converted(ann, data, 5, statistic="maximum", scale=1.0, block_maximum=blocks_of)
    ann.timesteps = 5
    with torch.no_grad():
        expected = one_by_one(ann, data, order, block)
    found = [float(snn.get_submodule(name).threshold) for name in order]  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=1e-6)
    otherwise = converted(ann_as_it_was, data, 5, statistic="maximum", scale=1.0)
    if spiking:
        assert (thresholds(snn) == thresholds(otherwise)) == (not block)


def test_only_some_layers() -> None:
    ann = residual_net(True)
    data = batches(1, 4, 1, 2, 3)
    every = converted(ann, data, 5)
    stem = converted(ann, data, 5, layers=1)
    named = converted(ann, data, 5, layers=["layers.1"])
    assert thresholds(stem) == thresholds(named)
    assert thresholds(stem)[0] == thresholds(every)[0]
    assert thresholds(stem)[1:] == [1.0] * 5
    assert thresholds(converted(ann, data, 5, layers=99)) == thresholds(every)


# What stays as it is


def test_the_callers_things_stay_as_they_are() -> None:
    ann = chain([6, 6], ["module", "fused"], 0).float()
    ann.train()
    before = snapshot(ann)
    images = torch.utils.data.TensorDataset(torch.rand(9, 1, 2, 3), torch.zeros(9).long())
    state = torch.get_rng_state()
    for source in (batches(3, 4, 1, 2, 3), torch.utils.data.DataLoader(images, 4, shuffle=True)):
        snn = converted(ann, source)
        assert torch.equal(torch.get_rng_state(), state)
        assert_unchanged(ann, before)
        assert snn is not ann
        assert all(module.training for module in snn.modules())
        assert not any(module._forward_pre_hooks for module in snn.modules())
        kept = ann.state_dict()
        for name, weight in snn.named_parameters():
            assert torch.equal(weight, kept[name]), name


def test_drawn_spikes_repeat() -> None:
    ann = tiny_net(0)
    ann.encoder = RateCoding(1)
    ann.timesteps = 0
    data = batches(2, 8, 1, 2, 2)
    first = converted(ann, data, 9)
    torch.rand(3)
    assert thresholds(converted(ann, data, 9)) == thresholds(first)
    assert thresholds(converted(ann, data, 9, seed=1)) != thresholds(first)
    assert isinstance(first.encoder, RateCoding)
    assert first.timesteps == 9


# Batch norm


def test_running_statistics() -> None:
    ann = chain([6, 6], ["module", "fused"], 0)
    for norm in ann.modules():
        if isinstance(norm, NormLIF | nn.BatchNorm1d):
            norm.get_buffer("running_mean").fill_(5)
            norm.get_buffer("num_batches_tracked").fill_(5)
    data = batches(3, 5, 1, 2, 3, dtype=torch.float64)
    reset = converted(ann, data, 4, norm="reset", calibration_timesteps=7)
    usable = converted(ann, data, 4, calibration_timesteps=7)
    assert thresholds(reset) == thresholds(usable)
    for name, norm in reset.named_modules():
        if not isinstance(norm, NormLIF | nn.BatchNorm1d):
            continue
        assert not norm.get_buffer("running_mean").any()
        assert (norm.get_buffer("running_var") == 1).all()
        assert norm.num_batches_tracked == 0
        estimated: Any = usable.get_submodule(name)
        assert estimated.momentum == 0.1
        assert estimated.num_batches_tracked == 3
        # What it sees while the norms before it go by the batch, too.
        seen = seen_by(name, copy.deepcopy(reset), data)
        mean = torch.stack([x.mean(0) for x in seen]).mean(0)
        var = torch.stack([x.var(0) for x in seen]).mean(0)
        torch.testing.assert_close(estimated.running_mean, mean)
        torch.testing.assert_close(estimated.running_var, var)


def seen_by(name: str, model: nn.Module, data: Batches) -> list[Tensor]:
    """The inputs of a layer of a network in training, ``[T * N, C]`` for every batch."""
    seen: list[Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(
        lambda _, x: seen.append(x[0].reshape(-1, x[0].shape[-1]))
    )
    model.train()
    for x, _ in data:
        model(x)
    return seen


# What it costs


def test_no_layer_runs_again_for_every_threshold_behind_it() -> None:
    ann = chain([7] * 6, [""] * 6, 3, leak=1.0)
    data = batches(3, 8, 1, 2, 3, dtype=torch.float64)
    calls: dict[int, int] = {}
    right = nn.Linear.forward

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        calls[id(self.weight)] = calls.get(id(self.weight), 0) + 1
        return right(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", forward)
        converted(ann, data, 8)
    assert list(calls.values()) == [2 * len(data)] * 5 + [len(data)]  # never behind the last


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps is 0, expected an int of at least 1"),
        ({"calibration_timesteps": 0}, "calibration_timesteps is 0, expected an int of at"),
        ({"batches": 0}, "batches is 0, expected an int of at least 1"),
        (
            {"percentile": 101},
            "percentile is 101, expected a finite number above 0 and at most 100",
        ),
        ({"percentile": 0}, "percentile is 0, expected"),
        ({"scale": 0}, "scale is 0, expected a finite number above 0"),
        ({"statistic": "mean"}, "statistic is 'mean', expected one of maximum, percentile, step-"),
        ({"norm": "keep"}, "norm is 'keep', expected one of reestimate, reset"),
        ({"layers": 0}, "layers is 0, expected an int of at least 1"),
        ({"layers": ["layers.3"]}, "layers is .*layers.3.*, expected names among layers.2"),
        ({"layers": "layers.2"}, "layers is 'layers.2', expected names among layers.2"),
        (
            {"block_maximum": "blocks"},
            "block_maximum is 'blocks', expected the name of a module of",
        ),
        ({"calibration_leak": 1.5}, "calibration_leak is 1.5, expected"),
    ],
    ids=str,
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converted(tiny_net(0), batches(1, 2, 1, 2, 2), **options)


def test_impossible_networks_are_named() -> None:
    data = batches(1, 2, 1, 2, 2)
    with pytest.raises(TypeError, match="ann is a Linear, expected a snnkern"):
        converted(nn.Linear(3, 3), data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ann has timesteps=3, expected 0"):
        converted(tiny_net(3), data)
    with pytest.raises(ValueError, match="loader is empty, expected at least one batch"):
        converted(tiny_net(0), [])
    with pytest.raises(ValueError, match="with stateful=True"):
        converted(tiny_net(0, stateful=True), data)
    tau = tiny_net(0, charge="decay_input", leak=None, tau=2.0)
    with pytest.raises(ValueError, match='do not all have charge="leak"'):
        converted(tau, data, calibration_leak=1.0)
    silent = tiny_net(0)
    for parameter in silent.parameters():
        nn.init.constant_(parameter, -1.0)
    with pytest.raises(ValueError, match=r"pre-activations of layers\.2 have the statistic -"):
        converted(silent, [(x + 0.5, y) for x, y in data])
    unused = tiny_net(0)
    unused.layers.get_submodule("2").unused = LIF()
    with pytest.raises(ValueError, match=r"ann never calls layers\.2\.unused, expected"):
        converted(unused, data)
    plain = SpikingNetwork(0, nn.Identity(), nn.Flatten(2), MeanReadout())
    with pytest.raises(ValueError, match="ann holds no neurons"):
        converted(plain, data)


def test_control_c_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    ann = tiny_net(0)
    before = snapshot(ann)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["snnkern.convert"]._Balance, "set", interrupt)
    with pytest.raises(KeyboardInterrupt):
        converted(ann, batches(1, 2, 1, 2, 2))
    assert_unchanged(ann, before)


def test_learnt_thresholds_are_not_below_the_least() -> None:
    data = batches(1, 4, 1, 2, 2)
    low = converted(tiny_net(0), data, scale=1e-6)
    kept = converted(tiny_net(0, learn_threshold=True, min_threshold=0.03), data, scale=1e-6)
    assert 0 < thresholds(low)[0] < 1e-4
    assert thresholds(kept) == pytest.approx([0.03])


# What it is for


def test_a_converted_network_still_classifies() -> None:
    split = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = fc_layers((64, 64, 64, 10), leak=1.0, reset="soft")
        for module in layers.modules():
            if isinstance(module, nn.Linear):
                module.register_parameter("bias", None)
        ann = SpikingNetwork(0, Normalize([0.0], [1.0]), layers, MeanReadout())
        fit(ann, loader(split.train, shuffle=True), epochs=6, lr=1e-2, progress=False)
    test = loader(split.test, 400)
    right = evaluate(ann, test, progress=False).accuracy()
    assert right > 0.93
    snn = converted(ann, loader(split.train, 400), 32, scale=1.0)
    assert evaluate(snn, test, progress=False).accuracy() > right - 0.03
    few = converted(ann, loader(split.train, 400), 8, scale=0.5)
    assert evaluate(few, test, progress=False).accuracy() > right - 0.05
    untouched = copy.deepcopy(ann)
    untouched.timesteps = 32
    assert evaluate(untouched, test, progress=False).accuracy() < right - 0.05
