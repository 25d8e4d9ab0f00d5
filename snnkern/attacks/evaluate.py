"""What a model gets right, clean and under attack."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler
from tqdm import tqdm

from snnkern._checks import check_images
from snnkern.attacks.attack import Attack
from snnkern.attacks.chance import follow
from snnkern.attacks.losses import decide
from snnkern.attacks.results import CLEAN, Check, Evaluation
from snnkern.attacks.sandwich import check_certificates, check_sandwich
from snnkern.attacks.stateless import Stateless, stateless
from snnkern.certify import Certificate
from snnkern.measures import Cost, counting
from snnkern.nn import (
    LIF,
    Gradient,
    RateCoding,
    check_stateless,
    evaluation_mode,
    watch_spikes,
)
from snnkern.surrogate import Surrogate


class _Result(NamedTuple):
    """Of one attack on one batch; spikes and energy of all its images."""

    predictions: Tensor
    distances: Tensor
    spikes: int
    energy: float
    seconds: float


class _Batch(NamedTuple):
    """Where the samples of a batch stand among all, their labels, and what came of them."""

    positions: Tensor
    labels: Tensor
    results: dict[str, _Result]


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    attacks: Mapping[str, Attack] | None = None,
    *,
    certificates: Certificate | Sequence[Certificate] = (),
    checks: Sequence[Check] = (),
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Classifies all samples of ``loader``, clean and under every attack.

    Logits that tie with the label's count as wrong: a right answer that rests on the order of the
    classes is not robust.

    In a process group, which all of its processes have to call this in, they share the work, and
    each gets all results. Where the loader has a ``torch.utils.data.DistributedSampler``, a process
    takes what that gives it, else every so manieth batch. What an attack draws depends on the
    number of the batch alone, so that results do not depend on the number of processes.

    Args:
        model: images ``[N, ...]`` in ``[0, 1]`` to logits ``[N, K]``. Runs in evaluation mode, on
            the device of its parameters, and is left as it was.
        loader: batches of images and labels.
        attacks: by name; ``"clean"`` is taken.
        certificates: of all samples, in the order of the loader; see ``snnkern.certify.verify``.
        checks: of these attacks, to be told with the results; see ``snnkern.attacks.check``.
        seed: of the attacks' random choices.
        progress: show a progress bar.

    Raises:
        ValueError: no samples, images outside ``[0, 1]``, an attack called ``"clean"``, or
            certificates of other samples, of another T or of one draw of the model's encoder.
        snnkern.attacks.ContradictionError: an image is got wrong within its certified radius.
    """
    attacks = dict(attacks or {})
    if CLEAN in attacks:
        raise ValueError("attacks has one called 'clean', expected another name: that is no attack")
    certificates = (certificates,) if isinstance(certificates, Certificate) else tuple(certificates)
    if isinstance(model, DistributedDataParallel):
        model = model.module  # which would wait for the others at every call
    check_stateless(model)
    check_certificates(certificates, model)
    model = stateless(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    grouped = distributed.is_available() and distributed.is_initialized()
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if grouped else (0, 1)
    batches: list[_Batch] = []
    total = _own_batches(loader, rank, ranks)
    with tqdm(
        total=total and total * (1 + len(attacks)),
        desc="evaluate",
        unit="batch",
        disable=not progress or rank > 0,
        delay=1,
    ) as bar:
        for number, positions, x, y in _shared(loader, rank, ranks):
            x, y = x.to(device), y.to(device)  # noqa: PLW2901  the batch, where the model is
            check_images(x, y)
            results = {}
            for name, attack in {CLEAN: None, **attacks}.items():
                bar.set_postfix_str(name)
                # One for each, so that none depends on which others are there.
                chance = zlib.crc32(f"{seed} {name} {number}".encode())
                generator = torch.Generator(device).manual_seed(chance)
                results[name] = _judge(model, attack, x, y, generator)
                bar.update()
            batches.append(_Batch(positions, y.cpu(), results))
    if ranks > 1:
        gathered: list[Any] = [None] * ranks
        distributed.all_gather_object(gathered, batches)
        batches = [batch for part in gathered for batch in part]
    if not batches:
        raise ValueError("loader is empty, expected at least one batch")
    result = _merged(batches, _samples(loader))
    seen = not any(isinstance(module, Stateless) for module in model.modules())
    evaluation = Evaluation(
        **result if seen else result | {"spikes_per_image": {}, "energy": {}},
        attacks={name: str(attack) for name, attack in attacks.items()},
        seed=seed,
        eps={name: attack.eps for name, attack in attacks.items()},
        certificates=certificates,
        checks=tuple(checks),
        gradients={
            name: gradient_words(attack.gradient)
            for name, attack in attacks.items()
            if attack.gradient is not None
        },
        model=_in_words(model),
    )
    correct = {name: evaluation.correct(name) for name in evaluation.predictions}
    check_sandwich(certificates, correct, evaluation.distances)
    return evaluation


def _judge(
    model: nn.Module, attack: Attack | None, x: Tensor, y: Tensor, generator: torch.Generator
) -> _Result:
    """What the model makes of a batch under an attack."""
    start = time.perf_counter()
    images = x if attack is None else attack(model, x, y, generator)
    counted = 0

    def count(name: str, spikes: Tensor) -> None:
        nonlocal counted
        counted += int(spikes.count_nonzero().item())

    with (
        torch.no_grad(),
        evaluation_mode(model),
        watch_spikes(model, count),
        counting(model, len(x)) as layers,
        follow(generator, x.device),
    ):
        predictions = decide(model(images), y).cpu()
    distances = (images.double() - x.double()).abs().flatten(1).amax(1).cpu()
    energy = Cost(layers).energy() * len(x)
    return _Result(predictions, distances, counted, energy, time.perf_counter() - start)


def _own_sampler(loader: object) -> DistributedSampler[Any] | None:
    sampler = getattr(loader, "sampler", None)
    return sampler if isinstance(sampler, DistributedSampler) else None


def _own_batches(loader: object, rank: int, ranks: int) -> int | None:
    """How many batches this process works on, where that is known."""
    if not isinstance(loader, Sized):
        return None
    return len(loader) if _own_sampler(loader) else len(range(rank, len(loader), ranks))


def _samples(loader: object) -> int | None:
    """Without those that a sampler repeats so that every process has as many."""
    sampler = _own_sampler(loader)
    return len(sampler.dataset) if sampler and isinstance(sampler.dataset, Sized) else None


def _shared(
    loader: Iterable[tuple[Tensor, Tensor]], rank: int, ranks: int
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """The batches of this process: the number, the samples' places among all, images, labels."""
    sampler = _own_sampler(loader)
    start = 0
    for number, (x, y) in enumerate(loader):
        places = torch.arange(start, start + len(y))
        start += len(y)
        if sampler is not None:
            yield number * ranks + rank, places * sampler.num_replicas + sampler.rank, x, y
        elif number % ranks == rank:
            yield number, places, x, y


def _merged(batches: list[_Batch], samples: int | None) -> dict[str, Any]:
    """What ``Evaluation`` holds of all batches, each sample once and in its place."""
    positions = torch.cat([batch.positions for batch in batches])
    order = positions.argsort()
    if samples is not None:
        order = order[positions[order] < samples]
    by_name = {name: [batch.results[name] for batch in batches] for name in batches[0].results}

    def tensors(part: str) -> dict[str, Tensor]:
        return {
            name: torch.cat([getattr(result, part) for result in results])[order]
            for name, results in by_name.items()
        }

    def sums(part: str, over: int = 1) -> dict[str, float]:
        return {
            name: sum(getattr(result, part) for result in results) / over
            for name, results in by_name.items()
        }

    return {
        "labels": torch.cat([batch.labels for batch in batches])[order],
        "predictions": tensors("predictions"),
        "distances": tensors("distances"),
        "spikes_per_image": sums("spikes", len(positions)),
        "energy": sums("energy", len(positions)),
        "seconds": sums("seconds"),
    }


def gradient_words(gradient: Gradient) -> str:
    """A gradient in short words: ``Triangle(0.25)``, or ``rate``."""
    if not isinstance(gradient, Surrogate):
        return str(gradient)
    values = vars(gradient).items()
    numbers = [f"{value:g}" for _, value in values if type(value) in (int, float)]
    more = ["normalized"] if gradient.normalized else []
    return f"{type(gradient).__name__}({', '.join(numbers + more)})".removesuffix("()")


def _in_words(model: nn.Module) -> dict[str, str]:
    """What RobustBench and papers on spiking networks say of a model."""
    inner = model.model if isinstance(model, Stateless) else model
    words = {"architecture": type(inner).__name__}
    if hasattr(inner, "timesteps"):
        words["T"] = str(inner.timesteps)
    neurons = [m for m in inner.modules() if isinstance(m, LIF) and not m.is_relu]
    if neurons:
        drawn = [str(m.coding) for m in inner.modules() if isinstance(m, RateCoding)]
        kinds: dict[str, list[str]] = {
            "neuron": [type(neuron).__name__ for neuron in neurons],
            "reset": [neuron.reset for neuron in neurons],
            "surrogate_train": [str(neuron.surrogate) for neuron in neurons],
            "coding": drawn or ["direct"],
        }
        words |= {key: ", ".join(dict.fromkeys(values)) for key, values in kinds.items()}
    return words
