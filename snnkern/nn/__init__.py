"""Modules: neurons, encoders, containers along time, readouts."""

from snnkern.nn.encoding import Direct, RateCoding
from snnkern.nn.evaluation import check_stateless, evaluation_mode
from snnkern.nn.gradient import Gradient, GradientMode, gradient
from snnkern.nn.neuron import IF, LIF
from snnkern.nn.norm import NormLIF
from snnkern.nn.recording import watch_spikes
from snnkern.nn.time import MeanReadout, SumReadout, TimeDistributed

__all__ = [
    "IF",
    "LIF",
    "Direct",
    "Gradient",
    "GradientMode",
    "MeanReadout",
    "NormLIF",
    "RateCoding",
    "SumReadout",
    "TimeDistributed",
    "check_stateless",
    "evaluation_mode",
    "gradient",
    "watch_spikes",
]
