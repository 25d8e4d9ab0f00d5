"""What all attacks share: a frozen configuration, and a model that is left as it was found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern._checks import check_images, check_number
from snnkern.nn import Gradient, check_stateless, evaluation_mode, gradient

Loss = Callable[[Tensor], Tensor]


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
    """

    eps: float = 8 / 255
    gradient: Gradient | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuses sizes that mean nothing."""
        check_number(f"{type(self).__name__}: eps", self.eps, low=0)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adversarial images."""
        check_images(x, y)
        check_stateless(model)
        # Crafting needs gradients, also where the caller wants none.
        with torch.inference_mode(False), evaluation_mode(model), gradient(model, self.gradient):
            x, y = (t.clone() if t.is_inference() else t.detach() for t in (x, y))
            adversarial = self.perturb(
                lambda images: F.cross_entropy(model(images), y, reduction="sum"), x, generator
            )
        return adversarial.detach()

    @abstractmethod
    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images near ``x`` that make ``loss`` large."""

    def project(self, adversarial: Tensor, x: Tensor) -> Tensor:
        """The nearest image within ``eps`` of ``x`` and in ``[0, 1]``."""
        return adversarial.clamp(x - self.eps, x + self.eps).clamp(0, 1)


def input_gradient(loss: Loss, x: Tensor) -> Tensor:
    """The derivative of ``loss`` with respect to the images."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]


def random_like(
    x: Tensor, kind: Callable[..., Tensor], generator: torch.Generator | None
) -> Tensor:
    """``torch.rand`` or ``torch.randn`` numbers of the shape, dtype and device of ``x``."""
    return kind(x.shape, dtype=x.dtype, device=x.device, generator=generator)
