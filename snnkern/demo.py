"""The demo: a network trained twice, attacked, certified and reported."""

from __future__ import annotations

import datetime
import os
import platform
import time
from pathlib import Path

import torch
from torch.utils.data import TensorDataset
from tqdm import tqdm

from snnkern._info import machine
from snnkern._version import __version__
from snnkern.attacks import FGSM, PGD, Attack, evaluate
from snnkern.certify import verify
from snnkern.data import digits, loader
from snnkern.models import SpikingNetwork, conv_net
from snnkern.report import (
    Curve,
    Epoch,
    NetworkResult,
    Score,
    Study,
    table_text,
    write_report,
)
from snnkern.report.network import show
from snnkern.training import RAT, Method, Natural, fit

TIMESTEPS = 8
ATTACK_EPS = 0.1
CERTIFIED_EPS = 0.005
CURVE_EPS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
SAMPLES_SHOWN = 4
LOOKED_AT = 64


def small_network() -> SpikingNetwork:
    """The convolutional LIF network of the demo, for images of 8x8."""
    return conv_net(
        timesteps=TIMESTEPS,
        input_shape=(1, 8, 8),
        channels=(16, 32),
        hidden=(64,),
        leak=0.25,
        threshold=0.25,
    )


def run_demo(folder: Path, seed: int = 0, epochs: int = 40, progress: bool = True) -> Study:
    """Trains naturally and robustly, attacks, certifies, and writes ``folder/report.html``.

    Args:
        folder: where study and report go.
        seed: of the split, the weights, the order of the images and the attacks.
        epochs: of either training.
        progress: show progress bars.
    """
    check_writable(folder)
    split = digits(seed=seed)
    methods: dict[str, tuple[str, Method]] = {
        "Natural": ("cross entropy", Natural()),
        "Robust": (f"RAT, eps = {ATTACK_EPS}", RAT(eps=ATTACK_EPS, beta=2e-4)),
    }
    networks = []
    for name, (words, method) in methods.items():
        torch.manual_seed(seed)
        model = small_network()
        start = time.perf_counter()
        train = loader(split.train, shuffle=True, seed=seed)
        history = fit(model, train, method, epochs=epochs, lr=4e-3, seed=seed, progress=progress)
        seconds = time.perf_counter() - start
        networks.append(
            measure(
                model,
                split.test,
                name,
                words,
                seconds,
                tuple(Epoch(e.epoch, e.loss, e.accuracy) for e in history),
                seed,
                progress,
            )
        )
    study = Study(
        title="A spiking network, attacked and certified",
        description=(
            "The same small convolutional LIF network trained twice, naturally and on its own "
            "adversarial examples. Attacks bound its robust accuracy from above, certificates from "
            "below."
        ),
        provenance={
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": f"snnkern demo --seed {seed} --epochs {epochs}",
            "machine": machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
            "snnkern": __version__,
            "seed": str(seed),
        },
        dataset=(
            f"Handwritten digits of scikit-learn, 8x8 pixels: {len(split.train):,} to train, "
            f"{len(split.test):,} to test"
        ),
        networks=tuple(networks),
    )
    study.save(folder)
    write_report(study, folder)
    return study


def check_writable(folder: Path) -> None:
    """Raises now, not after the training, where results cannot be written to ``folder``."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file, expected a folder to write results to")
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"{existing} cannot be written to")


def measure(
    model: SpikingNetwork,
    test: TensorDataset,
    name: str,
    method: str,
    seconds: float,
    history: tuple[Epoch, ...],
    seed: int,
    progress: bool,
) -> NetworkResult:
    """Everything the report says about one trained network."""
    images, labels = test.tensors
    count = len(labels)
    sizes = CURVE_EPS[1:]
    attacks: dict[str, Attack] = {f"FGSM {eps}": FGSM(eps) for eps in sizes}
    attacks |= {f"PGD-20 {eps}": PGD(eps, steps=20) for eps in sizes}
    bar = tqdm(sizes, desc="certify", unit="eps", disable=not progress, delay=1)
    certificates = [verify(model, images, labels, eps) for eps in bar]
    result = evaluate(
        model,
        loader(test, 360),
        attacks,
        certificates=certificates,
        seed=seed,
        progress=progress,
    )
    clean = result.accuracy()
    certified = {0.0: clean} | {c.eps: c.certified.float().mean().item() for c in certificates}
    curves = [
        Curve(
            attack,
            "attack",
            CURVE_EPS,
            (clean, *(result.accuracy(f"{attack} {eps}") for eps in sizes)),
            count,
        )
        for attack in ("FGSM", "PGD-20")
    ]
    curves.append(
        Curve("S-IBP, S-CROWN", "certificate", CURVE_EPS, tuple(certified.values()), count)
    )
    # One image each of the first classes, among the first images.
    some, of_some = images[:LOOKED_AT], labels[:LOOKED_AT]
    chosen = [int((of_some == digit).nonzero()[0]) for digit in range(SAMPLES_SHOWN)]
    shown = show(model, some, of_some, PGD(ATTACK_EPS, steps=20), "PGD-20", chosen, seed)
    return NetworkResult(
        name=name,
        method=method,
        timesteps=TIMESTEPS,
        clean=Score("clean", 0.0, clean, count),
        attacked=(
            Score("FGSM", ATTACK_EPS, result.accuracy(f"FGSM {ATTACK_EPS}"), count),
            Score("PGD-20", ATTACK_EPS, result.accuracy(f"PGD-20 {ATTACK_EPS}"), count),
        ),
        certified=Score("S-IBP, S-CROWN", CERTIFIED_EPS, certified[CERTIFIED_EPS], count),
        spikes_per_image=result.spikes_per_image["clean"],
        seconds=seconds,
        curves=tuple(curves),
        history=history,
        layers=shown.layers,
        energy=shown.energy,
        samples=shown.samples,
    )


def demo(folder: Path, seed: int, epochs: int, progress: bool, quiet: bool = False) -> Study:
    """Runs the demo, and tells on the terminal what came out unless it is to be ``quiet``."""
    start = time.perf_counter()
    torch.set_num_threads(1)  # layers this small lose more to threads than they gain
    study = run_demo(folder, seed, epochs, progress)
    if not quiet:
        print(table_text(study))
        print(f"\nReport: {folder / 'report.html'}   ({time.perf_counter() - start:.0f} s in all)")
    return study
