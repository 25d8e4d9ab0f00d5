"""What a model gets right, clean and under attack."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from snnkern._checks import check_images
from snnkern.attacks.attack import Attack
from snnkern.attacks.chance import follow
from snnkern.attacks.losses import decide
from snnkern.attacks.stateless import stateless
from snnkern.nn import check_stateless, evaluation_mode, watch_spikes


@dataclass(frozen=True)
class Evaluation:
    """Per-sample results.

    Attributes:
        labels: ``[N]``.
        predictions: by attack, ``"clean"`` first: the classes that the model gave, ``[N]``; a tie
            counts against the label.
        spikes_per_image: by attack: mean number of spikes of one inference, all neurons and steps.
        seconds: by attack: wall time of crafting and classifying.
        attacks: by attack: its configuration in words.
        seed: of the random choices.
    """

    labels: Tensor
    predictions: dict[str, Tensor]
    spikes_per_image: dict[str, float]
    seconds: dict[str, float]
    attacks: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    def correct(self, attack: str = "clean") -> Tensor:
        """Which samples are classified right, ``[N]`` bool. Under attack: clean and attacked."""
        clean = self.predictions["clean"] == self.labels
        return clean & (self.predictions[attack] == self.labels)

    def accuracy(self, attack: str = "clean") -> float:
        """Share of samples that are classified right."""
        return self.correct(attack).float().mean().item()

    def worst_case(self) -> Tensor:
        """Which samples no attack breaks, ``[N]`` bool."""
        return torch.stack([self.correct(attack) for attack in self.predictions]).all(0)

    def to_json(self) -> str:
        """All of it, as JSON."""
        return json.dumps(
            {
                "samples": len(self.labels),
                "seed": self.seed,
                "worst_case_accuracy": self.worst_case().float().mean().item(),
                "attacks": {
                    name: {
                        "accuracy": self.accuracy(name),
                        "configuration": self.attacks.get(name, "none"),
                        "spikes_per_image": self.spikes_per_image[name],
                        "seconds": self.seconds[name],
                        "predictions": self.predictions[name].tolist(),
                    }
                    for name in self.predictions
                },
                "labels": self.labels.tolist(),
            },
            indent=1,
        )

    def to_markdown(self) -> str:
        """A table, one row per attack."""
        rows = ["| attack | accuracy | spikes per image | seconds |", "|---|---|---|---|"]
        rows += [
            f"| {name} | {self.accuracy(name):.1%} | {self.spikes_per_image[name]:,.0f} | "
            f"{self.seconds[name]:.1f} |"
            for name in self.predictions
        ]
        rows.append(f"| worst case | {self.worst_case().float().mean().item():.1%} | | |")
        return "\n".join(rows)


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    attacks: Mapping[str, Attack] | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Classifies all samples of ``loader``, clean and under every attack.

    Logits that tie with the label's count as wrong: a right answer that rests on the order of the
    classes is not robust.

    Args:
        model: images ``[N, ...]`` in ``[0, 1]`` to logits ``[N, K]``. Runs in evaluation mode, on
            the device of its parameters, and is left as it was.
        loader: batches of images and labels.
        attacks: by name; ``"clean"`` is taken.
        seed: of the attacks' random choices.
        progress: show a progress bar.

    Raises:
        ValueError: no samples, images outside ``[0, 1]``, or an attack called ``"clean"``.
    """
    attacks = dict(attacks or {})
    if "clean" in attacks:
        raise ValueError("attacks has one called 'clean', expected another name: that is no attack")
    check_stateless(model)
    model = stateless(model)
    names = ["clean", *attacks]
    predictions: dict[str, list[Tensor]] = {name: [] for name in names}
    spikes = dict.fromkeys(names, 0)
    seconds = dict.fromkeys(names, 0.0)
    labels: list[Tensor] = []
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # One for each attack, so that none depends on which others are there.
    generators = {
        name: torch.Generator(device).manual_seed(seed + zlib.crc32(name.encode()))
        for name in names
    }
    counted = 0

    def count(name: str, layer_spikes: Tensor) -> None:
        nonlocal counted
        counted += int(layer_spikes.count_nonzero().item())

    total = len(loader) * len(names) if isinstance(loader, Sized) else None
    with tqdm(total=total, desc="evaluate", unit="batch", disable=not progress, delay=1) as bar:
        for x, y in loader:
            x, y = x.to(device), y.to(device)  # noqa: PLW2901  the batch, where the model is
            check_images(x, y)
            labels.append(y.cpu())
            for name in names:
                bar.set_postfix_str(name)
                start = time.perf_counter()
                images = x if name == "clean" else attacks[name](model, x, y, generators[name])
                counted = 0
                with (
                    torch.no_grad(),
                    evaluation_mode(model),
                    watch_spikes(model, count),
                    follow(generators[name], device),
                ):
                    logits = model(images)
                predictions[name].append(decide(logits, y).cpu())
                spikes[name] += counted
                seconds[name] += time.perf_counter() - start
                bar.update()
    if not labels:
        raise ValueError("loader is empty, expected at least one batch")
    every_label = torch.cat(labels)
    return Evaluation(
        labels=every_label,
        predictions={name: torch.cat(parts) for name, parts in predictions.items()},
        spikes_per_image={name: spikes[name] / len(every_label) for name in names},
        seconds=seconds,
        attacks={name: str(attack) for name, attack in attacks.items()},
        seed=seed,
    )
