"""The command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    from snnkern import __version__

    parser = argparse.ArgumentParser(
        prog="snnkern",
        description="Train, attack and certify spiking neural networks.",
        epilog="example: snnkern demo",
    )
    parser.add_argument("--version", action="version", version=f"snnkern {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train, attack, certify and report a small network on handwritten digits",
        description="Trains a small spiking network on handwritten digits naturally and robustly, "
        "attacks and certifies both, and writes a report.",
        epilog="example: snnkern demo --folder runs/demo",
    )
    demo.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where results go")
    demo.add_argument("--seed", type=int, default=0, help="of all random choices")
    demo.add_argument("--epochs", type=int, default=40, help="of either training")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")

    train = commands.add_parser(
        "train",
        help="train a network as a recipe says",
        description="Trains a network as a recipe says, and keeps metrics and checkpoints in a "
        "folder. Under torchrun on several processes.",
        epilog="example: snnkern train digits_rat --folder runs/digits_rat",
    )
    train.add_argument(
        "recipe", metavar="RECIPE", help="a TOML file, or the name of a recipe that ships with this"
    )
    train.add_argument("--folder", type=Path, help="of the run; runs/RECIPE unless given")
    train.add_argument(
        "--start",
        type=Path,
        metavar="RUN",
        help="the run that the recipe begins with, if it does: its folder, for the last "
        "checkpoint, or one of its checkpoints; converted as the recipe says (torchrun, which has "
        "options of that beginning, needs -- before the command: torchrun -m -- snnkern.cli train)",
    )
    _add_data(train)
    train.add_argument("--epochs", type=int, help="instead of the recipe's")
    train.add_argument("--seed", type=int, help="of all random choices, instead of the recipe's")
    train.add_argument("--resume", action="store_true", help="go on where the run in folder ended")
    train.add_argument(
        "--checkpoint-every", type=int, metavar="N", help="write a checkpoint every N batches too"
    )
    train.add_argument("--device", help="where to train; a GPU where there is one")
    train.add_argument("--tensorboard", action="store_true", help="metrics for TensorBoard too")
    train.add_argument("--quiet", action="store_true", help="no progress bar")

    convert = commands.add_parser(
        "convert",
        help="make a spiking network of a trained ReLU network",
        description="Makes a spiking network of the trained ReLU network of a run, with balanced "
        "thresholds, and keeps it as a run that others can begin with.",
        epilog="example: snnkern convert runs/digits_ann --timesteps 8 --scale 0.5",
    )
    convert.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="its folder, for the last checkpoint, or one of its checkpoints",
    )
    convert.add_argument("--folder", type=Path, help="of the result; RUN_converted unless given")
    _add_data(convert)
    convert.add_argument(
        "--recipe", help="that says in its table convert how, instead of the options below"
    )
    convert.add_argument("--timesteps", type=int, help="of the result; 8 unless given")
    # As in the table convert of a recipe; see snnkern.convert.
    for option, kind, help_ in (
        ("statistic", str, "of pre-activations: percentile, step-percentile or maximum"),
        ("percentile", float, "99.7 unless given"),
        ("scale", float, "of all thresholds at the end, 0.3 unless given"),
        ("batches", int, "of training images to look at, 10 unless given"),
        ("batch-size", int, "of these, 64 unless given"),
        ("calibration-timesteps", int, "while looking; those of the result unless given"),
        ("calibration-leak", float, "while looking; that of the network unless given"),
        ("layers", int, "how many layers to balance, from the first; all unless given"),
        ("norm", str, "running statistics of batch norm: reestimate, unless given, or reset"),
    ):
        convert.add_argument(f"--{option}", type=kind, help=help_, default=argparse.SUPPRESS)
    convert.add_argument("--seed", type=int, default=0, help="of the order of the images")
    convert.add_argument("--device", help="where to convert; a GPU where there is one")
    convert.add_argument("--quiet", action="store_true", help="no progress bars")

    attack = commands.add_parser(
        "attack",
        help="attack the network of a run",
        description="Attacks the network of a run, tells what it gets right and whether the "
        "attacks can be trusted, and writes evaluation.json and evaluation.md into the run. Under "
        "torchrun on several processes.",
        epilog="example: snnkern attack runs/digits_rat --eps 0.1",
    )
    attack.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="its folder, for the last checkpoint, or one of its checkpoints",
    )
    attack.add_argument(
        "--eps",
        type=_number,
        nargs="+",
        help="size of the perturbations, in l_inf, such as 0.1 or 8/255, or several; that of the "
        "run's training unless given, or 8/255 where it has none",
    )
    attack.add_argument(
        "--attacks",
        nargs="+",
        metavar="NAME",
        help="fgsm; pgd20; apgd100; ensemble19: PGD-20 through the 19 surrogates of Ozdenizci & "
        "Legenstein; strongest: APGD-100 through those chosen by measurement, then targeted, "
        "then, on small networks, a search among spike trains; square. Unless given: fgsm, pgd20 "
        "and strongest",
        default=argparse.SUPPRESS,
    )
    attack.add_argument(
        "--certificates",
        choices=("ibp", "crown", "best", "tight"),
        help="also certify by these bounds, within the same sizes, and stop where an attack "
        "contradicts them",
    )
    _add_data(attack)
    attack.add_argument("--images", type=int, help="how many test images; all unless given")
    attack.add_argument(
        "--batch-size",
        type=int,
        help="of these, 100 unless given",
        default=argparse.SUPPRESS,
    )
    attack.add_argument(
        "--no-checks", dest="checks", action="store_false", help="do not check the attacks"
    )
    attack.add_argument("--seed", type=int, default=0, help="of the attacks' random choices")
    attack.add_argument("--device", help="where to run; a GPU where there is one")
    attack.add_argument("--quiet", action="store_true", help="no progress bars")

    commands.add_parser(
        "info",
        help="say what is installed and which backends run",
        description="Says which version is installed, which backends run, and why others do not.",
        epilog="example: snnkern info",
    )
    return parser


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="where data sets lie; 'digits' or 'synthetic': other images instead, handwritten "
        "digits or generated ones, of the same size",
    )


def _train(options: argparse.Namespace) -> None:
    from snnkern import keep_pages
    from snnkern.training.recipe import STAND_INS, Recipe
    from snnkern.training.train import train

    keep_pages()
    recipe = Recipe.load(options.recipe)
    folder = options.folder or Path("runs") / recipe.name
    history = train(
        recipe,
        folder,
        data=options.data,
        epochs=options.epochs,
        seed=options.seed,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        tensorboard=options.tensorboard,
        device=options.device,
        start=options.start,
        progress=not options.quiet,
    )
    if os.environ.get("RANK", "0") == "0":
        best = max(history, key=lambda record: record.val_accuracy or 0)
        title = recipe.settings["title"]
        if options.data in STAND_INS:
            title += f" on {options.data} instead"
        print(
            f"{title}: test accuracy {history[-1].val_accuracy:.1%} after "
            f"{len(history)} epochs, best {best.val_accuracy:.1%} after {best.epoch + 1}; "
            f"run in {folder}"
        )


def _convert(options: argparse.Namespace) -> None:
    from snnkern import keep_pages
    from snnkern.training.recipe import CONVERT, Recipe
    from snnkern.training.start import convert_run

    keep_pages()
    result = convert_run(
        options.run,
        Recipe.load(options.recipe) if options.recipe else None,
        timesteps=options.timesteps,
        options={key: value for key, value in vars(options).items() if key in CONVERT},
        folder=options.folder,
        data=options.data,
        seed=options.seed,
        device=options.device,
        progress=not options.quiet,
    )
    for name, values in result.thresholds.items():
        print(f"{name}: threshold {', '.join(f'{value:.4g}' for value in sorted(set(values)))}")
    print(
        f"test accuracy {result.before:.1%} of the ReLU network, {result.after:.1%} of the spiking "
        f"network (T = {result.timesteps}); run in {result.folder}"
    )


def _number(text: str) -> float:
    """A decimal or a fraction."""
    try:
        return float(Fraction(text))
    except ZeroDivisionError as error:
        raise ValueError(text) from error


def _attack(options: argparse.Namespace) -> None:
    from snnkern import keep_pages
    from snnkern.training.attack import attack_run

    keep_pages()
    own = ("command", "run", "quiet")
    given = {name: value for name, value in vars(options).items() if name not in own}
    result = attack_run(options.run, **given, progress=not options.quiet)
    if os.environ.get("RANK", "0") == "0":
        print(result.to_text())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "demo":
            from snnkern import keep_pages
            from snnkern.demo import demo

            keep_pages()
            demo(options.folder, options.seed, options.epochs, not options.quiet)
        elif options.command == "train":
            _train(options)
        elif options.command == "convert":
            _convert(options)
        elif options.command == "attack":
            _attack(options)
        else:
            from snnkern import info

            print(info())
    except KeyboardInterrupt as interrupt:
        print(f"snnkern: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        print(f"snnkern: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
