"""The search among spike trains, and attacks one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from python_tests.helpers import need
from python_tests.networks import tiny_net
from snnkern.attacks import (
    APGD,
    FGSM,
    PGD,
    SAPGD,
    Cascade,
    Ensemble,
    Patterns,
    Square,
    evaluate,
    strongest,
)
from snnkern.attacks.attack import Victim
from snnkern.attacks.patterns import INSIDE, _best, _First, _watching
from snnkern.certify import verify
from snnkern.models import SpikingNetwork, conv_net, fc_net
from snnkern.nn import NormLIF, RateCoding


def images(count: int, seed: int = 0, side: int = 2) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


def predicted(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = net.eval()(x).argmax(1)
    return found


# Against the truth


def test_it_breaks_what_the_exact_verifier_breaks() -> None:
    need("scipy")
    missed_by_gradients = 0
    for seed in range(3):
        net = fc_net(
            4, 3, input_shape=(1, 3, 3), hidden=(12,), leak=(0.5, 0.9, 1.0)[seed], threshold=0.5
        )
        draws = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.7, generator=draws)
        x = images(30, seed, 3)
        y = predicted(net, x)
        exact = verify(net, x, y, 0.05, "exact")
        assert exact.broken is not None
        attacks = {"patterns": Patterns(0.05), "sapgd": SAPGD(0.05, loss="margin")}
        result = evaluate(net, [(x, y)], attacks, certificates=exact, progress=False)
        assert torch.equal(result.success("patterns"), exact.broken)
        missed_by_gradients += int((exact.broken & ~result.success("sapgd")).sum())
    assert missed_by_gradients > 0


# Its parts


@given(
    st.integers(1, 5),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.booleans(),
    st.integers(0, 100),
)
@settings(max_examples=25)
def test_the_trains_are_those_that_the_neurons_fire(
    timesteps: int, leak: float, per_channel: bool, seed: int
) -> None:
    threshold: Any = torch.linspace(0.2, 1.0, 8) if per_channel else 0.4
    net = tiny_net(timesteps, seed, leak=leak, threshold=threshold).eval()
    x = images(20, seed)
    first = _First.of(net, x)
    victim = Victim(net, torch.zeros(20, dtype=torch.int64), network=net)
    with torch.no_grad(), _watching(net) as seen:
        trains, margins = first.look(victim, x)
    _, current, spikes = seen[0]
    torch.testing.assert_close(first.current(x), current[0])
    fired = first.steps[trains].permute(2, 0, 1)
    near = ((current[0, :, None] - first.least[1:]).abs() < 1e-5).any(1)
    assert torch.equal(torch.where(near, 0, fired), torch.where(near, 0, spikes))
    logits = predicted(net, x)
    assert torch.equal(margins >= 0, logits != 0)


def test_norms_and_convolutions_have_their_derivative() -> None:
    torch.manual_seed(0)
    net = conv_net(3, 2, input_shape=(1, 4, 4), channels=(2,), hidden=(), leak=0.5).eval()
    norm = NormLIF(2, leak=0.5)
    norm.running_mean, norm.running_var = torch.tensor([0.1, -0.2]), torch.tensor([0.5, 2.0])
    assert isinstance(net.layers, nn.Sequential)
    net.layers[1] = norm
    x = images(3, 0, 4)
    first = _First.of(net.eval(), x)
    with torch.no_grad(), _watching(net) as seen:
        net(x)
    torch.testing.assert_close(first.current(x), seen[0][1][0].flatten(1))
    assert Patterns.why_not(net, x) is None


def test_an_image_is_found_for_the_trains_of_another() -> None:
    net = tiny_net(3).eval()
    x = images(50)
    first = _First.of(net, x)
    victim = Victim(net, torch.zeros(50, dtype=torch.int64), network=net)
    with torch.no_grad():
        trains, _ = first.look(victim, x)
    # All trains are worth less than this one: both ends count.
    worth = torch.zeros(*trains.shape, 4).scatter_(2, trains[..., None], 1.0)
    lower, upper = first.between(trains, worth)
    low, high = torch.zeros(50, 4), torch.ones(50, 4)
    found = first.solve(torch.full((50, 4), 0.5), lower, upper, low, high, 5000)
    current, inside = first.current(found), INSIDE * first.least[-1] / 2
    reached = ((current >= lower + inside) & (current < upper - inside)).all(1)
    assert reached.float().mean() > 0.8
    # Where one side is worth as much, nothing holds the current back there.
    worth = torch.arange(4.0).expand(*trains.shape, 4).contiguous()
    lower, upper = first.between(trains, worth)
    assert upper.isinf().all()
    assert torch.equal(lower.isinf(), trains == 0)


def test_the_best_of_all_patterns_are_kept_once() -> None:
    trains = torch.tensor([[[1, 0], [1, 0], [0, 2], [2, 2]], [[0, 0], [0, 1], [0, 0], [0, 0]]])
    margins = torch.tensor([[-1.0, -0.5, -3.0, -2.0], [-1.0, -2.0, -0.1, -4.0]])
    x = torch.arange(8.0).view(2, 4, 1)
    found = _best((x, trains, margins), 2)
    assert found[0][..., 0].tolist() == [[1, 3], [6, 5]]
    assert found[1].tolist() == [[[1, 0], [2, 2]], [[0, 0], [0, 1]]]
    torch.testing.assert_close(found[2], torch.tensor([[-0.5, -2.0], [-0.1, -2.0]]))


def test_what_cannot_be_searched_is_refused() -> None:
    x, y = images(2), torch.tensor([0, 1])
    coded = tiny_net()
    coded.encoder = RateCoding(3)
    curved = tiny_net()
    curved.normalize = nn.Hardshrink(0.3)
    for net, reason in (
        (coded, "does not hold its input"),
        (tiny_net(reset="soft"), "hard reset to 0"),
        (tiny_net(charge="decay_input", leak=None, tau=2.0), "of charge 'leak'"),
        (curved, "not affine"),
    ):
        with pytest.raises(ValueError, match=reason):
            Patterns(0.1)(net, x, y)
    net = tiny_net()
    net.timesteps = 0
    assert Patterns.why_not(net, x) is not None
    with pytest.raises(ValueError, match="Patterns: rounds is 0"):
        Patterns(0.1, rounds=0)


# One after the other


def test_every_attack_sees_what_those_before_it_left() -> None:
    net, x = tiny_net(3, classes=4), images(40)
    y = predicted(net, x)
    weak, strong = FGSM(0.1), PGD(0.1, restarts=5, stop=True)
    found = Cascade([weak, strong])(net, x, y, torch.Generator().manual_seed(0))
    by_weak = predicted(net, weak(net, x, y)) != y
    broken = predicted(net, found) != y
    assert 0 < by_weak.sum() < broken.sum() < len(x)
    assert torch.equal(found[by_weak], weak(net, x[by_weak], y[by_weak]))
    assert torch.equal(found[~broken], x[~broken])


def test_rows_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="attacks is empty"):
        Cascade([])
    with pytest.raises(ValueError, match="expected one eps and norm"):
        Cascade([PGD(0.1), PGD(0.2)])
    with pytest.raises(TypeError, match="expected attacks alone"):
        Cascade([nn.Identity()])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected one on the model itself"):
        Ensemble(Cascade([PGD()]))


def test_the_strongest_is_what_the_network_allows() -> None:
    def kinds(net: SpikingNetwork, eot: int = 1) -> list[type]:
        return [type(attack) for attack in strongest(net, images(1), 0.1, eot=eot).attacks]

    assert kinds(tiny_net(classes=4)) == [Ensemble, SAPGD, Patterns]
    assert kinds(tiny_net(classes=3)) == [Ensemble, Patterns]
    assert kinds(tiny_net(classes=4, reset="soft")) == [Ensemble, SAPGD]
    net = tiny_net(classes=4)
    net.encoder = RateCoding(3)
    assert kinds(net, eot=3) == [Ensemble, SAPGD]
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert strongest(net, images(1), 0.1, eot=3).eot == 3
    assert torch.equal(torch.random.get_rng_state(), before)
    net = tiny_net(classes=4)
    net.timesteps = 0
    assert kinds(net) == [APGD, SAPGD]


def test_the_strongest_is_at_or_below_others() -> None:
    net, x = tiny_net(3, classes=4), images(20)
    y = predicted(net, x)
    attacks = {"strongest": strongest(net, x, 0.1), "pgd": PGD(0.1), "square": Square(0.1, 50)}
    result = evaluate(net, [(x, y)], attacks, progress=False)
    assert result.accuracy("strongest") == result.worst_case_accuracy() < 1
