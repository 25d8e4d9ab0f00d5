"""The command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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

    commands.add_parser(
        "info",
        help="say what is installed and which backends run",
        description="Says which version is installed, which backends run, and why others do not.",
        epilog="example: snnkern info",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "demo":
            from snnkern import keep_pages
            from snnkern.demo import demo

            keep_pages()
            demo(options.folder, options.seed, options.epochs, not options.quiet)
        else:
            from snnkern import info

            print(info())
    except KeyboardInterrupt:
        print("snnkern: interrupted", file=sys.stderr)
        return 130
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        print(f"snnkern: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
