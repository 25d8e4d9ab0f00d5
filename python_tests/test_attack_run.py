"""What ``snnkern attack`` runs on which network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from snnkern.attacks import APGD, SAPGD, SURROGATE_ENSEMBLE, Ensemble, strongest
from snnkern.nn import RateCoding
from snnkern.training import start
from snnkern.training.attack import ATTACKS, attack_run
from snnkern.training.recipe import Recipe


def test_the_attacks_are_what_their_names_say() -> None:
    network = Recipe.load("digits_natural").model(), torch.zeros(1, 1, 8, 8)
    for kind in ATTACKS.values():
        made = kind(*network, 0.2, 3)
        assert (made.eps, made.eot) == (0.2, 3)
    assert ATTACKS["apgd100"](*network, 0.2, 3) == APGD(0.2, 100, stop=True, eot=3)
    nineteen = ATTACKS["ensemble19"](*network, 0.2, 1)
    assert isinstance(nineteen, Ensemble)
    assert nineteen.gradients == SURROGATE_ENSEMBLE
    assert ATTACKS["strongest"](*network, 0.2, 1) == strongest(*network, 0.2)


@pytest.mark.parametrize(
    ("name", "eps", "rate_coded", "expected"),
    [
        ("digits_natural", "8/255", False, "Cascade(attacks=(Ensemble(attack=APGD(eps=0.0313"),
        ("digits_rat", "0.1", True, "eot=10"),
        ("digits_ann", "8/255", False, "Cascade(attacks=(APGD(eps=0.0313"),
    ],
)
def test_size_draws_and_members_follow_the_network(
    name: str,
    eps: str,
    rate_coded: bool,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "recipe.toml").touch()
    recipe = Recipe.load(name)

    def load_run(path: Path) -> tuple[Recipe, nn.Module]:
        model = recipe.model()
        if rate_coded:
            model.encoder = RateCoding(2)
        return recipe, model

    monkeypatch.setattr(start, "load_run", load_run)
    monkeypatch.setitem(ATTACKS, "pgd20", lambda _, __, eps, eot: SAPGD(eps, steps=1, eot=eot))
    names = ["strongest"] if not rate_coded else ["pgd20"]
    result = attack_run(
        tmp_path, attacks=names, images=2, checks=False, device="cpu", progress=False
    )
    assert len(result.labels) == 2
    assert f'"eps": "{eps}"' in (tmp_path / "evaluation.json").read_text()
    assert expected in result.attacks[names[0]]
    assert (result.attacks[names[0]].startswith("Cascade(attacks=(Ensemble")) == (
        name == "digits_natural"
    )
