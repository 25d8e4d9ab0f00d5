"""Beside other libraries: their attacks on our models, ours on theirs, and which is stronger."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_tests.helpers import assert_same_bits, assert_within, need
from python_tests.networks import fc_layers
from snnkern import LIF, evaluate
from snnkern.attacks import APGD, BIM, FGSM, PGD, RFGSM, SAPGD, Attack, Square, Stateless
from snnkern.data import digits
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import MeanReadout, TimeDistributed
from snnkern.surrogate import ATan

EPS = 0.1


def test_what_is_missing_is_skipped_but_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"nothing\.here is not there"):
        need("nothing.here")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"CI must have nothing\.here"):
        need("nothing.here")


@contextmanager
def theirs() -> Iterator[None]:
    """Within the block warnings are the other library's own, and so is torch's chance."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(*widths: int, **neuron: Any) -> nn.Module:
    layers = fc_layers((64, *widths, 10), **neuron)
    return SpikingNetwork(4, Normalize([0.5], [0.5]), layers, MeanReadout())


def convolutional() -> nn.Module:
    layers = nn.Sequential(
        TimeDistributed(nn.Conv2d(1, 8, 3, stride=2, padding=1)),
        LIF(0.5, 0.5),
        TimeDistributed(nn.Sequential(nn.Flatten(), nn.Linear(128, 10))),
    )
    return SpikingNetwork(3, Normalize([0.5], [0.5]), layers, MeanReadout())


def spiking_jelly() -> nn.Module:
    from spikingjelly.activation_based import layer, neuron

    class Jelly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                layer.Linear(64, 32, step_mode="m"),
                neuron.LIFNode(step_mode="m"),
                layer.Linear(32, 10, step_mode="m"),
            )

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.layers(x.flatten(1).expand(4, -1, -1)).mean(0)
            return logits

    return Jelly()


def snn_torch() -> nn.Module:
    import snntorch

    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)
            self.neuron = snntorch.Leaky(beta=0.9, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            steps = [self.last(self.neuron(self.first(x.flatten(1)))) for _ in range(4)]
            return torch.stack(steps).mean(0)

    return Torch()


NETS: dict[str, Any] = {
    "natural": (lambda: dense(32, leak=0.5, threshold=0.5), 0.0),
    "robust": (lambda: dense(32, leak=0.5, threshold=0.5), 0.1),
    "deep": (lambda: dense(32, 32, leak=0.9, threshold=0.5, surrogate=ATan()), 0.0),
    "soft": (lambda: dense(48, leak=1.0, reset="soft"), 0.05),
    "convolutional": (convolutional, 0.0),
    "spikingjelly": (spiking_jelly, 0.0),
    "snntorch": (snn_torch, 0.0),
}


@lru_cache
def trained(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, and the test images that it tells right."""
    make, eps = NETS[name]
    split = digits(test_share=0.25)
    images, labels = split.train.tensors
    with theirs():
        torch.manual_seed(0)
        net = make()
        called = net if name not in ("spikingjelly", "snntorch") else Stateless(net)
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(60):
            chosen = torch.randint(len(images), (128,))
            x, y = images[chosen], labels[chosen]
            if eps:
                x = RFGSM(eps)(net, x, y)
            optimizer.zero_grad()
            F.cross_entropy(called(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()
    net.eval()
    x, y = split.test.tensors
    with torch.no_grad():
        right = called(x).argmax(1) == y
    assert right.float().mean() > 0.85
    return net, x[right], y[right]


def survivors(net: nn.Module, images: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(images).argmax(1) == y).float().mean().item())


OURS = ("natural", "robust", "deep", "soft", "convolutional")


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted-dlr"])
def test_apgd_is_as_strong_as_autoattacks(name: str, loss: Any) -> None:
    need("pyautoattack")
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    net, x, y = trained(name)
    steps, targets = (40, 1) if loss != "targeted-dlr" else (20, 3)
    options: dict[str, Any] = {"n_iter": steps, "eps": EPS, "seed": 0, "device": "cpu"}
    with theirs():
        if loss == "targeted-dlr":
            peer = APGDAttack_targeted(net, **options, n_target_classes=targets)
        else:
            peer = APGDAttack(net, **options, loss=loss)
        expected = survivors(net, peer.perturb(x, y), y)
    ours = APGD(EPS, steps, loss=loss, targets=targets)(net, x, y, generator())
    assert survivors(net, ours, y) <= expected + 0.01
    assert 0.02 < expected < 0.9


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.8)])
def test_square_is_as_strong_as_autoattacks(name: str, norm: Any, eps: float) -> None:
    need("pyautoattack")
    from pyautoattack.square import SquareAttack

    net, x, y = trained(name)
    with theirs():
        peer = SquareAttack(
            net,
            n_queries=200,
            eps=eps,
            norm=norm.capitalize(),
            seed=0,
            device="cpu",
            resc_schedule=False,
        )
        expected = survivors(net, peer.perturb(x, y), y)
    ours = Square(eps, 200, norm=norm)(net, x, y, generator())
    assert survivors(net, ours, y) <= expected + 0.01
    assert 0.1 < expected < 0.95


@pytest.mark.parametrize("name", ["natural", "convolutional"])
def test_bim_is_torchattacks(name: str) -> None:
    need("torchattacks")
    import torchattacks

    net, x, y = trained(name)
    net = net.double()
    with theirs():
        expected = torchattacks.BIM(net, eps=EPS, alpha=0.03, steps=8)(x.double(), y)
    adversarial = BIM(EPS, 0.03, 8)(net, x.double(), y)
    net.float()
    assert_within(adversarial, expected, 1e-12)


def test_the_strong_are_stronger() -> None:
    """On the same network with the same gradient; a single one may win by luck, not over all."""
    attacks: dict[str, Attack] = {
        "pgd": PGD(EPS, steps=20),
        "apgd": APGD(EPS, 100, stop=True),
        "sapgd": SAPGD(EPS, 100, stop=True),
    }
    left: dict[str, float] = dict.fromkeys(attacks, 0.0)
    for name in OURS:
        net, x, y = trained(name)
        for key, attack in attacks.items():
            left[key] += survivors(net, attack(net, x, y, generator()), y) / len(OURS)
    assert left["apgd"] < left["pgd"] - 0.01
    assert left["sapgd"] < left["pgd"] - 0.01


# Others' attacks on our models as they are


def test_art_attacks_our_models() -> None:
    need("art")
    net, x, y = trained("natural")
    with theirs():
        from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier

        model = PyTorchClassifier(
            net, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu"
        )
        for kind, options in (
            (ProjectedGradientDescent, {"max_iter": 7}),
            (AutoProjectedGradientDescent, {"max_iter": 7, "nb_random_init": 1}),
        ):
            attack = kind(model, eps=EPS, eps_step=0.03, verbose=False, **options)
            found = torch.from_numpy(attack.generate(x.numpy(), y.numpy().astype(np.int64)))
            assert (found - x).abs().max() <= EPS + 1e-6
            assert survivors(net, found, y) < 0.8


def test_foolbox_attacks_our_models() -> None:
    need("foolbox")
    net, x, y = trained("natural")
    with theirs():
        import foolbox

        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.LinfPGD(steps=7, abs_stepsize=0.03)
        _, (found, none), success = attack(model, x, y, epsilons=[EPS, 0.0])
    assert (found - x).abs().max() <= EPS + 1e-6
    assert_within(none, x, 1e-7)
    assert success[0].float().mean().item() == pytest.approx(1 - survivors(net, found, y))
    assert success[0].float().mean() > 0.2


def test_autoattack_as_a_whole_runs_on_our_models() -> None:
    need("pyautoattack")
    from pyautoattack.autoattack import AutoAttack

    net, x, y = trained("natural")
    with theirs():
        peer = AutoAttack(net, attacks=["apgd-ce", "square"], version="custom", eps=EPS, seed=0)
        peer.apgd.n_restarts, peer.square.n_queries = 1, 10
        images = peer.run_standard_evaluation(x[:30], y[:30])[0]
    assert (images - x[:30]).abs().max() <= EPS + 1e-6


# Our attacks on others' models


@pytest.mark.parametrize("name", ["spikingjelly", "snntorch"])
def test_models_of_other_libraries_are_attacked(name: str) -> None:
    need(name)
    with theirs():
        net, x, y = trained(name)
        net(x)  # leaves a state
        before = state_of(net, name)
        assert before.abs().max() > 0
        attacks: tuple[Attack, ...] = (FGSM(EPS), PGD(EPS, stop=True), Square(EPS, 20))
        for attack in attacks:
            found = attack(net, x, y, generator())
            assert state_of(net, name) is before
            assert_same_bits(attack(at_rest(net, name), x, y, generator()), found)
        report = evaluate(net, [(x, y)], {"pgd": PGD(EPS)}, progress=False)
    assert report.accuracy() == 1
    assert report.accuracy("pgd") < 0.8
    assert state_of(net, name) is before


def state_of(net: Any, name: str) -> Tensor:
    state: Tensor = net.layers[1].v if name == "spikingjelly" else net.neuron.mem
    return state


def at_rest(net: nn.Module, name: str) -> nn.Module:
    """Put at rest the way its own library says."""
    if name == "spikingjelly":
        from spikingjelly.activation_based.functional import reset_net

        return Stateless(net, reset_net)

    def rest(model: Any) -> None:
        model.neuron.reset_mem()

    return Stateless(net, rest)
