"""Networks of a user's own making, which functions of theirs give."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from snnkern.data import Samples

# Makes a user's own network, whose weights a checkpoint then replaces, and gives the samples that
# it is tested with.
Own = Callable[[], tuple[nn.Module, Samples]]
# What stands in a command for a function that has no such name.
OWN_NAME = "MODULE:FUNCTION"
# What a user's code is called by, and calls: these files, or those of these folders.
_NOT_THEIRS = (
    f"{Path(__file__).parents[1]}{os.sep}",
    f"{Path(torch.__file__).parent}{os.sep}",
    importlib.__file__,
    "<frozen ",
)
_CALL = nn.Module._wrapped_call_impl.__code__


def own_name(own: Own) -> str:
    """``MODULE:FUNCTION``, by which ``named_network`` finds it; that placeholder where it has none.

    A function of the script that runs is one of the module that its file is.
    """
    if isinstance(own, _Named):
        return own.name
    module, function = own.__module__, getattr(own, "__qualname__", "")
    try:
        if attrgetter(function)(sys.modules[module]) != own:
            return OWN_NAME
    except (AttributeError, KeyError):
        return OWN_NAME
    if module == "__main__":
        main = sys.modules[module]
        file = getattr(main, "__file__", None) or ""
        module = Path(file).stem if main.__spec__ is None else main.__spec__.name
    return f"{module}:{function}" if _are_names(module, function) else OWN_NAME


@dataclass(frozen=True)
class _Named:
    """A function of the user's, by the name that was given for it; says whose its errors are."""

    name: str
    function: Own

    def __call__(self) -> tuple[nn.Module, Samples]:
        try:
            return self.function()
        except Exception as error:
            raise _raised(self.name, error) from error


@contextmanager
def told_by_name(own: Own | None, model: nn.Module) -> Iterator[None]:
    """Within the block, what the forward of ``model`` raises says whose it is, and at which input.

    Where a command named ``own``: who gave a function catches what that raises.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(own, _Named):
            raise
        names = {id(module): name for name, module in model.named_modules()}
        call = error.__traceback__
        while call is not None:
            found = call.tb_frame.f_locals
            if call.tb_frame.f_code is _CALL and id(found["self"]) in names:
                raise _raised_by_call(own.name, names[id(found["self"])], error, call) from error
            call = call.tb_next
        raise


def _raised_by_call(name: str, part: str, error: Exception, call: TracebackType) -> ValueError:
    """What a module of a user's network raised, from the frame that called it."""
    shapes = [list(x.shape) for x in call.tb_frame.f_locals["args"] if isinstance(x, Tensor)]
    who = f"whose {part}" if part else "which"
    given = f" for an input of shape {', '.join(map(str, shapes))}" if shapes else ""
    return _raised(name, error, call, who, given)


def named_network(text: str) -> Own:
    """The function that ``MODULE:FUNCTION`` names; the working directory is searched too.

    Importing it runs the code of that module.

    Raises:
        ValueError: it is not of that form, there is no such module or function, or the module
            raises an error, as calling the function will where that does.
    """
    module, _, function = text.partition(":")
    if not _are_names(module, function) or module.endswith(".py"):
        raise ValueError(
            f"model is {text!r}, expected MODULE:FUNCTION, such as train:network for the function "
            "network in ./train.py"
        )
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109  sys.path has strings
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise ValueError(f"model is {text!r}, which cannot be found: {error}") from error
        raise _raised(text, error) from error
    try:
        found = attrgetter(function)(found)
    except AttributeError as error:
        raise ValueError(f"model is {text!r}, which cannot be found: {error}") from error
    if not callable(found):
        raise ValueError(f"model is {text!r}, which is {found!r}, expected a function")
    return _Named(text, found)


def made(given: Any, name: str) -> tuple[nn.Module, Samples]:
    """What a function of the user's gave, if that is a network and its samples."""
    match given:
        case (nn.Module() as model, Dataset() as test) if isinstance(test, Sized):
            if len(test) == 0:
                raise ValueError(f"model is {name}, which gives no samples, expected at least one")
            try:
                first = test[0]
            except Exception as error:
                raise _raised(name, error) from error
            match first:
                case (_, _):
                    return model, test
            raise ValueError(
                f"model is {name}, whose samples are {_kinds(first)}, expected pairs: an image "
                "and its label"
            )
    raise ValueError(
        f"model is {name}, which gives {_kinds(given)}, expected (network, samples): an nn.Module, "
        "and a torch Dataset of images and labels with a length, such as TensorDataset(x, y)"
    )


def _kinds(given: object) -> str:
    """The types of what a tuple holds, or of what is none."""
    parts = given if isinstance(given, tuple) else (given,)
    return ", ".join(type(part).__name__ for part in parts)


def _are_names(*paths: str) -> bool:
    """Whether all are identifiers with dots between."""
    return all(part.isidentifier() for path in paths for part in path.split("."))


def _raised(
    name: str,
    error: Exception,
    since: TracebackType | None = None,
    who: str = "which",
    given: str = "",
) -> ValueError:
    """What a user's code raised, and at which line of the file of theirs that was entered first."""
    frames = [
        frame
        for frame in traceback.extract_tb(since or error.__traceback__)
        if not frame.filename.startswith(_NOT_THEIRS)
    ]
    where = [f"{f.filename}, line {f.lineno}" for f in frames if f.filename == frames[0].filename]
    at = f" ({where[-1]})" if where else ""
    words = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    return ValueError(f"model is {name}, {who} raises {words}{given}{at}")
