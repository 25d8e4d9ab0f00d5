"""Paper 001, Sharmin et al. 2020: hybrid training, the attack crafted on it, rate against leak."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from python_tests.helpers import assert_same_bits, assert_within, golden
from python_tests.networks import READOUTS, GivenSpikes, hybrid_net, tiny_net
from snnkern import IF, LIF, functional, gradient
from snnkern.attacks import FGSM, PGD
from snnkern.data import digits, loader
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import MeanReadout, RateCoding, SumReadout, TimeDistributed
from snnkern.surrogate import SpikeTime, Surrogate, Triangle
from snnkern.training import Memory, SpikeTimeFinetune, fit

LAYERS = ("features.0", "features.3", "features.6", "classifier.0", "classifier.3")
SURROGATES: dict[str, Surrogate] = {
    "Linear": Triangle(scale=0.3, normalized=True),
    "STDB": SpikeTime(normalized=True),
}


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(array)


# The papers' numbers


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_golden_hybrid_network(name: str, readout: str, dtype: torch.dtype) -> None:
    data = golden("hybrid_network")
    masks = {key: tensor(data[f"{name}.mask.{key}"]).to(dtype) for key in ("5", "11")}
    model, parts = hybrid_net(data, data["in_spikes"], masks=masks, readout=readout)
    model.to(dtype)
    coded: list[Tensor] = []
    model.encoder.register_forward_hook(lambda m, i, spikes: coded.append(spikes))
    x = tensor(data["x"]).to(dtype).requires_grad_()
    method = SpikeTimeFinetune(SURROGATES[name])
    ((loss, logits),) = method.losses(model, x, tensor(data["labels"]), Memory.seeded(0))
    coded[0].retain_grad()
    loss.backward()
    found = {"out": logits, "loss": loss, "g_in": coded[0].grad}
    for layer, part in zip(LAYERS, parts, strict=True):
        found[f"g.{layer}.weight"] = part.get_parameter("weight").grad
    for key, actual in found.items():
        assert actual is not None, key
        expected = tensor(data[f"{name}.{key}"])
        scale = max(1.0, float(expected.abs().max()))
        allowed = (1e-9 if dtype == torch.float64 else 2e-5) * scale
        assert_within(actual.detach(), expected, allowed, key)
        assert expected.any(), key


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_golden_sharmin_gradient(dtype: torch.dtype) -> None:
    data = golden("sharmin_attack")
    model, _ = hybrid_net(data, data["in_spikes"])
    x = tensor(data["x"]).to(dtype).requires_grad_()
    logits = model.to(dtype)(x)
    loss = F.cross_entropy(logits, tensor(data["labels"]))
    (slope,) = torch.autograd.grad(loss, x)
    slope = slope * float(data["std"])  # theirs is the derivative by the normalised image
    for found, key in ((logits, "logits_over_T"), (loss, "loss"), (slope, "input_grad")):
        expected = tensor(data[key])
        assert_within(found.detach(), expected, 1e-9 if dtype == torch.float64 else 2e-5, key)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_golden_sharmin_attack(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = golden("sharmin_attack")
    model, _ = hybrid_net(data, *(data["pgd_in_spikes"] if name == "pgd" else [data["in_spikes"]]))
    uniform = tensor(data["pgd_rand"])
    monkeypatch.setattr("snnkern.attacks.pgd.random_like", lambda x, kind, _: uniform)
    attack = FGSM(8 / 255) if name == "fgsm" else PGD(8 / 255, 2 / 255, int(data["pgd_steps"]))
    adversarial = attack(model, tensor(data["x"]), tensor(data["labels"]))
    assert_within(adversarial, tensor(data[name]), 1e-9)
    assert isinstance(model.encoder, GivenSpikes)
    assert not model.encoder.spikes


# Algorithm 1: the SNN-crafted attack


FIRST_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "theirs": lambda: nn.Conv2d(2, 4, 3, padding=1, bias=False),
    "strided": lambda: nn.Conv2d(2, 4, 3, stride=2, padding=2),
    "dilated groups": lambda: nn.Conv2d(2, 4, (2, 3), dilation=(1, 2), groups=2),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 9)),
}


def algorithm_1(first: nn.Module, summed: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of the first layer's potential, brought back to its input (eq. 6)."""
    if isinstance(first, nn.Conv2d):
        if first.stride == (1, 1) and first.groups == 1:
            rotated = first.weight.flip(2, 3).transpose(0, 1)
            return F.conv2d(summed, rotated, padding=1)
        options = (first.stride, first.padding, first.dilation, first.groups)
        found: Tensor = conv2d_input(shape, first.weight, summed, *options)
        return found
    assert isinstance(first, nn.Sequential)
    return (summed @ first[1].get_parameter("weight")).view(shape)


@pytest.mark.parametrize("name", FIRST_LAYERS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_algorithm_1_is_the_gradient_through_the_encoder(name: str, surrogate: str) -> None:
    """The attack crafted on a spiking network is straight-through estimation, whatever comes first.

    Algorithm 1 accumulates the gradient of the first layer's membrane over the steps and applies
    the transposed layer; the library differentiates the image.
    """
    torch.manual_seed(0)
    first = FIRST_LAYERS[name]()
    x, y = torch.rand(3, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 2, 1])
    features = first(torch.zeros(1, 2, 6, 6)).numel()
    options: dict[str, Any] = {
        "leak": 0.9,
        "reset": "delayed_soft",
        "delayed_spike": True,
        "detach_reset": True,
        "strict": True,
        "surrogate": SURROGATES[surrogate],
    }
    layers = nn.Sequential(
        TimeDistributed(first),
        LIF(threshold=0.4, **options),
        TimeDistributed(nn.Sequential(nn.Flatten(), nn.Linear(features, 3))),
    )
    model = SpikingNetwork(9, Normalize([0.5] * 2, [0.5] * 2), layers, MeanReadout()).double()
    model.encoder = RateCoding(9, "signed_poisson")
    potentials: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        potentials.append(output)

    hook = layers[0].register_forward_hook(keep)
    torch.manual_seed(1)
    F.cross_entropy(model(x), y, reduction="sum").backward()
    hook.remove()
    assert potentials[0].grad is not None
    expected = algorithm_1(first, potentials[0].grad.sum(0), x.shape)
    assert expected.any()

    torch.manual_seed(1)
    pixels = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(pixels), y, reduction="sum"), pixels)
    assert_within(slope, 2 * expected.detach(), 1e-12)  # normalisation divides by 0.5
    torch.manual_seed(1)
    adversarial = FGSM(0.1)(model, x, y)
    sure = expected.abs() > 1e-12
    crafted = (x + 0.1 * expected.sign()).clamp(0, 1)
    assert_within(adversarial[sure], crafted[sure].detach(), 1e-12)


# Equation 7


def steps_to_fire(ratio: float, leak: float) -> float:
    """n of eq. 7, where r is the threshold over the constant input; real, before rounding up."""
    if leak == 1:
        return ratio
    return math.log(ratio * leak - (ratio - 1)) / math.log(leak)


def fired_at(x: Tensor, leak: float, threshold: float, **options: Any) -> list[int]:
    """The steps, counted from 1, at which one neuron fires."""
    decay, level = (torch.tensor(value, dtype=torch.float64) for value in (leak, threshold))
    spikes = functional.lif(x.view(-1, 1, 1), decay, level, **options)
    return [int(step) + 1 for step in spikes.flatten().nonzero()]


LEAKS = st.floats(0.5, 0.9999)
DRIVES = st.floats(0.01, 10.0)


@given(LEAKS | st.just(1.0), st.floats(0.01, 0.999), DRIVES, st.booleans())
@example(leak=0.75, share=0.9, drive=1.0, strict=False)
@example(leak=0.9999, share=0.02, drive=1.0, strict=True)
@settings(max_examples=60)
def test_the_rate_is_that_of_equation_7(
    leak: float, share: float, drive: float, strict: bool
) -> None:
    """Below r = 1 / (1 - leak) every interval is n rounded up, and the rate its inverse."""
    ratio = share * (40.0 if leak == 1 else min(1 / (1 - leak), 40.0))
    exact = steps_to_fire(ratio, leak)
    assume(abs(exact - round(exact)) > 1e-6)  # where rounding would decide
    interval = math.ceil(exact)
    x = torch.full((5 * interval,), drive, dtype=torch.float64)
    times = fired_at(x, leak, ratio * drive, strict=strict)
    assert times == [interval * k for k in range(1, 6)]
    # The paper's own neuron fires before it charges: its first spike comes a step later.
    theirs: dict[str, Any] = {"reset": "delayed_soft", "delayed_spike": True, "strict": True}
    assert fired_at(x, leak, ratio * drive, **theirs)[:1] == [interval + 1]


@given(LEAKS, st.floats(1.0001, 3.0), DRIVES)
@settings(max_examples=30)
def test_beyond_its_range_the_neuron_never_fires(leak: float, excess: float, drive: float) -> None:
    """At r = 1 / (1 - leak) the logarithm of eq. 7 ends: the leak takes all that comes in."""
    x = torch.full((min(math.ceil(30 / (1 - leak)), 20_000),), drive, dtype=torch.float64)
    assert not fired_at(x, leak, excess * drive / (1 - leak))


# Training


def recorded(model: SpikingNetwork) -> list[Surrogate]:
    seen: list[Surrogate] = []
    for module in model.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda m, *_: seen.append(m.active_surrogate(m.surrogate)))
    return seen


def test_it_trains_the_sum_by_its_surrogate() -> None:
    model = tiny_net(6)  # a mean over time
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 1, 0])
    seen = recorded(model)
    ((loss, logits),) = SpikeTimeFinetune().losses(model, x, y, Memory.seeded(0))
    assert seen == [SpikeTime(0.3, 0.01, normalized=True)]
    assert_same_bits(logits, 6 * model(x))
    assert seen[1:] == [Triangle()]
    assert loss.item() == pytest.approx(F.cross_entropy(6 * model(x), y).item())
    loss.backward()
    mine = [p.grad for p in model.parameters()]
    with gradient(model, SpikeTime(normalized=True)):
        expected = torch.autograd.grad(F.cross_entropy(6 * model(x), y), [*model.parameters()])
    for actual, grad in zip(mine, expected, strict=True):
        assert actual is not None
        assert_same_bits(actual, grad)
    model.readout = SumReadout()
    ((_, logits),) = SpikeTimeFinetune().losses(model, x, y, Memory.seeded(0))
    assert_same_bits(logits, model(x))


def test_the_leak_is_set_for_good() -> None:
    model = tiny_net(4, leak=1.0)
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 1, 0])
    neurons = [m for m in model.modules() if isinstance(m, LIF)]
    next(SpikeTimeFinetune().losses(model, x, y, Memory.seeded(0)))
    assert [n.get_buffer("leak").item() for n in neurons] == [1.0]
    fit(model, [(x, y)], SpikeTimeFinetune(leak=0.75), epochs=1, progress=False)
    assert [n.get_buffer("leak").item() for n in neurons] == [0.75]


def test_what_it_cannot_train_is_refused() -> None:
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    memory = Memory.seeded(0)

    def run(model: nn.Module, **options: Any) -> None:
        next(SpikeTimeFinetune(**options).losses(model, x, y, memory))

    with pytest.raises(ValueError, match="model has timesteps=0, expected at least 1"):
        run(tiny_net(0))
    plain = nn.Sequential(*tiny_net(3).children())
    with pytest.raises(ValueError, match="model has timesteps=None, expected at least 1"):
        run(plain)
    plain[-1] = SumReadout()
    run(plain)
    with pytest.raises(ValueError, match="holds no neuron of snnkern"):
        run(nn.Flatten())
    with pytest.raises(ValueError, match=r"leak is 0.9 and layers.2 holds .* learn_leak is True"):
        run(tiny_net(3, learn_leak=True), leak=0.9)
    with pytest.raises(ValueError, match=r"leak is 0.9 and layers.2 holds neurons where tau is"):
        run(tiny_net(3, leak=None, charge="decay_input", tau=2.0), leak=0.9)
    with pytest.raises(ValueError, match=r"SpikeTimeFinetune: leak is 1\.5, expected"):
        SpikeTimeFinetune(leak=1.5)
    with pytest.raises(TypeError, match="SpikeTimeFinetune: surrogate is 'stdb', expected"):
        SpikeTimeFinetune("stdb")  # type: ignore[arg-type]


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_fit_learns_the_digits(surrogate: str, autocast: torch.dtype | None) -> None:
    """From the weights of an ANN whose input was quantised as well."""
    split = digits()
    torch.manual_seed(0)
    layers = nn.Sequential(
        TimeDistributed(nn.Flatten()),
        TimeDistributed(nn.Linear(64, 32, bias=False)),
        IF(reset="delayed_soft", delayed_spike=True, detach_reset=True, strict=True),
        TimeDistributed(nn.Linear(32, 10, bias=False)),
    )
    model = SpikingNetwork(20, Normalize([0.5], [0.5]), layers, MeanReadout())
    model.encoder = RateCoding(20, "signed_poisson", bits=4)
    train = loader(split.train, shuffle=True)
    model.timesteps = 0
    fit(model, train, epochs=2, lr=5e-3, progress=False)
    model.timesteps = 20
    method = SpikeTimeFinetune(SURROGATES[surrogate], leak=0.99)
    history = fit(model, train, method, epochs=3, lr=5e-3, autocast=autocast, progress=False)
    assert history[-1].loss < 0.7 * history[0].loss
    assert history[-1].accuracy > 0.85
