"""What the fused neurons of all libraries share."""

from __future__ import annotations

import math
import warnings
from collections.abc import MutableMapping
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from snnkern import functional
from snnkern.functional import checks
from snnkern.nn.gradient import GradientMode
from snnkern.surrogate import Deferred, NotPointwise, Rate, Surrogate

HALF = (torch.float16, torch.bfloat16)


class Fused(GradientMode):
    """A library's neuron module that runs its steps as one op; the rest of it is the library's own.

    It stands in front of the library's class, so that a module becomes fused by an exchange of its
    ``__class__``: parameters, buffers, hooks and whoever else holds the module stay what they were.
    What the op cannot do (see ``why_not`` and ``unfit``) the library's own code does, with a
    warning. Names here must not be those of attributes of any library.
    """

    is_neuron = True
    corrected: bool = False
    library_class: ClassVar[type[nn.Module]]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What the library's class has."""

    def why_not(self) -> str:
        """Why the options of the module keep it from running fused; empty where it can."""
        raise NotImplementedError

    def unfit(self, x: Tensor, features: torch.Size | None = None, **parameters: Any) -> str:
        """Why this call cannot run fused; empty where it can.

        ``features``: the shape of a sample, which parameters that are tensors broadcast to.
        """
        if reason := self.why_not():
            return reason
        if x.layout != torch.strided:
            return f"the input has layout {x.layout}"
        if x.dtype in HALF and not self.corrected:
            return f"the input is {x.dtype}, for which the library rounds membranes differently"
        if x.dtype not in functional.FLOAT_DTYPES:
            return f"the input is {x.dtype}"
        if x.numel() == 0:
            return "the input is empty"
        for name, value in parameters.items():
            if not isinstance(value, Tensor):
                continue
            if value.dtype not in (torch.float32, x.dtype):
                return f"{name} is {value.dtype} and the input {x.dtype}"
            if value.numel() > 1 and not _broadcasts(value.shape, features):
                return f"{name} has shape {list(value.shape)}, which is not one of features"
        return ""

    def leave(self, reason: str) -> None:
        """Says that the library's own code runs, and why.

        Raises:
            ValueError: ``snnkern.gradient`` asked for a gradient, which it would not have.
        """
        name = self.library_class.__name__
        if self.gradient_mode is not None:
            raise ValueError(
                f"g is {self.gradient_mode!r} and {name} runs the library's own steps, which keep "
                f"their own gradient: {reason}; expected None"
            )
        warnings.warn(f"{name} runs the library's own steps: {reason}", stacklevel=4)

    def run_fused(
        self, x: Tensor, *states: Tensor | float, surrogate: Surrogate | str | None, **options: Any
    ) -> tuple[Tensor, ...]:
        """Spikes and states after ``x``, ``[T, ...]`` with or without a batch.

        ``states``: the membrane and, if there is a synapse, its current; or one number for all.
        """
        if self.is_relu:
            raise ValueError(
                f"g is 'relu' and the model holds a {self.library_class.__name__}, expected a "
                "surrogate or 'rate': the time axis of an accelerated model cannot be dropped"
            )
        assert isinstance(surrogate, Surrogate)  # what why_not is for
        chosen = self.active_surrogate(surrogate)
        whole = isinstance(chosen, NotPointwise) and not isinstance(chosen, Deferred)
        if whole and len(x) == 1:
            g = "'rate'" if isinstance(chosen, Rate) else chosen
            raise ValueError(
                f"g is {g} and {self.library_class.__name__} runs single steps, expected a "
                "surrogate, or a module that sees all its steps at once"
            )
        shape = x.shape[1:]
        if flat := x.dim() < 2:
            x = x.reshape(len(x), 1)
            states = tuple(s.reshape(1) if isinstance(s, Tensor) else s for s in states)
        starts = dict(zip(("v_init", "current_init"), states, strict=False))
        lif: Any = functional.lif
        spikes, *ends = lif(x, surrogate=chosen, return_state=True, **starts, **options)
        if flat:
            return spikes.reshape(len(x), *shape), *(state.reshape(shape) for state in ends)
        return spikes, *ends

    def step_fused(self, x: Tensor, *states: Tensor | float, **options: Any) -> tuple[Tensor, ...]:
        """``run_fused`` for one time step without its axis."""
        spikes, *ends = self.run_fused(x.unsqueeze(0), *states, **options)
        return spikes.squeeze(0), *ends


class Library(NamedTuple):
    """What ``accelerate`` knows of a library."""

    name: str
    versions: tuple[str, ...]
    neurons: tuple[type[nn.Module], ...]
    fused: tuple[type[Fused], ...]

    def why_not(self) -> str:
        """Why the installed version is not touched; empty where it is."""
        try:
            version = metadata.version(self.name)
        except metadata.PackageNotFoundError:
            version = "of no known version"
        if version in self.versions:
            return ""
        checked = " and ".join(self.versions)
        return f"{self.name} is {version}, the equations were checked against {checked}"


def _broadcasts(shape: torch.Size, to: torch.Size | None) -> bool:
    if to is None or len(shape) > len(to):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


def modules_of(package: ModuleType) -> tuple[type[nn.Module], ...]:
    """The module classes that a package defines and names."""
    return tuple(
        kind
        for kind in vars(package).values()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.__module__.startswith(package.__name__)
    )


_numbers: MutableMapping[Tensor, tuple[int, float]] = WeakTensorKeyDictionary()


def number(value: float | Tensor) -> float:
    """The value of a 0-d tensor, for which a GPU is waited for once per change.

    A trace keeps the value that it has then: no guard sees what is done to a tensor in place.
    """
    if not isinstance(value, Tensor):
        return float(value)
    if torch.compiler.is_compiling():
        traced: float = _as_traced(value)
        return traced
    if not checks.waits_for_device(value):
        return float(value.item())
    known = _numbers.get(value)
    if known is None or known[0] != value._version:
        known = _numbers[value] = value._version, float(value.item())
    return known[1]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _as_traced(value: Tensor) -> float:
    if isinstance(value, FakeTensor):
        raise ValueError(
            "strict is False, where parameters have no values, and an option of a neuron is one: "
            "expected torch.export.export(strict=True)"
        )
    with _disable_current_modes():  # which would make it a number of the graph
        return float(value.item())


def is_number(value: Any) -> bool:
    """Whether ``value`` is one number that does not learn."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.requires_grad
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_looked_at(value: Any) -> bool:
    """Whether ``value`` is one number, and no tensor of a trace, where it can change later."""
    return is_number(value) and not (isinstance(value, Tensor) and torch.compiler.is_compiling())


def input_decay(tau: Any) -> dict[str, Any]:
    """The options of ``v + (x - v) / tau``.

    For a power of two a product with ``1 / tau`` rounds like the division, and takes less time.
    """
    if isinstance(tau, int | float) and math.frexp(tau)[0] == 0.5:
        return {"charge": "euler", "rate": 1.0 / tau}
    return {"charge": "decay_input", "tau": tau}


def bounded(value: Tensor) -> Tensor:
    """A parameter that is in its range by the way it was made: nobody needs to look."""
    if not torch.compiler.is_compiling():
        value.within_bounds = True  # type: ignore[attr-defined]
    return value


def spread(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """A parameter that broadcasts against the last dimensions of a step ``[N, ...]``, for ``lif``.

    One value, one per feature of ``[N, C]``, or one for every neuron. On a GPU its values are
    looked at when they changed, not whenever there is a new view of them.
    """
    view = value.reshape(()) if value.numel() == 1 else value.expand(shape[1:])
    if torch.compiler.is_compiling() or not checks.waits_for_device(value):
        return view
    checks.check_values(name, value)
    return bounded(view)
