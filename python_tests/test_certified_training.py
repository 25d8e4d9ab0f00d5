"""Certified training: golden losses and gradients, its schedules, inputs, refusals and gains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_tests.helpers import assert_within, golden
from python_tests.test_certify import GOLDEN, golden_network
from snnkern.certify import bounds, first, spike_bounds, verify
from snnkern.certify.bounds import Method as Bound
from snnkern.data import digits, loader
from snnkern.models import Normalize, SpikingNetwork, fc_net
from snnkern.nn import LIF, Direct, Events, MeanReadout, NormLIF, RateCoding, TimeDistributed
from snnkern.surrogate import Rectangle
from snnkern.training import Certified, Losses, Memory, Method, Natural, certified_loss, fit
from snnkern.training.certified import worst_logits

IMAGE = (1, 4, 4)


def memory(progress: float = 1.0, seed: int = 0) -> Memory:
    kept = Memory.seeded(seed)
    kept.progress = progress
    return kept


def loss_of(
    method: Certified, net: nn.Module, x: Tensor, y: Tensor, kept: Memory | None = None
) -> Tensor:
    ((loss, logits),) = method.losses(net, x, y, kept or memory())
    assert not logits.requires_grad
    return loss


def net_of(
    coding: Any = None, timesteps: int = 5, num_classes: int = 3, **options: Any
) -> SpikingNetwork:
    torch.manual_seed(0)
    return fc_net(
        num_classes,
        timesteps,
        input_shape=options.pop("input_shape", IMAGE),
        hidden=options.pop("hidden", [9, 7]),
        coding=coding,
        leak=0.25,
        threshold=0.25,
        **options,
    )


def images(count: int = 6, *shape: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.rand(count, *shape or IMAGE, generator=draws), torch.arange(count) % 3


# The paper's, as its code computes them


def golden_run(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Tensor, Tensor]:
    data, net = golden(name), golden_network(name)
    for module in net.modules():
        if isinstance(module, LIF):
            module.surrogate = Rectangle(1.0, scale=1.0)
    x, y = (torch.from_numpy(data[key]) for key in ("x", "labels"))
    net.encoder = RateCoding(10, "bernoulli")
    if name.endswith("direct"):
        net.encoder = Direct(10)
    elif name.endswith("event"):
        net.encoder, x = Events(10), x[:, 5:]
    rand = torch.from_numpy(data["rand"])
    monkeypatch.setattr(Certified, "_draws", lambda self, x, noise: rand)
    return data, net, x, y


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_losses_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the certified loss alone, from images and events to the gradients of all weights."""
    data, net, x, y = golden_run(name, monkeypatch)
    paper = Certified(
        float(data["eps_half_width"]), timesteps=3, weight=(0, 1), published=True, clip=False
    )
    loss = loss_of(paper, net, x, y)
    assert_within(loss.detach(), torch.from_numpy(data["loss_crown"]), 1e-9)
    loss.backward()
    expected = [torch.from_numpy(data[key]) for key in data if key.startswith("g.")]
    for parameter, wanted in zip(net.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert_within(parameter.grad, wanted, 1e-8)
    own = torch.autograd.grad(
        loss_of(replace(paper, published=False), net, x, y), list(net.parameters())
    )
    assert not any(torch.allclose(g, e, atol=1e-4) for g, e in zip(own, expected, strict=True))
    by_ibp = loss_of(replace(paper, crown=(1, 0)), net, x, y)
    assert_within(by_ibp.detach(), torch.from_numpy(data["loss_ibp"]), 1e-9)


# What is minimised


@pytest.mark.parametrize(
    ("coding", "crown"),
    [(None, (0, 0)), (None, (1, 1)), (None, (0, 0.5)), ("bernoulli", (0, 0)), ("poisson", (0, 0))],
)
def test_the_loss_is_that_of_the_bounds(
    coding: Any, crown: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half up the ramp and of three steps, by the bounds that make certificates."""
    net, (x, y) = net_of(coding, timesteps=5), images()
    method = Certified(0.1, ramp=0.8, weight=(0.2, 0.8), crown=crown, relaxation="joint")
    torch.manual_seed(3)
    loss = loss_of(method, net, x, y, memory(0.4))
    torch.manual_seed(3)
    clean = F.cross_entropy(net(x), y).detach()
    draws = torch.rand(3, *x.shape, generator=torch.Generator().manual_seed(0)) if coding else None
    net.timesteps = 3
    monkeypatch.setattr(first, "fits", lambda neuron, box: False)  # has no gradient

    def margins(bound: Bound) -> Tensor:
        return bounds(net, (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1), y, bound, draws=draws)

    share = sum(crown) / 2
    expected = (1 - share) * margins("ibp")
    if share:
        expected = expected + share * margins("crown")
    assert_within(loss.detach(), 0.5 * clean + 0.5 * certified_loss(expected, y), 1e-5)


def test_nothing_is_perturbed_at_the_start() -> None:
    net, (x, y) = net_of(timesteps=3), images()
    method = Certified(0.5, weight=(1, 1), crown=(0, 0))
    start, end = (loss_of(method, net, x, y, memory(at)) for at in (0.0, 1.0))
    assert_within(start, F.cross_entropy(net(x), y), 1e-4)
    assert end > start + 0.1
    at_once = loss_of(replace(method, ramp=0), net, x, y, memory(0.0))
    assert_within(at_once, end, 0)


@pytest.mark.parametrize("crown", [(0.0, 0.0), (1.0, 1.0)])
def test_unsure_events_are_drawn(crown: tuple[float, float]) -> None:
    shape = (5, 2, 6, 6)
    net, (x, y) = net_of("events", input_shape=shape[1:]), images(40, *shape)
    x = x.round()
    before = x.clone()
    method = Certified(0.1, weight=(1, 1), crown=crown, relaxation="joint")
    loss = loss_of(method, net, x, y, memory(seed=7))
    assert torch.equal(x, before)
    spikes = x[:, :3].transpose(0, 1)
    generator = torch.Generator().manual_seed(7)
    free = torch.rand(spikes.shape, generator=generator) < 0.1
    assert 0.09 < free.float().mean() < 0.11
    kind: Bound = "crown" if crown[0] else "ibp"
    expected = certified_loss(spike_bounds(net, spikes, y, kind, free=free), y)
    # Training does without the outward rounding of certificates.
    assert_within(loss.detach(), expected, 1e-4)


@pytest.mark.parametrize("crown", [(0.0, 0.0), (1.0, 1.0)])
def test_flips_of_events_are_counted(crown: tuple[float, float]) -> None:
    """Half up the ramp to four."""
    shape = (5, 2, 4, 4)
    net, (x, y) = net_of("events", input_shape=shape[1:]), images(4, *shape)
    x = x.round()
    method = Certified(flips=4, ramp=1, weight=(1, 1), crown=crown, relaxation="joint")
    loss = loss_of(method, net, x, y, memory(0.5))
    spikes = x[:, :3].transpose(0, 1)
    kind: Bound = "crown" if crown[0] else "ibp"
    expected = certified_loss(spike_bounds(net, spikes, y, kind, flips=2), y)
    assert_within(loss.detach(), expected, 1e-5)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_worst_logits_decide_as_certificates_do() -> None:
    """Of a tie nobody is certified, wherever its label stands."""
    margins = torch.tensor([[0.0, 0.5], [0.5, 0.25], [-1.0, 0.5]])
    y = torch.tensor([0, 1, 2])
    assert worst_logits(margins, y).tolist() == [[0.0, 0.0, -0.5], [-0.5, 0.0, -0.25], [1, -0.5, 0]]
    net, (x, y) = net_of(timesteps=3, spiking_output=True), images(60)
    y = net(x).argmax(1)
    method = Certified(0.02, crown=(0, 0))
    ((_, logits),) = method.losses(net, x, y, memory())
    certified = bounds(net, (x - 0.02).clamp(0, 1), (x + 0.02).clamp(0, 1), y, "ibp").amin(1)
    assert 0 < (certified.abs() < 1e-6).sum() < 60
    assert not ((logits.argmax(1) == y) & (certified <= 0)).any()


def test_norms_have_their_running_statistics_in_the_bounds() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        TimeDistributed(nn.Conv2d(1, 3, 3)),
        NormLIF(3, threshold=0.5),
        TimeDistributed(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12))),
        TimeDistributed(nn.Linear(12, 3)),
    )
    net = SpikingNetwork(4, Normalize([0.5], [0.5]), layers, MeanReadout())
    x, y = images(12)
    loss = loss_of(Certified(0.01, timesteps=4), net, x, y)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert all(module.training for module in net.modules())


# Trained


@dataclass(frozen=True)
class Noted(Method):
    """Natural training that notes how far it is."""

    seen: list[float]

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, memory: Memory) -> Losses:
        """Cross entropy."""
        self.seen.append(memory.progress)
        yield from Natural().losses(model, x, y, memory)


def test_methods_know_how_far_the_training_is(tmp_path: Path) -> None:
    net, (x, y) = net_of(timesteps=1), images(6)
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]

    class Unsized:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(batches)

    seen: list[float] = []
    fit(net, batches, Noted(seen), epochs=2, progress=False)
    assert seen == [0, 0.25, 0.5, 0.75]
    seen.clear()
    fit(net, Unsized(), Noted(seen), epochs=2, progress=False)
    assert seen == [0, 0, 0.5, 0.5]


def test_a_resumed_run_goes_on_up_the_ramp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits().train
    method = Certified(0.1, timesteps=2, ramp=1, crown=(0, 0))

    def train(folder: Path, resume: bool = False) -> SpikingNetwork:
        net = net_of("bernoulli", timesteps=3, input_shape=(1, 8, 8), num_classes=10)
        batches = loader(data, 300, shuffle=True)
        options: Any = {"resume": resume, "checkpoint_every": 1, "progress": False}
        fit(net, batches, method, epochs=2, folder=folder, **options)
        return net

    whole, calls, right = train(tmp_path / "whole"), [0], Certified.losses

    def cut(self: Certified, *given: Any) -> Losses:
        calls[0] += 1
        if calls[0] == 7:
            raise KeyboardInterrupt
        return right(self, *given)

    monkeypatch.setattr(Certified, "losses", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut")
    resumed = train(tmp_path / "cut", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("crown", [(0, 0), (0, 1)])
def test_certified_training_certifies(crown: tuple[float, float]) -> None:
    """Far more than natural training does, and as much in training as its records say."""
    data = digits()
    x, y = (t[:200] for t in data.test.tensors)
    shares, history = [], []
    method = Certified(0.05, timesteps=3, ramp=0.6, weight=(0, 0.5), crown=crown)
    for each in (Natural(), replace(method, relaxation="joint")):
        net = net_of(timesteps=3, input_shape=(1, 8, 8), num_classes=10, hidden=[24])
        history = fit(
            net, loader(data.train, 240, shuffle=True), each, epochs=10, lr=0.03, progress=False
        )
        with torch.no_grad():
            assert (net(x).argmax(1) == y).float().mean() > 0.85
        shares.append(verify(net, x, y, 0.05).certified.float().mean().item())
    natural, certified = shares
    assert certified > natural + 0.15
    assert abs(history[-1].accuracy - certified) < 0.1


# Refused


def test_divergence_stops_the_training() -> None:
    net, (x, y) = net_of(timesteps=3), images()
    with pytest.raises(
        FloatingPointError, match=r"certified loss is .* after 50% of the training, above limit=0"
    ):
        loss_of(Certified(0.5, limit=0.01), net, x, y, memory(0.5))
    with torch.no_grad():
        next(net.parameters()).fill_(1e38)
    with pytest.raises((FloatingPointError, ValueError), match=r"the loss became|overflow"):
        fit(net, [(x, y)], Certified(0.5, crown=(0, 0)), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "eps is None and flips is None, expected one of the two"),
        ({"eps": 0.1, "flips": 1}, "eps is 0.1 and flips is 1"),
        ({"eps": -0.1}, "Certified: eps is -0.1"),
        ({"flips": 0.5}, "Certified: flips is 0.5 of type float, expected an int"),
        ({"eps": 0.1, "timesteps": 0}, "Certified: timesteps is 0"),
        ({"eps": 0.1, "ramp": 1.5}, "Certified: ramp is 1.5"),
        ({"eps": 0.1, "weight": 0.5}, "Certified: weight is 0.5, expected two numbers"),
        ({"eps": 0.1, "weight": (0, 2)}, "Certified: weight is 2"),
        ({"eps": 0.1, "crown": (0, 0, 1)}, r"Certified: crown is \(0, 0, 1\), expected two"),
        ({"eps": 0.1, "rivals": 0}, "Certified: rivals is 0"),
        ({"eps": 0.1, "relaxation": "crown"}, "relaxation is 'crown', expected 'paper' or 'joint'"),
        ({"eps": 0.1, "relaxation": "joint", "published": True}, "published is True and relaxa"),
        ({"eps": 0.1, "limit": 0}, "Certified: limit is 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Certified(**options)


def test_networks_and_inputs_that_do_not_fit_are_refused() -> None:
    def refused(message: str, method: Certified, net: nn.Module, x: Tensor) -> None:
        y = torch.zeros(len(x), dtype=torch.int64)
        with pytest.raises((TypeError, ValueError), match=message):
            loss_of(method, net, x, y)

    x, _ = images()
    refused("flips is 2 and the model's encoder is Direct", Certified(flips=2), net_of(), x)
    refused("model has timesteps=0, expected a spiking", Certified(0.1), net_of(timesteps=0), x)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    refused("model is a Sequential, expected a snnkern.models.SpikingN", Certified(0.1), flat, x)
    frames, _ = images(6, 5, 2, 4, 4)
    events = net_of("events", timesteps=4, input_shape=(2, 4, 4))
    refused("values other than 0 and 1", Certified(0.1), events, frames)
    refused("timesteps is 5, expected at most the 4", Certified(0.1, timesteps=5), events, frames)
    refused(
        r"x has shape \[6, 3, 2, 4, 4\], expected frames", Certified(0.1), events, frames[:, :3]
    )


def test_events_are_the_input_of_as_many_steps() -> None:
    frames, _ = images(3, 6, 2, 4, 4)
    encoder = Events(4)
    assert torch.equal(encoder(frames), frames[:, :4].transpose(0, 1))
    assert repr(encoder) == "Events(timesteps=4)"
    encoder.relu = True
    assert_within(encoder(frames)[0], frames[:, :4].mean(1), 1e-6)
    with pytest.raises(ValueError, match=r"x has shape \[6, 2, 4\], expected frames"):
        Events(4)(frames[0, :, :, 0])
