"""A report on runs: what stands in it is what their folders hold and their networks do."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import snnkern
from snnkern.attacks import PGD, SURROGATE_ENSEMBLE, Attack, SpikeFlip
from snnkern.attacks.evaluate import gradient_words
from snnkern.certify import verify
from snnkern.cli import main
from snnkern.data import Samples, digits
from snnkern.measures import cost, spike_distance, spiking_activity
from snnkern.nn import watch_spikes
from snnkern.report import NetworkResult, Study
from snnkern.report.network import show
from snnkern.report.runs import study_of_runs
from snnkern.training import Natural, fit
from snnkern.training.attack import attack_run
from snnkern.training.certify import certify_run
from snnkern.training.own import named_network, own_name
from snnkern.training.recipe import Recipe
from snnkern.training.run import read_metrics
from snnkern.training.start import load_run, trained
from snnkern.training.train import train

EPS = (0.05, 0.1, 0.15)
RADII = (0.001, 0.004)
IMAGES = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training by RAT at eps 0.1, attacked and certified."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    train(Recipe.load("digits_rat"), folder, epochs=2, device="cpu", progress=False)
    options: dict[str, Any] = {"images": IMAGES, "device": "cpu", "progress": False}
    names = ("fgsm", "pgd20", "members19")
    attack_run(folder, eps=EPS, attacks=names, checks=False, **options)
    certify_run(folder, eps=RADII, batch_size=5, **options)
    return folder


@pytest.fixture(scope="module")
def network(run: Path) -> NetworkResult:
    study = study_of_runs([run], images=IMAGES, device="cpu", progress=False)
    assert (study.title, study.dataset) == ("Digits, RAT", "digits")
    (network,) = study.networks
    assert (network.name, network.timesteps, network.missing) == ("short", 8, ())
    return network


def test_the_curves_are_the_evaluation(run: Path, network: NetworkResult) -> None:
    found = json.loads((run / "evaluation.json").read_text())["attacks"]
    clean = found["clean"]["accuracy"]
    curves = {curve.name: curve for curve in network.curves}
    assert set(curves) == {"fgsm", "pgd20", "certified, best"}
    for name in ("fgsm", "pgd20"):
        curve = curves[name]
        assert (curve.kind, curve.eps, curve.count) == ("attack", (0.0, *EPS), IMAGES)
        expected = [clean, *(found[f"{name} {eps}"]["accuracy"] for eps in EPS)]
        np.testing.assert_allclose(curve.value, expected)
    assert network.clean is not None
    assert network.clean.value == pytest.approx(clean)
    assert network.spikes_per_image == found["clean"]["spikes_per_image"]


def test_the_results_are_those_at_the_size_of_the_training(
    run: Path, network: NetworkResult
) -> None:
    found = json.loads((run / "evaluation.json").read_text())
    at = {name: attack for name, attack in found["attacks"].items() if attack["eps"] == 0.1}
    labels = np.array(found["labels"])
    right = np.all([np.array(a["predictions"]) == labels for a in at.values()], axis=0)
    right &= np.array(found["attacks"]["clean"]["predictions"]) == labels
    scores = {score.name: score for score in network.attacked}
    assert set(scores) == {"fgsm", "pgd20", "worst case"}
    assert {score.eps for score in scores.values()} == {0.1}
    assert scores["worst case"].value == pytest.approx(right.mean())
    assert scores["pgd20"].value == pytest.approx(at["pgd20 0.1"]["accuracy"])


def test_the_members_are_each_gradient_by_itself(run: Path, network: NetworkResult) -> None:
    assert [m.name for m in network.members] == [gradient_words(g) for g in SURROGATE_ENSEMBLE]
    found = json.loads((run / "evaluation.json").read_text())["attacks"]
    for member in network.members:
        assert member.eps == 0.1
        assert member.value == pytest.approx(found[f"pgd20 by {member.name} 0.1"]["accuracy"])
    model = load_run(run)[1]
    x, y = digits().test[:IMAGES]
    attack = PGD(0.1, steps=20, gradient="relu", random_start=False)
    assert attack(model, x, y).shape == x.shape  # the gradient is one that attacks know


def test_the_certified_share_is_that_of_verify(run: Path, network: NetworkResult) -> None:
    curve = next(curve for curve in network.curves if curve.kind == "certificate")
    model = load_run(run)[1]
    assert isinstance(model, snnkern.models.SpikingNetwork)
    x, y = digits().test[:IMAGES]
    right = model(x).argmax(1) == y
    expected = [right] + [verify(model, x, y, eps).certified & right for eps in RADII]
    assert curve.eps == (0.0, *RADII)
    np.testing.assert_allclose(curve.value, [mask.double().mean().item() for mask in expected])
    assert network.certified is not None
    assert (network.certified.eps, network.certified.value) == (RADII[0], curve.value[1])
    text = (run / "certification.md").read_text()
    assert "best certified within 0.001" in text
    assert "worst case" not in text  # nothing was attacked


def test_the_history_is_the_metrics(run: Path, network: NetworkResult) -> None:
    records = read_metrics(run)
    assert len(records) == 2
    for epoch, record in zip(network.history, records, strict=True):
        assert vars(epoch).items() <= vars(record).items()
    assert network.seconds == sum(record.seconds for record in records)


def test_samples_layers_and_energy_are_those_of_the_network(
    run: Path, network: NetworkResult
) -> None:
    model = load_run(run)[1]
    x, y = digits().test[:IMAGES]
    twins = PGD(0.1, steps=20)(model, x, y, torch.Generator().manual_seed(0))
    for layer, (name, activity), moved, (_, distance) in zip(
        network.layers,
        spiking_activity(model, x).items(),
        spiking_activity(model, twins).values(),
        spike_distance(model, x, twins).items(),
        strict=True,
    ):
        assert layer.name.endswith(f"({name})")
        assert layer.neurons == activity.neurons
        assert layer.clean == activity.time_averaged
        assert layer.adversarial == moved.time_averaged
        assert layer.rate_distance == pytest.approx(distance.rate.mean().item())
        assert layer.train_distance == pytest.approx(distance.train.mean().item())
    assert network.energy is not None
    assert network.energy.clean == cost(model, x).energy()
    assert network.energy.adversarial == cost(model, twins).energy()
    assert network.energy.dense == cost(model, x).dense_energy()
    spikes: dict[str, torch.Tensor] = {}
    model.eval()
    with torch.no_grad(), watch_spikes(model, spikes.__setitem__):
        predictions = model(torch.cat([x, twins])).argmax(1).tolist()
    assert len(network.samples) == 4
    assert len({sample.label for sample in network.samples}) == 4
    for sample in network.samples:
        i = next(i for i in range(IMAGES) if np.array_equal(sample.clean, x[i].numpy()))
        np.testing.assert_array_equal(sample.adversarial, twins[i].numpy())
        assert (sample.label, sample.eps, sample.attack) == (int(y[i]), 0.1, "PGD-20")
        assert sample.predicted_clean == predictions[i]
        assert sample.predicted_adversarial == predictions[IMAGES + i]
        for (clean, adversarial), fired in zip(
            sample.rasters.values(), spikes.values(), strict=True
        ):
            np.testing.assert_array_equal(clean, fired[:, i].flatten(1).bool().numpy())
            found = fired[:, IMAGES + i].flatten(1).bool().numpy()
            np.testing.assert_array_equal(adversarial, found)


def test_the_membranes_are_those_of_a_plain_loop(run: Path, network: NetworkResult) -> None:
    model = load_run(run)[1].eval()
    inputs: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, snnkern.LIF):
            module.register_forward_pre_hook(
                lambda _, given, name=name: inputs.__setitem__(name, given[0])
            )
    for sample in network.samples:
        model(torch.from_numpy(sample.clean)[None])
        assert len(inputs) == len(sample.membranes) == 3
        for current, (layer, membrane) in zip(
            inputs.values(), sample.membranes.items(), strict=True
        ):
            u = 0.0
            before, after = sample.rasters[layer]
            for t in range(8):
                v = 0.25 * u + current[t].flatten()[membrane.neuron].item()
                fired = v >= membrane.threshold
                assert fired == before[t, membrane.neuron]
                assert membrane.clean[t] == pytest.approx(v, abs=1e-6)
                u = 0.0 if fired else v
            changes = (before ^ after).sum(0)
            assert membrane.threshold == 0.25
            assert changes[membrane.neuron] == changes.max()
            for trace, spikes in zip(
                (membrane.clean, membrane.adversarial), sample.rasters[layer], strict=True
            ):
                assert ((trace >= membrane.threshold) == spikes[:, membrane.neuron]).all()


def test_what_a_run_lacks_is_said_with_the_command(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("run.json", "recipe.toml", "metrics.jsonl", "last.safetensors"):
        shutil.copy(run / name, bare)
    study = study_of_runs([bare, run], images=0, device="cpu", progress=False)
    network, other = study.networks
    assert (network.clean, network.attacked, network.curves, network.members) == (None, (), (), ())
    assert (network.samples, network.layers, network.energy) == ((), (), None)
    assert len(network.history) == 2
    attack, certify = network.missing
    assert attack.endswith(
        f"snnkern attack {bare} --eps 0.05 0.1 0.2 --attacks fgsm pgd20 members19"
    )
    assert certify == f"Certified share: snnkern certify {bare} --eps 0.0025 0.005 0.01"
    assert other.missing == ()
    same = tmp_path / "elsewhere" / "bare"
    shutil.copytree(bare, same)
    names = [n.name for n in study_of_runs([bare, same], images=0, progress=False).networks]
    assert names == [str(bare), str(same)]


def own_network() -> tuple[nn.Module, Samples]:
    """Of a user's own making."""
    model = nn.Sequential(
        snnkern.nn.Direct(timesteps=3),
        snnkern.nn.TimeDistributed(nn.Conv2d(1, 2, 3)),
        snnkern.LIF(leak=0.9, threshold=0.5),
        snnkern.nn.TimeDistributed(nn.Sequential(nn.Flatten(), nn.Linear(72, 10))),
        snnkern.nn.MeanReadout(),
    )
    return model, digits().test


def frames_of_events() -> tuple[nn.Module, TensorDataset]:
    """A network that sees frames of events ``[T, C, H, W]``, and some of them."""
    model = snnkern.models.conv_net(
        timesteps=3, input_shape=(2, 4, 4), channels=(2,), hidden=(), coding="events"
    )
    frames = (torch.rand(9, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    return model, TensorDataset(frames, torch.arange(9))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A run of ``fit`` alone, and the network that it trained."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    model, _ = own_network()
    batches = snnkern.data.loader(digits().train, 300)
    fit(model, batches, Natural(), epochs=1, lr=0.01, folder=folder, progress=False)
    return folder, model


def test_a_run_of_an_own_network_has_its_training(own: tuple[Path, nn.Module]) -> None:
    folder, _ = own
    (network,) = study_of_runs([folder], progress=False).networks
    assert [epoch.loss for epoch in network.history] == [r.loss for r in read_metrics(folder)]
    assert (network.method, network.timesteps) == ("Natural()", None)
    images, attack, certify = network.missing
    assert "--model MODULE:FUNCTION names a function of yours" in images
    assert f"snnkern attack {folder} --model MODULE:FUNCTION --eps" in attack
    assert f"snnkern certify {folder} --model MODULE:FUNCTION --eps" in certify


def test_an_own_network_is_looked_at_through_its_function(
    own: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    folder, model = tmp_path / "own", own[1]
    shutil.copytree(own[0], folder)
    options: dict[str, Any] = {"model": own_network, "images": IMAGES, "progress": False}
    result = attack_run(folder, eps=EPS, attacks=("fgsm",), checks=False, **options)
    x, y = digits().test[:IMAGES]
    assert torch.equal(result.correct(), model(x).argmax(1) == y)
    study = study_of_runs([folder], **options)
    assert (study.title, study.dataset) == ("own", f"{__name__}:own_network")
    assert study.provenance["command"] == (
        f"snnkern report {folder} --model {__name__}:own_network --images {IMAGES}"
    )
    (network,) = study.networks
    assert network.timesteps == 3
    assert network.clean is not None
    assert network.clean.value == result.accuracy()
    (layer,), (activity,) = network.layers, spiking_activity(model, x).values()
    assert (layer.name, layer.clean) == ("1 (2)", activity.time_averaged)
    assert network.energy is not None
    assert network.energy.clean == cost(model, x).energy()
    twins = PGD(EPS[1], steps=20)(model, x, y, torch.Generator().manual_seed(0))
    for sample in network.samples:
        (number,) = (y == sample.label).nonzero()[0].tolist()
        np.testing.assert_array_equal(sample.clean, x[number].numpy())
        np.testing.assert_array_equal(sample.adversarial, twins[number].numpy())
        assert sample.rasters["layer 1"][0].shape == (3, 72)
    attack, certify = network.missing
    assert f"snnkern attack {folder} --model {__name__}:own_network --eps" in attack
    assert certify == "Certified share: only networks of snnkern.models can be certified."


def test_samples_that_are_no_pictures_have_activity_and_energy(tmp_path: Path) -> None:
    model, samples = frames_of_events()
    folder = tmp_path / "events"
    fit(model, snnkern.data.loader(samples, 3), epochs=1, folder=folder, progress=False)
    options: dict[str, Any] = {"model": frames_of_events, "progress": False}
    (network,) = study_of_runs([folder], **options).networks
    assert network.samples == ()
    assert network.missing[0] == "Images, spikes and membranes: the samples are no pictures."
    x, _ = next(iter(snnkern.data.loader(samples, 9)))
    (activity,) = spiking_activity(model, x).values()
    assert [layer.clean for layer in network.layers] == [activity.time_averaged]
    assert network.energy is not None
    certify_run(folder, eps=RADII, **options)
    (network,) = study_of_runs([folder], **options).networks
    assert network.certified is not None


@pytest.mark.parametrize(
    ("white", "attack"), [(1.0, SpikeFlip(8 / 255)), (0.5, PGD(8 / 255, steps=20))]
)
def test_events_are_attacked_by_flips(tmp_path: Path, white: float, attack: Attack) -> None:
    torch.manual_seed(5)  # weights that let the classes differ
    model, samples = frames_of_events()
    fit(model, snnkern.data.loader(samples, 3), epochs=1, folder=tmp_path, progress=False)
    x = white * samples.tensors[0]
    y = model(x).argmax(1)  # who is wrong already is left alone
    study = study_of_runs(
        [tmp_path], model=lambda: (frames_of_events()[0], TensorDataset(x, y)), progress=False
    )
    (layer,) = study.networks[0].layers
    torch.manual_seed(0)
    twins = attack(model, x, y, torch.Generator().manual_seed(0))
    assert not torch.equal(twins, x)
    (activity,) = spiking_activity(model, twins).values()
    assert layer.adversarial == activity.time_averaged


def test_the_samples_that_were_asked_for_are_shown(run: Path) -> None:
    x, y = digits().test[:IMAGES]
    options: dict[str, Any] = {"images": IMAGES, "device": "cpu", "progress": False}
    study = study_of_runs([run], samples=(7, 2), **options)
    assert study.provenance["command"].endswith(f"{run} --images {IMAGES} --samples 7 2")
    (network,) = study.networks
    assert [sample.label for sample in network.samples] == y[[7, 2]].tolist()
    for number, sample in zip((7, 2), network.samples, strict=True):
        np.testing.assert_array_equal(sample.clean, x[number].numpy())
    with pytest.raises(ValueError, match=f"samples has {IMAGES}, expected numbers below images, "):
        study_of_runs([run], samples=(0, IMAGES), **options)
    with pytest.raises(ValueError, match="samples is -1, expected"):
        study_of_runs([run], samples=(-1,), **options)


def test_the_function_of_an_own_network_has_to_fit(
    run: Path, own: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = own
    with pytest.raises(ValueError, match=r"run is .*own, which has no recipe, expected model: "):
        attack_run(folder, progress=False)
    with pytest.raises(ValueError, match=r"model is .*own_network and run is .*expected none"):
        attack_run(run, model=own_network, progress=False)
    with pytest.raises(ValueError, match="model is given, expected none: every run has a recipe"):
        study_of_runs([run], model=own_network, progress=False)
    with pytest.raises(ValueError, match=r"data is digits, expected none: model is .*own_network"):
        attack_run(folder, model=own_network, data=Path("digits"), progress=False)
    with pytest.raises(ValueError, match=r"last.safetensors holds other weights than the network"):
        certify_run(folder, eps=[0.1], model=frames_of_events, progress=False)
    for given, words in ((own_network()[0], "Sequential"), ((nn.ReLU(), 3), "ReLU, int")):
        with pytest.raises(ValueError, match=f"gives {words}, expected .network, samples."):
            trained(folder, own=lambda given=given: given)  # type: ignore[misc]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "of_a_user.py").write_text("class Nets:\n    mine = staticmethod(lambda: 7)\n")
    assert named_network("of_a_user:Nets.mine")() == 7  # type: ignore[comparison-overlap]
    for text, words in (
        ("of_a_user", "expected MODULE:FUNCTION"),
        ("of_a_user.py:Nets", "expected MODULE:FUNCTION"),
        ("of_a_user:other", "cannot be found: .*no attribute 'other'"),
        ("no_such_module:other", "cannot be found: No module named 'no_such_module'"),
        (".of_a_user:Nets", "expected MODULE:FUNCTION"),
        ("of_a_user:__name__", "is 'of_a_user', expected a function"),
    ):
        with pytest.raises(ValueError, match=f"model is '{text}', .*{words}"):
            named_network(text)


def module_of_a_user(
    content: str, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "erring"
) -> None:
    """A file in the working directory that will be imported anew."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    (folder / f"{name}.py").write_text(content)
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1\ny = x / 0", r"ZeroDivisionError: division by zero \(.*erring.py, line 2\)"),
        ("def f(:", r"SyntaxError: .*\(erring.py, line 1\)"),
        (
            "import not_installed",
            r"ModuleNotFoundError: No module named 'not_.* \(.*line 1\)",
        ),
        (
            "def g():\n    return 1 / 0\ndef f():\n    return g()",
            r"ZeroDivisionError: .* \(.*erring.py, line 2\)",
        ),
        ("def f():\n    return {}['k']", r"KeyError: 'k' \(.*erring.py, line 2\)"),
        ("import json\ndef f():\n    json.loads('')", r"JSONDecodeError: .*erring.py, line 3\)"),
        ("def f(size): ...", r"TypeError: f\(\) missing 1 required positional argument: 'size'"),
    ],
)
def test_errors_in_a_users_module_are_told_as_its_own(
    own: tuple[Path, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
    words: str,
) -> None:
    module_of_a_user(content, tmp_path, monkeypatch)
    assert main(["attack", str(own[0]), "--model", "erring:f", "--quiet"]) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(rf"snnkern: model is erring:f, which raises {words}\n", told), told


ERRING = """from python_tests.test_report_runs import own_network
from torch import nn
class Net(nn.Sequential):
    def forward(self, x):
        y = super().forward(x)
        return REST
def f():
    model, test = own_network()
    return Net(*model), test
"""


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("look(x)", "NameError: name 'look' is not defined"),
        ("{}['k']", "KeyError: 'k'"),
        ("y @ x", "RuntimeError: .*"),
        ("(_ for _ in ()).throw(ValueError('of\\n\\ntwo lines'))", "ValueError: of two lines"),
    ],
)
@pytest.mark.parametrize(
    ("command", "count"),
    [
        (("attack", "--attacks", "fgsm", "--images", "30"), 30),
        (("attack", "--attacks", "strongest", "--images", "30", "--no-checks"), 1),
        (("report", "--images", "20"), 20),
    ],
    ids=["attack", "strongest", "report"],
)
def test_what_the_forward_of_a_users_network_raises_is_told_as_its_own(
    own: tuple[Path, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rest: str,
    words: str,
    command: tuple[str, ...],
    count: int,
) -> None:
    module_of_a_user(ERRING.replace("REST", rest), tmp_path, monkeypatch)
    name, *options = command
    assert main([name, str(own[0]), "--model", "erring:f", "--quiet", *options]) == 1
    told = capsys.readouterr().err
    shape = rf"\[{count}, 1, 8, 8\]"
    where = rf"\({re.escape(str(tmp_path))}/erring.py, line 6\)"
    said = (
        rf"snnkern: model is erring:f, which raises {words} for an input of shape {shape} {where}"
    )
    assert re.fullmatch(f"{said}\n", told), told


def test_errors_of_parts_and_of_other_files_than_the_users(
    own: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module_of_a_user(ERRING.replace("REST", "y"), tmp_path, monkeypatch)
    run = trained(own[0], own=named_network("erring:f"))
    x = torch.rand(2, 1, 9, 9)
    words = r"erring:f, which raises .* of shape \[2, 1, 9, 9\] .*line 5"
    with pytest.raises(ValueError, match=words), run.running():
        run.model(x)
    words = r"erring:f, whose 3.module raises .* of shape \[2, 7\]$"  # all of its code is torch's
    with pytest.raises(ValueError, match=words), run.running():
        run.model.get_submodule("3.module")(x[:, 0, 0, :7])
    with pytest.raises(KeyError), run.running():
        raise KeyError("not of the network")
    # Who gave a function catches what was raised.
    given = trained(own[0], own=own_network)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), given.running():
        given.model(x)


def test_samples_of_a_users_function_have_to_be_pairs(
    own: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    folder, model = own
    x = torch.rand(3, 1, 8, 8)
    for samples, words in (
        (TensorDataset(x[:0], torch.arange(0)), "gives no samples, expected at least one"),
        (TensorDataset(x), "whose samples are Tensor, expected pairs"),
        (Counted(), "raises IndexError: none there .*test_report_runs.py, line"),
    ):
        with pytest.raises(ValueError, match=f"model is .*<lambda>, (which |){words}"):
            trained(folder, own=lambda samples=samples: (model, samples))  # type: ignore[misc]
    with pytest.raises(FileNotFoundError, match=r"run is .*none, expected the folder of a run of"):
        trained(tmp_path / "none", own=own_network)


class Counted(Dataset[tuple[torch.Tensor, ...]]):
    """A data set that says that it has samples."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        raise IndexError("none there")


def test_the_name_of_a_users_function_finds_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own_name(own_network) == f"{__name__}:own_network"
    assert own_name(functools.partial(own_network)) == "MODULE:FUNCTION"
    content = "import functools\nfrom python_tests.test_report_runs import own_network\n"
    content += "part = functools.partial(own_network)\n"
    module_of_a_user(content, tmp_path, monkeypatch, "naming")
    for text in ("naming:part", "naming:own_network"):
        assert own_name(named_network(text)) == text
    script = content + "from snnkern.training.own import own_name\ndef mine(): ...\n"
    script += "print(own_name(mine), own_name(part), own_name(lambda: mine()))\n"
    for name, shown in (("mine.py", "mine:mine"), ("my-net.py", "MODULE:FUNCTION")):
        (tmp_path / name).write_text(script)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        told = subprocess.check_output([sys.executable, name], env=environment, text=True)
        assert told.split() == [shown, "MODULE:FUNCTION", "MODULE:FUNCTION"]


def test_a_checkpoint_and_a_study_are_runs_too(run: Path, tmp_path: Path) -> None:
    best = study_of_runs([run / "best.safetensors"], images=0, progress=False)
    assert best.networks[0].name == "short, best"
    best.save(tmp_path)
    both = study_of_runs([tmp_path, run], images=0, progress=False)
    assert [network.name for network in both.networks] == ["short, best", "short"]
    assert Study.load(tmp_path) == best


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "run.json", "evaluation.json", "certification.json", "recipe.toml",
             "last.safetensors"]
)  # fmt: skip
@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_a_corrupt_file_is_named(run: Path, tmp_path: Path, name: str, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    content = (broken / name).read_bytes()
    (broken / name).write_bytes(content[: len(content) // 3] if damage == "truncated" else b"[1]\n")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        study_of_runs([broken], images=2, device="cpu", progress=False)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the folder of a run of snnkern train"):
        study_of_runs([tmp_path], progress=False)
    with pytest.raises(ValueError, match="runs is empty"):
        study_of_runs([], progress=False)


def test_rate_coding_is_shown_with_one_draw_for_both() -> None:
    torch.manual_seed(0)
    model = snnkern.models.conv_net(timesteps=6, input_shape=(1, 8, 8), channels=(3,), hidden=())
    model.encoder = snnkern.nn.RateCoding(6, "bernoulli")
    x, y = digits().test[:3]
    state = torch.get_rng_state()
    shown = show(model, x, y, PGD(0.0, steps=1), "none", [0, 2], seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    for sample in shown.samples:
        for clean, adversarial in sample.rasters.values():
            np.testing.assert_array_equal(clean, adversarial)
    assert all(layer.train_distance == 0 for layer in shown.layers)


def test_what_cannot_be_certified_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method is 'lp', expected one of ibp, crown, best"):
        certify_run(run, eps=(0.1,), method="lp")
    text = (run / "recipe.toml").read_text()
    drawn = tmp_path / "drawn"
    shutil.copytree(run, drawn)
    (drawn / "recipe.toml").write_text(
        text.replace("leak = 0.25", 'leak = 0.25\ncoding = "poisson"')
    )
    with pytest.raises(ValueError, match="draws its input spikes, expected one with direct coding"):
        certify_run(drawn, eps=(0.1,), progress=False)
