"""Modules: neurons, layers for their spikes, encoders, containers along time, readouts."""

from snnkern.nn.encoding import Direct, Events, RateCoding
from snnkern.nn.evaluation import check_stateless, evaluation_mode
from snnkern.nn.gradient import (
    Gradient,
    GradientMode,
    adapting,
    check_gradient,
    gradient,
    hold_surrogates,
)
from snnkern.nn.neuron import IF, LIF
from snnkern.nn.norm import NormLIF
from snnkern.nn.packed import AvgPool2d, Conv2d, Linear, MaxPool2d
from snnkern.nn.recording import watch_membranes, watch_neurons, watch_spikes
from snnkern.nn.residual import Residual
from snnkern.nn.time import MeanReadout, SharedDropout, SumReadout, TimeDistributed

__all__ = [
    "IF",
    "LIF",
    "AvgPool2d",
    "Conv2d",
    "Direct",
    "Events",
    "Gradient",
    "GradientMode",
    "Linear",
    "MaxPool2d",
    "MeanReadout",
    "NormLIF",
    "RateCoding",
    "Residual",
    "SharedDropout",
    "SumReadout",
    "TimeDistributed",
    "adapting",
    "check_gradient",
    "check_stateless",
    "evaluation_mode",
    "gradient",
    "hold_surrogates",
    "watch_membranes",
    "watch_neurons",
    "watch_spikes",
]
