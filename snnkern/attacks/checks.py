"""Whether an attack can be trusted: what fails where gradients are masked.

The five tests of Athalye et al. 2018 as Kundu et al. 2021 (table 4) and Ozdenizci & Legenstein 2023
(appendix B.1) make them, and those for gradients that are not there, of Carlini et al. 2019 and
Pintor et al. 2022. All of them passing proves nothing; one that fails says what to look at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from snnkern._checks import check_images, check_int
from snnkern.attacks.apgd import APGD
from snnkern.attacks.attack import Attack, Victim
from snnkern.attacks.chance import follow
from snnkern.attacks.ensemble import Ensemble
from snnkern.attacks.evaluate import evaluate
from snnkern.attacks.fgsm import FGSM
from snnkern.attacks.pgd import BIM, PGD
from snnkern.attacks.results import Check, Evaluation, share_of
from snnkern.attacks.sapgd import SAPGD
from snnkern.attacks.square import Square
from snnkern.attacks.stateless import stateless
from snnkern.attacks.transfer import Transfer
from snnkern.nn import Gradient, check_stateless, evaluation_mode, gradient, watch_neurons

# Two runs of one attack differ by what they draw; a share of samples.
BY_CHANCE = 0.02
# Where more of the same breaks more than this besides, the attack was stopped too early.
UNFINISHED = 0.05
NOISE_DRAWS = 20


def check(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    attack: PGD | APGD | SAPGD | Ensemble,
    *,
    source: nn.Module | None = None,
    samples: int = 100,
    queries: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Check, ...]:
    """Tests whether what ``attack`` says of ``model`` can be trusted.

    A figure that is a difference is one of accuracies, from the one that should be lower. See
    ``Evaluation`` for telling them beside the accuracies.

    Args:
        model: as for ``evaluate``.
        loader: batches of images and labels, the same in every process.
        attack: an iterated one through gradients, or an ensemble of it.
        source: a network whose adversarial images, by the same attack, are tried on ``model``; the
            black box is ``Square`` unless given.
        samples: how many are looked at, from the first.
        queries: of ``Square``.
        seed: of all random choices.
        progress: show a progress bar.

    Raises:
        TypeError: an attack of another kind.
        ValueError: no samples, or what ``evaluate`` refuses.
    """
    inner = attack.attack if isinstance(attack, Ensemble) else attack
    if not isinstance(inner, PGD | APGD | SAPGD):
        raise TypeError(
            f"attack is {attack!r}, expected a PGD, APGD or SAPGD, or an Ensemble of one: what is "
            "checked are its gradients and its steps"
        )
    check_int("samples", samples, 1)
    check_stateless(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = [(x.to(device), y.to(device)) for x, y in _first(loader, samples)]
    if not batches:
        raise ValueError("loader is empty, expected at least one batch")
    for x, y in batches:
        check_images(x, y)
    members = attack.gradients if isinstance(attack, Ensemble) else (inner.gradient,)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.inference_mode(False), evaluation_mode(model), follow(generator, device):
        at_hand, classes = _gradients(model, batches, inner, members, generator)
    variants = _variants(attack, inner, members, source, queries, batches[0][0][0].numel())
    result = evaluate(model, batches, variants, seed=seed, progress=progress)
    return (*_compared(result, classes), *at_hand)


def _first(
    loader: Iterable[tuple[Tensor, Tensor]], samples: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in loader:
        yield x[:samples], y[:samples]
        samples -= len(y)
        if samples <= 0:
            return


def _variants(
    attack: Attack,
    inner: PGD | APGD | SAPGD,
    members: Sequence[Gradient | None],
    source: nn.Module | None,
    queries: int,
    pixels: int,
) -> dict[str, Attack]:
    """The attack, and those that it is compared with."""

    def of(one: Attack) -> Attack:
        return Ensemble(one, members) if isinstance(attack, Ensemble) else one

    def sized(eps: float) -> Attack:
        step = getattr(inner, "step_size", None)
        steps = {} if step is None else {"step_size": step * eps / inner.eps}
        return of(replace(inner, eps=eps, **steps))

    one = replace(inner, gradient=members[0])
    shared: dict[str, Any] = {"norm": inner.norm, "eot": inner.eot, "loss": _loss(inner)}
    single = FGSM(inner.eps, **shared, gradient=inner.gradient)
    whole = 1.0 if inner.norm == "linf" else math.sqrt(pixels)
    variants = {
        "white": attack,
        "single": of(single),
        "larger": sized(min(2 * inner.eps, whole)),
        "unbounded": sized(whole),
        # Of an ensemble its first member: what holds for that takes less time to see.
        "one": one,
        "steps": replace(one, steps=2 * inner.steps),
        "restarts": replace(one, restarts=2 * inner.restarts),
        # A step of size 0: what the random start alone finds.
        "noise": PGD(inner.eps, 0.0, 1, norm=inner.norm, restarts=NOISE_DRAWS),
    }
    if source is not None:
        variants["black"] = Transfer(source, attack)
    else:
        variants["black"] = Square(inner.eps, queries, norm=inner.norm, rescale=True)
    return variants


def _compared(result: Evaluation, classes: int) -> Iterator[Check]:
    """The tests that compare accuracies."""

    def above(stronger: str, weaker: str) -> float:
        return result.accuracy(stronger) - result.accuracy(weaker)

    yield Check("one step beats many by", above("white", "single"))
    yield Check("black box beats white box by", above("white", "black"))
    missed = result.success("noise") & ~result.success("white")
    yield Check("noise breaks what gradients miss", share_of(missed))
    yield Check("twice the eps loses", above("larger", "white"))
    yield Check("unbounded attack leaves", result.accuracy("unbounded"), 1 / classes)
    yield Check("twice the steps lose", above("steps", "one"), BY_CHANCE)
    yield Check("twice the restarts lose", above("restarts", "one"), BY_CHANCE)
    more = (result.success("steps") | result.success("restarts")) & ~result.success("white")
    yield Check("more steps and restarts find", share_of(more), UNFINISHED)


def _gradients(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    inner: PGD | APGD | SAPGD,
    members: Sequence[Gradient | None],
    generator: torch.Generator,
) -> tuple[list[Check], int]:
    """The tests of gradients and losses where the attack begins, and the number of classes.

    Of samples that are right.
    """
    seen = stateless(model)
    count, differing, rises = 0, 0.0, 0.0
    nowhere = 0
    blind, wild = dict.fromkeys(map(str, members), 0), dict.fromkeys(map(str, members), 0)
    layers: dict[str, int] = {}
    climb = BIM(
        inner.eps, steps=20, norm=inner.norm, loss=_loss(inner), eot=inner.eot, gradient=members[0]
    )
    classes = 0
    for x, y in batches:
        victim = Victim(seen, y, _loss(inner), eot=inner.eot, network=model)
        logits = victim.logits(x)
        classes = logits.shape[1]
        right = ~victim.broken(logits)
        x, y = x[right], y[right]  # noqa: PLW2901  of these alone
        if len(x) == 0:
            continue
        count += len(x)
        victim = victim.only(right)
        with torch.no_grad():
            differing += (seen(x) != seen(x)).any(1).sum().item()
        none = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for member in members:
            watched = layers if member is members[0] else {}
            with gradient(model, member), _layers_without(model, watched):
                found = victim.input_gradient(x).flatten(1)
            zero = (found == 0).all(1)
            none &= zero
            blind[str(member)] += int(zero.sum().item())
            wild[str(member)] += int((~found.isfinite()).any(1).sum().item())
        nowhere += int(none.sum().item())
        before = victim.losses(victim.logits(x))
        after = victim.losses(victim.logits(climb(model, x, y, generator)))
        rises += (after - before).sum().item()
    count = max(count, 1)
    names = [_named(member) for member in members]

    def shares(counts: Iterable[int], of: Iterable[str]) -> str:
        return ", ".join(f"{name} {n / count:.1%}" for name, n in zip(of, counts, strict=True))

    checks = [
        Check("no gradient at all", nowhere / count, note=shares(blind.values(), names)),
        Check(
            "gradients not finite", max(wild.values()) / count, note=shares(wild.values(), names)
        ),
    ]
    if layers:
        worst = max(layers.values()) / count
        checks.append(
            Check("a layer without gradient", worst, note=shares(layers.values(), layers))
        )
    checks.append(Check("loss rises by", rises / count, bound="above"))
    by_chance = 1.0 if inner.eot > 1 else 0.0
    checks.append(Check("two calls differ", differing / count, by_chance))
    return checks, classes


def _layers_without(model: nn.Module, counts: dict[str, int]) -> AbstractContextManager[None]:
    """Within the block counts, by layer, the samples whose gradient at its spikes is all zero."""

    def look(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        def see(g: Tensor) -> None:
            none = (g.transpose(0, 1).flatten(1) == 0).all(1)
            counts[name] = counts.get(name, 0) + int(none.sum().item())

        if output.requires_grad and output.dim() > 2:
            output.register_hook(see)

    return watch_neurons(model, look)


def _loss(inner: Attack) -> Any:
    """The attack's own, or the cross entropy for one that is flat at the clean image or aims."""
    return inner.loss if inner.loss in ("ce", "margin", "dlr") else "ce"


def _named(member: Gradient | None) -> str:
    return "its own" if member is None else str(member)
