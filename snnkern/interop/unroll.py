"""Exported programs in PyTorch's own operators, for what knows no other: ONNX among it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from snnkern import reference


def unroll(program: ExportedProgram, *, dynamic_shapes: Any = None) -> ExportedProgram:
    """The same program with every op of snnkern as plain PyTorch, one time step after the other.

    What stands there is the reference, to whose spikes those of the ops are equal. ``[T, N, ...]``
    keeps its T; a program without ops of snnkern comes back as it is. ``torch.onnx.export`` and
    whoever has no snnkern can take the result.

    Args:
        program: of ``torch.export.export``, made under ``torch.no_grad()`` of a model in eval mode.
        dynamic_shapes: those that ``program`` was exported with.

    Raises:
        ValueError: ``program`` has no example inputs, by which it is traced again.
    """
    if program.example_inputs is None:
        raise ValueError("program has no example_inputs, expected those it was exported with")
    module = program.module()
    graphs: list[Any] = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    found = False
    for graph in graphs:  # what runs under autocast, for one, has its own
        for node in graph.graph.nodes:
            if getattr(node.target, "namespace", None) == "snnkern":
                node.target = getattr(reference, node.target._opname)
                found = True
        graph.recompile()
    if not found:
        return program
    arguments, keywords = program.example_inputs
    with torch.no_grad():
        return torch.export.export(
            module, arguments, keywords, dynamic_shapes=dynamic_shapes, strict=False
        )
