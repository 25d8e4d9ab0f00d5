"""Certified <= exact <= empirical: what both sides say of a sample must agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from snnkern.certify import Certificate
from snnkern.nn import RateCoding


class ContradictionError(RuntimeError):
    """A sample is proved robust and broken all the same: a bound or an attack is wrong."""


def check_certificates(certificates: Sequence[Certificate], model: nn.Module) -> None:
    """Raises a ValueError unless the certificates speak of this model, for every draw of it."""
    drawn = any(isinstance(m, RateCoding) and not m.is_relu for m in model.modules())
    if certificates and drawn:
        raise ValueError(
            "certificates are given and model draws its input's spikes, expected none: they hold "
            "for one draw, and attacks see others"
        )
    timesteps = getattr(model, "timesteps", None)
    for certificate in certificates:
        if timesteps not in (None, certificate.timesteps):
            raise ValueError(
                f"certificates has one for {certificate.timesteps} time steps, expected "
                f"{timesteps}, those of model"
            )


def check_sandwich(
    certificates: Sequence[Certificate],
    correct: Mapping[str, Tensor],
    distances: Mapping[str, Tensor],
) -> None:
    """Raises where a certified sample is got wrong within the certified radius.

    Args:
        certificates: of all samples, in the order of the masks.
        correct: by attack, ``"clean"`` among them: which samples are right, ``[N]`` bool.
        distances: by attack: l_inf distance of what was judged from the clean image, ``[N]``.

    Raises:
        ContradictionError: naming the samples.
        ValueError: certificates of another number of samples.
    """
    count = len(correct["clean"])
    for c in certificates:
        if c.certified.shape != (count,):
            raise ValueError(
                f"certificates has one of {list(c.certified.shape)} samples, expected [{count}], "
                "one per sample of loader, in its order"
            )
        proved = c.certified.cpu()
        for attack, right in correct.items():
            # However the attack says that it is bounded: what counts is how far it went.
            within = distances[attack] <= c.eps
            _refuse(proved & within & ~right, c, f"{attack} breaks")
        for other in certificates:
            if other.broken is not None and other.eps <= c.eps:
                by = f"{other.method} breaks within {other.eps:g}"
                _refuse(proved & other.broken.cpu(), c, by)


def _refuse(samples: Tensor, certificate: Certificate, by: str) -> None:
    found = samples.nonzero()[:, 0].tolist()
    if found:
        shown = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
        raise ContradictionError(
            f"{certificate.method} certifies within {certificate.eps:g} what {by}: "
            f"{len(found)} sample(s), {shown}; a bound or an attack is wrong"
        )
