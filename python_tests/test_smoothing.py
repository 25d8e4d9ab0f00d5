"""Smoothing over the draws of a rate code, against networks whose shares of votes are known."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from python_tests.helpers import need
from snnkern.certify.smoothing import ABSTAINED, smooth
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import MeanReadout, RateCoding, TimeDistributed

need("scipy")


def any_spike(timesteps: int, coding: Any = "bernoulli", rate: float = 1.0) -> SpikingNetwork:
    """Class 1 where the one pixel fires at any step: with probability 1 - (1 - x)^T."""
    linear = nn.Linear(1, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0], [1.0]]))
        linear.bias.copy_(torch.tensor([0.5 / timesteps, 0.0]))
    layers = nn.Sequential(TimeDistributed(nn.Flatten()), TimeDistributed(linear))
    net = SpikingNetwork(timesteps, Normalize([0.0], [1.0]), layers, MeanReadout())
    net.encoder = RateCoding(timesteps, coding, rate)
    return net


@pytest.mark.parametrize("timesteps", [1, 2, 4])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_no_radius_reaches_where_the_majority_changes(timesteps: int, rate: float) -> None:
    x = torch.linspace(0, 1, 41).view(-1, 1, 1, 1)
    edge = (1 - 0.5 ** (1 / timesteps)) / rate  # there half of the draws fire
    net = any_spike(timesteps, rate=rate)
    generator = torch.Generator().manual_seed(0)
    found = smooth(net, x, draws=2000, alpha=1e-6, generator=generator)  # no chance to be wrong
    distance = (x.flatten().double() - edge).abs()
    certain = found.prediction != ABSTAINED
    assert (found.prediction[certain] == (x.flatten() > edge)[certain]).all()
    assert (found.radius[certain] <= distance[certain]).all()
    assert (found.radius[~certain] == 0).all()
    assert certain.float().mean() > 0.5
    assert found.timesteps == timesteps
    if timesteps == 1:  # there the share of votes moves as fast as the bound allows
        assert (distance - found.radius)[certain].max() < 0.13 / rate
    else:  # without the time steps the radius would be too long
        assert (timesteps * found.radius > distance).any()


def test_the_scale_of_the_pixels_counts() -> None:
    net = any_spike(1)
    net.normalize = Normalize([0.0], [0.5])
    x = torch.linspace(0, 1, 41).view(-1, 1, 1, 1)
    found = smooth(net, x, alpha=1e-6, generator=torch.Generator().manual_seed(0))
    distance = (x.flatten().double() - 0.25).abs()
    assert (found.radius <= distance + 1e-12).all()
    assert found.radius.max() <= 0.25


def test_what_cannot_be_smoothed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 1, 1, 1)
    direct = any_spike(2)
    direct.encoder = SpikingNetwork(
        2, Normalize([0.0], [1.0]), nn.Identity(), MeanReadout()
    ).encoder
    with pytest.raises(TypeError, match="expected RateCoding"):
        smooth(direct, x)
    with (
        register_module_forward_hook(lambda module, inputs, output: -output),
        pytest.raises(TypeError, match=r"hooks for all modules, .*, expected none"),
    ):
        smooth(any_spike(2), x)
    levels = any_spike(2)
    levels.encoder.bits = 2
    with pytest.raises(ValueError, match="expected one without bits"):
        smooth(levels, x)
    with pytest.raises(ValueError, match="alpha is 0"):
        smooth(any_spike(2), x, alpha=0)
    with pytest.raises(ValueError, match="draws is 0"):
        smooth(any_spike(2), x, draws=0)
    with pytest.raises(ValueError, match=r"expected pixels in \[0, 1\]"):
        smooth(any_spike(2), x + 1)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        smooth(any_spike(2), x)
