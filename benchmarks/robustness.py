"""The tables of SNN-RAT and HIRE-SNN, on handwritten digits.

    python -m benchmarks.robustness --save-results

trains small networks by the digits recipes, one per row of the papers' tables and seed, attacks
each by its own gradients and by those of the same network of another seed, and says in words which
of the papers' findings the figures show. Every training keeps a run folder: the same command goes
on where it was interrupted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from benchmarks import comparison
from snnkern.attacks import BIM, FGSM, PGD, RFGSM, Attack, Transfer, evaluate
from snnkern.data import loader
from snnkern.nn import Gradient
from snnkern.report.table import Cell, Table, percent
from snnkern.training import load_checkpoint
from snnkern.training.recipe import Recipe
from snnkern.training.train import train

RESULTS = Path(__file__).with_name("results")
KINDS: tuple[type[Attack], ...] = (FGSM, RFGSM, PGD, BIM)
GRADIENTS: dict[str, Gradient | None] = {"BPTT": None, "BPTR": "rate"}
ATTACKS = tuple(f"{kind.__name__} {gradient}" for kind in KINDS for gradient in GRADIENTS)
BOXES = {"white box": "", "transfer": "transferred "}  # with what the attacks' names begin


class Paper(NamedTuple):
    """What a paper compares; what it improves on comes first, its own method last.

    Args:
        title: with the tables that ours follow.
        recipes: by the name of the training.
        above: pairs of trainings, of which the paper finds the first the more robust.
        alike: pairs, of which the paper finds the first hardly more robust.
    """

    title: str
    recipes: dict[str, str]
    above: tuple[tuple[str, str], ...]
    alike: tuple[tuple[str, str], ...] = ()


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
)


class Network(NamedTuple):
    """One trained network: the share of the test images that it classifies right, by attack."""

    training: str
    recipe: str
    seed: int
    accuracy: dict[str, float]


def trained(recipe: Recipe, seed: int, epochs: int, folder: Path) -> nn.Module:
    """The network after its last epoch: none is chosen by what it makes of the test images."""
    run = folder / f"{recipe.name}-{seed}"
    train(recipe, run, epochs=epochs, seed=seed, resume=True, device="cpu", progress=False)
    model = recipe.model()
    model.load_state_dict(load_checkpoint(run / "last.safetensors")["model"])
    return model


def attacked(
    model: nn.Module, source: nn.Module, test: TensorDataset, eps: float, seed: int
) -> dict[str, float]:
    """The shares that ``model`` classifies right: clean, under attack, transferred from source."""
    attacks: dict[str, Attack] = {
        f"{kind.__name__} {name}": kind(eps, gradient=gradient)
        for kind in KINDS
        for name, gradient in GRADIENTS.items()
    }
    prefix = BOXES["transfer"]
    attacks |= {f"{prefix}{name}": Transfer(source, attack) for name, attack in attacks.items()}
    result = evaluate(model, loader(test, len(test)), attacks, seed=seed, progress=False)
    return {name: result.accuracy(name) for name in result.predictions}


def measure(
    papers: Sequence[Paper],
    seeds: Sequence[int],
    epochs: int,
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
    rows = [row for paper in papers for row in paper.recipes.items()]
    total = 2 * len(rows) * len(seeds)
    with tqdm(total=total, desc="robustness", unit="step", disable=not progress) as bar:
        for training, name in rows:
            recipe = Recipe.load(name)
            test = TensorDataset(*recipe.split().test[:images])
            models = []
            for seed in seeds:
                bar.set_postfix_str(f"train {name}, seed {seed}")
                models.append(trained(recipe, seed, epochs, folder))
                bar.update()
            for model, source, seed in zip(models, [*models[1:], models[0]], seeds, strict=True):
                bar.set_postfix_str(f"attack {name}, seed {seed}")
                accuracy = attacked(model, source, test, eps, seed)
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

    columns = ("clean", *(BOXES[box] + attack for attack in ATTACKS))
    rows = tuple(
        (Cell(training), *(cell(training, column) for column in columns))
        for training in paper.recipes
    )
    caption = (
        f"{paper.title}, {box}: percent classified right, the mean over the seeds and, small, the "
        "lowest and the highest."
    )
    return Table(caption, tuple(map(Cell, ("training", "clean", *ATTACKS))), rows)


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
    clean = {"clean": pair((first, "clean"), (own, "clean"))}
    yield verdict(f"{first} above {own} on clean images", clean)
    for box, prefix in BOXES.items():
        for better, worse in paper.above + paper.alike:
            pairs = {
                name: pair((better, prefix + name), (worse, prefix + name)) for name in ATTACKS
            }
            hardly = " (hardly, the paper finds)" if (better, worse) in paper.alike else ""
            yield verdict(f"{better} above {worse}, {box}{hardly}", pairs)
    transferred = BOXES["transfer"]
    for training in paper.recipes:
        pairs = {name: pair((training, transferred + name), (training, name)) for name in ATTACKS}
        yield verdict(f"{training}: transfer weaker than white box", pairs)
        pairs = {
            f"{kind} {name}": pair((training, f"FGSM {name}"), (training, f"{kind} {name}"))
            for kind in ("PGD", "BIM")
            for name in GRADIENTS
        }
        yield verdict(f"{training}: iterated attacks stronger than FGSM, white box", pairs)


def report(papers: Sequence[Paper], networks: Sequence[Network], setting: str) -> tuple[str, str]:
    """All tables and verdicts: for the terminal, and in Markdown."""
    plain, markdown = [setting], [setting]
    for paper in papers:
        tables = [table(paper, box, networks) for box in BOXES]
        own = Recipe.load([*paper.recipes.values()][-1]).method()
        said = "\n".join(f"- {line}" for line in (f"`{own}`.", *verdicts(paper, networks)))
        plain += [*(one.text() for one in tables), said]
        markdown += [f"## {paper.title}", *(one.markdown() for one in tables), said]
    return "\n\n".join(plain), "\n\n".join(markdown)


def describe(seeds: Sequence[int], epochs: int, images: int, eps: float) -> str:
    """In words, what all figures have in common."""
    return (
        "Small convolutional networks on the 8x8 digits of scikit-learn, trained by the recipes "
        f"`digits_*` for {epochs} epochs from new weights, seeds {', '.join(map(str, seeds))}; "
        f"attacked on {images} test images after the last epoch, eps = {eps:g}. PGD and BIM take 7 "
        "steps of 2.5 eps / 7. What counts is right clean and under attack. Transferred attacks "
        "are crafted, by the same gradient, on the network of the same training and the next seed. "
        "Beneath the tables stand the papers' findings: in how many seeds these figures show each, "
        "and in brackets the mean difference in points."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    add("--epochs", type=int, default=40, help="of every training (default: 40)")
    add("--images", type=int, default=360, help="how many test images to attack (default: all 360)")
    add("--eps", type=float, default=0.1, help="size of the attacks (default: 0.1)")
    add("--folder", type=Path, help="of the runs; in runs/, named after the commit, unless given")
    add("--quiet", action="store_true", help="no progress bar")
    add(
        "--save-results",
        action="store_true",
        help="write the tables to benchmarks/results, named after the machine",
    )
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    about = comparison.facts("python", "-m", "benchmarks.robustness", *given)
    # So that networks of different code never meet in one table.
    folder = options.folder or Path("runs") / f"robustness-{about['commit'][:12]}"
    torch.set_num_threads(1)  # layers this small lose more to threads than they gain
    common = (options.seeds, options.epochs, options.images, options.eps)
    try:
        networks = measure(PAPERS, *common, folder, not options.quiet)
    except KeyboardInterrupt:
        print(f"interrupted: the same command goes on with {folder}", file=sys.stderr)
        return 130
    text, markdown = report(PAPERS, networks, describe(*common))
    print(text)
    if options.save_results:
        cases = [network._asdict() for network in networks]
        for path in comparison.save(RESULTS, about, cases, markdown, "-robustness"):
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
