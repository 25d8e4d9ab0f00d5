"""The CUDA kernels are compiled for every GPU they are meant for, where there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from torch.utils import cpp_extension

import setup
from python_tests import cuda_on_host
from python_tests.helpers import lacks

ARCHS = (80, 90, 100)
NOT_COMPILED = "the CUDA kernels are not compiled"
# So that blocks of 128 threads share a multiprocessor, three of them or two.
MOST_REGISTERS = {80: 168, 90: 168, 100: 192}


class Kernel(NamedTuple):
    """What ptxas says about one."""

    name: str
    arch: int
    stack: int
    spilled: int
    registers: int

    @property
    def usual(self) -> bool:
        """Of the fast path, which every T takes that the usual neurons are run for."""
        return "5PlainI" in self.name


class Compiled(NamedTuple):
    objects: list[Path]
    kernels: list[Kernel]


def cuda_root() -> Path:
    root = setup.cuda_home()
    if root is None:
        lacks("nvcc with the headers of its toolkit", NOT_COMPILED)
    return root


KERNEL = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("nvcc")
    nvcc = str(cuda_root() / "bin" / "nvcc")
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    flags = ["-O3", *setup.NVCC_FLAGS, "-Werror=all-warnings", "-Xcompiler=-fPIC", "-Icsrc"]

    def run(source: str) -> tuple[Path, str]:
        target = folder / f"{Path(source).name}.o"
        command = [nvcc, *flags, *codes, "-Xptxas=-v", "-c", source, "-o", str(target)]
        done = subprocess.run(command, cwd=setup.ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target, done.stderr

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, setup.sources(("csrc/cuda/*.cu",))))
    kernels = [
        Kernel(name, int(arch), int(stack), int(stores) + int(loads), int(registers))
        for _, log in done
        for name, arch, stack, stores, loads, registers in KERNEL.findall(log)
    ]
    return Compiled([target for target, _ in done], kernels)


@pytest.mark.slow
def test_nothing_is_spilled_by_the_usual_neurons(compiled: Compiled) -> None:
    for arch in ARCHS:
        usual = [k for k in compiled.kernels if k.usual and k.arch == arch]
        assert len([k for k in usual if "forward_kernel" in k.name]) == 4 * 4
        assert len([k for k in usual if "backward_kernel" in k.name]) == 3 * 3 * 2
    for kernel in compiled.kernels:
        if kernel.usual:
            assert (kernel.stack, kernel.spilled) == (0, 0), kernel
            assert kernel.registers <= MOST_REGISTERS[kernel.arch], kernel


def disassembler() -> Path:
    found = shutil.which("cuobjdump")
    if found is None and (triton := find_spec("triton")) and triton.origin:
        found = shutil.which(
            "cuobjdump", path=str(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
        )
    if found is None:
        lacks("cuobjdump, which comes with triton,", NOT_COMPILED)
    return Path(found)


@pytest.mark.slow
def test_forward_fuses_no_multiplication_with_an_addition(compiled: Compiled) -> None:
    (target,) = (t for t in compiled.objects if t.name.startswith("lif_forward"))
    tool = disassembler()
    done = subprocess.run(
        [tool, "-sass", "-arch", "sm_90", target],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"},
    )
    functions = done.stdout.split("Function : ")[1:]
    usual = [text for text in functions if "5PlainI" in text.partition("\n")[0]]
    assert len(usual) == 4 * 4
    for text in usual:
        assert "FMUL" in text
        assert not re.search(r"\b(FFMA|DFMA)\b", text), text.partition("\n")[0]


LOAD = """
import sys, torch
from snnkern import _ops
torch.ops.load_library(sys.argv[1])
key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
for name in ("lif_forward", "lif_backward", "norm_lif_forward", "norm_lif_backward",
             "norm_backward_", "channel_moments", "interval_lif_forward", "interval_lif_backward",
             "relax_lif", "relax_lif_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("snnkern::" + name, "CUDA"), name
x, centre = torch.ones(2, 3, 4), torch.zeros(4)
if not torch.cuda.is_available():
    try:
        torch.ops.snnkern.channel_moments.default.redispatch(key, x, centre)
    except RuntimeError as error:
        assert "a CUDA kernel did not start: " in str(error), error
        assert "built for GPUs none" in str(error), error
    else:
        raise AssertionError("a kernel ran where there is no GPU")
"""


@pytest.mark.slow
def test_the_library_loads_without_a_gpu(compiled: Compiled, tmp_path: Path) -> None:
    """And says so when it is asked to run, in a process of its own."""
    flags = [*cuda_on_host.host_flags(), f"-isystem{cuda_root() / 'include'}"]
    objects = []
    for source in ("csrc/cuda/ops.cpp", "python_tests/cuda_on_host/torch_cuda.cpp"):
        objects.append(str(tmp_path / f"{Path(source).name}.o"))
        cuda_on_host.cxx(*flags, "-c", source, "-o", objects[-1])
    library = tmp_path / "cuda.so"
    folders = [*cpp_extension.library_paths("cpu"), cuda_root() / "lib64"]
    links = [f"-L{folder}" for folder in folders] + [f"-Wl,-rpath,{folders[-1]}"]
    names = ("-ltorch", "-ltorch_cpu", "-lcudart")
    kernels = map(str, compiled.objects)
    cuda_on_host.cxx("-shared", *objects, *kernels, *links, *names, "-o", str(library))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, library],
        cwd=setup.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
