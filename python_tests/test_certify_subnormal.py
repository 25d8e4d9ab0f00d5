"""Bounds of networks whose weights and thresholds are subnormal numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from python_tests.test_certify import CLASSES, Case, boxes, build, margins_of, sample
from snnkern.certify import bounds, slopes
from snnkern.certify.bounds import Method
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import LIF, MeanReadout, NormLIF, Residual, TimeDistributed

METHODS: tuple[Method, ...] = ("ibp", "crown", "best", "tight")


def smallest(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)


def shrunk(net: SpikingNetwork, scale: float) -> SpikingNetwork:
    """The same network with weights and thresholds that much smaller: but for rounding, it is."""
    with torch.no_grad():
        for module in net.layers.modules():
            if not isinstance(module, Residual):  # that adds up spikes
                for parameter in module.parameters(recurse=False):
                    parameter.mul_(scale)
            if isinstance(module, LIF):
                module.threshold.mul_(scale).clamp_(min=smallest(module.threshold.dtype))
    return net


def maps(seed: int, dtype: torch.dtype) -> SpikingNetwork:
    """All kinds of affine layers, and neurons behind them."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        TimeDistributed(nn.Conv2d(2, 3, 2, padding=1)),
        LIF(0.5, 0.3, reset="soft"),
        Residual(TimeDistributed(nn.AvgPool2d(3, 1, 1)), weighted=True),
        TimeDistributed(nn.Sequential(nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2))),
        LIF(0.9, 0.5),
        NormLIF(2, leak=0.9, threshold=0.3),
        TimeDistributed(nn.Sequential(nn.AvgPool2d(2), nn.Flatten())),
        TimeDistributed(nn.Linear(2, CLASSES)),
    )
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    net = SpikingNetwork(3, Normalize([0.5] * 2, [0.5] * 2), layers, MeanReadout())
    return net.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("units", [3.0, 100.0, 2.0**20])
@pytest.mark.parametrize("method", METHODS)
def test_bounds_hold(
    method: Method, units: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slopes, "STEPS", 3)
    for seed in range(12):
        case = Case(
            ("fc", "conv")[seed % 2],
            leak=(0.5, 0.9)[seed // 2 % 2],
            reset=("hard", "soft", "none")[seed // 4],
            radius=(0.0, 0.02, 0.125)[seed % 3],
            timesteps=3,
            dtype=dtype,
            seed=seed,
        )
        net = build(case) if seed % 4 else maps(seed, dtype)
        net = shrunk(net.eval(), units * smallest(dtype))
        lower, upper, y = boxes(case)
        with torch.no_grad():
            found = margins_of(net, sample(lower, upper, 300, seed), y).amin(1)
        assert (bounds(net, lower, upper, y, method).double() <= found).all()
