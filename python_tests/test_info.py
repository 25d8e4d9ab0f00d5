from __future__ import annotations

import platform

import pytest
import torch

import snnkern
from snnkern import _load, functional


def lines() -> dict[str, str]:
    table = {}
    for line in snnkern.info().splitlines():
        name, text = line.split(maxsplit=1)
        table[name] = text
    return table


def test_info_names_versions_and_backends() -> None:
    told = lines()
    assert told["snnkern"] == snnkern.__version__
    assert torch.__version__ in told["torch"]
    assert f"{torch.get_num_threads()} threads" in told["torch"]
    assert platform.python_version() in told["python"]
    assert "cores" in told["machine"]
    assert set(functional.BACKENDS) <= set(told)


def test_backends_say_why_they_do_not_run() -> None:
    reasons = snnkern.backends()
    assert list(reasons) == ["reference", "cpu", "cuda", "triton"]
    x = torch.zeros(1, 1)
    told = lines()
    for name, reason in reasons.items():
        if name == "cuda":
            assert reason
        if name == "triton" and not reason:
            x = x.cuda()
        if reason:
            assert told[name] == f"no: {reason}"
            with pytest.raises(RuntimeError, match=f"backend is '{name}', which cannot run here"):
                functional.lif(x, backend=name)  # type: ignore[call-overload]
        else:
            assert told[name].startswith("yes")
            functional.lif(x, backend=name)  # type: ignore[call-overload]


def test_one_backend_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def default() -> list[str]:
        return [name for name, text in lines().items() if "what backend=None takes" in text]

    monkeypatch.setattr(_load, "why_not", "")
    assert default() == ["cpu"]
    monkeypatch.setattr(_load, "why_not", "it was not compiled")
    assert default() == ["reference"]
    assert lines()["cpu"] == "no: it was not compiled"
    assert snnkern.backends()["cpu"] == "it was not compiled"


def test_what_it_was_built_with(monkeypatch: pytest.MonkeyPatch) -> None:
    built = {"compiler": "a compiler 1.2", "torch": "9.9", "cuda_archs": ""}
    built["cuda_absent"] = "no toolkit"
    monkeypatch.setattr(_load, "build_info", built)
    assert lines()["built"] == "with a compiler 1.2 for torch 9.9"
    assert lines()["cuda"] == "no: snnkern was compiled without CUDA kernels: no toolkit"
    built |= {"cuda_archs": "9.0", "cuda_absent": ""}
    assert lines()["built"].endswith("torch 9.9, GPUs 9.0")
    if not torch.cuda.is_available():
        assert lines()["cuda"] == "no: torch finds no GPU"
    monkeypatch.setattr(_load, "build_info", None)
    assert "built" not in lines()
