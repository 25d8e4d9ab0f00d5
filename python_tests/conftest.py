from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from python_tests.helpers import RUNNABLE

# The same examples every time: what is compared, and how much of it, is part of the contract.
hypothesis.settings.register_profile(
    "snnkern", derandomize=True, database=None, deadline=None, print_blob=True
)
hypothesis.settings.load_profile("snnkern")

M_PERTURB = -6
FRESH_BYTE = 0x7F  # of every fresh allocation: NaN in float16, else the largest numbers there are


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=RUNNABLE)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that runs on the CPU of this machine."""
    return str(request.param)


@pytest.fixture(scope="module")
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds absurd values, so that an element that a kernel forgot to write shows.

    That is done by the C library, below torch: it reaches the outputs of compiled ops and their
    working memory too, which torch.utils.deterministic.fill_uninitialized_memory does not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        if os.environ.get("CI") == "true":
            pytest.fail("this C library cannot poison fresh memory")
        yield
        return
    mallopt(M_PERTURB, FRESH_BYTE ^ 0xFF)
    yield
    mallopt(M_PERTURB, 0)
