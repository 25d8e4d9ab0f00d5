"""The study that runs make: what their folders hold, and a look at their networks."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from snnkern._checks import check_int
from snnkern._info import machine
from snnkern._table import eps_text
from snnkern._version import __version__
from snnkern.attacks import PGD, SpikeFlip
from snnkern.attacks.results import CLEAN, share_of
from snnkern.data import loader
from snnkern.models import SpikingNetwork
from snnkern.nn import Events
from snnkern.report.network import Shown, show
from snnkern.report.results import Curve, CurveKind, Epoch, NetworkResult, Score
from snnkern.report.study import Study
from snnkern.training.attack import (
    DRAWS,
    MEMBERS,
    draws,
    first_images,
    middle_size,
)
from snnkern.training.own import OWN_NAME, Own, own_name
from snnkern.training.ranks import usable_device
from snnkern.training.run import read_metrics
from snnkern.training.start import DEFAULT_EPS, Trained, trained

IMAGES, SAMPLES_SHOWN = 32, 4
# Of runs that ``fit`` made by itself.
OWN_OPTION = f"--model {OWN_NAME}"
OF_OWN = (
    f"Images, spikes, membranes, activity and energy: the run has no recipe, and {OWN_OPTION} "
    "names a function of yours that gives its network and test samples."
)


def study_of_runs(
    runs: Sequence[Path],
    *,
    data: Path | None = None,
    model: Own | None = None,
    images: int = IMAGES,
    samples: Sequence[int] = (),
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
        model: gives the network and the test samples of the runs that have no recipe; see
            ``snnkern.training.start.trained``. Called once for each.
        images: how many test images to attack by PGD-20 anew, from the first: what is shown of
            them, activity, distances and energy come from these. Events are attacked by
            ``SpikeFlip``, with the size as the share that may flip. 0 leaves that out.
        samples: which of these are shown, by their numbers from 0; unless given, the first of each
            of four classes.
        seed: of the attacks' random choices.
        device: where to run; a GPU where there is one.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: a folder holds neither, or ``data`` is given and lacks a file.
        ValueError: no runs, ``samples`` that are not among the images, ``model`` and none that
            needs it, or a file of a run is corrupt.
    """
    if not runs:
        raise ValueError("runs is empty, expected at least one")
    folders = [run if run.is_dir() else run.parent for run in runs]
    without_recipe = [folder for folder in folders if not (folder / "recipe.toml").is_file()]
    if model is not None and not without_recipe:
        raise ValueError("model is given, expected none: every run has a recipe that says it")
    check_int("images", images, 0)
    for sample in samples:
        check_int("samples", sample, 0)
        if sample >= images:
            raise ValueError(f"samples has {sample}, expected numbers below images, {images}")
    where = usable_device(device)
    found: list[tuple[NetworkResult, str, str]] = []
    bar = tqdm(runs, desc="report", unit="run", disable=not progress, delay=1)
    for run, folder in zip(bar, folders, strict=True):
        if (folder / "metrics.jsonl").is_file():
            found.append(_Run(run, folder, data, model).network(images, samples, seed, where))
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
    title = f"{len(networks)} networks side by side"
    if len(networks) == 1:
        title = networks[0].name if without_recipe else networks[0].method
    given = {
        "data": data,
        "model": None if model is None else own_name(model),
        "images": None if images == IMAGES else images,
        "samples": " ".join(map(str, samples)),
    }
    options = [f"--{name} {value}" for name, value in given.items() if value not in (None, "")]
    return Study(
        title=title,
        description="Attacks bound robust accuracy from above, certificates from below.",
        provenance={
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": " ".join(["snnkern report", *map(str, runs), *options]),
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
            (c["method"], float(c["eps"]), share_of(torch.tensor(c["certified"]) & clean))
            for c in numbers["certificates"]
        )
        spikes = numbers["attacks"][CLEAN]["spikes_per_image"]
        score = Score(CLEAN, 0.0, share_of(clean), len(labels))
        return cls(score, spikes, str(numbers["dataset"]), tuple(attacks), certified)

    def members(self) -> tuple[Score, ...]:
        """Accuracy under each gradient by itself."""
        return tuple(
            Score(a.gradient, a.eps, share_of(a.right), self.clean.count)
            for a in self.attacks
            if a.gradient is not None
        )

    def curves(self) -> tuple[Curve, ...]:
        """Accuracy and certified share against eps."""
        named: dict[tuple[CurveKind, str], dict[float, float]] = {}
        for attack in self.attacks:
            if attack.gradient is None:
                named.setdefault(("attack", attack.name), {})[attack.eps] = share_of(attack.right)
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
            Score(attack.name, size, share_of(attack.right), self.clean.count)
            for attack in there
            if attack.gradient is None
        ]
        if len(there) > 1:
            worst = torch.stack([attack.right for attack in there]).all(0)
            scores.append(Score("worst case", size, share_of(worst), self.clean.count))
        return tuple(scores)

    def sizes(self) -> list[float]:
        """At which there are attacks, in rising order."""
        return sorted({attack.eps for attack in self.attacks})


@dataclass(frozen=True)
class _Run:
    """A run, by its checkpoint or folder."""

    path: Path
    folder: Path
    data: Path | None
    own: Own | None

    def network(
        self, images: int, samples: Sequence[int], seed: int, device: torch.device
    ) -> tuple[NetworkResult, str, str]:
        """What is known of it, on which data, trained on which machine."""
        about = self._about()
        history = read_metrics(self.folder)
        name = self.folder.resolve().name
        if not self.path.is_dir():
            name += f", {self.path.stem}"
        result = NetworkResult(
            name=name,
            method=str(about["settings"].get("method", "converted")),
            timesteps=None,
            clean=None,
            attacked=(),
            certified=None,
            spikes_per_image=None,
            seconds=sum(record.seconds for record in history) if history else None,
            history=tuple(Epoch(r.epoch, r.loss, r.accuracy, r.val_accuracy) for r in history),
            missing=() if history else ("Training curves: there is no epoch in metrics.jsonl.",),
        )
        on = str(about["versions"]["machine"])
        run = None
        if (self.folder / "recipe.toml").is_file():
            run = trained(self.path, self.data)
            result = replace(result, method=run.title)
        elif self.own is not None:
            run = trained(self.path, None, self.own)
        measured, dataset = self._measured(result, run, images, samples, seed, device)
        return measured, dataset, on

    def _about(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        try:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {"settings": about["settings"], "versions": about["versions"]}
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is corrupt or truncated: {error!r}") from error

    def _measured(
        self,
        result: NetworkResult,
        run: Trained | None,
        images: int,
        samples: Sequence[int],
        seed: int,
        device: torch.device,
    ) -> tuple[NetworkResult, str]:
        """With what was measured of its network, and is now; and on which data."""
        evaluated = _Evaluated.read(self.folder / "evaluation.json")
        certified = _Evaluated.read(self.folder / "certification.json")
        known = [part for part in (evaluated, certified) if part is not None]
        sizes = evaluated.sizes() if evaluated is not None else []
        size = DEFAULT_EPS if run is None else run.eps
        size = middle_size(sizes, size) if sizes else size
        missing = [*result.missing]
        shown = None
        if run is None:
            missing.append(OF_OWN)
        elif images:
            try:
                test = run.test()
            except (ImportError, OSError, ValueError) as error:
                if self.data is not None:
                    raise
                missing.append(f"Images, spikes, membranes, activity and energy: {error}")
            else:
                with run.running():
                    x, y = next(iter(loader(first_images(test, images), images)))
                    x, y = x.to(device), y.to(device)
                    shown = _shown(run.model.to(device), x, y, size, samples, seed)
                if not shown.samples:
                    missing.append("Images, spikes and membranes: the samples are no pictures.")
        command = f"{self.path}"
        if run is None:
            command += f" {OWN_OPTION}"
        elif self.own is not None:
            command += f" --model {own_name(self.own)}"
        more = " ".join(eps_text(size * share) for share in (0.5, 1, 2))
        if evaluated is None or len(sizes) < 2 or not evaluated.members():
            missing.append(
                "Accuracy against several ε, and under each gradient by itself: "
                f"snnkern attack {command} --eps {more} --attacks fgsm pgd20 {MEMBERS}"
            )
        proofs = next((part for part in reversed(known) if part.certified), None)
        if run is not None and not isinstance(run.model, SpikingNetwork):
            missing.append("Certified share: only networks of snnkern.models can be certified.")
        elif proofs is None:
            radii = " ".join(eps_text(size * share) for share in (0.025, 0.05, 0.1))
            missing.append(f"Certified share: snnkern certify {command} --eps {radii}")
        spikes = next((part.spikes for part in known), None)
        if spikes is None and shown is not None:
            spikes = shown.timesteps * sum(one.clean * one.neurons for one in shown.layers)
        curves = {(c.kind, c.name): c for part in known for c in part.curves()}
        measured = replace(
            result,
            timesteps=shown.timesteps if shown is not None else _timesteps(run),
            clean=known[0].clean if known else None,
            attacked=evaluated.at(size) if evaluated is not None else (),
            certified=Score(*proofs.certified[0], proofs.clean.count) if proofs else None,
            spikes_per_image=spikes,
            curves=tuple(curves.values()),
            members=evaluated.members() if evaluated is not None else (),
            layers=shown.layers if shown is not None else (),
            energy=shown.energy if shown is not None else None,
            samples=shown.samples if shown is not None else (),
            missing=tuple(missing),
        )
        return measured, known[0].dataset if known else "" if run is None else run.dataset


def _timesteps(run: Trained | None) -> int | None:
    """Of a network, as it says itself or its encoder does."""
    found = [] if run is None else [getattr(m, "timesteps", None) for m in run.model.modules()]
    return next((steps for steps in found if isinstance(steps, int)), None)


def _shown(
    model: nn.Module, x: Tensor, y: Tensor, size: float, samples: Sequence[int], seed: int
) -> Shown:
    """What is seen of samples; those that are shown have to be pictures."""
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        samples = ()
    elif not samples:
        first = {label: number for number, label in reversed(list(enumerate(y.tolist())))}
        samples = sorted(first.values())[:SAMPLES_SHOWN]
    if samples and max(samples) >= len(x):
        raise ValueError(
            f"samples has {max(samples)}, expected numbers below {len(x)}, all there are"
        )
    takes_events = any(isinstance(module, Events) for module in model.modules())
    if takes_events and bool(((x == 0) | (x == 1)).all()):
        return show(model, x, y, SpikeFlip(size), "SpikeFlip", samples, seed)
    attack = PGD(size, steps=20, eot=DRAWS if draws(model) else 1)
    return show(model, x, y, attack, "PGD-20", samples, seed)
