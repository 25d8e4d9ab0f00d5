"""The study that runs make: what their folders hold, and a look at their networks."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from snnkern._checks import check_int
from snnkern._info import machine
from snnkern._version import __version__
from snnkern.data import Samples, loader
from snnkern.report.network import show
from snnkern.report.study import Curve, CurveKind, Epoch, NetworkResult, Score, Study
from snnkern.report.table import eps_text
from snnkern.training.attack import (
    ATTACKS,
    DRAWS,
    MEMBERS,
    draws,
    first_images,
    middle_size,
    trained_eps,
)
from snnkern.training.ranks import usable_device
from snnkern.training.recipe import Recipe
from snnkern.training.run import read_metrics
from snnkern.training.start import load_run, threads

SAMPLES_SHOWN = 4
CLEAN = "clean"


def study_of_runs(
    runs: Sequence[Path],
    *,
    data: Path | None = None,
    images: int = 32,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Study:
    """Everything that is known of runs, in one study.

    Each is the folder of ``snnkern train``, of ``snnkern convert`` or of ``training.fit``, or one
    of its checkpoints; or a folder with the study of ``snnkern demo``. What a run does not hold is
    left out, and stands in ``missing`` of its network, with how to get it.

    Args:
        runs: at least one.
        data: where data sets lie.
        images: how many test images to attack by PGD-20 anew, from the first: what is shown of
            them, activity, distances and energy come from these. 0 leaves that out.
        seed: of the attacks' random choices.
        device: where to run; a GPU where there is one.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: a folder holds neither, or ``data`` is given and lacks a file.
        ValueError: no runs, or a file of a run is corrupt.
    """
    if not runs:
        raise ValueError("runs is empty, expected at least one")
    check_int("images", images, 0)
    where = usable_device(device)
    found: list[tuple[NetworkResult, str, str]] = []
    for run in tqdm(runs, desc="report", unit="run", disable=not progress, delay=1):
        folder = run if run.is_dir() else run.parent
        if (folder / "metrics.jsonl").is_file():
            found.append(_Run(run, folder).network(data, images, seed, where))
        elif (folder / "study.json").is_file():
            study = Study.load(folder)
            on = study.provenance.get("machine", "")
            found += [(network, study.dataset, on) for network in study.networks]
        else:
            raise FileNotFoundError(
                f"run is {run}, expected the folder of a run of snnkern train, or a checkpoint in "
                "it"
            )
    networks = [network for network, _, _ in found]
    words = {name: "; ".join(dict.fromkeys(filter(None, values))) for name, values in (
        ("data", (dataset for _, dataset, _ in found)), ("machine", (on for _, _, on in found)),
    )}  # fmt: skip
    return Study(
        title=networks[0].method
        if len(networks) == 1
        else f"{len(networks)} networks side by side",
        description="Attacks bound robust accuracy from above, certificates from below.",
        provenance={
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": " ".join(["snnkern report", *map(str, runs)]),
            "trained on": words["machine"] or machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "snnkern": __version__,
            "seed": str(seed),
        },
        dataset=words["data"] or "not known",
        networks=tuple(_named_apart(networks, runs)),
    )


def _named_apart(networks: list[NetworkResult], runs: Sequence[Path]) -> list[NetworkResult]:
    """By the folder's name, or by its path where two have the same."""
    names = [network.name for network in networks]
    if len(set(names)) == len(names) or len(runs) != len(networks):
        return networks
    return [replace(network, name=str(run)) for network, run in zip(networks, runs, strict=True)]


@dataclass(frozen=True)
class _Attacked:
    """One attack of an evaluation, and which images stay right, ``[N]`` bool."""

    name: str
    gradient: str | None
    eps: float
    right: Tensor


@dataclass(frozen=True)
class _Evaluated:
    """What ``snnkern attack`` or ``snnkern certify`` wrote."""

    clean: Score
    spikes: float | None
    dataset: str
    attacks: tuple[_Attacked, ...]
    certified: tuple[tuple[str, float, float], ...]  # method, eps, share

    @classmethod
    def read(cls, path: Path) -> _Evaluated | None:
        """The file, or None where there is none."""
        if not path.is_file():
            return None
        try:
            return cls._of(json.loads(path.read_text(encoding="utf-8")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is corrupt or truncated: {error!r}") from error

    @classmethod
    def _of(cls, numbers: dict[str, Any]) -> _Evaluated:
        labels = torch.tensor(numbers["labels"])
        right = {
            name: torch.tensor(attack["predictions"]) == labels
            for name, attack in numbers["attacks"].items()
        }
        clean = right.pop(CLEAN)
        attacks = []
        for key, mask in right.items():
            about = numbers["attacks"][key]
            eps = float(about["eps"])
            name = key.removesuffix(f" {eps_text(eps)}")
            attacks.append(_Attacked(name, about["gradient"], eps, mask & clean))
        certified = tuple(
            (c["method"], float(c["eps"]), _share(torch.tensor(c["certified"]) & clean))
            for c in numbers["certificates"]
        )
        spikes = numbers["attacks"][CLEAN]["spikes_per_image"]
        score = Score(CLEAN, 0.0, _share(clean), len(labels))
        return cls(score, spikes, str(numbers["dataset"]), tuple(attacks), certified)

    def members(self) -> tuple[Score, ...]:
        """Accuracy under each gradient by itself."""
        return tuple(
            Score(a.gradient, a.eps, _share(a.right), self.clean.count)
            for a in self.attacks
            if a.gradient is not None
        )

    def curves(self) -> tuple[Curve, ...]:
        """Accuracy and certified share against eps."""
        named: dict[tuple[CurveKind, str], dict[float, float]] = {}
        for attack in self.attacks:
            if attack.gradient is None:
                named.setdefault(("attack", attack.name), {})[attack.eps] = _share(attack.right)
        for method, eps, share in self.certified:
            named.setdefault(("certificate", f"certified, {method}"), {})[eps] = share
        curves = []
        for (kind, name), values in named.items():
            points = sorted(({0.0: self.clean.value} | values).items())
            sizes, shares = (tuple(part) for part in zip(*points, strict=True))
            curves.append(Curve(name, kind, sizes, shares, self.clean.count))
        return tuple(curves)

    def at(self, size: float) -> tuple[Score, ...]:
        """Accuracy under each attack at one size, and under all of them together."""
        there = [attack for attack in self.attacks if attack.eps == size]
        scores = [
            Score(attack.name, size, _share(attack.right), self.clean.count)
            for attack in there
            if attack.gradient is None
        ]
        if len(there) > 1:
            worst = torch.stack([attack.right for attack in there]).all(0)
            scores.append(Score("worst case", size, _share(worst), self.clean.count))
        return tuple(scores)

    def sizes(self) -> list[float]:
        """At which there are attacks, in rising order."""
        return sorted({attack.eps for attack in self.attacks})


@dataclass(frozen=True)
class _Run:
    """A run, by its checkpoint or folder."""

    path: Path
    folder: Path

    def network(
        self, data: Path | None, images: int, seed: int, device: torch.device
    ) -> tuple[NetworkResult, str, str]:
        """What is known of it, on which data, trained on which machine."""
        missing: list[str] = []
        history = read_metrics(self.folder)
        if not history:
            missing.append("Training curves: there is no epoch in metrics.jsonl.")
        about = self._about()
        evaluated = _Evaluated.read(self.folder / "evaluation.json")
        certified = _Evaluated.read(self.folder / "certification.json")
        recipe, shown, dataset, timesteps = None, None, "", 0
        if (self.folder / "recipe.toml").is_file():
            recipe, model = load_run(self.path)
            dataset = recipe.settings["data"]["name"]
            timesteps = int(getattr(model, "timesteps", 0))
            if images:
                size = trained_eps(recipe)
                if evaluated is not None and (sizes := evaluated.sizes()):
                    size = middle_size(sizes, recipe)
                shown = self._shown(recipe, model, size, data, images, seed, device, missing)
        else:
            missing.append(
                "Images, spikes, membranes, activity and energy: only runs of snnkern train, which "
                "keep their recipe, can be looked at again."
            )
        size = trained_eps(recipe) if recipe is not None else 8 / 255
        self._say_what_is_missing(missing, evaluated, certified, size, recipe is not None)
        scores: tuple[Score, ...] = ()
        if evaluated is not None and (sizes := evaluated.sizes()):
            scores = evaluated.at(middle_size(sizes, recipe))
        proofs = certified or evaluated
        certificate = next(iter(proofs.certified), None) if proofs is not None else None
        known = [part for part in (evaluated, certified) if part is not None]
        spikes = next((part.spikes for part in known), None)
        if spikes is None and shown is not None:
            spikes = sum(layer.clean * layer.neurons * timesteps for layer in shown.layers)
        method = about["settings"].get("method", "converted")
        name = self.path.resolve().name if self.path.is_dir() else f"{self.folder.resolve().name}, "
        return (
            NetworkResult(
                name=name if self.path.is_dir() else name + self.path.stem,
                method=str(recipe.settings["title"] if recipe is not None else method),
                timesteps=timesteps,
                clean=known[0].clean if known else None,
                attacked=scores,
                certified=None
                if certificate is None or proofs is None
                else Score(*certificate, proofs.clean.count),
                spikes_per_image=spikes,
                seconds=sum(record.seconds for record in history) if history else None,
                curves=tuple(_merged(part.curves() for part in known)),
                members=evaluated.members() if evaluated is not None else (),
                history=tuple(Epoch(r.epoch, r.loss, r.accuracy, r.val_accuracy) for r in history),
                layers=shown.layers if shown is not None else (),
                energy=shown.energy if shown is not None else None,
                samples=shown.samples if shown is not None else (),
                missing=tuple(missing),
            ),
            known[0].dataset if known else dataset,
            str(about["versions"]["machine"]),
        )

    def _about(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        try:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {"settings": about["settings"], "versions": about["versions"]}
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is corrupt or truncated: {error!r}") from error

    def _shown(
        self,
        recipe: Recipe,
        model: torch.nn.Module,
        size: float,
        data: Path | None,
        images: int,
        seed: int,
        device: torch.device,
        missing: list[str],
    ) -> Any:
        try:
            test: Samples = recipe.split(data).test
        except (ImportError, OSError, ValueError) as error:
            if data is not None:
                raise
            missing.append(f"Images, spikes, membranes, activity and energy: {error}")
            return None
        x, y = next(iter(loader(first_images(test, images), images)))
        grey_or_coloured = x.dim() == 4 and x.shape[1] in (1, 3)
        if not grey_or_coloured:
            missing.append(f"Pictures: samples of shape {list(x.shape[1:])} are no images.")
        of_class = {int(label): number for number, label in reversed(list(enumerate(y)))}
        chosen = sorted(of_class.values())[:SAMPLES_SHOWN] if grey_or_coloured else []
        model = model.to(device)
        attack = ATTACKS["pgd20"](size, DRAWS if draws(model) else 1)
        with threads(recipe.settings.get("threads")):
            return show(model, x.to(device), y.to(device), attack, "PGD-20", chosen, seed)

    def _say_what_is_missing(
        self,
        missing: list[str],
        evaluated: _Evaluated | None,
        certified: _Evaluated | None,
        size: float,
        recipe: bool,
    ) -> None:
        if not recipe:
            missing.append(
                "Accuracy under attack and certified share: snnkern.evaluate and "
                "snnkern.certify.verify measure them of any model."
            )
            return
        sizes = " ".join(eps_text(size * share) for share in (0.5, 1, 2))
        radii = " ".join(eps_text(size * share) for share in (0.025, 0.05, 0.1))
        if evaluated is None or len(evaluated.sizes()) < 2 or not evaluated.members():
            lacks = (
                "Accuracy under attack" if evaluated is None else "Accuracy against more than one ε"
            )
            missing.append(
                f"{lacks}, and under each gradient by itself: snnkern attack {self.path} --eps "
                f"{sizes} --attacks fgsm pgd20 {MEMBERS}"
            )
        if not any(part is not None and part.certified for part in (evaluated, certified)):
            missing.append(f"Certified share: snnkern certify {self.path} --eps {radii}")


def _merged(groups: Iterator[tuple[Curve, ...]] | Any) -> list[Curve]:
    """Each once: the later file's where two have one of the same name."""
    return list({(c.kind, c.name): c for curves in groups for c in curves}.values())


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()
