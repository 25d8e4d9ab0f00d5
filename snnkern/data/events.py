"""Recordings of event cameras, made frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray

from snnkern._checks import check_int
from snnkern.data.images import Images


def event_frames(
    recordings: Iterable[tuple[NDArray[Any], SupportsIndex]],
    shape: Sequence[int],
    *,
    frames: int,
    milliseconds: int,
    first: int = 0,
) -> Images:
    """Frames of events ``[T, C, H, W]``, of which a pixel is 1 where there was any in its time.

    ``snnkern.models`` see them with ``coding="events"``, other networks through
    ``snnkern.nn.Events``.

    Args:
        recordings: of events and a label each: the data sets of tonic, without transforms, or
            arrays of your own. Events are a structured array of integers with the fields ``x``,
            ``y``, ``t``, the time in microseconds, and ``p``, the polarity.
        shape: of the camera, ``[C, H, W]``, with polarities 0 to C - 1.
        frames: T.
        milliseconds: of a frame.
        first: the first frame, counted from 0 at time 0; what comes earlier is left out.

    Raises:
        ValueError: an option out of range, no recordings, or one that is not as above, or that has
            events and none of them in the frames.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape is {list(shape)}, expected [C, H, W]")
    check_int("frames", frames, 1)
    check_int("milliseconds", milliseconds, 1)
    check_int("first", first, 0)
    samples, labels = [], []
    for number, recording in enumerate(recordings):
        samples.append(np.zeros((frames, *shape), dtype=np.uint8))
        try:
            match recording:
                case (events, SupportsIndex() as label):
                    labels.append(index(label))
                case (_, label):
                    raise TypeError(f"label is {label!r}, expected an int")
                case _:
                    raise TypeError(f"{type(recording).__name__}, expected (events, label)")
            mark(samples[-1], events, milliseconds * 1000, first)
            if len(events) and not samples[-1].any():
                begin, end = (1000 * milliseconds * frame for frame in (first, first + frames))
                raise ValueError(
                    f"events have t from {events['t'].min()} to {events['t'].max()}, expected some "
                    f"from {begin} to {end - 1} microseconds, which the frames show"
                )
        except (TypeError, ValueError) as error:
            raise ValueError(f"recordings[{number}]: {error}") from error
    if not samples:
        raise ValueError("recordings is empty, expected at least one")
    return Images(torch.from_numpy(np.stack(samples)), torch.tensor(labels), white=1)


def mark(sample: NDArray[np.uint8], events: NDArray[Any], microseconds: int, first: int) -> None:
    """Sets to 1 what saw an event; arguments as for ``event_frames``.

    Raises:
        ValueError: there are no such fields, other numbers than integers, or events beyond the
            camera.
    """
    names = getattr(getattr(events, "dtype", None), "names", None) or ()
    if not {"x", "y", "t", "p"} <= set(names):
        raise ValueError(f"events have the fields {list(names)}, expected x, y, t and p")
    if events.ndim != 1:
        raise ValueError(f"events have the shape {list(events.shape)}, expected [E]")
    for name in ("x", "y", "t", "p"):
        if (kind := events.dtype[name]).kind not in "biu":
            unit = " of microseconds" if name == "t" else ""
            raise ValueError(f"events have {name} of {kind}, expected integers{unit}")
    place = [events[name].astype(np.int64) for name in ("p", "y", "x")]
    for name, values, size in zip(("p", "y", "x"), place, sample.shape[1:], strict=True):
        if len(values) and not (values.min() >= 0 and values.max() < size):
            raise ValueError(
                f"events have {name} from {values.min()} to {values.max()}, expected 0 to "
                f"{size - 1}"
            )
    frame = events["t"].astype(np.int64) // microseconds - first
    shown = (frame >= 0) & (frame < len(sample))
    sample[(frame[shown], *(values[shown] for values in place))] = 1
