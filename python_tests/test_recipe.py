from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from snnkern.attacks import FGSM, PGD, RFGSM
from snnkern.cli import main
from snnkern.data import FORMATS, Images
from snnkern.nn import LIF
from snnkern.surrogate import Triangle
from snnkern.training import (
    HIRE,
    MART,
    RAT,
    TRADES,
    AdversarialTraining,
    Method,
    RobustFinetune,
    SpikeTimeFinetune,
    load_checkpoint,
    read_metrics,
)
from snnkern.training.recipe import SHIPPED, SYNTHETIC, Recipe
from snnkern.training.train import GENERATED, train

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
        assert settings["start"] in RECIPES
        with pytest.raises(ValueError, match="this version of snnkern does not convert networks"):
            recipe.model()
    else:
        with torch.device("meta"):  # no memory for the weights of the large ones
            assert any(isinstance(module, LIF) for module in recipe.model().modules())
    split = recipe.split(SYNTHETIC)
    assert isinstance(split.train, Images)
    shape, classes = FORMATS[settings["data"]["name"]]
    assert split.train[0][0].shape == shape
    assert len(split.train[:][1].unique()) == classes
    assert settings["model"].get("num_classes", classes) == classes
    assert len(split.train.augment) == len(settings["data"].get("augment", ()))


def test_every_row_of_the_tables_has_its_recipe() -> None:
    """Kundu et al. 2021, tables 1, 2, 3, 5, figure 9; Ding et al. 2022, tables 1 to 4."""
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


# Reading


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
    with pytest.raises(ValueError, match=r"data.name is 'cifar10' .*--data FOLDER, or --data synt"):
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


def test_a_run_on_generated_images_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path,
        name='name = "cifar10"\naugment = ["crop", "flip"]',
        input_shape="input_shape = [3, 32, 32]",
    )
    run = tmp_path / "run"
    arguments = ["train", str(path), "--folder", str(run), "--data", "synthetic", "--quiet"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("Tiny on generated images: test accuracy ")
    kept = (run / "recipe.toml").read_text()
    assert kept == f"{GENERATED}\n{path.read_text()}"
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
    history = train(Recipe.load(name), tmp_path, epochs=2, progress=False)
    assert history[1].loss < history[0].loss
    assert history[1].val_accuracy is not None
    assert history[1].val_accuracy > 0.4
