"""The Triton kernels without a GPU: as machine code, in a trace, and in Triton's interpreter.

With one, the tests of the ops run on them like on any backend.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.codegen.triton import TritonKernel
from torch._inductor.codegen.wrapper import (
    user_defined_triton_kernel_transitive_closure_source_code,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

import snnkern
from python_tests.helpers import lacks, raw_neuron
from snnkern import _triton, functional, reference

ROOT = Path(__file__).parents[1]
ARCHITECTURES = (80, 90, 100)


@pytest.fixture(autouse=True)
def _triton_is_there() -> None:
    if not _triton.INSTALLED:
        lacks("triton", _triton.why_not(torch.device("cuda")))


# As machine code.

TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Kernels and arguments of what would have run."""
    kept: list[tuple[Any, dict[str, Any]]] = []

    def launch(kernel: Any, grid: int, /, **arguments: Any) -> None:
        kept.append((kernel, arguments))

    monkeypatch.setattr(_triton.load(), "launch", launch)
    return kept


def compiled(kernel: Any, arguments: dict[str, Any], architecture: int) -> Any:
    """What a launch with these arguments compiles, for a GPU that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget

    signature, constants, divisible = {}, {}, {}
    for number, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        may_specialize = not parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature[name] = TYPES[value.dtype]
        elif parameter.is_constexpr or value is None or (value == 1 and may_specialize):
            signature[name], constants[name] = "constexpr", value
            continue
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
        if isinstance(value, Tensor) or (value % 16 == 0 and may_specialize):
            divisible[number,] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(
        fn=kernel, signature=signature, constexprs=constants, attrs=divisible
    )
    options = {"num_warps": _triton.load().WARPS}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def disassembled(cubin: bytes, folder: Path) -> tuple[str, str]:
    """Machine code, and what a kernel takes of registers and memory."""
    import triton

    tools = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    commands = (["nvdisasm", "-c"], ["cuobjdump", "-res-usage"])
    code, usage = (
        subprocess.run(
            [tools / name, option, file], capture_output=True, text=True, check=True
        ).stdout
        for name, option in commands
    )
    return code, usage


def run_every_kernel(dtype: torch.dtype, timesteps: int) -> None:
    """Layers of the usual kind: one leak and threshold, learnt, hard reset."""
    state = reference.state_dtype(dtype)
    x = torch.empty(timesteps, 4, 16, 8, 8, dtype=dtype, device="meta")
    one, channels = (torch.empty(shape, dtype=state, device="meta") for shape in ((), (16,)))
    neuron = raw_neuron(one, one)
    spiking = (False, 0, [1.0, 1.0], False, None, None, True)
    ops = _triton.load()
    ops.lif_forward(x, *neuron, 0, True)
    ops.lif_backward(x, None, None, x, *neuron, *spiking)
    ops.norm_lif_forward(x, channels, channels, *neuron[1:], 0, False)
    affine = (channels, channels, channels)
    ops.norm_lif_backward(x, None, None, x, *affine, *neuron[1:], *spiking, True)
    ops.norm_backward_(x, x, *affine, channels)
    ops.channel_moments(x, channels)
    ops.rate_code(x[0], torch.empty((), dtype=torch.int64, device="meta"), timesteps, 0)
    packed, _ = ops.pack_spikes(x)
    ops.unpack_spikes(packed, x.shape, x.stride(), dtype)
    bounded = (one, one, 0.0, 0, 0.0, True)
    ops.interval_lif_forward(x, x, *bounded, True)
    v = x.to(state)
    ops.interval_lif_backward(x, x, v, v, x, x, *bounded, 0, [1.0, 1.0], False, True)
    if dtype != state:  # the others know no input
        return
    rows = torch.empty(9, *v.shape, dtype=state, device="meta")
    bias = torch.empty(9, 4, 1, 1, 1, dtype=torch.float64, device="meta").expand(9, *v.shape[1:])
    ops.relax_lif(rows, v, v, *bounded, reference.EDGE, None, None)
    ops.relax_lif_backward(rows, bias, rows, rows, v, v, *bounded, 0, None, None, True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_kernel_compiles_without_spills(
    launches: list[Any], dtype: torch.dtype, architecture: int, tmp_path: Path
) -> None:
    run_every_kernel(dtype, 8)
    assert len(launches) == (13 if dtype == torch.float32 else 11)
    for kernel, arguments in launches:
        binary = compiled(kernel, arguments, architecture)
        code, usage = disassembled(binary.asm["cubin"], tmp_path)
        name = kernel.__name__
        assert f".text.{name}" in code
        assert not re.search(r"\b(STL|LDL)\b", code), name
        assert re.search(r"STACK:0 .*LOCAL:0 ", usage), usage
        if name == "lif_forward_kernel":
            assert not re.search(r"\bFFMA\b", code)
            assert len(re.findall(r"LDG\.E\.(?:\w+\.)*128", code)) == 8, (
                "x is read 16 bytes at once"
            )


@pytest.mark.parametrize("charge", range(len(reference.CHARGES)))
def test_no_product_is_fused_into_a_sum(launches: list[Any], charge: int) -> None:
    x = torch.empty(3, 4, 16, device="meta")
    scalar, channels = torch.empty((), device="meta"), torch.empty(16, device="meta")
    for synapse in range(len(reference.SYNAPSES)):
        options = (charge, 0.1, 0.7, synapse, charge % 4, -0.5, False, False)
        neuron = (scalar, channels, scalar, None, None, *options)
        _triton.load().norm_lif_forward(x, channels, channels, *neuron, 0, True)
    for kernel, arguments in launches:
        text = compiled(kernel, arguments, 90).asm["ptx"]
        assert "mul.rn.f32" in text
        assert "fma." not in text
        assert "div.full" not in text


@pytest.mark.parametrize("reset", range(len(reference.RESETS)))
def test_no_product_of_bounds_is_fused_into_a_sum(launches: list[Any], reset: int) -> None:
    x, channels = torch.empty(3, 4, 16, device="meta"), torch.empty(16, device="meta")
    rows = torch.empty(2, *x.shape, device="meta")
    bounded = (channels, channels, 0.5, reset, -0.5, False)
    _triton.load().interval_lif_forward(x, x, *bounded, True)
    for slope in range(len(reference.SLOPES)):
        slopes = rows if slope >= reference.GIVEN else None
        _triton.load().relax_lif(rows, x, x, *bounded, slope, slopes, rows[:, 0])
    for kernel, arguments in launches:
        text = compiled(kernel, arguments, 90).asm["ptx"]
        assert "mul.rn.f" in text
        assert "fma." not in text
        assert "div.full" not in text


# In a trace.


@pytest.fixture
def _a_gpu_to_compile_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())


def both_ways(x: Tensor, p: Tensor) -> tuple[Tensor, ...]:
    neuron = raw_neuron(p, p)
    outputs = torch.ops.snnkern.lif_forward.triton(x, *neuron, 0, True)
    spiking = (False, 0, [1.0, 1.0], False, None, None, True)
    grads = torch.ops.snnkern.lif_backward.triton(x, None, None, x, *neuron, *spiking)
    return (*outputs, *grads)


@pytest.mark.usefixtures("_a_gpu_to_compile_for")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_trace_holds_the_kernels(dynamic: bool) -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    sizes = [DimDynamic.DYNAMIC if dynamic else DimDynamic.STATIC] + [DimDynamic.STATIC] * 3
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    shape = mode.from_tensor(torch.empty(8, 4, 16, 8), symbolic_context=context).shape
    with mode:
        steps, samples, channels, pixels = shape
        x = torch.empty(steps, samples, pixels, channels, device="cuda").mT
        p = torch.empty((), device="cuda")
        expected = both_ways(x, p)
        graph = make_fx(dispatch_functionalize(both_ways))(x, p).graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    for out, fake in zip(output.args[0], expected, strict=True):
        assert out.meta["val"].shape == fake.shape
        assert out.meta["val"].stride() == fake.stride()
        assert out.meta["val"].dtype == fake.dtype
    kernels = [n.kwargs for n in graph.nodes if "triton_kernel_wrapper" in str(n.target)]
    # What a kernel is known to write; all else needs no copy.
    written = [set(kernel["tensors_to_clone"]) for kernel in kernels]
    kept = {"kept_state"} if dynamic else set()
    assert written == [{"spikes", "state"}, {"grad_x", "grad_decay", "grad_threshold"} | kept]
    assert not any("snnkern" in str(node.target) for node in graph.nodes)


def test_the_compiler_finds_all_that_a_kernel_calls(launches: list[Any], tmp_path: Path) -> None:
    """torch.compile copies a kernel and what it calls into one file, by name."""
    x, one = torch.empty(3, 4, device="meta"), torch.empty((), device="meta")
    _triton.load().lif_forward(x, *raw_neuron(one, one), 0, True)
    neuron, spiking = raw_neuron(one, one), (False, 2, [1.0, 1.0], False, None, None, True)
    _triton.load().lif_backward(x, None, None, x, *neuron, *spiking)
    for kernel, arguments in launches:
        file = tmp_path / f"{kernel.__name__}.py"
        source = user_defined_triton_kernel_transitive_closure_source_code(kernel)
        imports = TritonKernel.gen_common_triton_imports()
        file.write_text(f"{imports}\n@triton.jit\n{source}", encoding="utf-8")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert compiled(getattr(module, kernel.__name__), arguments, 90).asm["cubin"]


# In the interpreter.


def test_in_the_interpreter() -> None:
    """Runs interpreted_triton.py: whether kernels are interpreted is settled by their import."""
    # numpy warns where a branch that is not taken divides infinities; and of what older versions of
    # the interpreter do.
    warnings = ["-W", "ignore::RuntimeWarning", "-W", "ignore::DeprecationWarning"]
    options = ["-q", "-p", "no:cacheprovider", *warnings]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "python_tests/interpreted_triton.py"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout


# What is said where they cannot run.


@pytest.mark.skipif(_triton.INTERPRETED, reason="interpreted kernels run on the CPU")
def test_a_tensor_of_the_cpu_is_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match=r"cannot run here: the tensor is on cpu.*\.cuda\(\)"):
        functional.lif(x, backend="triton")
    with pytest.raises(RuntimeError, match=r"cannot run here: the tensor is on cpu"):
        functional.encode(x, 3, backend="triton")
    with pytest.raises(RuntimeError, match=r"lif_forward.triton cannot run here: the tensor is on"):
        torch.ops.snnkern.lif_forward.triton(x, *raw_neuron(x.sum(), x.sum()), 0, False)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in snnkern.backends()["triton"]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "torch finds no GPU" in _triton.why_not(cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _triton.why_not(cuda) == ""
    assert "the tensor is on xpu" in _triton.why_not(torch.device("xpu"))


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import snnkern, torch
assert snnkern.functional.lif(torch.ones(2, 3)).sum() == 6
assert "Triton is not installed; `pip install triton`" in snnkern.backends()["triton"]
"""


def test_snnkern_does_without() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], cwd=ROOT, check=True)
    lazily = "import sys, snnkern; assert 'snnkern._triton.lif' not in sys.modules"
    subprocess.run([sys.executable, "-c", lazily], cwd=ROOT, check=True)
