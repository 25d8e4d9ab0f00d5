"""What all attacks share: a frozen configuration, and a model that is left as it was found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from snnkern._checks import check_images, check_number
from snnkern.attacks.losses import cross_entropy, kl_divergence
from snnkern.nn import Gradient, check_stateless, evaluation_mode, gradient

Loss = Literal["ce", "kl", "reverse-kl"]


@dataclass(frozen=True)
class Victim:
    """What an attack sees of a model: logits, a loss to make large, and its gradient.

    Args:
        model: images ``[N, ...]`` to logits ``[N, K]``.
        y: labels, ``[N]``.
        loss: its name; see ``Attack``.
        clean: logits of the images before the attack, where the loss compares with them.
    """

    model: Callable[[Tensor], Tensor]
    y: Tensor
    loss: Loss = "ce"
    clean: Tensor | None = None

    def losses(self, logits: Tensor) -> Tensor:
        """Of each sample, ``[N]``."""
        if self.clean is None:
            return cross_entropy(logits, self.y)
        pair = (self.clean, logits) if self.loss == "kl" else (logits, self.clean)
        return kl_divergence(*pair)

    def input_gradient(self, x: Tensor) -> Tensor:
        """The derivative of the summed losses with respect to the images."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.losses(self.model(x)).sum(), x)[0]

    def only(self, samples: Tensor) -> Victim:
        """The same for some of the samples: indices, or a mask."""
        clean = None if self.clean is None else self.clean[samples]
        return replace(self, y=self.y[samples], clean=clean)


@dataclass(frozen=True)
class Attack(ABC):
    """Base of the l_inf attacks.

    ``attack(model, x, y)`` takes images ``x`` ``[N, ...]`` in ``[0, 1]`` and labels ``y`` ``[N]``
    and gives adversarial images of the same shape, within ``eps`` of ``x`` and in ``[0, 1]``.
    ``model`` maps images to logits; its mode, parameters, gradients and buffers, and the caller's
    images, stay as they are. A ``generator`` makes random choices repeatable.

    Args:
        eps: size of the perturbation, in units of the pixel range.
        gradient: how the neurons are differentiated: a surrogate, ``"rate"``, ``"relu"``, or None
            for the model's own; see ``snnkern.gradient``.
        loss: what the attack makes large: ``"ce"``, the cross entropy; ``"kl"``, the divergence
            ``KL(p_clean || p_adv)`` of the predictions, with the clean ones held fixed (TRADES,
            Zhang et al. 2019); ``"reverse-kl"``, ``KL(p_adv || p_clean)``, as Ozdenizci &
            Legenstein 2023 print it.
    """

    eps: float = 8 / 255
    gradient: Gradient | None = field(default=None, kw_only=True)
    loss: Loss = field(default="ce", kw_only=True)

    def __post_init__(self) -> None:
        """Refuses sizes that mean nothing."""
        name = type(self).__name__
        check_number(f"{name}: eps", self.eps, low=0)
        if self.loss not in ("ce", "kl", "reverse-kl"):
            raise ValueError(f"{name}: loss is {self.loss!r}, expected 'ce', 'kl' or 'reverse-kl'")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adversarial images."""
        check_images(x, y)
        check_stateless(model)
        # Crafting needs gradients, also where the caller wants none.
        with torch.inference_mode(False), evaluation_mode(model):
            x, y = (t.clone() if t.is_inference() else t.detach() for t in (x, y))
            clean = None
            if self.loss != "ce":
                with torch.no_grad():
                    clean = model(x)
            with gradient(model, self.gradient):
                adversarial = self.perturb(Victim(model, y, self.loss, clean), x, generator)
        return adversarial.detach()

    @abstractmethod
    def perturb(self, victim: Victim, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images near ``x`` that make the victim's losses large."""

    def project(self, adversarial: Tensor, x: Tensor) -> Tensor:
        """The nearest image within ``eps`` of ``x`` and in ``[0, 1]``."""
        return adversarial.clamp(x - self.eps, x + self.eps).clamp(0, 1)


def random_like(
    x: Tensor, kind: Callable[..., Tensor], generator: torch.Generator | None
) -> Tensor:
    """``torch.rand`` or ``torch.randn`` numbers of the shape, dtype and device of ``x``."""
    return kind(x.shape, dtype=x.dtype, device=x.device, generator=generator)
