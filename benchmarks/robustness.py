"""The tables of four papers, on handwritten digits.

    python -m benchmarks.robustness --save-results

trains small networks by the digits recipes, one per row of the papers' tables and seed, attacks
each by its own gradients and by those of a network of another seed, and says in words which of the
papers' findings the figures show. Every training keeps a run folder: the same command goes
on where it was interrupted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from benchmarks.comparison import Findings, command, listed
from snnkern._table import Cell, Table, percent
from snnkern.attacks import BIM, FGSM, PGD, RFGSM, Attack, Ensemble, Transfer, evaluate
from snnkern.data import loader
from snnkern.nn import Gradient
from snnkern.training.convert import convert_run
from snnkern.training.recipe import Recipe
from snnkern.training.start import load_run
from snnkern.training.train import train

BOXES = {"white box": "", "transfer": "transferred "}  # with what the attacks' names begin


def through_time_and_rate(eps: float) -> dict[str, Attack]:
    """Those of Ding et al. 2022, each by BPTT and by BPTR."""
    kinds: tuple[type[Attack], ...] = (FGSM, RFGSM, PGD, BIM)
    gradients: dict[str, Gradient | None] = {"BPTT": None, "BPTR": "rate"}
    return {
        f"{kind.__name__} {name}": kind(eps, gradient=gradient)
        for kind in kinds
        for name, gradient in gradients.items()
    }


def ensembles(eps: float) -> dict[str, Attack]:
    """Those of Ozdenizci & Legenstein 2023: by the neurons' own surrogate, and by all 19."""
    kinds = {"FGSM": FGSM(eps), "PGD-20": PGD(eps, steps=20)}
    return kinds | {f"{name} ensemble": Ensemble(attack) for name, attack in kinds.items()}


def seven_quarters(eps: float) -> dict[str, Attack]:
    """Those of Sharmin et al. 2020: seven steps of a quarter of ``eps``."""
    return {"FGSM": FGSM(eps), "PGD": PGD(eps, step_size=eps / 4)}


class Paper(NamedTuple):
    """What a paper compares; what it improves on comes first, its own method last.

    Args:
        title: with the tables that ours follow.
        recipes: by the name of the training.
        above: pairs of trainings, of which the paper finds the first the more robust.
        alike: pairs, of which the paper finds the first hardly more robust.
        attacks: of a size, by name.
        iterated: pairs of a single-step attack and its iterated one.
        source: the training on whose network the transferred attacks are crafted; the same one
            unless given.
    """

    title: str
    recipes: dict[str, str]
    above: tuple[tuple[str, str], ...]
    alike: tuple[tuple[str, str], ...] = ()
    attacks: Callable[[float], dict[str, Attack]] = through_time_and_rate
    iterated: tuple[tuple[str, str], ...] = (
        ("FGSM BPTT", "PGD BPTT"),
        ("FGSM BPTR", "PGD BPTR"),
        ("FGSM BPTT", "BIM BPTT"),
        ("FGSM BPTR", "BIM BPTR"),
    )
    source: str | None = None


PAPERS = (
    Paper(
        "SNN-RAT (Ding et al. 2022, tables 2 and 3)",
        {
            "vanilla (L2)": "digits_rat_vanilla",
            "REG alone": "digits_rat_reg",
            "MIX alone (L2)": "digits_rat_mix",
            "RAT": "digits_rat",
        },
        (
            ("RAT", "vanilla (L2)"),
            ("RAT", "MIX alone (L2)"),
            ("RAT", "REG alone"),
            ("MIX alone (L2)", "vanilla (L2)"),
            ("REG alone", "vanilla (L2)"),
        ),
    ),
    Paper(
        "HIRE-SNN (Kundu et al. 2021, tables 2 and 3, figure 9)",
        {
            "traditional": "digits_traditional",
            "Gaussian noise": "digits_hire_gaussian",
            "HIRE": "digits_hire",
        },
        (("HIRE", "traditional"), ("HIRE", "Gaussian noise")),
        (("Gaussian noise", "traditional"),),
    ),
    Paper(
        "Robust conversion (Ozdenizci & Legenstein 2023, tables 1, B1, B3 and B5)",
        {
            "natural ANN": "digits_robust_natural",
            "TRADES ANN, thresholds kept": "digits_robust_frozen",
            "TRADES ANN": "digits_robust",
        },
        (("TRADES ANN", "natural ANN"), ("TRADES ANN", "TRADES ANN, thresholds kept")),
        attacks=ensembles,
        iterated=(("FGSM", "PGD-20"), ("FGSM ensemble", "PGD-20 ensemble")),
    ),
    Paper(
        "Inherent robustness (Sharmin et al. 2020, table 1)",
        {
            "ANN": "digits_sharmin_ann",
            "SNN-conv": "digits_sharmin_conv",
            "SNN-BP": "digits_sharmin_bp",
        },
        (("SNN-BP", "ANN"), ("SNN-BP", "SNN-conv")),
        attacks=seven_quarters,
        iterated=(("FGSM", "PGD"),),
        source="ANN",
    ),
)


class Network(NamedTuple):
    """One trained network: the share of the test images that it classifies right, by attack."""

    training: str
    recipe: str
    seed: int
    accuracy: dict[str, float]


def trained(recipe: Recipe, seed: int, epochs: int | None, folder: Path) -> nn.Module:
    """The network after its last epoch: none is chosen by what it makes of the test images."""
    return load_run(run_of(recipe, seed, epochs, folder))[1]


def run_of(recipe: Recipe, seed: int, epochs: int | None, folder: Path) -> Path:
    """The run of a recipe, after that of the one with whose network it begins."""
    run, start = folder / f"{recipe.name}-{seed}", None
    if "start" in recipe.settings:
        start = run_of(Recipe.load(recipe.settings["start"]), seed, epochs, folder)
    if recipe.trains:
        train(
            recipe,
            run,
            epochs=epochs,
            seed=seed,
            resume=True,
            device="cpu",
            start=start,
            progress=False,
        )
    elif start is not None and not (run / "last.safetensors").exists():
        convert_run(start, recipe, folder=run, seed=seed, device="cpu", progress=False)
    return run


def attacked(
    model: nn.Module,
    source: nn.Module,
    attacks: dict[str, Attack],
    test: TensorDataset,
    seed: int,
) -> dict[str, float]:
    """The shares that ``model`` classifies right: clean, under attack, transferred from source."""
    prefix = BOXES["transfer"]
    attacks = attacks | {f"{prefix}{name}": Transfer(source, a) for name, a in attacks.items()}
    result = evaluate(model, loader(test, len(test)), attacks, seed=seed, progress=False)
    return {name: result.accuracy(name) for name in result.predictions}


def measure(
    papers: Sequence[Paper],
    seeds: Sequence[int],
    epochs: int | None,
    images: int,
    eps: float,
    folder: Path,
    progress: bool,
) -> list[Network]:
    """Trains and attacks everything that ``papers`` compare."""
    if len(set(seeds)) < 2:
        raise ValueError(
            f"seeds is {list(seeds)}, expected at least two: transferred attacks come from the "
            "network of another seed"
        )
    measured = []
    total = 2 * len(seeds) * sum(len(paper.recipes) for paper in papers)
    with tqdm(total=total, desc="robustness", unit="step", disable=not progress) as bar:
        for paper in papers:
            models: dict[str, list[nn.Module]] = {}
            for training, name in paper.recipes.items():
                recipe = Recipe.load(name)
                test = TensorDataset(*recipe.split().test[:images])
                models[training] = []
                for seed in seeds:
                    bar.set_postfix_str(f"train {name}, seed {seed}")
                    models[training].append(trained(recipe, seed, epochs, folder))
                    bar.update()
                sources = models[paper.source or training]
                sources = [*sources[1:], sources[0]]
                for model, source, seed in zip(models[training], sources, seeds, strict=True):
                    bar.set_postfix_str(f"attack {name}, seed {seed}")
                    accuracy = attacked(model, source, paper.attacks(eps), test, seed)
                    measured.append(Network(training, name, seed, accuracy))
                    bar.update()
    return measured


def shares(networks: Sequence[Network], training: str, attack: str) -> list[float]:
    """One per seed."""
    return [one.accuracy[attack] for one in networks if one.training == training]


def table(paper: Paper, box: str, networks: Sequence[Network]) -> Table:
    """One row per training: clean and under each attack, in percent."""

    def cell(training: str, attack: str) -> Cell:
        right = shares(networks, training, attack)
        extremes = f"{percent(min(right))}\N{EN DASH}{percent(max(right))}"
        return Cell(percent(statistics.mean(right)), extremes)

    attacks = tuple(paper.attacks(0.0))
    columns = ("clean", *(BOXES[box] + attack for attack in attacks))
    rows = tuple(
        (Cell(training), *(cell(training, column) for column in columns))
        for training in paper.recipes
    )
    caption = (
        f"{paper.title}, {box}: percent classified right, the mean over the seeds and, small, the "
        "lowest and the highest."
    )
    return Table(caption, tuple(map(Cell, ("training", "clean", *attacks))), rows)


def verdict(claim: str, pairs: dict[str, tuple[list[float], list[float]]]) -> str:
    """Whether the first of each pair is above the second in every seed, or where it is not."""
    by_count: dict[int, list[str]] = {}
    seeds = 0
    for name, (high, low) in pairs.items():
        differences = [one - other for one, other in zip(high, low, strict=True)]
        seeds = len(differences)
        count = sum(difference > 0 for difference in differences)
        by_count.setdefault(count, []).append(f"{name} ({100 * statistics.mean(differences):+.1f})")
    answer = {seeds: "yes", 0: "no"}.get(max(by_count)) if len(by_count) == 1 else None
    where = "; ".join(
        f"in {count} of {seeds} seeds {', '.join(by_count[count])}"
        for count in sorted(by_count, reverse=True)
    )
    return f"{claim}: {answer or 'not throughout'}; {where}."


def verdicts(paper: Paper, networks: Sequence[Network]) -> Iterator[str]:
    """What the paper finds, and whether these figures show it."""

    def pair(better: tuple[str, str], worse: tuple[str, str]) -> tuple[list[float], list[float]]:
        return shares(networks, *better), shares(networks, *worse)

    first, *_, own = paper.recipes
    attacks = tuple(paper.attacks(0.0))
    clean = {"clean": pair((first, "clean"), (own, "clean"))}
    yield verdict(f"{first} above {own} on clean images", clean)
    for box, prefix in BOXES.items():
        for better, worse in paper.above + paper.alike:
            pairs = {
                name: pair((better, prefix + name), (worse, prefix + name)) for name in attacks
            }
            hardly = " (hardly, the paper finds)" if (better, worse) in paper.alike else ""
            yield verdict(f"{better} above {worse}, {box}{hardly}", pairs)
    transferred = BOXES["transfer"]
    for training in paper.recipes:
        pairs = {name: pair((training, transferred + name), (training, name)) for name in attacks}
        yield verdict(f"{training}: transfer weaker than white box", pairs)
        pairs = {
            iterated: pair((training, single), (training, iterated))
            for single, iterated in paper.iterated
        }
        yield verdict(f"{training}: iterated attacks stronger than FGSM, white box", pairs)


def report(papers: Sequence[Paper], networks: Sequence[Network]) -> Iterator[str | Table]:
    """All tables and verdicts."""
    for paper in papers:
        yield f"## {paper.title}"
        yield from (table(paper, box, networks) for box in BOXES)
        own = Recipe.load([*paper.recipes.values()][-1]).method()
        yield listed((f"`{own}`.", *verdicts(paper, networks)))


def describe(seeds: Sequence[int], epochs: int | None, images: int, eps: float) -> str:
    """In words, what all figures have in common."""
    trained = "" if epochs is None else f" for {epochs} epochs each"
    return (
        "Small convolutional networks on the 8x8 digits of scikit-learn, trained by the recipes "
        f"`digits_*`{trained}, seeds {', '.join(map(str, seeds))}; attacked on {images} test "
        f"images after the last epoch, eps = {eps:g}. PGD and BIM take 7 steps of 2.5 eps / 7 "
        "where the table names a gradient, PGD-20 takes 20 of 2.5 eps / 20, and the PGD of Sharmin "
        "et al. 7 of eps / 4. Ensembles have the 19 members of Ozdenizci & Legenstein. What counts "
        "is right clean and under attack. Transferred attacks are crafted, by the same gradient, "
        "on the network of the same training and the next seed, those of Sharmin et al. on the "
        "ANN of the next seed. Beneath the tables stand the papers' findings: in how many seeds "
        "these figures show each, and in brackets the mean difference in points."
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    add("--epochs", type=int, help="of every training, instead of the recipes'")
    add("--images", type=int, default=360, help="how many test images to attack (default: all 360)")
    add("--eps", type=float, default=0.1, help="size of the attacks (default: 0.1)")


def measured(options: argparse.Namespace) -> Findings:
    common = (options.seeds, options.epochs, options.images, options.eps)
    networks = measure(PAPERS, *common, options.folder, not options.quiet)
    return Findings(
        (describe(*common), *report(PAPERS, networks)), [network._asdict() for network in networks]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    return command("robustness", __doc__, add_options, measured, arguments, trains=True)


if __name__ == "__main__":
    sys.exit(main())
