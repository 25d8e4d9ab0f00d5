from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from torch import Tensor

from python_tests import cuda_on_host
from python_tests.helpers import EVERY_BACKEND, GPU_BACKENDS, ON_HOST, lacks
from snnkern.functional import backends

# The same examples every time: what is compared, and how much of it, is part of the contract.
hypothesis.settings.register_profile(
    "snnkern", derandomize=True, database=None, deadline=None, print_blob=True
)
hypothesis.settings.load_profile("snnkern")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _cuda_on_host() -> Iterator[None]:
    """backend="cuda_on_host": the CUDA kernels for tensors on the CPU."""
    overload = backends.overload_for

    def with_cuda_on_host(backend: str | None, x: Tensor) -> str:
        if backend not in ON_HOST:
            return overload(backend, x)
        cuda_on_host.load()
        return cuda_on_host.OVERLOAD

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "overload_for", with_cuda_on_host)
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.gpu] if name in GPU_BACKENDS else [])
        for name in EVERY_BACKEND
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that runs on this machine; python_tests.helpers.lif takes them all."""
    return str(request.param)


@pytest.fixture(scope="module")
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors are NaN, those of compiled ops too: an element left unwritten shows.

    torch.utils.deterministic.fill_uninitialized_memory does it, which is on unless switched off.
    """
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def torchvision() -> torch.library.Library:
    """Makes it importable beside a torch for the CPU too, where its kernels cannot be loaded."""
    if importlib.util.find_spec("torchvision") is None:
        lacks("torchvision", "make test installs requirements.txt")
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision as _
    except RuntimeError:
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision as _  # noqa: F401
    return library  # whose end would be that of the ops
