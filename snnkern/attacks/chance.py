"""Chance inside a model, made repeatable by the caller's generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def follow(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Within the block torch's global streams follow ``generator``; afterwards they are as before.

    An encoder that draws its spikes draws the same again for a generator in the same state. The
    generator itself moves on only if something was drawn. Without one nothing happens.
    """
    if generator is None:
        yield
        return
    streams = global_streams(device)
    before = [stream.get_state() for stream in streams]
    seed = _draw(generator.clone_state())
    drawn = False
    try:
        started = [stream.manual_seed(seed).get_state() for stream in streams]
        yield
        drawn = any(
            not torch.equal(stream.get_state(), state)
            for stream, state in zip(streams, started, strict=True)
        )
    finally:
        for stream, state in zip(streams, before, strict=True):
            stream.set_state(state)
        if drawn:
            _draw(generator)


def global_streams(device: torch.device) -> list[torch.Generator]:
    """What a model on ``device`` draws from if it is told nothing else."""
    streams = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        streams.append(torch.cuda.default_generators[index])
    return streams


def _draw(generator: torch.Generator) -> int:
    number = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    return int(number.item())
