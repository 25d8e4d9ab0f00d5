"""Fused neurons inside a model that somebody already has."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

from torch import nn

from snnkern.interop.fused import Fused, Library

LIBRARIES = ("spikingjelly", "snntorch", "norse", "sinabs", "braincog")


@cache
def _library(name: str) -> Library:
    library: Library = import_module(f"snnkern.interop.{name}").LIBRARY
    return library


def library_of(module: nn.Module) -> Library | None:
    """The library whose neuron ``module`` is, subclasses included."""
    for ancestor in type(module).__mro__:
        name = ancestor.__module__.split(".")[0]
        if name in LIBRARIES and isinstance(module, _library(name).neurons):
            return _library(name)
    return None


@dataclass
class Report:
    """What became of the neurons of a model, by their names in it; the model itself is ``""``.

    Attributes:
        replaced: the class of each neuron that runs fused now.
        left: why each of the others stayed as it was.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line per neuron."""
        lines = [f"fused  {name or 'model'}: {kind}" for name, kind in self.replaced.items()]
        lines += [f"left   {name or 'model'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def accelerate(model: nn.Module, *, corrected: bool = False) -> Report:
    """Lets neurons of SpikingJelly, snnTorch, Norse, sinabs and BrainCog in ``model`` run fused.

    Nothing else changes: each module keeps its call convention, its state and what carries it from
    call to call, its attributes, parameters (they are the same objects), hooks and the keys of its
    state_dict. Spikes and membranes equal the library's bit for bit in float32 and float64. A
    module that sees all its time steps runs them as one op; one that is called step by step runs
    each step as one (see ``layerwise`` for more).

    ``snnkern.gradient`` works on the model from then on. ``restore`` undoes everything.

    Args:
        model: any module; it is changed in place.
        corrected: leave out known defects of the libraries instead of keeping them: membranes of
            float16 and bfloat16 inputs are float32 (otherwise such calls run the library's own
            code); SpikingJelly 0.0.0.0.14 lets gradients through spikes in eval mode too; Norse's
            SuperSpike heeds its alpha; sinabs' ``MembraneReset`` sets only neurons that fired.

    Returns:
        Which neurons were replaced, and why others were left.

    Raises:
        ValueError: ``model`` holds no neuron of these libraries.

    torch.compile and torch.export see the neurons whole, and ``unroll`` takes them to ONNX. Norse's
    ``v_leak``, ``v_reset`` and ``alpha`` and BrainCog's ``alpha`` are numbers there: a compiled
    model keeps those that it was traced with, until ``torch.compiler.reset()``. What fires several
    times a step (the default of sinabs) is left.

    Where a library itself computes NaN (a membrane of infinity after a hard reset; the gradient of
    snnTorch's sigmoid far below the threshold), a fused neuron does not. A threshold that is learnt
    must stay above 0. snnTorch's ``Leaky`` does not update its attribute ``reset``.
    """
    report = Report()
    for name, module in model.named_modules():
        library = library_of(module)
        if library is None:
            continue
        restore_module(module)
        kind = f"{type(module).__module__}.{type(module).__name__}"
        reason = library.why_not() or _fuse(module, library, corrected)
        if reason:
            report.left[name] = f"{kind}: {reason}"
        else:
            report.replaced[name] = kind
    if not report.replaced and not report.left:
        raise ValueError(
            f"model {type(model).__name__} holds no neuron of {', '.join(LIBRARIES)} to accelerate"
        )
    return report


def _fuse(module: nn.Module, library: Library, corrected: bool) -> str:
    """Makes ``module`` fused; or says why not."""
    for fused in library.fused:
        if type(module) is fused.library_class:
            break
    else:
        return "there is no fused one"
    module.__class__ = fused
    assert isinstance(module, fused)
    if corrected:
        module.corrected = True
    if reason := module.why_not():
        restore_module(module)
        return reason
    return ""


def restore(model: nn.Module) -> None:
    """Makes every neuron that ``accelerate`` replaced the library's own again, state included."""
    for module in model.modules():
        restore_module(module)


def restore_module(module: nn.Module) -> None:
    """``restore`` for this module alone."""
    if isinstance(module, Fused):
        kind = module.library_class
        for name in ("corrected", "gradient_mode"):
            module.__dict__.pop(name, None)
        module.__class__ = kind  # type: ignore[assignment]
