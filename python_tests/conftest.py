from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from python_tests.helpers import EVERY_BACKEND, GPU_BACKENDS

# The same examples every time: what is compared, and how much of it, is part of the contract.
hypothesis.settings.register_profile(
    "snnkern", derandomize=True, database=None, deadline=None, print_blob=True
)
hypothesis.settings.load_profile("snnkern")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


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
