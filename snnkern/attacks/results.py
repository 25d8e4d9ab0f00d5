"""What checks and evaluations find: plain results, and the files and tables made of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from snnkern._intervals import wilson
from snnkern._table import MISSING, Cell, Table, eps_text, share_cell
from snnkern.certify import Certificate

CLEAN = "clean"


@dataclass(frozen=True)
class Check:
    """One test of an attack on a model.

    Attributes:
        name: what the figure is.
        figure: a share of samples, a difference of accuracies, or a loss.
        threshold: what it has to be ``bound``.
        bound: the side on which it passes.
        note: of which members or layers, where it is the largest or smallest of some.
    """

    name: str
    figure: float
    threshold: float = 0.0
    bound: Literal["at most", "above"] = "at most"
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether there is nothing to worry about; never where the figure is NaN."""
        if self.bound == "above":
            return self.figure > self.threshold
        return self.figure <= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """The attributes and ``passed``."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Evaluation:
    """Per-sample results, in the order of the samples.

    Attributes:
        labels: ``[N]``.
        predictions: by attack, ``"clean"`` first: the classes that the model gave, ``[N]``; a tie
            counts against the label.
        spikes_per_image: by attack: mean number of spikes of one inference, all neurons and steps.
            Empty for a ``Stateless`` model: neurons of another library are not seen.
        seconds: by attack: time of crafting and classifying, of all processes together.
        attacks: by attack: its configuration in words.
        seed: of the random choices.
        energy: by attack: mean picojoules of the arithmetic of one inference, see
            ``snnkern.measures.cost``. Empty like ``spikes_per_image``.
        distances: by attack: largest difference of a pixel from the clean image, ``[N]``.
        eps: by attack: the size that it was allowed, in its own norm.
        certificates: which samples are certified, and within which radius.
        checks: whether the attacks can be trusted; see ``snnkern.attacks.check``.
        gradients: by attack, the gradient that it took instead of the model's own, in words.
        model: the network in words: its class, T, neurons, reset, coding and surrogates.
    """

    labels: Tensor
    predictions: dict[str, Tensor]
    spikes_per_image: dict[str, float]
    seconds: dict[str, float]
    attacks: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    energy: dict[str, float] = field(default_factory=dict)
    distances: dict[str, Tensor] = field(default_factory=dict)
    eps: dict[str, float] = field(default_factory=dict)
    certificates: tuple[Certificate, ...] = ()
    checks: tuple[Check, ...] = ()
    gradients: dict[str, str] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)

    def correct(self, attack: str = CLEAN) -> Tensor:
        """Which samples are classified right, ``[N]`` bool. Under attack: clean and attacked."""
        clean = self.predictions[CLEAN] == self.labels
        return clean & (self.predictions[attack] == self.labels)

    def success(self, attack: str) -> Tensor:
        """Which samples the attack breaks: right when clean and wrong under it, ``[N]`` bool."""
        return self.correct() & ~self.correct(attack)

    def accuracy(self, attack: str = CLEAN) -> float:
        """Share of samples that are classified right."""
        return share_of(self.correct(attack))

    def interval(self, attack: str = CLEAN) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy."""
        return wilson(self.accuracy(attack), len(self.labels))

    def worst_case(self) -> Tensor:
        """Which samples no attack breaks, ``[N]`` bool."""
        return torch.stack([self.correct(attack) for attack in self.predictions]).all(0)

    def worst_case_accuracy(self) -> float:
        """Share of samples that no attack breaks: an upper bound of the robust accuracy."""
        return share_of(self.worst_case())

    def certified(self) -> dict[str, Tensor]:
        """By certificate: which samples are certified and right, ``[N]`` bool."""
        return {
            f"{c.method} certified within {c.eps:g}": c.certified.cpu() & self.correct()
            for c in self.certificates
        }

    @property
    def reliable(self) -> bool | None:
        """Whether all checks passed; None where none were made."""
        return all(check.passed for check in self.checks) if self.checks else None

    def to_json(self, **about: str) -> str:
        """All of it, as JSON.

        What RobustBench says of a model stands under its keys, accuracies in percent. Its
        ``autoattack_acc`` is left out: these are other attacks, whose worst case is ``external``.

        Args:
            about: more of RobustBench's keys: ``name``, ``authors``, ``link``, ``dataset``,
                ``venue``, ``reported``, ``footnote``, ``additional_data``.
        """
        sizes = set(self.eps.values())
        count, low_high = len(self.labels), wilson(self.worst_case_accuracy(), len(self.labels))
        certified = {name: share_of(mask) for name, mask in self.certified().items()}
        return json.dumps(
            {
                **about,
                **self.model,
                "number_forward_passes": "1",
                "eps": eps_text(sizes.pop()) if len(sizes) == 1 else None,
                "clean_acc": f"{100 * self.accuracy():.2f}",
                "external": f"{100 * self.worst_case_accuracy():.2f}",
                "unreliable": None if self.reliable is None else not self.reliable,
                "attack_members": self.attacks,
                "spikes_per_inference": self.spikes_per_image.get(CLEAN),
                "energy_pj": self.energy.get(CLEAN),
                "certified_acc": certified,
                "masking_flags": [check.name for check in self.checks if not check.passed],
                "samples": count,
                "seed": self.seed,
                "worst_case_accuracy": self.worst_case_accuracy(),
                "worst_case_interval": low_high,
                "attacks": {
                    name: {
                        "accuracy": self.accuracy(name),
                        "interval": self.interval(name),
                        "eps": self.eps.get(name, 0.0),
                        "configuration": self.attacks.get(name, "none"),
                        "gradient": self.gradients.get(name),
                        "spikes_per_image": self.spikes_per_image.get(name),
                        "energy_pj": self.energy.get(name),
                        "seconds": self.seconds[name],
                        "predictions": self.predictions[name].tolist(),
                    }
                    for name in self.predictions
                },
                "certificates": [
                    {
                        "method": c.method,
                        "eps": c.eps,
                        "timesteps": c.timesteps,
                        "certified": c.certified.tolist(),
                    }
                    for c in self.certificates
                ],
                "checks": [check.to_dict() for check in self.checks],
                "labels": self.labels.tolist(),
            },
            indent=1,
            allow_nan=False,
        )

    def table(self) -> Table:
        """One row per attack, then the worst case and what is certified."""
        count = len(self.labels)

        def row(name: str, right: Tensor, of: str | None = None) -> tuple[Cell, ...]:
            cells = [Cell(name), share_cell(share_of(right), count)]
            for values, form in (
                (self.spikes_per_image, "{:,.0f}"),
                ({key: value / 1000 for key, value in self.energy.items()}, "{:,.3g}"),
                (self.seconds, "{:.1f}"),
            ):
                cells.append(Cell(form.format(values[of]) if of in values else MISSING))
            return tuple(cells)

        rows = [row(name, self.correct(name), name) for name in self.predictions]
        if len(self.predictions) > 1:
            rows.append(row("worst case", self.worst_case()))
        rows += [row(name, mask) for name, mask in self.certified().items()]
        head = ("attack", "accuracy, %", "spikes per image", "nJ per image", "seconds")
        return Table(
            f"{count:,} samples, seed {self.seed}; beside each accuracy its 95 % Wilson interval; "
            "energy of the arithmetic alone, 45 nm",
            tuple(map(Cell, head)),
            tuple(rows),
        )

    def check_table(self) -> Table:
        """One row per check."""

        def row(check: Check) -> tuple[Cell, ...]:
            figures = (f"{check.figure:.3g}", f"{check.bound} {check.threshold:.3g}")
            return tuple(map(Cell, (check.name, *figures, "pass" if check.passed else "FAIL")))

        verdict = "all pass" if self.reliable else "not all pass: the accuracies may flatter"
        head = ("check", "figure", "expected", "verdict")
        rows = tuple(map(row, self.checks))
        return Table(f"Checks of the attacks: {verdict}", tuple(map(Cell, head)), rows)

    def tables(self) -> list[Table]:
        """The table of accuracies, and that of the checks where there are any."""
        return [self.table(), *([self.check_table()] if self.checks else [])]

    def to_markdown(self) -> str:
        """The tables in Markdown."""
        return "\n\n".join(table.markdown() for table in self.tables())

    def to_text(self) -> str:
        """The tables for a terminal."""
        return "\n\n".join(table.text() for table in self.tables())


def share_of(mask: Tensor) -> float:
    """Of samples, those where it is true."""
    return mask.double().mean().item()
