"""Builds the compiled kernels, `snnkern._C`. All else about the package stands in pyproject.toml.

SNNKERN_BUILD chooses: `cpu`, `cuda`, `none` (pure Python), or `auto`, which is `cuda` where torch
and the machine allow it, else `cpu`. What was asked for and cannot be built stops with the reason.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
BUILDS = ("auto", "cpu", "cuda", "none")
CPU_GLOBS = ("csrc/*.cpp", "csrc/cpu/*.cpp")
CUDA_GLOBS = ("csrc/cuda/*.cpp", "csrc/cuda/*.cu")
# Only the stable ABI of this torch is visible to the sources: one build runs on all later ones.
TORCH_FLOOR = (2, 11)
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0+PTX"
# Metadata and source archives are made without torch; these commands compile.
COMPILING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}

# Spikes equal the reference bit for bit: no contraction to FMA, no fast math. No -march=native:
# wider instruction sets come from function clones, chosen when the library is loaded.
HOST_FLAGS = (
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",  # results stay the same; selections become branch-free and vectorise
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",  # gcc's hints to its vectoriser are nothing to clang
)
NVCC_FLAGS = (
    "-std=c++20",
    "-fmad=false",
    "--expt-relaxed-constexpr",
    "--threads=2",
    f"-Xcompiler={','.join(HOST_FLAGS)}",
)


class Plan(NamedTuple):
    """What is built, against which torch. Without an obstacle, CUDA kernels are part of it."""

    torch: ModuleType
    obstacle: str
    archs: str


def stop(reason: str) -> NoReturn:
    """Ends the build with a reason and without a traceback."""
    raise SystemExit(f"snnkern: {reason}")


def version() -> str:
    """The version, read without importing the package."""
    return str(runpy.run_path(str(ROOT / "snnkern/_version.py"))["__version__"])


def sources(globs: tuple[str, ...]) -> list[str]:
    """The files that match, relative to the root and in a fixed order."""
    return sorted(str(path.relative_to(ROOT)) for glob in globs for path in ROOT.glob(glob))


def requested_build() -> str:
    """The value of SNNKERN_BUILD."""
    build = os.environ.get("SNNKERN_BUILD", "auto")
    if build not in BUILDS:
        stop(f"SNNKERN_BUILD is {build!r}, expected one of {', '.join(BUILDS)}")
    return build


def host_torch() -> ModuleType:
    """The torch that the package will run with, which an isolated build does not see by itself.

    The packages of the target environment go last on the path, behind the build requirements.
    """
    sys.path.append(sysconfig.get_path("platlib"))
    floor = ".".join(map(str, TORCH_FLOOR))
    pure = "SNNKERN_BUILD=none installs without compiled kernels"
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        stop(
            f"the kernels are compiled against torch, and this environment has none: install "
            f"torch >= {floor} first, then snnkern. A torch that the build does not find is found "
            f"with --no-build-isolation. {pure}"
        )
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH_FLOOR:
        stop(f"torch is {torch.__version__}, expected >= {floor}: install a newer one. {pure}")
    return torch


def cuda_home() -> Path | None:
    """The root of the CUDA toolkit. One named by CUDA_HOME is taken or refused, never replaced."""
    named = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc")
    # The nvcc on the PATH may be a wrapper that stands outside the toolkit.
    guesses = [Path(nvcc).resolve().parents[1]] if nvcc else []
    roots = [Path(named)] if named else [*guesses, Path("/usr/local/cuda"), Path("/opt/cuda")]
    needed = ("bin/nvcc", "include/cuda_runtime.h")
    return next((root for root in roots if all((root / file).exists() for file in needed)), None)


def cuda_obstacle(torch: ModuleType) -> str:
    """Why CUDA kernels cannot be built here; empty where they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not sources(("csrc/cuda/*.cu",)):
        return "this version of snnkern has no CUDA kernels"
    if cuda_home() is None:
        where = os.environ.get("CUDA_HOME") or "CUDA_HOME, beside nvcc or in /usr/local/cuda"
        return f"no CUDA toolkit (bin/nvcc and include/cuda_runtime.h) in {where}"
    return ""


def cuda_archs(torch: ModuleType) -> str:
    """The GPUs to compile for: TORCH_CUDA_ARCH_LIST, else the visible ones, else a usual set."""
    if named := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return named
    gpus = range(torch.cuda.device_count())
    visible = sorted({torch.cuda.get_device_capability(gpu) for gpu in gpus})
    return ";".join(f"{major}.{minor}" for major, minor in visible) or DEFAULT_CUDA_ARCHS


def make_plan(build: str) -> Plan:
    """Settles what `build` (auto, cpu or cuda) means on this machine."""
    torch = host_torch()
    obstacle = "it was built with SNNKERN_BUILD=cpu" if build == "cpu" else cuda_obstacle(torch)
    if build == "cuda" and obstacle:
        stop(f"SNNKERN_BUILD=cuda cannot be built: {obstacle}")
    if obstacle:
        return Plan(torch, obstacle, archs="")
    archs = cuda_archs(torch)
    # torch reads both from here, the first as soon as its cpp_extension is imported.
    os.environ.update(CUDA_HOME=str(cuda_home()), TORCH_CUDA_ARCH_LIST=archs)
    return Plan(torch, "", archs)


def cxx_flags(plan: Plan) -> list[str]:
    """Flags of the host compiler: arithmetic, ABI, the facts that build_info() tells, headers."""
    import pybind11
    from torch.utils import cpp_extension

    facts = {
        "VERSION": version(),
        "TORCH_BUILT": plan.torch.__version__,
        "CUDA_ARCHS": re.sub("[; ]+", ",", plan.archs),
        "CUDA_ABSENT": plan.obstacle,
    }
    torch_headers = cpp_extension.include_paths("cpu" if plan.obstacle else "cuda")
    return [
        "-std=c++20",
        *HOST_FLAGS,
        f"-DTORCH_TARGET_VERSION=0x{TORCH_FLOOR[0]:02x}{TORCH_FLOOR[1]:02x}{0:012x}",
        *(f'-DSNNKERN_{name}="{fact}"' for name, fact in facts.items()),
        *([] if plan.obstacle else ["-DUSE_CUDA", "-DSNNKERN_WITH_CUDA=1"]),
        # As system headers: the warnings in them are not ours.
        *(f"-isystem{path}" for path in (pybind11.get_include(), *torch_headers)),
    ]


def extension(plan: Plan) -> Extension:
    """The extension module of a plan."""
    from torch.utils import cpp_extension

    # -g0 undoes the -g that Python was built with, ten times the size.
    cxx, nvcc = ["-O3", "-g0", *cxx_flags(plan)], ["-O3", *NVCC_FLAGS]
    # Set by our own checks only: a user's compiler may warn of what ours do not.
    if os.environ.get("SNNKERN_WERROR") == "1":
        cxx.append("-Werror")
        nvcc += ["-Werror=all-warnings", "-Xcompiler=-Werror"]
    return Extension(
        "snnkern._C",
        sources(CPU_GLOBS if plan.obstacle else CPU_GLOBS + CUDA_GLOBS),
        include_dirs=["csrc"],
        library_dirs=cpp_extension.library_paths("cpu" if plan.obstacle else "cuda"),
        libraries=["torch", "torch_cpu"] + ([] if plan.obstacle else ["torch_cuda", "cudart"]),
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        language="c++",
    )


def build_command(plan: Plan) -> type[Any]:
    """The build_ext of torch, ending with a message where the machine cannot build the plan."""
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()

    class BuildKernels(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            if shutil.which(shlex.split(compiler)[0]) is None:
                stop(
                    f"no C++ compiler {compiler!r}: install gcc or clang, or name one by CXX. "
                    "SNNKERN_BUILD=none installs without compiled kernels"
                )
            cuda = f"no CUDA kernels: {plan.obstacle}" if plan.obstacle else f"CUDA: {plan.archs}"
            print(f"snnkern: building CPU kernels; {cuda}")
            try:
                super().build_extensions()
            except Exception as error:
                if plan.obstacle:
                    raise
                stop(
                    f"the CUDA build failed: {error}\nUsual causes: the toolkit {cuda_home()} is "
                    f"of another CUDA version than torch ({plan.torch.version.cuda}); its nvcc "
                    f"does not support the host compiler ({compiler}); TORCH_CUDA_ARCH_LIST "
                    f"({plan.archs}) names a GPU that nvcc does not know. SNNKERN_BUILD=cpu "
                    "leaves CUDA out"
                )

    return BuildKernels


def main() -> None:
    """Runs what pip, a build front end or a developer asked for."""
    build = requested_build()
    if build == "none" and not {"editable_wheel", "develop", "--inplace"}.isdisjoint(sys.argv):
        # A library that an earlier build left in place would still be imported.
        for library in ROOT.glob("snnkern/_C.*.so"):
            library.unlink()
    parts: dict[str, Any] = {}
    if build != "none" and not COMPILING.isdisjoint(sys.argv):
        plan = make_plan(build)
        parts = {"ext_modules": [extension(plan)], "cmdclass": {"build_ext": build_command(plan)}}
    setup(version=version(), **parts)


if __name__ == "__main__":
    main()
