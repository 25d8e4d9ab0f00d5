"""The Triton kernels without a GPU: in Triton's interpreter, as machine code, and in a trace.

With one, the tests of every op run on them as on any backend.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, seed, settings
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from python_tests import test_lif_options
from python_tests.helpers import assert_same_bits, assert_within, laid_out, random, raw_neuron
from python_tests.test_lif_options import (
    CHARGES,
    OUTPUTS,
    SYNAPSES,
    Case,
    assert_gradients,
    assert_packed,
    call_of,
    cases,
    outcome,
)
from snnkern import _ops, _triton, functional, reference
from snnkern.functional import RESETS_OF_TESTS
