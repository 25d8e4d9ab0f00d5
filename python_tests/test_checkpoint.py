from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from python_tests.helpers import assert_same_bits
from snnkern.training import load_checkpoint, save_checkpoint

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def tensors() -> st.SearchStrategy[Tensor]:
    def made(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
        draws = torch.Generator().manual_seed(seed)
        return (torch.randn(shape, generator=draws, dtype=torch.float64) * 3).to(dtype)

    shapes = st.lists(st.integers(0, 3), max_size=3)
    return st.builds(made, st.sampled_from(DTYPES), shapes, st.integers(0, 99))


def nested() -> st.SearchStrategy[Any]:
    # Names as torch's state_dicts have them: dots included, dollars not.
    names = st.text("ab.0", max_size=4)
    leaves = st.one_of(
        tensors(), st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(names, inner, max_size=3),
            st.dictionaries(st.integers(0, 9), inner, max_size=3),
        ),
        max_leaves=12,
    )


def assert_same(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    if isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected) or actual.numel() == 0
        assert actual.shape == expected.shape
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_same(actual[key], value)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for mine, theirs in zip(actual, expected, strict=True):
            assert_same(mine, theirs)
    else:
        assert actual == expected or (actual != actual and expected != expected)


@given(st.dictionaries(st.text("ab.0", max_size=4), nested(), max_size=4))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_saved_is_loaded(tmp_path: Path, state: dict[str, Any]) -> None:
    save_checkpoint(tmp_path / "x.safetensors", state)
    assert_same(load_checkpoint(tmp_path / "x.safetensors"), state)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop]
)
def test_optimisers_go_on_alike(
    kind: type[torch.optim.Optimizer], steps: int, tmp_path: Path
) -> None:
    def network() -> tuple[nn.Module, Any, Any]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
        schedule = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1]),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3),
            ],
            [2],
        )
        return model, optimizer, schedule

    def step(model: nn.Module, optimizer: Any, schedule: Any) -> None:
        optimizer.zero_grad()
        model(torch.ones(3)).pow(2).sum().backward()
        optimizer.step()
        schedule.step()

    first, again = network(), network()
    for _ in range(steps):
        step(*first)
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {str(i): part.state_dict() for i, part in enumerate(first)})
    for i, part in enumerate(again):
        part.load_state_dict(load_checkpoint(path)[str(i)])
    for _ in range(3):
        step(*first)
        step(*again)
    for mine, theirs in zip(first[0].parameters(), again[0].parameters(), strict=True):
        assert_same_bits(mine, theirs)
    assert first[2].get_last_lr() == again[2].get_last_lr()


def test_others_can_read_the_weights(tmp_path: Path) -> None:
    """safetensors alone, and no pickle."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    save_checkpoint(tmp_path / "x.safetensors", {"model": model.state_dict(), "epoch": 3})
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert_same_bits(file.get_tensor("model.0.weight"), model.state_dict()["0.weight"])


def test_tied_and_strided_tensors(tmp_path: Path) -> None:
    one = torch.arange(12.0).reshape(3, 4)
    state = {
        "one": one,
        "same": one,
        "part": one[1:],
        "turned": one.T,
        "wide": one[:1].expand(5, 4),
    }
    save_checkpoint(tmp_path / "x.safetensors", state)
    one = one.clone()
    assert_same(load_checkpoint(tmp_path / "x.safetensors"), state)


def test_what_cannot_be_held_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a\.b\.1 is <object.*expected what a checkpoint can hold"):
        save_checkpoint(tmp_path / "x.safetensors", {"a": {"b": [1, object()]}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\x02\0\0\0\0\0\0\0{}"])
def test_other_files_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors is not a checkpoint of snnkern"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.safetensors")
