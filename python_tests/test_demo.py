from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from snnkern import demo
from snnkern.data import digits
from snnkern.demo import ATTACK_EPS, CERTIFIED_EPS, run_demo, small_network
from snnkern.report import Curve, NetworkResult, Study

ALL_SIZES = demo.CURVE_EPS


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, Path]]:
    """Two epochs, and attacks at two sizes."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "CURVE_EPS", (0.0, CERTIFIED_EPS, ATTACK_EPS))
        patch.setattr(demo, "SAMPLES_SHOWN", 2)
        yield run_demo(folder, seed=1, epochs=2, progress=False), folder


def curve(network: NetworkResult, name: str) -> Curve:
    return next(curve for curve in network.curves if curve.name == name)


def assert_consistent(study: Study) -> None:
    """What holds for every study, however well its networks learnt."""
    assert [network.name for network in study.networks] == ["Natural", "Robust"]
    for network in study.networks:
        fgsm, pgd, certificate = (
            curve(network, name) for name in ("FGSM", "PGD-20", "S-IBP, S-CROWN")
        )
        assert len(network.curves) == 3
        at = demo.CURVE_EPS.index
        scores = {score.name: score for score in network.attacked}
        for one in (fgsm, pgd, certificate):
            assert one.eps == demo.CURVE_EPS
            assert one.count == 360
            assert network.clean is not None
            assert one.value[0] == network.clean.value
        for name, drawn in (("FGSM", fgsm), ("PGD-20", pgd)):
            assert scores[name].eps == ATTACK_EPS
            assert scores[name].value == drawn.value[at(ATTACK_EPS)]
        assert network.certified is not None
        assert network.certified.eps == CERTIFIED_EPS
        assert network.certified.value == certificate.value[at(CERTIFIED_EPS)]
        # No attack breaks what is certified, and a larger radius certifies less.
        for attacked in (fgsm, pgd):
            assert all(c <= a for c, a in zip(certificate.value, attacked.value, strict=True))
        assert list(certificate.value) == sorted(certificate.value, reverse=True)
        assert (network.spikes_per_image or 0) > 0
        assert (network.seconds or 0) > 0
        assert len(network.layers) == 3
        assert network.energy is not None
        for sample in network.samples:
            assert np.abs(sample.adversarial - sample.clean).max() <= ATTACK_EPS + 1e-6
            assert len(sample.rasters) == 3


def test_a_short_demo_is_consistent(short: tuple[Study, Path]) -> None:
    study, _ = short
    assert_consistent(study)
    assert [network.timesteps for network in study.networks] == [8, 8]
    assert study.provenance["seed"] == "1"
    assert study.provenance["command"] == "snnkern demo --seed 1 --epochs 2"
    for network in study.networks:
        assert len(network.history) == 2
        assert network.history[1].loss < network.history[0].loss
        assert [sample.label for sample in network.samples] == [0, 1]


def test_the_study_is_the_one_written(short: tuple[Study, Path]) -> None:
    study, folder = short
    assert Study.load(folder) == study
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert study.title in page


def test_the_samples_are_of_the_test_set(short: tuple[Study, Path]) -> None:
    study, _ = short
    images = {image.numpy().tobytes() for image in digits(seed=1).test.tensors[0]}
    for network in study.networks:
        assert all(sample.clean.tobytes() in images for sample in network.samples)


def test_the_demo_repeats_with_its_seed(short: tuple[Study, Path], tmp_path: Path) -> None:
    torch.manual_seed(99)
    again = run_demo(tmp_path, seed=1, epochs=2, progress=False)
    for first, second in zip(short[0].networks, again.networks, strict=True):
        assert first.history == second.history
        assert first.curves == second.curves
        assert first.samples == second.samples
        assert first.spikes_per_image == second.spikes_per_image


def test_the_network_of_the_demo() -> None:
    model = small_network()
    assert model.timesteps == 8
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
def test_the_robust_network_is_robust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CURVE_EPS", ALL_SIZES)
    study = run_demo(tmp_path, progress=False)
    assert_consistent(study)
    for network in study.networks:
        assert len(network.history) == 40
        assert network.clean is not None
        assert network.clean.value > 0.9
    pgd = {network.name: curve(network, "PGD-20").value for network in study.networks}
    at = demo.CURVE_EPS.index(ATTACK_EPS)
    assert pgd["Robust"][at] >= pgd["Natural"][at] + 0.15
    at = demo.CURVE_EPS.index(CERTIFIED_EPS)
    for network in study.networks:
        assert network.certified is not None
        assert 0 < network.certified.value < pgd[network.name][at]
