"""What all attacks share: a frozen configuration, and a model that is left as it was found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkern._checks import check_number
from snnkern.nn import LIF, Gradient, gradient

Loss = Callable[[Tensor], Tensor]


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without parameter gradients; afterwards as it was."""
    training = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for module, _ in training:
            module.training = False
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, mode in wanted:
            parameter.requires_grad_(mode)


def check_stateless(model: nn.Module) -> None:
    """Raises where a layer carries state from call to call: no two calls are then alike."""
    for name, module in model.named_modules():
        if isinstance(module, LIF) and module.stateful:
            raise ValueError(
                f"model holds {name or 'a LIF'} with stateful=True, expected layers that start "
                "from rest at every call"
            )


def check_images(x: Tensor, y: Tensor) -> None:
    """Raises unless ``x`` is a batch of images in ``[0, 1]`` with one label ``y`` each."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
        shown = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x is {shown}, expected a float tensor [N, ...] of at least one image")
    low, high = (bound.item() for bound in torch.aminmax(x))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"x has values between {low} and {high}, expected pixels in [0, 1]")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        shown = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y is {shown}, expected int64 labels [{x.shape[0]}], one per image")


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
        x = x.detach()
        with attacked(model), gradient(model, self.gradient):
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
