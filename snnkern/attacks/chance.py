"""Chance, made repeatable by the caller's generator: inside a model, and of several attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


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


class Draws(torch.Generator):
    """Random numbers of attacks that share a batch, alike however many of them do.

    Every attack has a generator of its own and draws from it for the whole batch of the caller;
    what its samples in the shared batch get is taken from that, by ``random_like``.

    Args:
        generators: of every attack.
        count: samples of the caller's batch.
        member: which attack each sample of the shared batch belongs to, ``[N]``.
        rows: which sample of the caller's batch it is, ``[N]``.
    """

    def __new__(cls, generators: list[torch.Generator], *_: object) -> Draws:
        """A generator of the same device."""
        return super().__new__(cls, generators[0].device)  # type: ignore[call-arg]

    def __init__(
        self, generators: list[torch.Generator], count: int, member: Tensor, rows: Tensor
    ) -> None:
        self.generators = generators
        self.count = count
        self.member = member
        self.rows = rows

    def like(self, x: Tensor, kind: Callable[..., Tensor]) -> Tensor:
        """``torch.rand`` or ``torch.randn`` numbers of the shape, dtype and device of ``x``."""
        if len(x) != len(self.rows):
            raise ValueError(
                f"an attack draws for {len(x)} samples, expected {len(self.rows)}: those it was "
                "given, or draws_for() some of them"
            )
        shape = (self.count, *x.shape[1:])
        drawn = [
            kind(shape, dtype=x.dtype, device=x.device, generator=generator)
            for generator in self.generators
        ]
        return torch.stack(drawn)[self.member, self.rows]


def draws_for(samples: Tensor, generator: torch.Generator | None) -> torch.Generator | None:
    """What an attack draws from for some of its samples: indices, or a mask."""
    if not isinstance(generator, Draws):
        return generator
    member, rows = generator.member[samples], generator.rows[samples]
    return Draws(generator.generators, generator.count, member, rows)
