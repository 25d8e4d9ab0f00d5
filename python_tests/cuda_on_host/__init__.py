"""The CUDA kernels without a GPU: built by the host's compiler, run thread by thread.

Everything of csrc/cuda is compiled as it stands, against the stand-in for the CUDA runtime beside
this file. The ops are reached by the overload ``.on_host``.
"""

from __future__ import annotations

import fcntl
import hashlib
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

import setup
from snnkern import _ops

HERE = Path(__file__).parent
OVERLOAD = "on_host"


def cxx(*arguments: str) -> None:
    command = [*shlex.split(cpp_extension.get_cxx_compiler()), *arguments]
    done = subprocess.run(command, cwd=setup.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def host_flags() -> list[str]:
    """Of the host compiler for csrc/cuda; no CUDA headers among them."""
    flags = setup.cxx_flags(setup.Plan(torch, "this is a test", "none"))
    return [*flags, "-DUSE_CUDA", "-fPIC", "-Werror", "-Icsrc"]


def build(folder: Path) -> Path:
    """The library, made anew where a source or a flag changed."""
    sources = [setup.ROOT / source for source in setup.sources(setup.CUDA_GLOBS)]
    sources.append(HERE / "torch_cuda.cpp")
    flags = ["-O1", *host_flags(), f"-isystem{HERE}"]
    read = sorted({*setup.ROOT.glob("csrc/**/*"), *HERE.glob("*.*")})
    content = [file.read_bytes() for file in read if file.is_file()]
    state = hashlib.sha256(b"\0".join([*content, *map(str.encode, flags)])).hexdigest()[:16]
    library = folder / f"cuda_on_host_{state}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the processes that share the tests build it once
        if library.exists():
            return library
        objects = [str(folder / f"{source.name}.o") for source in sources]
        with ThreadPoolExecutor(2) as pool:
            pairs = zip(sources, objects, strict=True)
            list(pool.map(lambda p: cxx(*flags, "-xc++", "-c", str(p[0]), "-o", p[1]), pairs))
        links = [f"-L{path}" for path in cpp_extension.library_paths("cpu")]
        cxx("-shared", *objects, *links, "-ltorch", "-ltorch_cpu", "-o", str(library))
    return library


@cache
def load() -> None:
    """Registers the CUDA kernels as overloads of the ops, for CPU tensors."""
    torch.ops.load_library(str(build(setup.ROOT / "build" / "cuda_on_host")))
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for name, schema in _ops.SCHEMAS.items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"snnkern::{name}", "CUDA"):
            continue
        op: Any = getattr(torch.ops.snnkern, name).default
        qualified = f"snnkern::{name}.{OVERLOAD}"
        torch.library.define(qualified, schema, tags=(torch.Tag.flexible_layout,))
        # What the dispatcher calls for tensors on a GPU.
        torch.library.impl(qualified, "CPU", lambda *a, op=op: op.redispatch(key, *a))
