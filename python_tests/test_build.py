"""What setup.py and CMakeLists.txt promise: the build that was asked for, or the reason why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import Distribution
from torch.utils import cpp_extension

import setup
import snnkern
from python_tests.helpers import lacks

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = (
    "-march",
    "-mtune",
    "fast-math",
    "fast_math",
    "-Ofast",
    "-fmad=true",
    "fp-contract=fast",
)


def run_python(
    *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("SNNKERN_BUILD", "CUDA_HOME")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def built_libraries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.so"))


def files(root: Path, folder: str) -> set[str]:
    return {str(path.relative_to(root)) for path in (root / folder).rglob("*") if path.is_file()}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources that a test may write to."""
    ignore = shutil.ignore_patterns(
        ".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__"
    )
    return Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=ignore))


def stub_torch(folder: Path, version: str = "2.13.0+cpu") -> str:
    """A folder for PYTHONPATH that shadows torch by one without CUDA."""
    package = folder / "stub" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"import types\n__version__ = {version!r}\nversion = types.SimpleNamespace(cuda=None)\n"
    )
    return str(package.parent)


def broken_torch(folder: Path) -> str:
    """A folder for PYTHONPATH that makes every import of torch fail."""
    (folder / "broken").mkdir()
    (folder / "broken" / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    return str(folder / "broken")


def torch_for_cuda(cuda: str | None, gpus: tuple[tuple[int, int], ...] = ()) -> ModuleType:
    devices = SimpleNamespace(
        device_count=lambda: len(gpus), get_device_capability=gpus.__getitem__
    )
    version = SimpleNamespace(cuda=cuda)
    return cast(ModuleType, SimpleNamespace(__version__="2.13.0", version=version, cuda=devices))


def toolkit(root: Path) -> Path:
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        file = root / name
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    return root


@pytest.fixture
def cuda_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if csrc/cuda had kernels, whatever stands there now."""
    folder = tmp_path / "sources" / "csrc" / "cuda"
    folder.mkdir(parents=True)
    (folder / "lif.cu").touch()
    monkeypatch.setattr(setup, "ROOT", tmp_path / "sources")


def test_unknown_build_is_refused() -> None:
    done = run_python("setup.py", "--version", SNNKERN_BUILD="gpu")
    assert done.returncode != 0
    expected = "snnkern: SNNKERN_BUILD is 'gpu', expected one of auto, cpu, cuda, none\n"
    assert done.stderr == expected


def test_cuda_is_never_replaced_by_cpu(tmp_path: Path) -> None:
    library = tmp_path / "library"
    arguments = ("setup.py", "build_ext", f"--build-lib={library}", f"--build-temp={tmp_path}/temp")
    done = run_python(*arguments, SNNKERN_BUILD="cuda", PYTHONPATH=stub_torch(tmp_path))
    assert done.returncode != 0
    assert (
        "SNNKERN_BUILD=cuda cannot be built: torch 2.13.0+cpu is built without CUDA" in done.stderr
    )
    assert not built_libraries(tmp_path)


def test_cuda_obstacle_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    assert setup.cuda_obstacle(torch_for_cuda("13.0")) == (
        "this version of snnkern has no CUDA kernels"
    )


@pytest.mark.usefixtures("cuda_sources")
def test_cuda_obstacle_names_a_wrong_cuda_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/no/such/toolkit")
    assert setup.cuda_obstacle(torch_for_cuda("13.0")).endswith("in /no/such/toolkit")
    monkeypatch.setattr(setup, "host_torch", lambda: torch_for_cuda("13.0"))
    with pytest.raises(SystemExit, match="SNNKERN_BUILD=cuda cannot be built: no CUDA toolkit"):
        setup.make_plan("cuda")


@pytest.mark.usefixtures("cuda_sources")
def test_auto_takes_cuda_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda")))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.setattr(setup, "host_torch", lambda: torch_for_cuda("13.0", gpus=((9, 0), (8, 0))))
    plan = setup.make_plan("auto")
    assert (plan.obstacle, plan.archs) == ("", "8.0;9.0")
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == plan.archs
    assert setup.make_plan("cpu").obstacle


def test_cuda_archs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert setup.cuda_archs(torch_for_cuda("13.0")) == setup.DEFAULT_CUDA_ARCHS
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0 10.0")
    assert setup.cuda_archs(torch_for_cuda("13.0", gpus=((8, 0),))) == "9.0 10.0"


def test_toolkit_is_not_guessed_from_a_wrapper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "local" / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert setup.cuda_home() != tmp_path / "local"
    inside = toolkit(tmp_path / "cuda")
    monkeypatch.setenv("PATH", str(inside / "bin"))
    assert setup.cuda_home() == inside
    named = toolkit(tmp_path / "named")
    monkeypatch.setenv("CUDA_HOME", str(named))
    assert setup.cuda_home() == named


def test_failed_cuda_build_stops_with_the_usual_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("nvcc said no")

    monkeypatch.setattr(cpp_extension.BuildExtension, "build_extensions", fail)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with_cuda = setup.build_command(setup.Plan(torch, "", "9.9"))(Distribution())
    with pytest.raises(SystemExit, match=r"nvcc said no(.|\n)*TORCH_CUDA_ARCH_LIST \(9\.9\)"):
        with_cuda.build_extensions()
    without = setup.build_command(setup.Plan(torch, "no toolkit", ""))(Distribution())
    with pytest.raises(RuntimeError, match="nvcc said no"):
        without.build_extensions()


def test_missing_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"install torch >= 2\.11 first"):
        setup.host_torch()


def test_old_torch_is_refused(tmp_path: Path) -> None:
    stub = stub_torch(tmp_path, "2.10.1")
    done = run_python("-c", "import setup; setup.host_torch()", PYTHONPATH=stub)
    assert "torch is 2.10.1, expected >= 2.11" in done.stderr


def test_isolated_build_finds_the_torch_of_the_target(tmp_path: Path) -> None:
    code = (
        "import sys, sysconfig, setuptools\n"
        "sys.path[:] = [path for path in sys.path if not path.endswith('-packages')]\n"
        f"sysconfig.get_path = {{'platlib': {stub_torch(tmp_path, '2.99.0')!r}}}.__getitem__\n"
        "import setup\n"
        "print(setup.host_torch().__version__)"
    )
    done = run_python("-c", code)
    assert done.stdout == "2.99.0\n", done.stderr


def test_missing_compiler_names_the_way_out(tmp_path: Path) -> None:
    arguments = ("setup.py", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}")
    done = run_python(*arguments, SNNKERN_BUILD="cpu", CXX="no-such-compiler")
    assert done.returncode != 0
    assert "no C++ compiler 'no-such-compiler'" in done.stderr
    assert "SNNKERN_BUILD=none" in done.stderr
    assert not built_libraries(tmp_path)


def test_none_builds_nothing_and_leaves_nothing(checkout: Path, tmp_path: Path) -> None:
    stale = checkout / "snnkern" / "_C.cpython-311-x86_64-linux-gnu.so"
    stale.touch()
    arguments = ("setup.py", "build_ext", "--inplace")
    broken = broken_torch(tmp_path)
    done = run_python(*arguments, cwd=checkout, SNNKERN_BUILD="none", PYTHONPATH=broken)
    assert done.returncode == 0, done.stderr
    assert not built_libraries(checkout)


def test_version_is_single_sourced(checkout: Path) -> None:
    assert setup.version() == snnkern.__version__
    (checkout / "snnkern" / "_version.py").write_text('__version__ = "7.8.9"\n')
    done = run_python("setup.py", "--quiet", "--version", cwd=checkout, SNNKERN_BUILD="none")
    assert done.stdout == "7.8.9\n", done.stderr


def test_source_archive_is_made_without_torch(checkout: Path, tmp_path: Path) -> None:
    arguments = ("setup.py", "--quiet", "sdist", f"--dist-dir={tmp_path}")
    done = run_python(*arguments, cwd=checkout, PYTHONPATH=broken_torch(tmp_path))
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert files(checkout, "csrc") | files(checkout, "snnkern") <= held
    assert {"setup.py", "CMakeLists.txt", "LICENSE", "README.md", "requirements.txt"} <= held


def test_wheel_holds_the_package_and_its_data_alone(checkout: Path, tmp_path: Path) -> None:
    recipe = checkout / "snnkern" / "recipes" / "paper" / "row.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.touch()
    arguments = ("setup.py", "--quiet", "bdist_wheel", f"--dist-dir={tmp_path}")
    done = run_python(*arguments, cwd=checkout, SNNKERN_BUILD="none")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"snnkern-{setup.version()}-py3-none-any.whl"
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files(checkout, "snnkern")


def test_flags_keep_the_arithmetic_exact() -> None:
    kernels = setup.extension(setup.Plan(torch, "no toolkit", ""))
    arguments = cast(dict[str, list[str]], kernels.extra_compile_args)
    assert "-ffp-contract=off" in arguments["cxx"]
    assert "-DTORCH_TARGET_VERSION=0x020b000000000000" in arguments["cxx"]
    assert "-fmad=false" in arguments["nvcc"]
    assert "-ffp-contract=off" in "".join(arguments["nvcc"])
    flags = arguments["cxx"] + arguments["nvcc"]
    assert not [flag for flag in flags if any(word in flag for word in FORBIDDEN)]


def test_warnings_are_errors_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def flags() -> list[str]:
        arguments = setup.extension(setup.Plan(torch, "no toolkit", "")).extra_compile_args
        return cast(dict[str, list[str]], arguments)["cxx"]

    monkeypatch.setenv("SNNKERN_WERROR", "1")
    assert "-Werror" in flags()
    monkeypatch.delenv("SNNKERN_WERROR")
    assert "-Werror" not in flags()


def test_cmake_builds_the_same_sources_with_the_same_flags(tmp_path: Path) -> None:
    cmake = shutil.which(
        "cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if cmake is None:
        lacks("cmake", "make test installs requirements.txt")
    done = subprocess.run(
        [cmake, "-S", ROOT, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    module = {
        str(Path(entry["file"]).relative_to(ROOT)): entry["command"]
        for entry in commands
        if "_C.dir" in entry["command"]
    }
    assert sorted(module) == setup.sources(setup.CPU_GLOBS)
    assert module
    for command in module.values():
        assert {*setup.HOST_FLAGS, "-std=c++20", "-Werror"} <= set(command.split())
        assert not [word for word in FORBIDDEN if word in command]


def test_requirements_pin_what_the_package_asks_for() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = dict(line.split(";")[0].split("==") for line in lines if line and line[0] != "#")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["test"], *extras["demo"], *extras["report"]]
    asked += [*extras["bench"], *extras["data"], *extras["dev"]]
    missing = []
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name in ("snnkern", "pre-commit"):  # itself; a convenience that make does without
            continue
        if name not in pins or pins[name] not in requirement.specifier:
            missing.append(str(requirement))
    assert not missing
