"""The ensemble of 19 gradients on VGG11 against its members one after another, in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bench_memory import make_plain
from snnkern._table import Table
from snnkern.attacks import PGD, SURROGATE_ENSEMBLE, Ensemble
from snnkern.attacks.losses import decide
from snnkern.bench import Setting
from snnkern.models import vgg11
from snnkern.models.network import SpikingNetwork
from snnkern.nn import Gradient, NormLIF, gradient
from snnkern.surrogate import Surrogate, Triangle

TIMESTEPS, EPS, SEED = 8, 8 / 255, 0
BAR = 1 / 4  # of the members one after another
# Whose outcomes are compared in float64, which takes its time: a pointwise one, and the others.
COMPARED: tuple[Gradient, ...] = (SURROGATE_ENSEMBLE[0], SURROGATE_ENSEMBLE[8], "rate", "relu")
COMPARED_IMAGES, COMPARED_STEPS = 3, 2
PLAIN = "19 members one after another, full batches, plain PyTorch"
FIRST = "its first member alone"
# A robust network of Ozdenizci & Legenstein is right on 37 % under PGD through its own surrogate.
SURVIVING = 3 / 8
SOME = f"ensemble, if no member broke {SURVIVING:.1%} of them"
NOBODY = "ensemble, if no member broke any"


class Spike(torch.autograd.Function):
    """1 where the membrane reaches the threshold of 1; the derivative is a surrogate's."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(v)
        ctx.surrogate = surrogate
        return torch.ge(v, 1.0, out=torch.empty_like(v))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        grad_v: Tensor = grads[0] * ctx.surrogate.derivative(v - 1)
        return grad_v, None


def loop(x: Tensor, surrogate: Surrogate) -> Tensor:
    """Neurons that never leak, hard reset, nothing detached: one loop over time."""
    u, spikes = torch.zeros_like(x[0]), []
    for current in x.unbind(0):
        v = u + current
        spikes.append(Spike.apply(v, surrogate))  # type: ignore[no-untyped-call]
        u = v * (1 - spikes[-1])
    return torch.stack(spikes)


class ThroughRate(torch.autograd.Function):
    """The same neurons; a gradient passes where they fired at all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        spikes = loop(x, Triangle())
        ctx.save_for_backward(spikes.sum(0) > 0)
        return spikes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (fired,) = ctx.saved_tensors
        passed: Tensor = grads[0] * fired
        return passed


class Plain:
    """The network in plain PyTorch, with the member's neurons of the moment."""

    def __init__(self, network: SpikingNetwork) -> None:
        self.member: Gradient = Triangle()
        unpacked = vgg11(timesteps=TIMESTEPS, pack=False).to(next(network.parameters()))
        unpacked.load_state_dict(network.state_dict())
        norms = [copy.deepcopy(m) for m in unpacked.modules() if isinstance(m, NormLIF)]
        make_plain(unpacked, self.neurons).to(next(network.parameters()))
        of_plain = (m for m in unpacked.modules() if isinstance(m, nn.BatchNorm2d))
        for norm, own in zip(of_plain, norms, strict=True):
            norm.load_state_dict({name: own.state_dict()[name] for name in norm.state_dict()})
        self.network = unpacked.eval()

    def neurons(self, x: Tensor) -> Tensor:
        if self.member == "relu":
            return x.relu()
        if self.member == "rate":
            spikes: Tensor = ThroughRate.apply(x)  # type: ignore[no-untyped-call]
            return spikes
        assert isinstance(self.member, Surrogate)
        return loop(x, self.member)

    @contextmanager
    def differentiated(self, member: Gradient) -> Iterator[None]:
        """Within the block by this member."""
        self.member = member
        self.network.timesteps = 0 if member == "relu" else TIMESTEPS
        yield
        self.member = Triangle()
        self.network.timesteps = TIMESTEPS


class Guarded(nn.Module):
    """A network that takes bright images for class 0, whatever else is in them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        bright = (x.flatten(1).mean(1) > 0.7).to(logits)
        return torch.cat([logits[:, :1] + 10 * bright[:, None], logits[:, 1:]], 1)


@dataclass
class Case:
    """Networks and images, of which the network tells all right."""

    network: nn.Module
    plain: Plain
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, images: int, dtype: torch.dtype) -> Case:
        """An untrained network whose statistics are those of the images."""
        torch.manual_seed(SEED)
        network = vgg11(timesteps=TIMESTEPS).to(dtype)
        x = torch.rand(images, 3, 32, 32, dtype=torch.float32).to(dtype)
        norms = [module for module in network.modules() if isinstance(module, NormLIF)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            network.train()(x)
            y = network.eval()(x).argmax(1)
        return cls(network, Plain(network), x, y)

    def guarded(self) -> Case:
        """The same, but that no attack breaks a share of the images: bright ones, of class 0."""
        count = round(SURVIVING * len(self.x))
        x, y = self.x.clone(), self.y.clone()
        x[:count], y[:count] = 0.6 + 0.4 * x[:count], 0
        return Case(Guarded(self.network), self.plain, x, y)

    def broken(self, images: Tensor) -> Tensor:
        """Which samples are no longer told right."""
        with torch.no_grad():
            logits = self.network(images)
        return decide(logits, self.y) != self.y


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds, and what came of it."""
    start = perf_counter()
    result = run()
    return perf_counter() - start, result


def generator() -> torch.Generator:
    """The same stream every time."""
    return torch.Generator().manual_seed(SEED)


def assert_same_outcomes(steps: int = COMPARED_STEPS) -> int:
    """Compares the members' outcomes in float64, sample by sample; gives how many they are."""
    case = Case.of(COMPARED_IMAGES, torch.float64)
    attack = PGD(EPS, steps=steps)
    for member in COMPARED:
        with case.plain.differentiated(member):
            other = attack(case.plain.network, case.x, case.y, generator())
        with gradient(case.network, member):
            own = attack(case.network, case.x, case.y, generator())
        if not torch.equal(case.broken(own), case.broken(other)):
            raise AssertionError(f"{member}: other samples are broken than in plain PyTorch")
        if (own - other).abs().max() > 1e-9:
            raise AssertionError(f"{member}: other images than in plain PyTorch")
    return len(COMPARED) * COMPARED_IMAGES


def test_ensemble(
    benchmark: Any,
    setting: Setting,
    pytestconfig: pytest.Config,
    report_table: Callable[..., None],
) -> None:
    if setting.threads != pytestconfig.getoption("threads")[-1]:
        pytest.skip("a run takes minutes: measured with the last number of threads alone")
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    steps, images, fewer = pytestconfig.getoption("ensemble")
    outcomes = assert_same_outcomes()
    case = Case.of(images, torch.float32)
    attack, short = PGD(EPS, steps=steps), PGD(EPS, steps=fewer)
    seconds: dict[str, float] = {}
    found: dict[str, Tensor] = {}
    broken: dict[str, str] = {}

    def run_all() -> None:
        judging = timed(lambda: case.broken(case.x))[0]
        seconds["ensemble"], found["ensemble"] = timed(
            lambda: Ensemble(attack)(case.network, case.x, case.y, generator())
        )
        first = PGD(EPS, steps=steps, gradient=SURROGATE_ENSEMBLE[0])
        seconds[FIRST], found[FIRST] = timed(
            lambda: first(case.network, case.x, case.y, generator())
        )
        some = case.guarded()
        seconds[SOME], images_of_some = timed(
            lambda: Ensemble(attack)(some.network, some.x, some.y, generator())
        )
        broken[SOME] = f"{some.broken(images_of_some).sum()} of {images}"
        nobody = Ensemble(PGD(1e-9, steps=fewer))
        took, _ = timed(lambda: nobody(case.network, case.x, case.y, generator()))
        judged = len(SURROGATE_ENSEMBLE) * judging
        seconds[NOBODY] = (took - judged) * steps / fewer + judged
        total = 0.0
        for member in SURROGATE_ENSEMBLE:
            with case.plain.differentiated(member):
                took, _ = timed(lambda: short(case.plain.network, case.x, case.y, generator()))
            total += took * steps / fewer
        seconds[PLAIN] = total

    benchmark.pedantic(run_all, rounds=1)
    broken |= {name: f"{case.broken(those).sum()} of {images}" for name, those in found.items()}
    caption = (
        f"PGD-{steps} through 19 gradients on VGG11 with batch norm, untrained, T = {TIMESTEPS}, "
        f"{images} images of 32x32 and the labels that it gives, eps 8/255, float32, {setting}, "
        f"one run. Of what stays on full batches throughout, {fewer} steps are measured and their "
        f"time scaled to {steps}. In float64 all {outcomes} outcomes that were compared (of "
        f"{len(COMPARED)} members) are those of plain PyTorch. Bar: the ensemble in at most "
        f"{BAR:.2f} of the members' time."
    )
    rows = [
        (name, f"{took:.1f}", f"{took / seconds[PLAIN]:.3f}", broken.get(name, ""))
        for name, took in seconds.items()
    ]
    head = ("what", "seconds", "of the members", "broken")
    cases = [
        {"what": name, "seconds": took, "broken": broken.get(name)}
        for name, took in seconds.items()
    ]
    report_table(f"ensemble-{setting.pages}", Table.of(caption, head, rows), cases)
