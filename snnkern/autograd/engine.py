"""How a Function calls its op, and whether the backward that runs wants a gradient."""

from __future__ import annotations

from typing import Any

import torch


def run(op: Any, *arguments: Any) -> Any:
    """Calls an op past its Autograd registration, which is there for raw calls and costs time.

    Not where gradients are recorded (a second derivative must be refused), nor in a trace.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def is_wanted(ctx: Any, number: int) -> bool:
    """Whether the backward that runs now wants the gradient of what was made of parameters.

    ``torch.autograd.grad`` of the input alone asks for none, though they require one. Of leaves,
    and in a trace, that is not known, and counts as wanted. ``number`` counts the tensors that went
    into the Function; what was None is not among them.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    node = ctx.next_functions[number][0]
    if node is None or hasattr(node, "variable"):
        return node is not None
    return bool(torch._C._will_engine_execute_node(node))
