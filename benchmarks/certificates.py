"""How much bounds certify, beside what is exactly true.

    python -m benchmarks.certificates --save-results

trains fully connected networks on handwritten digits by the recipes digits_fc_*, naturally,
adversarially and certifiably, and says of the same test images which share S-IBP, S-CROWN and the
best of both certify as Liang et al. 2022 print them, which ours, which mixed-integer programming
finds certain, and which attacks leave. Of networks of random weights, small enough for every margin
to be solved, it says how far below the exact margins the bounds are. Every training keeps a run
folder: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from benchmarks.comparison import Findings, command, listed
from benchmarks.robustness import trained
from snnkern._table import Cell, Table, percent
from snnkern.attacks import DEFAULT_ENSEMBLE, PGD, Ensemble, evaluate
from snnkern.certify import bounds, crown, exact, ibp, verify
from snnkern.certify.backward import Options
from snnkern.certify.bounds import Method, layers_of
from snnkern.data import loader
from snnkern.models import SpikingNetwork, fc_net
from snnkern.nn.reading import divided_by
from snnkern.reference import Interval
from snnkern.training.recipe import Recipe

TRAININGS = {
    "natural": "digits_fc_natural",
    "adversarial": "digits_fc_at",
    "S-IBP": "digits_fc_ibp",
    "S-CROWN to S-IBP": "digits_fc_crown",
}
PUBLISHED = ("S-IBP", "S-CROWN", "best of both")
OURS: dict[str, Method] = {"ours": "best", "ours, tight": "tight", "ours, split": "split"}
BETTER, MILLISECONDS = 1.5, 100  # bars: times the paper's best on natural networks; per image


# Margins of random networks are found in float32: so far they may round below a bound as printed.
ROUNDED = 1e-5


class Size(NamedTuple):
    """Widths of the hidden layers, and the radius that goes with them."""

    hidden: tuple[int, ...]
    eps: float

    def __str__(self) -> str:
        return f"64-{'-'.join(map(str, self.hidden))}-10, eps {self.eps:g}"


SIZES = (Size((32,), 0.05), Size((32, 32), 0.03))


class Family(NamedTuple):
    """Networks of normal weights: what they share.

    Attributes:
        widths: of all layers, input and classes among them.
        timesteps: T.
        spiking: whether the last layer fires, or its currents are summed.
        eps: the radius.
        bar: of the paper's mean gap, what ours should be at most.
    """

    widths: tuple[int, ...]
    timesteps: int
    spiking: bool
    eps: float
    bar: float

    def __str__(self) -> str:
        readout = "spiking" if self.spiking else "integrating"
        widths = "-".join(map(str, self.widths))
        return f"{widths}, T = {self.timesteps}, {readout}, eps {self.eps:g}"

    def draw(self, seed: int) -> tuple[SpikingNetwork, Tensor, Tensor]:
        """A network, an image, and the class that it sees there."""
        inputs, *hidden, classes = self.widths
        shape = (1, 1, inputs)
        net = fc_net(
            classes,
            self.timesteps,
            input_shape=shape,
            hidden=hidden,
            leak=0.9,
            threshold=1.0,
            spiking_output=self.spiking,
        )
        draws = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=1.0 if parameter.dim() > 1 else 0.3, generator=draws)
        x = torch.rand(1, *shape, generator=draws)
        return net.eval(), x, net(x).argmax(1)


FAMILIES = tuple(
    Family(widths, timesteps, spiking, eps, bar)
    for widths, timesteps, eps, bar in (((6, 8, 3), 3, 0.05, 1 / 3), ((8, 16, 16, 3), 4, 0.02, 0.6))
    for spiking in (False, True)
)


class Gaps(NamedTuple):
    """Of the margins of a family: how far below the least found a bound is in the mean.

    ``certified`` says how many bounds are above 0; of ``exact``, how many of the least found are.
    """

    family: str
    bar: float
    margins: int
    gaps: dict[str, float]
    certified: dict[str, int]


class Network(NamedTuple):
    """One trained network: shares of the images, and seconds per image, by what finds them.

    ``exact`` is what is certain, ``possible`` what no input was found against.
    """

    size: str
    training: str
    shares: dict[str, float]
    seconds: dict[str, float]


def recipe_of(name: str, size: Size) -> Recipe:
    """A recipe for networks of another size."""
    settings = Recipe.load(name).settings
    changed = {"model": settings["model"] | {"hidden": list(size.hidden)}}
    if "eps" in settings["method"]:
        changed["method"] = settings["method"] | {"eps": size.eps}
    widths = "_".join(map(str, size.hidden))
    return Recipe.of(f"{name}_{widths}", settings | changed)


def ball(x: Tensor, eps: float) -> Interval:
    """The images within the radius."""
    return Interval((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))


@torch.no_grad()
def published(net: SpikingNetwork, box: Interval, y: Tensor, by_crown: bool) -> Tensor:
    """Margins ``[N, K - 1]`` by S-IBP or S-CROWN as printed: what is the same every step, too."""
    seen = ibp.propagate(net.encoder, ibp.propagate(net.normalize, box))
    seen = seen.map(lambda t: t.contiguous())  # nothing shows that it is
    layers = layers_of(net)
    if by_crown:
        options = Options("paper", exact_first=False, once_over_time=False)
        total = crown.totals(layers, seen, y, options).to(box.lower.dtype)
        return total / divided_by(net.readout, net.timesteps)
    return ibp.margins(layers, net.readout, seen, y)


def settled(
    net: SpikingNetwork, x: Tensor, y: Tensor, eps: float, time_limit: float
) -> tuple[bool, bool]:
    """Whether an image is certain, and whether it may be: no input breaks it that was found.

    One margin after the other, the worst first, up to one that is broken.
    """
    box = ball(x, eps)
    bound = bounds(net, *box, y, "tight")
    certain = True
    for k in bound[0].argsort().tolist():
        if bound[0, k] > 0:
            break
        wanted = torch.zeros_like(bound, dtype=torch.bool)
        wanted[0, k] = True
        solved = exact.margins(net, *box, y, wanted=wanted, time_limit=time_limit)
        if solved.found[0, k] <= 0:
            return False, False
        certain &= bool(solved.lower[0, k] > exact.TOLERANCE)
    return certain, True


def measure(
    net: SpikingNetwork, test: TensorDataset, eps: float, time_limit: float, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Shares and seconds of one network, see ``Network``.

    Raises:
        snnkern.attacks.ContradictionError: an attack breaks what is certified.
        AssertionError: a bound certifies what the exact verifier breaks.
    """
    net.eval()
    x, y = test.tensors
    found: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    printed = []
    for name, by_crown in (("S-IBP", False), ("S-CROWN", True)):
        start = time.perf_counter()
        printed.append(published(net, ball(x, eps), y, by_crown))
        seconds[name] = (time.perf_counter() - start) / len(x)
        found[name] = printed[-1].amin(1) > 0
    found["best of both"] = torch.maximum(*printed).amin(1) > 0
    seconds["best of both"] = seconds["S-IBP"] + seconds["S-CROWN"]
    certificates = []
    for name, method in OURS.items():
        start = time.perf_counter()
        certificates.append(verify(net, x, y, eps, method))
        seconds[name] = (time.perf_counter() - start) / len(x)
        found[name] = certificates[-1].certified
    attacks = {
        "PGD": PGD(eps, steps=40),
        "ensemble": Ensemble(PGD(eps, steps=20), gradients=DEFAULT_ENSEMBLE),
    }
    result = evaluate(
        net, loader(test, len(x)), attacks, certificates=certificates, seed=seed, progress=False
    )
    found["clean"] = result.correct("clean")
    found["attacked"] = torch.stack([result.correct(n) for n in ("clean", *attacks)]).all(0)
    found |= {"exact": found["ours, tight"].clone(), "possible": found["attacked"].clone()}
    left = (found["possible"] & ~found["exact"]).nonzero()[:, 0].tolist()
    start = time.perf_counter()
    for n in left:
        part = slice(n, n + 1)
        found["exact"][n], found["possible"][n] = settled(net, x[part], y[part], eps, time_limit)
    if left:
        seconds["exact"] = (time.perf_counter() - start) / len(left)
    order = (*PUBLISHED, *OURS, "exact", "possible", "attacked", "clean")
    for name in (*PUBLISHED, *OURS):
        assert not (found[name] & ~found["possible"]).any(), f"{name} certifies what is broken"
    assert not (found["exact"] & ~found["possible"]).any(), "certain, and broken"
    return {name: found[name].float().mean().item() for name in order}, seconds


def gaps_of(family: Family, count: int, time_limit: float) -> Gaps:
    """How tight the bounds of so many networks are.

    Raises:
        AssertionError: a bound is above the margin of an image that was found.
    """
    names = ("best of both", *OURS)
    gaps: dict[str, list[Tensor]] = {name: [] for name in names}
    certified = dict.fromkeys((*names, "exact"), 0)
    for seed in range(count):
        net, x, y = family.draw(seed)
        box = ball(x, family.eps)
        least = exact.margins(net, *box, y, time_limit=time_limit).found
        printed = [published(net, box, y, by_crown) for by_crown in (False, True)]
        found = {"best of both": torch.maximum(*printed)}
        found |= {name: bounds(net, *box, y, method) for name, method in OURS.items()}
        certified["exact"] += int((least > 0).sum())
        for name, bound in found.items():
            assert (bound <= least + ROUNDED).all(), f"{name} is above a margin of {family}"
            certified[name] += int((bound > 0).sum())
            gaps[name].append(least - bound)
    means = {name: torch.cat(each).mean().item() for name, each in gaps.items()}
    return Gaps(str(family), family.bar, count * (family.widths[-1] - 1), means, certified)


def networks(
    sizes: Sequence[Size],
    seed: int,
    epochs: int | None,
    images: int,
    time_limit: float,
    folder: Path,
    progress: bool,
) -> Iterator[Network]:
    """Trains and measures all of them."""
    with tqdm(
        total=2 * len(sizes) * len(TRAININGS), desc="certificates", disable=not progress
    ) as bar:
        for size in sizes:
            for training, name in TRAININGS.items():
                recipe = recipe_of(name, size)
                bar.set_postfix_str(f"train {recipe.name}")
                net = trained(recipe, seed, epochs, folder)
                assert isinstance(net, SpikingNetwork)
                bar.update()
                bar.set_postfix_str(f"certify {recipe.name}")
                test = TensorDataset(*recipe.split().test[:images])
                shares, seconds = measure(net, test, size.eps, time_limit, seed)
                bar.update()
                yield Network(str(size), training, shares, seconds)


def table(measured: Sequence[Network]) -> Table:
    """One row per network: shares in percent, and beneath them milliseconds per image."""

    def cell(one: Network, column: str) -> Cell:
        share = percent(one.shares[column])
        if column == "exact" and one.shares["possible"] > one.shares["exact"]:
            share += f"\N{EN DASH}{percent(one.shares['possible'])}"
        ms = f"{1000 * one.seconds[column]:.2g} ms" if column in one.seconds else ""
        return Cell(share, ms)

    columns = (*PUBLISHED, *OURS, "exact", "attacked", "clean")
    rows = tuple(
        (Cell(one.training, one.size), *(cell(one, column) for column in columns))
        for one in measured
    )
    caption = (
        "Percent of the test images that are certified, that are certain or may be (exact), that "
        "attacks leave right, and that are right; small, milliseconds per image on one core, of "
        "exact per image that tight bounds and attacks leave open."
    )
    return Table(caption, tuple(map(Cell, ("training", *columns))), rows)


def table_of_gaps(measured: Sequence[Gaps]) -> Table:
    """One row per family: mean gaps, and beneath them how many margins are certified."""
    columns = ("best of both", *OURS)

    def row(one: Gaps) -> tuple[Cell, ...]:
        cells = (Cell(f"{one.gaps[name]:.3f}", str(one.certified[name])) for name in columns)
        return Cell(one.family, f"{one.margins} margins"), *cells, Cell(str(one.certified["exact"]))

    caption = (
        "How far bounds are below the least margins that were found by mixed-integer programming, "
        "in the mean; small, how many margins they certify, last how many are above 0."
    )
    head = tuple(map(Cell, ("networks", *columns, "exact")))
    return Table(caption, head, tuple(map(row, measured)))


def verdicts_of_gaps(measured: Sequence[Gaps]) -> Iterator[str]:
    """What they say about our bounds."""
    for one in measured:
        paper = one.gaps["best of both"]
        shares = ", ".join(f"{name} {one.gaps[name] / paper:.2f}" for name in OURS)
        yield f"{one.family}: of the paper's best mean gap {shares} [{one.bar:.2f}]."


def verdicts(measured: Sequence[Network]) -> Iterator[str]:
    """What the figures say about our bounds and about certified training."""
    certified = {(one.size, one.training): one.shares["ours, split"] for one in measured}
    for one in measured:
        if one.training == "natural":
            paper = one.shares["best of both"]
            best = max(one.shares[name] for name in OURS)
            each = ", ".join(f"{name} {percent(one.shares[name])}" for name in OURS)
            yield (
                f"{one.size}, natural: {each} percent; the best of these are "
                f"{f'{best / paper:.2f}' if paper else 'any'} times as many as the paper's best "
                f"[{BETTER:g}]."
            )
        else:
            share = certified[one.size, one.training]
            more = share - certified[one.size, "natural"]
            yield f"{one.size}, {one.training}: {100 * more:+.1f} points certified against natural."
    for name in ("ours, tight", "ours, split"):
        slowest = max(one.seconds[name] for one in measured)
        yield f"{name}: {1000 * slowest:.0f} ms per image at most [{MILLISECONDS}]."
    yield "On every image: certified implies certain, and certain implies that attacks fail."


def describe(seed: int, epochs: int | None, images: int, time_limit: float) -> str:
    """In words, what all figures have in common."""
    trained = "" if epochs is None else f" for {epochs} epochs each"
    return (
        "Fully connected networks on the 8x8 digits of scikit-learn, four time steps, direct "
        f"coding, trained by the recipes `digits_fc_*`{trained}, seed {seed}; {images} test images "
        "after the last epoch. S-IBP, S-CROWN and best of both are those of Liang et al. 2022 as "
        'printed, ours is `certify.verify` with "best", "tight" and "split", whose number of parts '
        "and steps was chosen on training images. Exact is mixed-integer "
        f"programming with HiGHS, {time_limit:g} s per margin, for what tight bounds and attacks "
        "leave open. Attacked is what PGD with 40 steps and PGD with 20 through seven gradients "
        "both leave right. In square brackets what we set ourselves."
    )


def describe_random(count: int) -> str:
    """In words, what the families have in common."""
    return (
        f"Networks of normal weights, {count} in a family, leak 0.9, threshold 1, hard reset, "
        "direct coding, an image each and all margins of the class that the network sees there."
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--epochs", type=int, help="of every training, instead of the recipes'")
    add("--images", type=int, default=60, help="how many test images to certify (default: 60)")
    add("--networks", type=int, default=40, help="of random weights in a family (default: 40)")
    add("--time-limit", type=float, default=5.0, help="of exact, seconds per margin (default: 5)")


def measured(options: argparse.Namespace) -> Findings:
    common = (options.seed, options.epochs, options.images, options.time_limit)
    families = [
        gaps_of(family, options.networks, options.time_limit)
        for family in tqdm(FAMILIES, desc="random networks", disable=options.quiet)
    ]
    trainings = list(networks(SIZES, *common, options.folder, not options.quiet))
    parts = (
        describe(*common),
        table(trainings),
        listed(verdicts(trainings)),
        describe_random(options.networks),
        table_of_gaps(families),
        listed(verdicts_of_gaps(families)),
    )
    cases = [training._asdict() for training in trainings]
    return Findings(parts, cases + [family._asdict() for family in families])


def main(arguments: Sequence[str] | None = None) -> int:
    return command("certificates", __doc__, add_options, measured, arguments, trains=True)


if __name__ == "__main__":
    sys.exit(main())
