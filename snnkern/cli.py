"""The command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

STATUS = """\
exit status: 0 done; 1 it could not be done, the reason is on standard error; 2 the command was not
understood; 130 interrupted by Ctrl-C; 141 whoever read the output went away"""
# What Ctrl-C and a broken pipe end a process with in a shell: 128 and the number of the signal.
INTERRUPTED, BROKEN_PIPE = 130, 141
RUN = "its folder, for the last checkpoint, or one of its checkpoints"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from snnkern import __version__

    top = argparse.ArgumentParser(
        prog="snnkern",
        description="Train, attack and certify spiking neural networks.",
        epilog=f"examples:\n  snnkern demo\n  snnkern train --help\n\n{STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"snnkern {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, do: Callable[[argparse.Namespace], None], help_: str, text: str, *examples: str
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(
            name,
            help=help_,
            description=text,
            epilog="\n".join(["examples:", *(f"  snnkern {example}" for example in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(do=do)
        return command

    demo = add(
        "demo",
        _demo,
        "train, attack, certify and report a small network on handwritten digits",
        "Trains a small spiking network on handwritten digits naturally and robustly, attacks and\n"
        "certifies both, and writes a report.",
        "demo",
        "demo --folder runs/demo --epochs 5",
    )
    demo.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where results go")
    demo.add_argument("--seed", type=int, default=0, help="of all random choices")
    demo.add_argument("--epochs", type=int, default=40, help="of either training")
    _add_output(demo)

    train = add(
        "train",
        _train,
        "train a network as a recipe says",
        "Trains a network as a recipe says, and keeps metrics and checkpoints in a folder. Under\n"
        "torchrun on several processes.",
        "train digits_rat",
        "train digits_rat --folder runs/short --epochs 5 --seed 1",
        "train rat_vgg11_c10 --data FOLDER --resume",
        "train --list",
    )
    train.add_argument(
        "recipe", metavar="RECIPE", help="a TOML file, or the name of a recipe that ships with this"
    )
    train.add_argument(
        "--list", action=_Recipes, nargs=0, help="name the recipes that ship with this, and end"
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
    train.add_argument("--tensorboard", action="store_true", help="metrics for TensorBoard too")
    _add_device(train)
    _add_output(train)

    convert = add(
        "convert",
        _convert,
        "make a spiking network of a trained ReLU network",
        "Makes a spiking network of the trained ReLU network of a run, with balanced thresholds,\n"
        "and keeps it as a run that others can begin with.",
        "convert runs/digits_ann",
        "convert runs/digits_ann --timesteps 8 --scale 0.5",
    )
    convert.add_argument("run", type=Path, metavar="RUN", help=RUN)
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
    _add_device(convert)
    _add_output(convert)

    attack = add(
        "attack",
        _attack,
        "attack the network of a run",
        "Attacks the network of a run, tells what it gets right and whether the attacks can be\n"
        "trusted, and writes evaluation.json and evaluation.md into the run. Under torchrun on\n"
        "several processes.",
        "attack runs/digits_rat",
        "attack runs/digits_rat --eps 0.05 0.1 0.2 --attacks fgsm pgd20 members19",
        "attack runs/digits_rat --eps 8/255 --images 100 --json",
        "attack runs/mine --model train:network",
    )
    attack.add_argument("run", type=Path, metavar="RUN", help=RUN)
    attack.add_argument(
        "--eps",
        type=_number,
        nargs="+",
        help="sizes of the perturbations, in l_inf, such as 0.1 or 8/255; that of the run's "
        "training unless given, or 8/255 where it has none",
    )
    attack.add_argument(
        "--attacks",
        nargs="+",
        metavar="NAME",
        help="fgsm; pgd20; apgd100; ensemble19: PGD-20 through the 19 surrogates of Ozdenizci & "
        "Legenstein, one after the other; strongest: APGD-100 through those chosen by "
        "measurement, then targeted, then, on small networks, a search among spike trains; square; "
        "members19: each of the 19 by itself, at one size. Unless given: fgsm, pgd20 and strongest",
        default=argparse.SUPPRESS,
    )
    attack.add_argument(
        "--certificates",
        choices=("ibp", "crown", "best", "tight", "split"),
        help="also certify by these bounds, within the same sizes, and stop where an attack "
        "contradicts them",
    )
    _add_model(attack)
    _add_data(attack)
    _add_images(attack)
    attack.add_argument(
        "--no-checks", dest="checks", action="store_false", help="do not check the attacks"
    )
    attack.add_argument("--seed", type=int, default=0, help="of the attacks' random choices")
    _add_device(attack)
    _add_output(attack)

    certify = add(
        "certify",
        _certify,
        "certify the network of a run",
        "Proves for test images that no perturbation within a radius gets them misclassified, and\n"
        "writes certification.json and certification.md into the run.",
        "certify runs/digits_rat --eps 0.0025 0.005 0.01",
        "certify runs/digits_rat --eps 1/255 --method ibp --images 100",
    )
    certify.add_argument("run", type=Path, metavar="RUN", help=RUN)
    certify.add_argument(
        "--eps",
        type=_number,
        nargs="+",
        required=True,
        help="radii in l_inf, such as 0.005 or 1/255",
    )
    certify.add_argument(
        "--method",
        default="best",
        help="ibp, crown, best of both (the default), tight, or exact for tiny networks",
    )
    _add_model(certify)
    _add_data(certify)
    _add_images(certify)
    _add_device(certify)
    _add_output(certify)

    report = add(
        "report",
        _report,
        "tell all that is known of runs on one page",
        "Writes report.html, one page that needs nothing beside it, and report.md: accuracy\n"
        "against eps, certified share, training, spikes, membranes, images and their adversarial\n"
        "twins, activity and energy. What a run does not hold is left out, and said how to get.",
        "report runs/digits_rat",
        "report runs/digits_natural runs/digits_rat --folder runs/report",
        "report runs/mine --model train:network --samples 3 8",
    )
    report.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help=f"{RUN}; or the folder of snnkern demo",
    )
    report.add_argument(
        "--folder", type=Path, help="where it goes; RUN unless given, runs/report for several"
    )
    _add_model(report)
    _add_data(report)
    report.add_argument(
        "--images",
        type=int,
        default=32,
        help="how many test images to look at, for what is shown of them; 0 for none",
    )
    report.add_argument(
        "--samples",
        type=int,
        nargs="+",
        metavar="N",
        help="which of these to show, by number from 0; unless given, the first of each of four "
        "classes",
        default=argparse.SUPPRESS,
    )
    report.add_argument("--seed", type=int, default=0, help="of the attack on these")
    _add_device(report)
    _add_output(report)

    bench = add(
        "bench",
        _bench,
        "time the neurons on this machine",
        "Times a layer of neurons on the CPU, forward and forward+backward, beside the same in\n"
        "plain PyTorch and beside the bandwidth of the memory, in a few seconds.",
        "bench",
        "bench --threads 1 2 --shape 8 32 512 4 4 --json",
    )
    bench.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="of the input, T N ...; unless given, 8 32 64 32 32, beyond the cache",
        default=argparse.SUPPRESS,
    )
    bench.add_argument(
        "--threads",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of threads; the one that torch takes unless given",
        default=argparse.SUPPRESS,
    )
    bench.add_argument(
        "--pages",
        choices=("kept", "default"),
        help="whether the allocator keeps freed pages, as all these commands have it do where it "
        "can, or is left as it comes",
        default=argparse.SUPPRESS,
    )
    _add_output(bench)

    info = add(
        "info",
        _info,
        "say what is installed and which backends run",
        "Says which version is installed, which backends run, and why others do not.",
        "info",
    )
    _add_json(info)

    completion = add(
        "completion",
        _completion,
        "print what makes a shell complete these commands",
        "Prints a script that makes a shell complete commands and options. Needs shtab:\n"
        "pip install 'snnkern[completion]'.",
        "completion bash > ~/.local/share/bash-completion/completions/snnkern",
        "completion fish > ~/.config/fish/completions/snnkern.fish",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return top


class _Recipes(argparse.Action):
    """Prints the recipes and ends, as ``--version`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from snnkern.training.recipe import Recipe, shipped

        titles = {name: Recipe.load(name).settings["title"] for name in shipped()}
        width = max(map(len, titles))
        print("\n".join(f"{name:<{width}}  {title}" for name, title in titles.items()))
        parser.exit()


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="where data sets lie; 'digits' or 'synthetic': other images instead, handwritten "
        "digits or generated ones, of the same size",
    )


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="for a run of training.fit in a script of yours, which has no recipe: a function in "
        "it that gives (network, test samples), such as train:network in ./train.py; the weights "
        "are those of the run. The module is imported, and so run",
        default=argparse.SUPPRESS,
    )


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("--images", type=int, help="how many test images; all unless given")
    command.add_argument(
        "--batch-size",
        type=int,
        help="of these, 100 unless given",
        default=argparse.SUPPRESS,
    )


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="where to run; a GPU where there is one")


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="results as JSON, and nothing else")


def _add_output(command: argparse.ArgumentParser) -> None:
    _add_json(command)
    command.add_argument("--quiet", action="store_true", help="no progress bars")


def _tell(options: argparse.Namespace, text: str, **numbers: Any) -> None:
    """Prints a result, in words or as JSON."""
    print(json.dumps(numbers, indent=1, default=str, allow_nan=False) if options.json else text)


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _demo(options: argparse.Namespace) -> None:
    from snnkern.demo import demo

    study = demo(options.folder, options.seed, options.epochs, not options.quiet, options.json)
    if options.json:
        _tell_study(options, study, options.folder / "report.html")


def _tell_study(options: argparse.Namespace, study: Any, page: Path) -> None:
    from snnkern.report import table_text

    networks = [
        {
            "name": network.name,
            "method": network.method,
            "clean": dataclasses.asdict(network.clean) if network.clean else None,
            "attacked": [dataclasses.asdict(score) for score in network.attacked],
            "certified": dataclasses.asdict(network.certified) if network.certified else None,
            "spikes_per_image": network.spikes_per_image,
            "missing": network.missing,
        }
        for network in study.networks
    ]
    lines = [table_text(study), ""]
    for network in study.networks:
        if network.missing:
            lines += [
                f"What is missing of {network.name}:",
                *(f"  {m}" for m in network.missing),
                "",
            ]
    _tell(
        options,
        "\n".join([*lines, f"Report: {page}"]),
        html=page,
        markdown=page.with_suffix(".md"),
        networks=networks,
    )


def _train(options: argparse.Namespace) -> None:
    from snnkern.training.recipe import STAND_INS, Recipe
    from snnkern.training.train import train

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
    if _first_process():
        best = max(history, key=lambda record: record.val_accuracy or 0)
        title = recipe.settings["title"]
        if options.data in STAND_INS:
            title += f" on {options.data} instead"
        _tell(
            options,
            f"{title}: test accuracy {history[-1].val_accuracy:.1%} after "
            f"{len(history)} epochs, best {best.val_accuracy:.1%} after {best.epoch + 1}; "
            f"run in {folder}",
            title=title,
            folder=folder,
            epochs=len(history),
            test_accuracy=history[-1].val_accuracy,
            best_accuracy=best.val_accuracy,
            best_after=best.epoch + 1,
        )


def _convert(options: argparse.Namespace) -> None:
    from snnkern.training.convert import convert_run
    from snnkern.training.recipe import CONVERT, Recipe

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
    lines = [
        f"{name}: threshold {', '.join(f'{value:.4g}' for value in sorted(set(values)))}"
        for name, values in result.thresholds.items()
    ]
    lines.append(
        f"test accuracy {result.before:.1%} of the ReLU network, {result.after:.1%} of the spiking "
        f"network (T = {result.timesteps}); run in {result.folder}"
    )
    _tell(options, "\n".join(lines), **dataclasses.asdict(result))


def _number(text: str) -> float:
    """A decimal or a fraction."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number such as 0.1 or 8/255 (RUN comes before --eps)"
        ) from error


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name in names}


def _of_run(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What was given of these options, and of those that say what the network of a run is."""
    given = _given(options, *names, "data", "model", "images", "device")
    if "model" in given:
        from snnkern.training.own import named_network

        given["model"] = named_network(given["model"])
    return given


def _attack(options: argparse.Namespace) -> None:
    from snnkern.training.attack import attack_run

    given = _of_run(options, "eps", "certificates", "attacks", "checks", "seed", "batch_size")
    result = attack_run(options.run, **given, progress=not options.quiet)
    if _first_process():
        print(result.to_json() if options.json else result.to_text())


def _certify(options: argparse.Namespace) -> None:
    from snnkern.training.certify import certify_run

    given = _of_run(options, "eps", "method", "batch_size")
    result = certify_run(options.run, **given, progress=not options.quiet)
    print(result.to_json() if options.json else result.to_text())


def _report(options: argparse.Namespace) -> None:
    from snnkern.report import write_report
    from snnkern.report.runs import study_of_runs

    given = _of_run(options, "samples", "seed")
    study = study_of_runs(options.runs, **given, progress=not options.quiet)
    one = options.runs[0] if options.runs[0].is_dir() else options.runs[0].parent
    folder = options.folder or (one if len(options.runs) == 1 else Path("runs/report"))
    _tell_study(options, study, write_report(study, folder))


def _bench(options: argparse.Namespace) -> None:
    import torch

    from snnkern import __version__
    from snnkern._info import machine
    from snnkern.bench import bench, bench_table

    given = _given(options, "shape", "threads", "pages")
    found = bench(**given, progress=not options.quiet)
    _tell(
        options,
        f"{machine()}, torch {torch.__version__}\n\n{bench_table(found).text()}",
        snnkern=__version__,
        torch=torch.__version__,
        machine=machine(),
        shape=found[0].shape,
        cases=[rounds.as_dict() for rounds in found],
    )


def _info(options: argparse.Namespace) -> None:
    import torch

    from snnkern import __version__, backends, info

    _tell(options, info(), version=__version__, torch=torch.__version__, backends=backends())


def _completion(options: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError as error:
        raise ImportError(
            "shtab is not installed, which writes the script: pip install 'snnkern[completion]'"
        ) from error
    print(shtab.complete(_completed(parser(), shtab), options.shell))


def _completed(top: argparse.ArgumentParser, shtab: Any) -> argparse.ArgumentParser:
    """The parser, saying which arguments are files."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _completed(command, shtab)
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    try:
        top = parser()
        if not (sys.argv[1:] if arguments is None else arguments):
            top.exit(2, top.format_help())
        options = top.parse_args(arguments)
        if options.command not in ("bench", "info", "completion"):
            from snnkern import keep_pages

            keep_pages()
        options.do(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes at the end once more, into what is not there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        print(f"snnkern: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except (ArithmeticError, ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
        print(f"snnkern: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
