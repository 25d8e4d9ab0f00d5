"""What all attacks share: a frozen configuration, and a model that is left as it was found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from snnkern._ball import project_l2, project_linf, unit
from snnkern._checks import check_images, check_int, check_number
from snnkern.attacks import losses
from snnkern.attacks.chance import Draws, follow
from snnkern.attacks.stateless import refuse_state, stateless
from snnkern.nn import Gradient, check_stateless, evaluation_mode, gradient, hold_surrogates

Loss = Literal["ce", "margin", "dlr", "targeted-dlr", "kl", "reverse-kl"]
Norm = Literal["linf", "l2"]
# The least number of classes that a loss means something for.
CLASSES = {"dlr": 3, "targeted-dlr": 4}


class Look(NamedTuple):
    """What a victim shows of images: logits ``[N, K]``, losses ``[N]``, their sum's gradient."""

    logits: Tensor
    losses: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Victim:
    """What an attack sees of a model: logits, a loss to make large, and its gradient.

    Args:
        model: images ``[N, ...]`` to logits ``[N, K]``.
        y: labels, ``[N]``.
        loss: its name; see ``Attack``.
        clean: logits of the images before the attack, where the loss looks at them.
        eot: draws of a model with chance in it that every look takes the mean of.
        target: the classes that ``"targeted-dlr"`` aims at, ``[N]``.
        network: the module behind ``model``.
    """

    model: Callable[[Tensor], Tensor]
    y: Tensor
    loss: Loss = "ce"
    clean: Tensor | None = None
    eot: int = 1
    target: Tensor | None = None
    network: nn.Module = field(default_factory=nn.Module)

    def losses(self, logits: Tensor) -> Tensor:
        """Of each sample, ``[N]``."""
        least = CLASSES.get(self.loss, 2)
        if logits.shape[1] < least:
            raise ValueError(
                f"loss is {self.loss!r} and model gives {logits.shape[1]} classes, expected "
                f"{least} or more"
            )
        match self.loss:
            case "kl" | "reverse-kl":
                assert self.clean is not None
                pair = (self.clean, logits) if self.loss == "kl" else (logits, self.clean)
                return losses.kl_divergence(*pair)
            case "targeted-dlr":
                assert self.target is not None
                return losses.targeted_dlr(logits, self.y, self.target)
            case "margin":
                return losses.margin(logits, self.y)
            case "dlr":
                return losses.dlr(logits, self.y)
        return losses.cross_entropy(logits, self.y)

    def broken(self, logits: Tensor) -> Tensor:
        """Which samples are no longer told right, ``[N]`` bool; a tie is not right."""
        return losses.decide(logits, self.y) != self.y

    def logits(self, x: Tensor) -> Tensor:
        """What the model says of images; the mean of ``eot`` draws."""
        with torch.no_grad():
            return torch.stack([self.model(x) for _ in range(self.eot)]).mean(0)

    def look(self, x: Tensor) -> Look:
        """Logits, losses and gradient from one pass; the means of ``eot`` draws."""
        draws = [self._look(x)]
        if self.eot == 1:
            return draws[0]
        with hold_surrogates(self.network):
            draws += [self._look(x) for _ in range(1, self.eot)]
        return Look(*(torch.stack(parts).mean(0) for parts in zip(*draws, strict=True)))

    def _look(self, x: Tensor) -> Look:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = self.model(x)
            found = self.losses(logits)
            return Look(logits.detach(), found.detach(), torch.autograd.grad(found.sum(), x)[0])

    def input_gradient(self, x: Tensor) -> Tensor:
        """The derivative of the summed losses with respect to the images."""
        return self.look(x).gradient

    def only(self, samples: Tensor) -> Victim:
        """The same for some of the samples: indices, or a mask."""
        clean = None if self.clean is None else self.clean[samples]
        target = None if self.target is None else self.target[samples]
        return replace(self, y=self.y[samples], clean=clean, target=target)

    def aiming(self, rank: int) -> Victim:
        """The same with the target that is ``rank`` th among the wrong classes of clean images."""
        assert self.clean is not None
        others = losses.without_label(self.clean, self.y)
        return replace(self, target=others.argsort(stable=True, dim=1, descending=True)[:, rank])


@dataclass(frozen=True)
class Attack(ABC):
    """Base of the attacks.

    ``attack(model, x, y)`` takes images ``x`` ``[N, ...]`` in ``[0, 1]`` and labels ``y`` ``[N]``
    and gives adversarial images of the same shape and dtype, within ``eps`` of ``x`` and in
    ``[0, 1]`` to the last bit. ``model`` maps images to logits; its mode, parameters, gradients,
    buffers and state, and the caller's images, stay as they are. Layers of SpikingJelly and
    snnTorch start from rest at every call; a model that carries state in another way is refused,
    see ``Stateless``. A ``generator`` makes random choices repeatable, those inside the model too,
    and leaves torch's global ones alone.

    Args:
        eps: size of the perturbation, in units of the pixel range.
        norm: of the perturbation: ``"linf"``, or ``"l2"`` where the method has it.
        gradient: how the neurons are differentiated: a surrogate, ``"rate"``, ``"relu"``, or None
            for the model's own; see ``snnkern.gradient``.
        loss: what the attack makes large: ``"ce"``, the cross entropy; ``"margin"`` of the logits;
            ``"dlr"``, the difference of logits ratio, and ``"targeted-dlr"``, for one wrong class
            after the other (both Croce & Hein 2020); ``"kl"``, the divergence
            ``KL(p_clean || p_adv)`` of the predictions, with the clean ones held fixed (TRADES,
            Zhang et al. 2019); ``"reverse-kl"``, ``KL(p_adv || p_clean)``, as Ozdenizci &
            Legenstein 2023 print it.
        eot: draws that every gradient is the mean of, for models with chance in them: expectation
            over transformation, Athalye et al. 2018.

    Raises:
        ValueError: what is no image or label; a model that carries state from call to call; too
            few classes for the loss.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    own_losses: ClassVar[tuple[Loss, ...]] = ("ce", "margin", "dlr", "kl", "reverse-kl")

    eps: float = 8 / 255
    norm: Norm = field(default="linf", kw_only=True)
    gradient: Gradient | None = field(default=None, kw_only=True)
    loss: Loss = field(default="ce", kw_only=True)
    eot: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        """Refuses sizes that mean nothing."""
        name = type(self).__name__
        check_number(f"{name}: eps", self.eps, low=0)
        check_int(f"{name}: eot", self.eot, 1)
        _check_choice(f"{name}: loss", self.loss, self.own_losses)
        _check_choice(f"{name}: norm", self.norm, self.norms)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adversarial images."""
        check_images(x, y)
        check_stateless(model)
        # Crafting needs gradients, also where the caller wants none.
        with torch.inference_mode(False), evaluation_mode(model), follow(generator, x.device):
            x, y = (t.clone() if t.is_inference() else t.detach() for t in (x, y))
            if self.eps == 0:
                return x.clone()
            seen = refuse_state(stateless(model))
            clean = None
            if self.loss in ("kl", "reverse-kl", "targeted-dlr"):
                with torch.no_grad():
                    clean = seen(x)
            with gradient(model, self.gradient):
                victim = Victim(seen, y, self.loss, clean, self.eot, network=model)
                adversarial = self.perturb(victim, x, generator)
        return adversarial.detach()

    @abstractmethod
    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images near ``x`` that make the victim's losses large."""

    def direction(self, gradient: Tensor) -> Tensor:
        """The way of steepest ascent of size 1: the gradient's sign, or for l_2 its unit vector.

        What is NaN counts as 0.
        """
        return gradient.sign() if self.norm == "linf" else unit(gradient)

    def project(self, adversarial: Tensor, x: Tensor) -> Tensor:
        """The nearest image within ``eps`` of ``x`` and in ``[0, 1]``, to the last bit."""
        project = project_linf if self.norm == "linf" else project_l2
        return project(adversarial, x, self.eps)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected {' or '.join(map(repr, choices))}")


def random_like(
    x: Tensor, kind: Callable[..., Tensor], generator: torch.Generator | None
) -> Tensor:
    """``torch.rand`` or ``torch.randn`` numbers of the shape, dtype and device of ``x``."""
    if isinstance(generator, Draws):
        return generator.like(x, kind)
    return kind(x.shape, dtype=x.dtype, device=x.device, generator=generator)
