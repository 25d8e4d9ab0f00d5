from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from snnkern import convert, data
from snnkern.attacks import FGSM, PGD, RFGSM, Evaluation, evaluate
from snnkern.cli import main
from snnkern.data import FORMATS, Images, Split
from snnkern.models import SpikingNetwork
from snnkern.nn import LIF, MeanReadout
from snnkern.surrogate import Triangle
from snnkern.training import (
    HIRE,
    MART,
    RAT,
    TRADES,
    AdversarialTraining,
    Certified,
    Method,
    RobustFinetune,
    SpikeTimeFinetune,
    load_checkpoint,
    read_metrics,
)
from snnkern.training.convert import convert_run
from snnkern.training.recipe import DATA, SHIPPED, STAND_INS, Recipe
from snnkern.training.start import load_run, thresholds
from snnkern.training.train import train

RECIPES = sorted(path.stem for path in SHIPPED.glob("*.toml"))
TINY = """
title = "Tiny"
epochs = 2
batch_size = 300

[data]
name = "digits"

[model]
name = "fc_net"
timesteps = 2
input_shape = [1, 8, 8]
hidden = [8]

[method]
name = "Natural"

[optimizer]
name = "SGD"
lr = 0.1

[schedule]
name = "constant"
"""


def written(folder: Path, text: str = TINY, **changes: str) -> Path:
    """A file with the tiny recipe, after lines that begin as the names of ``changes`` say."""
    for line, new in changes.items():
        text, count = re.subn(rf"(?m)^{line} = .*$", new, text, count=1)
        assert count == 1
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


# What ships


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_is_right(name: str) -> None:
    recipe = Recipe.load(name)
    settings = recipe.settings
    assert recipe.text.startswith("# ")
    if "start" in settings:
        ann = Recipe.load(settings["start"]).settings
        assert ("convert" in settings) == (not ann["model"]["timesteps"])
        different = {"timesteps", "leak", "reset", "learn_leak", "learn_threshold"}
        options = [
            {k: v for k, v in s["model"].items() if k not in different} for s in (ann, settings)
        ]
        assert options[0] == options[1]
        assert settings["data"]["name"] == ann["data"]["name"]
    with torch.device("meta"):  # no memory for the weights of the large ones
        assert any(isinstance(module, LIF) for module in recipe.model().modules())
    shape, classes = FORMATS[settings["data"]["name"]]
    assert settings["model"].get("num_classes", classes) == classes
    for stand_in in STAND_INS:
        split = recipe.split(stand_in)
        assert isinstance(split.train, Images)
        assert split.train[0][0].shape == shape
        assert len(split.train[:][1].unique()) == (10 if stand_in.name == "digits" else classes)
        assert len(split.train.augment) == len(settings["data"].get("augment", ()))


def test_every_row_of_the_tables_has_its_recipe() -> None:
    """The tables of five papers, and the figures that compare trainings.

    Kundu et al. 2021, tables 1, 2, 3, 5, figure 9; Ding et al. 2022, tables 1 to 4; Sharmin et al.
    2020, table 1, figures 2 and 6; Ozdenizci & Legenstein 2023, tables 1, A1 and B5, figures 1 and
    2; Liang et al. 2022, tables 1 and 2, figure 5, and S-IBP alone.
    """
    rows = {
        f"hire_{network}{kind}"
        for network in ("vgg5_c10", "resnet12_c10", "vgg11_c100", "resnet12_c100")
        for kind in ("_ann", "_traditional", "")
    }
    rows |= {"hire_vgg5_c10_frozen", "hire_vgg5_c10_frozen_traditional", "hire_vgg11_c100_gaussian"}
    rows |= {
        f"rat_{network}_{data}{kind}"
        for network in ("vgg11", "wrn16_4")
        for data in ("c10", "c100")
        for kind in ("", "_vanilla")
    }
    rows |= {"rat_vgg11_c10_mix", "rat_vgg11_c10_reg"}
    rows |= {
        f"sharmin_{network}_{kind}"
        for network in ("vgg5_c10", "resnet20_c10", "vgg11_c100")
        for kind in ("ann", "conv", "bp")
    }
    kinds = {"ann_{}bit", *(f"bp_{{}}bit_t{T}" for T in (50, 75, 100, 150))}
    kinds |= {"conv_{}bit_t300", "conv_{}bit_t2000"}
    rows |= {f"sharmin_vgg5_c10_{kind.format(bits)}" for kind in kinds for bits in (2, 4)}
    rows |= {"sharmin_vgg5_c10_bp_linear", "sharmin_vgg5_c10_bp_leak95"}
    trainings = {
        f"{network}_{ann}"
        for network in ("vgg11_c10", "wrn16_4_c100", "resnet20_svhn")
        for ann in ("natural", "at", "trades", "mart")
    }
    trainings |= {"vgg11_c10_at4", "vgg11_c10_at8", "vgg11_tin_at"}
    rows |= {f"robust_{training}{kind}" for training in trainings for kind in ("_ann", "")}
    ablations = {f"at_{kind}" for kind in ("natural", "ce_at", "kl_at", "ce", "frozen")}
    ablations |= {"scratch", "scratch_frozen", "scratch_natural"}
    rows |= {f"robust_vgg11_c10_{ablation}" for ablation in ablations}
    kinds = {"lif", "lif30", "vanilla", "vanilla_lif30", "rfgsm", "rfgsm_lif", "rat", "rat_lif"}
    rows |= {f"robust_vgg11_tin_{kind}" for kind in kinds}
    rows |= {
        f"certified_{network}_{data}{kind}"
        for network in ("fc", "conv")
        for data in ("mnist", "fmnist", "nmnist")
        for kind in ("_natural", "", "_ibp")
    }
    rows |= {"certified_conv_mnist_t1", "certified_conv_mnist_t5"}
    assert {name for name in RECIPES if not name.startswith("digits")} == rows


def test_settings_of_the_papers() -> None:
    rat = Recipe.load("rat_wrn16_4_c100")
    assert rat.method() == RAT(eps=2 / 255, beta=0.004)
    assert rat.settings["optimizer"] == {
        "name": "SGD",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0,
    }
    assert Recipe.load("rat_vgg11_c10_reg").method() == RAT(mix=(), beta=0.001)
    vanilla = Recipe.load("rat_vgg11_c10_vanilla").settings
    assert vanilla["optimizer"]["weight_decay"] == 5e-4
    hire = Recipe.load("hire_vgg11_c100")
    assert hire.method() == HIRE(0.025)
    model = torch.nn.Linear(1, 1)
    optimizer = hire.optimizer(model)
    schedule = hire.schedule(optimizer, 30)
    assert schedule is not None
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-4] * 18 + [2e-5] * 6 + [4e-6] * 3 + [8e-7] * 3)


def test_settings_of_certified_training() -> None:
    """Liang et al. 2022, section 4 and table 2; by half the width of a box, as in their code."""
    settings = {
        "fc_mnist": Certified(0.06, published=True),
        "conv_fmnist": Certified(0.0025, published=True),
        "fc_fmnist_ibp": Certified(0.005, crown=(0, 0)),
        "conv_nmnist": Certified(0.005, weight=(1, 1), published=True),
        "conv_mnist_t5": Certified(0.06, timesteps=5, published=True),
    }
    for name, method in settings.items():
        recipe = Recipe.load(f"certified_{name}")
        assert recipe.method() == method
        assert (recipe.settings["epochs"], recipe.settings["clip_norm"]) == (300, 0.25)
        assert recipe.settings["optimizer"] == {"name": "SGD", "lr": 5e-4, "momentum": 0.9}
    counts = {"fc_mnist": 535_818, "fc_nmnist": 1_318_154}
    counts |= {"conv_fmnist": 1_682_954, "conv_nmnist": 2_732_106}
    for name, count in counts.items():
        recipe = Recipe.load(f"certified_{name}_natural")
        model = recipe.model()
        assert sum(parameter.numel() for parameter in model.parameters()) == count
        layers = [module for module in model.modules() if isinstance(module, LIF)]
        assert all(one.strict and one.dynamics()["leak"] == 0.25 for one in layers)
        rates = []
        optimizer = recipe.optimizer(model)
        schedule = recipe.schedule(optimizer, epochs := recipe.settings["epochs"])
        assert schedule is not None
        for _ in range(epochs):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        high = 70 if "nmnist" in name else 55
        assert rates == pytest.approx([0.01] * high + [0.001] * (epochs - high))


def test_settings_of_what_is_converted() -> None:
    """Ozdenizci & Legenstein 2023, A.2; Sharmin et al. 2020, section 3.2."""
    wide = Recipe.load("robust_wrn16_4_c100_mart")
    assert wide.settings["start"] == "robust_wrn16_4_c100_mart_ann"
    assert wide.method() == RobustFinetune(2 / 255, 2 / 1275, 4)
    assert (wide.settings["epochs"], wide.settings["optimizer"]["weight_decay"]) == (80, 1e-4)
    assert wide.settings["convert"]["scale"] == 0.1
    assert Recipe.load("robust_wrn16_4_c100_trades_ann").method() == TRADES(2 / 255, 3, 10)
    at8 = Recipe.load("robust_vgg11_c10_at8")
    assert at8.method() == RobustFinetune(2 / 255, 1 / 510, 2)
    assert at8.settings["optimizer"]["weight_decay"] == 1e-4
    assert Recipe.load("robust_vgg11_c10_at8_ann").method() == AdversarialTraining(8 / 255, 10)
    kl_at = Recipe.load("robust_vgg11_c10_at_kl_at").method()
    assert kl_at == AdversarialTraining(attack=RFGSM(2 / 255, loss="kl"))
    for name in filter(re.compile("sharmin").match, RECIPES):  # whose attacks see means over time
        with torch.device("meta"):
            assert isinstance(Recipe.load(name).model().get_submodule("readout"), MeanReadout)
    hybrid = Recipe.load("sharmin_resnet20_c10_bp")
    assert hybrid.method() == SpikeTimeFinetune(leak=0.99)
    assert hybrid.settings["model"]["timesteps"] == 200
    assert hybrid.settings["convert"]["layers"] == 3
    optimizer = hybrid.optimizer(nn.Linear(1, 1))
    schedule = hybrid.schedule(optimizer, 15)
    assert schedule is not None
    rates = []
    for _ in range(15):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-4] * 5 + [5e-5] * 5 + [2.5e-5] * 5)
    optimizer = hybrid.optimizer(nn.Linear(1, 1))
    hybrid.schedule(optimizer, 1)  # snnkern train --epochs 1: a third of that is no epoch
    assert optimizer.param_groups[0]["lr"] == 1e-4
    assert not Recipe.load("sharmin_vgg11_c100_conv").trains


# Reading


def test_a_recipe_on_top_of_another(tmp_path: Path) -> None:
    (tmp_path / "below.toml").write_text(
        'base = "digits_rat"\nepochs = 3\n[method]\neps = "1/16"\n'
    )
    (tmp_path / "above.toml").write_text(
        '# Why.\nbase = "below"\ntitle = "Above \\"it\\""\n[method]\nname = "Natural"\n'
    )
    shipped, below = Recipe.load("digits_rat"), Recipe.load(tmp_path / "below.toml")
    method = {**shipped.settings["method"], "eps": "1/16"}
    assert below.settings == shipped.settings | {"epochs": 3, "method": method}
    above = Recipe.load(tmp_path / "above.toml")
    changed = {"title": 'Above "it"', "method": {"name": "Natural"}}
    assert above.settings == below.settings | changed
    assert above.text.startswith("# Why.\n")
    # A run keeps what it comes to: what the other files say later does not change it.
    assert Recipe.read("kept", above.text, tmp_path).settings == above.settings


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("robust")])
def test_what_a_run_keeps_is_the_recipe(name: str) -> None:
    recipe = Recipe.load(name)
    assert Recipe.read(name, recipe.text).settings == recipe.settings


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    for base in ("nothing", "one", "two"):
        (tmp_path / "one.toml").write_text(f'base = "{base}"\n')
        (tmp_path / "two.toml").write_text('base = "one"\n')
        with pytest.raises(ValueError, match=r"base is '\w+', expected the name of another recipe"):
            Recipe.load(tmp_path / "one.toml")


@pytest.mark.parametrize(
    ("table", "method"),
    [
        ('"AdversarialTraining"\neps = "4/255"', AdversarialTraining(4 / 255)),
        ('"TRADES"\nbeta = 3', TRADES(beta=3)),
        ('"MART"\nsteps = 5', MART(steps=5)),
        (
            '"RobustFinetune"\nattack = { name = "RFGSM", loss = "ce" }',
            RobustFinetune(attack=RFGSM()),
        ),
        (
            '"SpikeTimeFinetune"\nleak = 0.99\nsurrogate = { name = "Triangle", scale = 0.3 }',
            SpikeTimeFinetune(Triangle(scale=0.3), leak=0.99),
        ),
    ],
)
def test_methods_of_recipes(table: str, method: Method, tmp_path: Path) -> None:
    text = TINY.replace('"Natural"', table)
    assert Recipe.load(written(tmp_path, text)).method() == method


def test_what_a_recipe_says_is_what_is_built(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        TINY + '\n[model.surrogate]\nname = "Triangle"\nscale = 0.3\nnormalized = true\n',
        hidden='hidden = [8]\nleak = 0.5\nreset = "soft"',
        lr="lr = 0.25\nmomentum = 0.5",
        batch_size='batch_size = 300\nautocast = "bfloat16"\nclip_norm = 2',
    )
    text = path.read_text().replace(
        'name = "Natural"',
        'name = "RAT"\neps = "8/255"\n'
        'mix = [{ name = "FGSM", eps = "1/10", gradient = "rate" }, { name = "PGD", steps = 3 }]',
    )
    path.write_text(text)
    recipe = Recipe.load(path)
    assert recipe.method() == RAT(eps=8 / 255, mix=(FGSM(0.1, gradient="rate"), PGD(steps=3)))
    neuron = next(module for module in recipe.model().modules() if isinstance(module, LIF))
    assert neuron.surrogate == Triangle(scale=0.3, normalized=True)
    assert neuron.reset == "soft"
    assert recipe.optimizer(recipe.model()).param_groups[0]["momentum"] == 0.5
    assert recipe.autocast == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"epochs": 'epochs = "many"'},
            "tiny.toml: epochs is 'many', expected a value of type int",
        ),
        ({"epochs": "epochs = true"}, "epochs is True, expected a value of type int"),
        ({"epochs": "epochs = 0"}, "epochs is 0, expected an int of at least 1"),
        ({"epochs": "epoch = 3"}, "epoch is not a key, expected one of title, start, epochs"),
        ({"epochs": ""}, "epochs missing, expected in every recipe"),
        ({"title": 'title = ""\nthreads = 0'}, "threads is 0, expected an int of at least 1"),
        ({"title": "title = 3"}, "title is 3, expected a value of type str"),
        ({"title": 'title = ""\nclip_norm = "1"'}, "clip_norm is '1', expected a value of type fl"),
        ({"lr": "lr = -1"}, "optimizer: Invalid learning rate: -1"),
        ({"lr": "rate = 1"}, "optimizer.rate is 1, expected no such key: SGD has lr, momentum"),
        ({"title": 'title = "a"\nautocast = "int8"'}, "autocast is 'int8', expected one of bfl"),
        ({"name": 'name = "cifra10"'}, "data.name is 'cifra10', expected one of cifar10, "),
    ],
    ids=str,
)
def test_mistakes_are_named(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.load(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"Natural"',
            '"natural"',
            "method.name is 'natural', expected one of AdversarialTraining,",
        ),
        ('"Natural"', '"RAT"\nbeta = -1', "method: RAT: beta is -1, expected"),
        ('"Natural"', '"RAT"\nalpha = 1', "method.alpha is 1, expected no such key: RAT has eps,"),
        ('"Natural"', '"RAT"\nmix = [{ name = "FSGM" }]', r"method.mix\[0\].name is 'FSGM', expec"),
        ('"constant"', '"linear"', "schedule.name is 'linear', expected one of constant, cosine"),
        ('"constant"', '"multistep"\nat = [3]\nfactor = 1', "schedule: at is 3, expected"),
        ('"constant"', '"multistep"\nat = [0.3]', "schedule: .*factor"),
        ('"SGD"', '"Lion"', "optimizer.name is 'Lion', expected one of Adam, AdamW, SGD"),
        ("[model]", "[model", "is not TOML"),
        ("[data]", "data = 3\n[unused]", "data is 3, expected a table"),
    ],
)
def test_mistakes_in_tables_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.load(written(tmp_path, TINY.replace(old, new)))


def test_options_that_the_model_refuses_are_named(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, hidden="hidden = [8]\nleek = 0.5"))
    with pytest.raises(ValueError, match=r"model: .*leek"):
        recipe.model()
    recipe = Recipe.load(written(tmp_path, hidden="hidden = [8]\nleak = 1.5"))
    with pytest.raises(ValueError, match=r"model: leak is 1\.5, expected"):
        recipe.model()
    recipe = Recipe.load(written(tmp_path))
    with pytest.raises(ValueError, match=r"data\.folder is .*expected no such key: digits has"):
        recipe.split(tmp_path)


def test_data_that_does_not_come_with_a_package_needs_its_folder(tmp_path: Path) -> None:
    recipe = Recipe.load("rat_vgg11_c10")
    with pytest.raises(ValueError, match=r"data.name is 'cifar10' .*--data FOLDER, or --data digi"):
        recipe.split()
    digit = tmp_path / "NMNIST" / "Train" / "0"
    with pytest.raises(FileNotFoundError, match=f"{digit} is missing"):
        Recipe.load(written(tmp_path, name='name = "nmnist"')).split(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{digit} is missing"):
        Recipe.load(written(tmp_path, name=f'name = "nmnist"\nfolder = "{tmp_path}"')).split()


def test_an_unknown_recipe_names_those_that_ship(tmp_path: Path) -> None:
    for name in ("digits_vat", str(tmp_path / "digits_rat.toml")):
        with pytest.raises(FileNotFoundError, match=r"expected a file or one of .*digits_rat"):
            Recipe.load(name)
    assert Recipe.load("digits_rat").text == Recipe.load("digits_rat.toml").text


# Training by one


def test_a_recipe_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load(written(tmp_path))
    train(recipe, tmp_path / "whole", seed=3, progress=False)
    right = sys.modules["snnkern.training.fit"]._Training._train_on
    calls = []

    def cut(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        right(*arguments)

    monkeypatch.setattr(sys.modules["snnkern.training.fit"]._Training, "_train_on", cut)
    options: dict[str, Any] = {"seed": 3, "progress": False, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", **options)
    history = train(recipe, tmp_path / "cut", resume=True, **options)
    assert history == read_metrics(tmp_path / "whole")
    whole, resumed = (load_checkpoint(tmp_path / n / "last.safetensors") for n in ("whole", "cut"))
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value)
    assert (tmp_path / "cut" / "recipe.toml").read_text() == recipe.text


# Beginning with the network of another run

ANN = TINY.replace("timesteps = 2", "timesteps = 0")
CONVERTED = 'start = "ann"' + TINY + "\n[convert]\nbatches = 1\nbatch_size = 500\nscale = 0.5\n"


@pytest.fixture
def ann_run(tmp_path: Path) -> Path:
    """The run of a ReLU network, one epoch short."""
    folder = tmp_path / "ann"
    train(Recipe.read("ann", ANN), folder, progress=False)
    return folder


def first_weights(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> Any:
    """The network that training begins with."""
    seen: list[nn.Module] = []
    with monkeypatch.context() as patch:
        patch.setattr("snnkern.training.train.fit", lambda model, *_, **__: seen.append(model))
        train(*arguments, progress=False, **options)
    return seen[0]


def test_a_recipe_begins_with_a_converted_network(
    ann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.read("snn", CONVERTED)
    model = first_weights(monkeypatch, recipe, tmp_path / "snn", start=ann_run, seed=3)
    begun, ann = load_run(ann_run)
    assert begun.text == ANN
    assert isinstance(ann, SpikingNetwork)
    images = data.loader(data.digits().train, 500, shuffle=True, seed=3)
    expected = convert(ann, images, 2, batches=1, scale=0.5, progress=False)
    assert model.timesteps == 2
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    about = json.loads((tmp_path / "snn" / "start.json").read_text())
    assert about["start"] == str(ann_run)
    assert about["thresholds"] == {"layers.2": [expected.layers.get_buffer("2.threshold").item()]}
    best = first_weights(
        monkeypatch, recipe, tmp_path / "b", start=ann_run / "best.safetensors", seed=3
    )
    assert best.state_dict().keys() == model.state_dict().keys()


def test_neurons_are_those_of_the_recipe(
    ann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights alone come from the ReLU network."""
    text = CONVERTED.replace(
        "hidden = [8]",
        'hidden = [8]\nleak = 0.5\nreset = "soft"\nlearn_threshold = true\nmin_threshold = 9.0',
    )
    model = first_weights(monkeypatch, Recipe.read("snn", text), tmp_path / "snn", start=ann_run)
    (neuron,) = (module for module in model.modules() if isinstance(module, LIF))
    assert neuron.dynamics()["leak"] == 0.5
    assert neuron.reset == "soft"
    assert isinstance(neuron.threshold, nn.Parameter)
    assert neuron.threshold.item() == 9.0


def test_what_is_not_to_be_converted_is_taken_as_it_is(
    ann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = convert_run(ann_run, options={"scale": 0.7}, timesteps=5, progress=False)
    assert result.folder == tmp_path / "ann_converted"
    kept, model = load_run(result.folder)
    assert kept.settings["start"] == "ann"
    assert kept.settings["model"]["timesteps"] == 5
    assert kept.settings["convert"] == {"scale": 0.7}
    assert thresholds(model) == result.thresholds
    begun = first_weights(
        monkeypatch, Recipe.read("snn", CONVERTED), tmp_path / "snn", start=result.folder
    )
    assert begun.timesteps == 2
    for name, value in model.state_dict().items():
        assert torch.equal(begun.state_dict()[name], value), name
    # An SNN, or a ReLU network, that another method goes on with.
    plain = 'start = "ann"' + ANN
    begun = first_weights(monkeypatch, Recipe.read("snn", plain), tmp_path / "x", start=ann_run)
    assert begun.timesteps == 0


@pytest.mark.parametrize("learnt", ["there", "here", "nowhere"])
def test_a_leak_that_is_not_learnt_is_that_of_the_recipe(
    learnt: str, ann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converted network of another leak, that a recipe goes on with."""

    def recipe(leak: float, learns: bool) -> Recipe:
        options = f"hidden = [8]\nleak = {leak}\nlearn_leak = {str(learns).lower()}"
        return Recipe.read("snn", CONVERTED.replace("hidden = [8]", options))

    result = convert_run(ann_run, recipe(0.75, learnt == "there"), progress=False)
    after = recipe(0.5, learnt == "here")
    model = first_weights(monkeypatch, after, tmp_path / "snn", start=result.folder)
    (neuron,) = (module for module in model.modules() if isinstance(module, LIF))
    assert neuron.dynamics()["leak"] == (0.5 if learnt == "nowhere" else 0.75)
    assert thresholds(model) == result.thresholds


def test_a_recipe_may_only_convert(ann_run: Path, tmp_path: Path) -> None:
    text = CONVERTED[: CONVERTED.index("[method]")] + CONVERTED[CONVERTED.index("[convert]") :]
    text = re.sub("epochs.*\nbatch_size.*\n", "", text)
    recipe = Recipe.read("only", text)
    with pytest.raises(ValueError, match=r"only converts the network of ann .snnkern convert RUN"):
        train(recipe, tmp_path / "out", start=ann_run, progress=False)
    result = convert_run(ann_run, recipe, folder=tmp_path / "out", progress=False)
    assert load_run(result.folder)[0].text == text
    with pytest.raises(ValueError, match="epochs, batch_size, optimizer, schedule missing, exp"):
        Recipe.read("half", text + '\n[method]\nname = "Natural"\n')


def test_a_converted_run_resumes_without_its_start(
    ann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.read("snn", CONVERTED)
    options: dict[str, Any] = {"progress": False, "checkpoint_every": 2}
    train(recipe, tmp_path / "whole", start=ann_run, **options)
    training = sys.modules["snnkern.training.fit"]._Training
    right, calls = training._train_on, []

    def cut(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        right(*arguments)

    monkeypatch.setattr(training, "_train_on", cut)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", start=ann_run, **options)
    with pytest.raises(
        ValueError, match=r"start is .*other, expected .*ann, with which the run in"
    ):
        train(recipe, tmp_path / "cut", resume=True, start=tmp_path / "other", **options)
    with pytest.raises(ValueError, match=r"start is .*other, expected None, with which the run in"):
        train(Recipe.read("ann", ANN), ann_run, resume=True, start=tmp_path / "other")
    (ann_run / "last.safetensors").unlink()
    history = train(recipe, tmp_path / "cut", resume=True, start=ann_run, **options)
    assert history == read_metrics(tmp_path / "whole")
    whole, resumed = (load_checkpoint(tmp_path / n / "last.safetensors") for n in ("whole", "cut"))
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value)


def test_the_current_folder_can_be_converted(
    ann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ann_run)
    result = convert_run(Path(), progress=False)
    assert result.folder == tmp_path / "ann_converted"
    assert load_run(result.folder)[0].settings["start"] == "ann"


@pytest.mark.parametrize(
    ("table", "size"),
    [
        ("", 64),
        ("batch_size = 2", 2),
        ("batch_size = 2\ncalibration_timesteps = 30", 6),
        ("batch_size = 2\ncalibration_timesteps = 1", 1),
        ("batch_size = 500", 256),
    ],
)
def test_no_more_is_classified_at_once_than_was_looked_at(
    table: str, size: int, ann_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many steps of many images do not fit into memory."""
    sizes = []

    def evaluated(network: SpikingNetwork, loader: Any, **options: Any) -> Evaluation:
        sizes.append((network.timesteps, loader.batch_size))
        return evaluate(network, loader, **options)

    monkeypatch.setattr("snnkern.training.convert.evaluate", evaluated)
    text = CONVERTED.replace("timesteps = 2", "timesteps = 10")
    text = text.replace("batches = 1\nbatch_size = 500", f"batches = 1\n{table}")
    convert_run(ann_run, Recipe.read("snn", text), progress=False)
    assert sizes == [(0, 256), (10, size)]


def test_starts_that_cannot_be_are_named(ann_run: Path, tmp_path: Path) -> None:
    snn = Recipe.read("snn", CONVERTED)

    def refused(message: str, recipe: Recipe, **options: Any) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(recipe, tmp_path / "out", progress=False, **options)
        assert not (tmp_path / "out").exists()

    refused("start is missing, expected .* run of ann, .*; snnkern train ann makes one", snn)
    refused("start is missing", snn, resume=True)
    refused("tiny begins with new weights", Recipe.read("tiny", TINY), start=ann_run)
    refused("start is .*nowhere, expected the folder of a run", snn, start=tmp_path / "nowhere")
    refused("No such file .*other", snn, start=ann_run / "other.safetensors")
    without = Recipe.read("snn", 'start = "ann"' + TINY)
    refused("a ReLU network, and the recipe has no table convert", without, start=ann_run)
    other = Recipe.read("snn", CONVERTED.replace("hidden = [8]", "hidden = [9]"))
    refused("holds other weights than the network has: .* size mismatch", other, start=ann_run)
    lighter = Recipe.read("snn", CONVERTED.replace("hidden = [8]", "hidden = [8]\nmean = [0.3]"))
    refused(r"normalize.mean is \[0.0\], expected \[0.3", lighter, start=ann_run)
    refused("epochs is 0, expected", snn, start=ann_run, epochs=0)
    wrong = Recipe.read("snn", CONVERTED.replace("scale = 0.5", "scale = 0"))
    refused("convert: scale is 0, expected", wrong, start=ann_run)
    with pytest.raises(FileNotFoundError, match=r"run is .*nowhere, expected the folder of a run"):
        convert_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"folder is .*ann, which holds a run"):
        train(snn, ann_run, start=ann_run)
    with pytest.raises(ValueError, match="ann, which holds a run"):
        convert_run(ann_run, folder=ann_run, progress=False)
    with pytest.raises(ValueError, match=r"options are .*'scale': 1.* and there is"):
        convert_run(ann_run, snn, timesteps=3, options={"scale": 1})
    for recipe in (Recipe.read("ann", ANN), without):
        with pytest.raises(ValueError, match=r"recipe is .*, expected one with a table convert"):
            convert_run(ann_run, recipe, progress=False)
    result = convert_run(ann_run, snn, progress=False)
    with pytest.raises(ValueError, match="whose network spikes, expected a ReLU network"):
        convert_run(result.folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            CONVERTED + "percent = 3\n",
            "snn.toml: convert.percent is not a key, expected one of stat",
        ),
        (CONVERTED + "seed = 3\n", "convert.seed is not a key"),
        (CONVERTED.replace("timesteps = 2", "timesteps = 0"), "convert says how .*model.timesteps"),
        (TINY + "\n[convert]\n", "convert says how .* expected start"),
    ],
)
def test_mistakes_in_the_conversion_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.read("snn", text)


# How it is trained


def test_a_small_network_is_trained_by_one_thread(
    tmp_path: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More cost it time, and the bits of a run depend on them."""
    seen = []
    monkeypatch.setattr(
        "snnkern.training.train.fit", lambda *_, **__: seen.append(torch.get_num_threads())
    )
    train(Recipe.load("digits_rat"), tmp_path)
    train(Recipe.load(written(tmp_path)), tmp_path)
    assert seen == [1, 2]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("stand_in", ["digits", "synthetic"])
def test_a_run_on_other_images_says_so(
    stand_in: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path,
        name='name = "cifar10"\naugment = ["crop", "flip"]',
        input_shape="input_shape = [3, 32, 32]",
    )
    run = tmp_path / "run"
    arguments = ["train", str(path), "--folder", str(run), "--data", stand_in, "--quiet"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"Tiny on {stand_in} instead: test accuracy ")
    kept = (run / "recipe.toml").read_text()
    first, rest = kept.split("\n", 1)
    assert first == f"# Made with --data {stand_in}, instead of the data set named below."
    assert rest == path.read_text()
    assert Recipe.load(run / "recipe.toml").settings == Recipe.load(path).settings


def test_seed_and_epochs_instead_of_the_recipes(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path))
    first = train(recipe, tmp_path / "a", epochs=1, progress=False)
    again = train(recipe, tmp_path / "b", epochs=1, seed=0, progress=False)
    other = train(recipe, tmp_path / "c", epochs=1, seed=1, progress=False)
    assert len(first) == 1
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("digits")])
def test_the_recipes_on_digits_train(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    start = None
    if "start" in recipe.settings:
        start = tmp_path / "start"
        train(Recipe.load(recipe.settings["start"]), start, epochs=2, progress=False)
    if start is not None and not recipe.trains:
        converted = convert_run(start, recipe, folder=tmp_path / "run", progress=False)
        assert converted.after > 0.4
        return
    history = train(recipe, tmp_path / "run", epochs=2, start=start, progress=False)
    if not isinstance(recipe.method(), Certified):  # whose loss counts more and more
        assert history[1].loss < history[0].loss
    assert history[1].val_accuracy is not None
    assert history[1].val_accuracy > 0.4


def shortened(name: str) -> Recipe:
    """A recipe of the papers with twenty time steps at most, a hundred to balance thresholds."""
    settings = Recipe.load(name).settings
    model = settings["model"] | {"timesteps": min(settings["model"]["timesteps"], 20)}
    changed: dict[str, Any] = {"model": model}
    if "convert" in settings:
        changed["convert"] = settings["convert"] | {"calibration_timesteps": 100}
    return Recipe.of(name, settings | changed)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs lie with whose networks others begin."""
    return tmp_path_factory.mktemp("begun")


@pytest.mark.long
@pytest.mark.parametrize("stand_in", ["digits", "synthetic"])
@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("digits")])
def test_the_recipes_of_the_papers_run(
    name: str, stand_in: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The papers' networks on a handful of images, twenty time steps at most: one training step,
    from the ReLU network to the last.
    """

    def few(**options: Any) -> Split[Images]:
        split: Split[Images] = getattr(data, STAND_INS[Path(stand_in)])(**options)
        train, test = (Images(part.images[:4], part.labels[:4], white=part.white) for part in split)
        train.augment = split.train.augment
        return Split(train, test)

    monkeypatch.setitem(DATA, STAND_INS[Path(stand_in)], few)
    options: Any = {"data": Path(stand_in), "device": "cpu", "progress": False}
    recipe, start = shortened(name), None
    if "start" in recipe.settings:
        start = begun / f"{recipe.settings['start']}_{stand_in}"
        if not start.exists():
            train(shortened(recipe.settings["start"]), start, epochs=1, **options)
    if recipe.trains:
        history = train(recipe, tmp_path / "run", epochs=1, start=start, **options)
        assert math.isfinite(history[0].loss)
    else:
        assert start is not None
        converted = convert_run(start, recipe, folder=tmp_path / "run", **options)
        assert all(value > 0 for values in converted.thresholds.values() for value in values)
