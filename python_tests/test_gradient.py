"""Gradients that only an attacker wants: RGA, HART, PDSG and ASSG.

Compared with plain loops written from the formulas, differentiated by torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import snnkern
from python_tests.helpers import (
    assert_same_bits,
    assert_within,
    golden,
    laid_out,
    lif,
    norm_lif,
    random,
)
from python_tests.networks import tiny_net
from snnkern import functional
from snnkern.attacks import BIM, FGSM
from snnkern.nn import hold_surrogates
from snnkern.surrogate import (
    ASSG,
    HART,
    PDSG,
    RGA,
    ATan,
    Moments,
    NotPointwise,
    Surrogate,
    Triangle,
)

RULES = (RGA(), HART(0.7), PDSG(), ASSG(0.4, relax=1.2, decay=0.8))
EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


class History:
    """Of one layer: what ASSG remembers between gradients."""

    def __init__(self) -> None:
        self.mean: dict[int, Tensor] = {}
        self.deviation: dict[int, Tensor] = {}


def derivative(rule: Surrogate, zs: list[Tensor], history: History) -> Tensor:
    """ds/dz of the last of the steps ``zs``, each ``[N, C, ...]``, by the formula."""
    z = zs[-1]
    if isinstance(rule, HART):
        return (rule.width - z.abs()).clamp(min=0) / rule.width**2
    if isinstance(rule, PDSG):
        seen = torch.stack(zs)
        if z.dim() > 2:
            sigma = torch.stack([seen[:, :, c].std(correction=0) for c in range(z.shape[1])])
            sigma = sigma.reshape(-1, *(1,) * (z.dim() - 2))
        else:
            sigma = seen.std(correction=0)
        sigma = torch.where(sigma == 0, torch.ones_like(sigma), sigma)
        bell = torch.exp(-(((z - sigma / 2) / (math.sqrt(2) * sigma)) ** 2))
        return bell / (math.sqrt(2 * math.pi) * sigma)
    assert isinstance(rule, ASSG)
    t = len(zs)
    m = history.mean.get(t, torch.ones_like(z))
    d = history.deviation.get(t, torch.zeros_like(z))
    m = rule.decay * m + (1 - rule.decay) * z.abs()
    d = rule.decay * d + (1 - rule.decay) * (z.abs() - m).abs()
    history.mean[t], history.deviation[t] = m, d
    alpha = 2 * math.tan(math.pi * rule.share) / math.pi / (m + rule.relax * d + 1e-4)
    return alpha / 2 / (1 + (math.pi * alpha * z / 2) ** 2)


class Averaged(torch.autograd.Function):
    """Hands on; every step of the gradient becomes the mean of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].mean(0, keepdim=True).expand(grads[0].shape)


def shaped(parameter: Tensor | float, x: Tensor) -> Tensor:
    p = torch.as_tensor(parameter, dtype=x.dtype)
    return p.reshape(-1, *(1,) * (x.dim() - 3)) if p.dim() == 1 else p


def plain(
    x: Tensor,
    rule: Surrogate,
    leak: Tensor | float = 0.8,
    threshold: Tensor | float = 0.5,
    reset: str = "hard",
    detach_reset: bool = False,
    history: History | None = None,
    normalized: bool = False,
) -> Tensor:
    """LIF in plain PyTorch, differentiated by the rule."""
    history = History() if history is None else history
    leak, threshold = shaped(leak, x), shaped(threshold, x)
    if isinstance(rule, HART):
        x = Averaged.apply(x)  # type: ignore[no-untyped-call]
    u, spikes, zs = torch.zeros_like(x[0]), [], []
    for step in x:
        v = leak * (u.detach() if isinstance(rule, HART) else u) + step
        z = v / threshold - 1 if normalized else v - threshold
        zs.append(z.detach())
        s = (z >= 0).to(x.dtype)
        if not isinstance(rule, RGA):
            s = s + derivative(rule, zs, history) * (z - z.detach())
        r = s.detach() if detach_reset else s
        u = v * (1 - r) if reset == "hard" else v - threshold * r
        spikes.append(s)
    out = torch.stack(spikes)
    if isinstance(rule, RGA):
        mean = x.detach().mean(0) / threshold
        k = 0.2 * ((mean >= 0) & (mean <= 1 - leak)) + (0.8 + 0.2 * leak) / (leak + 1) * (
            (mean >= 1 - leak) & (mean <= 2)
        )
        out = out.detach() + k / threshold * (x - x.detach())
    return out


SHAPES = pytest.mark.parametrize("shape", [(4, 3, 2, 3, 2), (5, 3, 7), (1, 2, 3), (3, 2)], ids=str)


@EVERY_RULE
@SHAPES
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_it_is_the_formula(rule: Surrogate, shape: tuple[int, ...], reset: Any) -> None:
    x = random(*shape, seed=2, dtype=torch.float64).requires_grad_()
    upstream = random(*shape, seed=1, dtype=torch.float64)
    spikes = functional.lif(x, 0.8, 0.5, reset=reset, surrogate=rule)
    expected = plain(x, rule, reset=reset)
    assert_same_bits(spikes.detach(), expected.detach().round())
    (actual,) = torch.autograd.grad(spikes, x, upstream)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    assert_within(actual, wanted, 1e-12)
    assert wanted.abs().max() > 0


@EVERY_RULE
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_options_and_parameters(rule: Surrogate, detach_reset: bool, normalized: bool) -> None:
    if normalized:
        if isinstance(rule, RGA):
            return
        rule = type(rule)(normalized=True)
    x = random(4, 3, 2, 5, dtype=torch.float64).requires_grad_()
    leak = torch.tensor([0.9, 0.6], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor([0.4, 0.7], dtype=torch.float64, requires_grad=True)
    upstream = random(*x.shape, seed=1, dtype=torch.float64)
    spikes = lif(x, leak, threshold, surrogate=rule, detach_reset=detach_reset, reset="soft")
    expected = plain(x, rule, leak, threshold, "soft", detach_reset, normalized=normalized)
    given = (x, leak, threshold)
    actual = torch.autograd.grad(spikes, given, upstream, allow_unused=True)
    wanted = torch.autograd.grad(expected, given, upstream, allow_unused=True)
    for number, (one, other) in enumerate(zip(actual, wanted, strict=True)):
        if number > 0 and isinstance(rule, RGA | HART):
            assert one is None
        else:
            assert_within(one, other, 1e-12)


@EVERY_RULE
@pytest.mark.parametrize("training", [True, False])
def test_behind_a_norm(rule: Surrogate, training: bool) -> None:
    x = random(4, 3, 2, 5, dtype=torch.float64).requires_grad_()
    weight, bias = (random(2, seed=s, dtype=torch.float64).requires_grad_() for s in (1, 2))
    mean, var = random(2, seed=3, dtype=torch.float64), torch.rand(2, dtype=torch.float64) + 0.5
    upstream = random(*x.shape, seed=4, dtype=torch.float64)
    spikes = norm_lif(
        x,
        mean.clone(),
        var.clone(),
        weight,
        bias,
        training=training,
        leak=0.8,
        threshold=0.5,
        surrogate=rule,
    )
    merged = F.batch_norm(x.flatten(0, 1), mean.clone(), var.clone(), weight, bias, training)
    expected = plain(merged.view(x.shape), rule)
    assert_within(spikes.detach(), expected.detach(), 1e-12)
    given = (x, weight, bias)
    actual = torch.autograd.grad(spikes, given, upstream)
    for one, other in zip(actual, torch.autograd.grad(expected, given, upstream), strict=True):
        assert_within(one, other, 1e-10)
        assert other.abs().max() > 0


@EVERY_RULE
@pytest.mark.parametrize("layout", ["input held", "gradient held", "held by timesteps", "half"])
def test_layouts(rule: Surrogate, layout: str) -> None:
    """What is the same in all steps may lie there once; half types see as float32."""
    dtype = torch.float16 if layout == "half" else torch.float64
    once = (0.8 * random(1, 3, 4, 2)).to(dtype).requires_grad_()
    upstream = random(4, 3, 4, 2, seed=1).to(dtype)
    if layout == "gradient held":
        upstream = upstream[:1].expand(upstream.shape)
    if layout == "held by timesteps":
        spikes = functional.lif(once, 0.8, 0.5, surrogate=rule, timesteps=4)
    else:
        spikes = functional.lif(once.expand(4, -1, -1, -1), 0.8, 0.5, surrogate=rule)
    (actual,) = torch.autograd.grad(spikes, once, upstream)
    wide = once.detach().float() if layout == "half" else once.detach()
    copies = wide.requires_grad_().repeat(4, 1, 1, 1)
    (wanted,) = torch.autograd.grad(plain(copies, rule), wide, upstream.to(wide.dtype))
    assert_within(actual, wanted, 2e-2 if layout == "half" else 1e-12)


@pytest.mark.parametrize("row", range(3))
def test_rga_golden(row: int) -> None:
    data = golden("rga_rate")
    # Its leaks of 0.9 and 0.5 are those of float32.
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 2e-5)):
        x = torch.from_numpy(data[f"x{row}"]).to(dtype).requires_grad_()
        gout = torch.from_numpy(data[f"gout{row}"])
        spikes = lif(x, float(data["taus"][row]), strict=True, surrogate=RGA())
        assert torch.equal(spikes.double(), torch.from_numpy(data[f"s{row}"]))
        (gx,) = torch.autograd.grad(spikes, x, gout.to(dtype))
        expected = torch.from_numpy(data[f"gx{row}"])
        assert_within(gx, expected, tolerance * max(1.0, float(expected.abs().max())))


def test_pdsg_is_exactly_one_wide_where_all_neurons_are_alike() -> None:
    """0.3 is no sum of powers of two: a variance by differences of squares would not be 0."""
    z = torch.full((3, 5, 2, 7, 7), -0.3)
    bell = math.exp(-0.5 * 0.8**2) / math.sqrt(2 * math.pi)
    assert_within(PDSG().derivatives(z), torch.full(z.shape, bell), 1e-6)


# Over a network, and over the steps of an attack


class PlainNet:
    """tiny_net in plain PyTorch."""

    def __init__(self, net: Any, rule: Surrogate) -> None:
        self.first, self.second = (m for m in net.modules() if isinstance(m, nn.Linear))
        self.timesteps, self.rule, self.history = net.timesteps, rule, History()

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        current = self.first((x.flatten(1) - 0.5) / 0.5)
        steps = current.expand(self.timesteps, *current.shape)
        spikes = plain(steps, self.rule, 0.5, 0.5, history=self.history)
        loss = F.cross_entropy(self.second(spikes).mean(0), y, reduction="sum")
        return torch.autograd.grad(loss, x)[0]


def images() -> tuple[Tensor, Tensor]:
    return torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double(), (
        torch.arange(6) % 3
    )


def input_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x)[0]


@EVERY_RULE
def test_a_model_is_differentiated_by_it(rule: Surrogate) -> None:
    net = tiny_net(4).double()
    truth = PlainNet(net, rule)
    x, y = images()
    before = net(x).detach()
    with snnkern.gradient(net, rule):
        assert_same_bits(net(x).detach(), before)
        for step in range(3):  # what ASSG has seen goes on from gradient to gradient
            actual, expected = input_gradient(net, x, y), truth.gradient(x, y)
            assert_within(actual, expected, 1e-12, f"step {step}")
            assert expected.abs().max() > 0
            x = (x + 0.05 * expected.sign()).clamp(0, 1)
    with snnkern.gradient(net, rule):  # and starts anew
        assert_within(input_gradient(net, x, y), PlainNet(net, rule).gradient(x, y), 1e-12)


def test_held_surrogates_see_without_remembering() -> None:
    net, (x, y) = tiny_net(4).double(), images()
    z = 1 - x
    with snnkern.gradient(net, ASSG()):
        first, second = input_gradient(net, x, y), input_gradient(net, z, y)
    truth = PlainNet(net, ASSG())
    with snnkern.gradient(net, ASSG()):
        with hold_surrogates(net):  # the first look is remembered: there is nothing to hold yet
            assert_same_bits(input_gradient(net, x, y), first)
            repeated = input_gradient(net, x, y)
        truth.gradient(x, y)
        seen = {t: m.clone() for t, m in truth.history.mean.items()}
        assert_same_bits(input_gradient(net, z, y), second)
    assert not torch.equal(repeated, truth.gradient(x, y))
    assert seen


def test_assg_keeps_moments_that_it_is_given() -> None:
    x = random(3, 2, 4, dtype=torch.float64).requires_grad_()
    moments, history = Moments(), History()
    for _ in range(3):
        (actual,) = torch.autograd.grad(
            functional.lif(x, 0.8, 0.5, surrogate=ASSG(moments=moments)).sum(), x
        )
        (wanted,) = torch.autograd.grad(plain(x, ASSG(), history=history).sum(), x)
        assert_within(actual, wanted, 1e-12)
    assert moments.mean is not None
    assert ASSG(moments=moments) == ASSG()


def test_assg_follows_every_call_of_a_layer() -> None:
    neurons = snnkern.LIF(0.8, 0.5)
    linear = [snnkern.nn.TimeDistributed(nn.Linear(*sizes)).double() for sizes in ((4, 6), (6, 3))]
    once = nn.Sequential(linear[0], snnkern.LIF(0.8, 0.5), linear[1], snnkern.LIF(0.8, 0.5))
    twice = nn.Sequential(linear[0], neurons, linear[1], neurons)
    x = random(3, 5, 4, dtype=torch.float64)
    found = []
    for net in (once, twice):
        with snnkern.gradient(net, ASSG()):
            for scale in (1.0, 2.0, 0.5):
                images = (scale * x).requires_grad_()
                (g,) = torch.autograd.grad(net(images).sum(), images)
                found.append(g)
    for one, other in zip(found[:3], found[3:], strict=True):
        assert_same_bits(one, other)


def test_assg_refuses_another_batch() -> None:
    net, (x, y) = tiny_net(4).double(), images()
    with snnkern.gradient(net, ASSG()):
        input_gradient(net, x, y)
        with pytest.raises(ValueError, match=r"shape \[4, 2, 8\], expected \[4, 6, 8\] as before"):
            input_gradient(net, x[:2], y[:2])


def test_one_surrogate_for_every_sample() -> None:
    net, (x, y) = tiny_net(4).double(), images()
    chosen = [Triangle(0.5 + i / 4) if i % 2 else snnkern.surrogate.ATan(i + 1) for i in range(6)]
    with snnkern.gradient(net, chosen):
        together = input_gradient(net, x, y)
    for i, one in enumerate(chosen):
        with snnkern.gradient(net, one):
            assert_within(together[i], input_gradient(net, x, y)[i], 1e-14)
    with (
        snnkern.gradient(net, chosen[:5]),
        pytest.raises(ValueError, match="surrogate has 5 entries, expected 6"),
    ):
        net(x)


@pytest.mark.parametrize("neurons", [7, 100, 300, 9000])
@pytest.mark.parametrize("layout", ["contiguous", "batch_last"])
@pytest.mark.parametrize("norm", [False, True])
def test_runs_of_samples_with_one_surrogate(neurons: int, layout: str, norm: bool) -> None:
    """Short runs and long ones, such as cross the kernel's tiles: every bit is the sample's own."""
    x = laid_out(random(5, 8, 1, neurons), layout).requires_grad_()
    upstream = random(*x.shape, seed=1)
    chosen = [Triangle(0.5)] * 3 + [ATan()] * 2 + [ATan(normalized=True), ATan(), Triangle(0.5)]

    def slope(surrogate: Any) -> Tensor:
        if norm:
            mean, var = torch.full((1,), 0.1), torch.full((1,), 0.7)
            spikes = norm_lif(x, mean, var, leak=0.9, threshold=0.6, surrogate=surrogate)
        else:
            spikes = lif(x, 0.9, 0.6, surrogate=surrogate)
        (grad,) = torch.autograd.grad(spikes, x, upstream)
        return grad

    together = slope(chosen)
    own = {one: slope(one) for one in set(chosen)}
    for number, one in enumerate(chosen):
        assert_same_bits(together[:, number], own[one][:, number], f"sample {number}")


# What is refused


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (RGA(), {"charge": "euler", "rate": 0.5}, "expected charge='leak' and no synapse"),
        (RGA(), {"synapse": "charged", "synapse_decay": 0.5}, "expected charge='leak' and no"),
        (HART(), {"synapse": "jump", "synapse_decay": 0.5}, "expected no synapse"),
        ([Triangle(), PDSG()], {}, r"surrogate\[1\] is PDSG.*expected one of a single step"),
    ],
)
def test_what_a_rule_says_nothing_of_is_refused(
    rule: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lif(random(3, 2, 4), surrogate=rule, **options)


@pytest.mark.parametrize(("name", "value"), [("share", 0.5), ("decay", 1.0)])
def test_assg_refuses_shares_and_decays_that_mean_nothing(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"ASSG: {name} is {value}, expected a number below"):
        ASSG(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [HART(), PDSG(), ASSG()], ids=repr)
def test_second_derivatives_are_refused(rule: Surrogate) -> None:
    x = random(3, 2, 4).requires_grad_()
    spikes = functional.lif(x, surrogate=rule)
    with pytest.raises(NotImplementedError, match="a second derivative through"):
        torch.autograd.grad(spikes.square().sum(), x, create_graph=True)


@EVERY_RULE
def test_other_charges_resets_and_delays(rule: Surrogate) -> None:
    """Whatever a rule takes it differentiates: a value for every current, none of them NaN."""
    cases: list[dict[str, Any]] = [
        {"leak": 0.8, "gain": 0.5, "reset": "none"},
        {"leak": 0.8, "reset": "delayed_soft", "delayed_spike": True},
        {"charge": "decay_input", "tau": 2.0, "v_rest": 0.1},
    ]
    x = random(4, 3, 5, dtype=torch.float64).requires_grad_()
    for options in cases[: 2 if isinstance(rule, RGA) else 3]:
        (grad,) = torch.autograd.grad(lif(x, threshold=0.5, surrogate=rule, **options).sum(), x)
        assert grad.isfinite().all()
        assert grad.abs().max() > 0


@EVERY_RULE
def test_the_state_is_returned_all_the_same(rule: Surrogate) -> None:
    x = random(4, 3, 5).requires_grad_()
    actual = functional.lif(x, 0.8, surrogate=rule, return_state=True)
    expected = functional.lif(x, 0.8, return_state=True)
    for one, other in zip(actual, expected, strict=True):
        assert_same_bits(one, other)


@EVERY_RULE
@pytest.mark.parametrize("norm", [False, True])
def test_they_compile(rule: Surrogate, norm: bool) -> None:
    def run(x: Tensor) -> Tensor:
        if not norm:
            return functional.lif(x, 0.8, 0.5, surrogate=rule)
        mean, var = torch.zeros(2), torch.ones(2)
        result: Tensor = functional.norm_lif(x, mean, var, leak=0.8, surrogate=rule)
        return result

    x = random(4, 3, 2, 5).requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    (actual,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(run(x).sum(), x)
    assert_same_bits(actual, expected)


@EVERY_RULE
def test_attacks_take_them(rule: Surrogate) -> None:
    net, (x, y) = tiny_net(4).double(), images()
    expected = (x + 0.1 * PlainNet(net, rule).gradient(x, y).sign()).clamp(0, 1)
    for _ in range(2):  # nothing is left of the run before
        assert_within(FGSM(0.1, gradient=rule)(net, x, y), expected, 1e-12)


def test_assg_follows_the_steps_of_an_attack() -> None:
    """Not the repeats of a gradient; only samples still worked on; every restart anew."""
    net, (x, y) = tiny_net(4).double(), images()
    y = net(x).argmax(1)
    plain_steps = BIM(0.2, steps=6, gradient=ASSG())(net, x, y)
    repeated = BIM(0.2, steps=6, gradient=ASSG(), eot=3)(net, x, y)
    assert_within(repeated, plain_steps, 1e-12)
    stopped = BIM(0.2, steps=6, gradient=ASSG(), stop=True)(net, x, y)
    broken = net(stopped).argmax(1) != y
    assert broken.any()
    assert not broken.all()
    assert_within(stopped[~broken], plain_steps[~broken], 1e-12)
    again = BIM(0.2, steps=6, gradient=ASSG(), restarts=2)(net, x, y)
    assert_within(again, plain_steps, 1e-12)


def test_own_rules_say_what_they_lack() -> None:
    class Own(NotPointwise):
        kind: ClassVar[str] = "own"

    class OwnSteps(HART):
        kind: ClassVar[str] = "own_steps"

    x = random(3, 2, 4).requires_grad_()
    with pytest.raises(ValueError, match="Own has no derivatives of all steps, expected it to"):
        lif(x, surrogate=Own()).sum().backward()
    with pytest.raises(ValueError, match="expected no synapse"):
        lif(x, surrogate=OwnSteps(), synapse="jump", synapse_decay=0.5)
    lif(x, surrogate=OwnSteps()).sum().backward()
    expected = torch.autograd.grad(lif(x, surrogate=HART()).sum(), x)[0]
    assert x.grad is not None
    assert_within(x.grad, expected, 0)


def test_rules_without_a_point_have_no_derivative() -> None:
    rules: tuple[Callable[[], Surrogate], ...] = (RGA, PDSG, ASSG)
    for rule in rules:
        with pytest.raises(ValueError, match="has no derivative at a point"):
            rule().derivative(torch.zeros(1))
    assert_within(HART(0.5).derivative(torch.zeros(1)), torch.tensor([2.0]), 0)


def test_bptr_compiles() -> None:
    net, (x, _) = tiny_net(4).double().eval(), images()
    x.requires_grad_()
    torch.compiler.reset()
    with snnkern.gradient(net, "rate"):
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        (actual,) = torch.autograd.grad(compiled(x).sum(), x)
        (expected,) = torch.autograd.grad(net(x).sum(), x)
    assert_within(actual, expected, 1e-12)
