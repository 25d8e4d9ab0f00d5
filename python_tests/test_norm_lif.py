"""Batch norm and neurons in one pass: equal to torch's batch norm followed by lif."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.library import opcheck
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

import snnkern
from python_tests.helpers import (
    EVERY_BACKEND,
    assert_within,
    golden,
    laid_out,
    leave,
    lif,
    norm_lif,
    random,
    raw_neuron,
)
from snnkern.autograd import norm_lif as norm_lif_functions
from snnkern.autograd.engine import run
from snnkern.autograd.time import sum_over_time
from snnkern.functional import Backend
from snnkern.surrogate import ATan, Rate, Sigmoid, Surrogate, Triangle

SHAPES = ((3, 5), (2, 4, 3, 3), (5, 7, 11), (2, 3, 20, 20), (1, 300, 2))
NAMES = ("x", "weight", "bias", "threshold")


def apart(x: Tensor, stats: tuple[Any, Any], affine: tuple[Any, Any], **options: Any) -> Any:
    training = options.pop("training") or stats[0] is None
    momentum, eps = options.pop("momentum", 0.1), options.pop("eps", 1e-5)
    y = F.batch_norm(x.flatten(0, 1), *stats, *affine, training, momentum, eps)
    return lif(y.unflatten(0, x.shape[:2]), **options)


def fused(x: Tensor, stats: tuple[Any, Any], affine: tuple[Any, Any], **options: Any) -> Any:
    return norm_lif(x, *stats, *affine, **options)


@settings(max_examples=150)
@given(
    shape=st.sampled_from(SHAPES),
    timesteps=st.integers(1, 9),
    layout=st.sampled_from(["contiguous", "channels_last", "padded"]),
    mean=st.sampled_from([0.0, 3.0, -100.0]),
    training=st.booleans(),
    tracked=st.booleans(),
    affine=st.booleans(),
    leak=st.sampled_from([0.0, 0.5, 1.0]),
    reset=st.sampled_from(["hard", "soft", "delayed_soft", "none"]),
    surrogate=st.sampled_from([ATan(), Triangle(), Triangle(normalized=True), Sigmoid(), Rate()]),
    return_state=st.booleans(),
    momentum=st.sampled_from([0.1, 1.0, 0.0]),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_equal_to_batch_norm_and_lif(
    backend: Backend,
    shape: tuple[int, ...],
    timesteps: int,
    layout: str,
    mean: float,
    training: bool,
    tracked: bool,
    affine: bool,
    seed: int,
    surrogate: Surrogate,
    **options: Any,
) -> None:
    channels = shape[1]
    values = random(timesteps, *shape, seed=seed, dtype=torch.float64) + mean
    if values.numel() // channels < 2:
        return  # torch refuses to train on one number per channel
    weight, bias = (random(channels, seed=seed + i, dtype=torch.float64) for i in (1, 2))
    results = []
    for layer in (fused, apart):
        x = laid_out(values, layout).detach().requires_grad_()
        w, b, threshold = (t.clone().requires_grad_() for t in (weight + 1.5, bias, 0 * weight + 1))
        stats = (bias.clone() + mean, weight.square() + 0.5) if tracked else (None, None)
        own = {"backend": backend} if layer is fused else {}
        outputs = layer(
            x,
            stats,
            (w, b) if affine else (None, None),
            training=training,
            threshold=threshold,
            surrogate=surrogate,
            **options,
            **own,
        )
        outputs = outputs if options["return_state"] else (outputs,)
        upstream = [random(*o.shape, seed=seed + 3, dtype=torch.float64) for o in outputs]
        torch.autograd.backward(outputs, upstream)
        grads = dict(zip(NAMES, (t.grad for t in (x, w, b, threshold)), strict=True))
        results.append((outputs, grads, stats))
    (ours, our_grads, our_stats), (theirs, their_grads, their_stats) = results
    assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert_within(mine, other, 1e-9 * (1 + abs(mean)), "state")
    for name in NAMES:
        mine, other = our_grads[name], their_grads[name]
        assert (mine is None) == (other is None), name
        if mine is not None and other is not None:
            assert_within(mine, other, 1e-8 * other.abs().max().clamp(min=1e-2), name)
    for mine, other in zip(our_stats, their_stats, strict=True):
        if mine is not None and other is not None:
            assert_within(mine, other, 1e-10 * (1 + abs(mean)), "running statistics")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("training", [False, True])
def test_backends_agree_in_every_dtype(dtype: torch.dtype, training: bool) -> None:
    x = random(7, 3, 5, 6, 6, seed=4).to(dtype)
    results = []
    for backend in EVERY_BACKEND:
        leaf = x.clone().requires_grad_()
        mean, var = torch.zeros(5), torch.ones(5)
        spikes = norm_lif(
            leaf, mean, var, training=training, leak=0.5, surrogate=ATan(), backend=backend
        )
        spikes.backward(random(7, 3, 5, 6, 6, seed=5).to(dtype))
        assert spikes.dtype == dtype
        assert leaf.grad is not None
        results.append((spikes, leaf.grad, mean, var))
    # Statistics may differ by a rounding, and so a membrane at the threshold.
    assert (results[0][0] != results[1][0]).float().mean() < 1e-3
    same = (results[0][0] == results[1][0]).all(0)
    allowed = 4 * torch.finfo(dtype).eps
    difference = (results[0][1].float() - results[1][1].float()).abs()
    assert (difference.amax(0)[same] <= allowed * 4).all()
    for mine, other in zip(results[0][2:], results[1][2:], strict=True):
        assert_within(mine, other, 1e-6)


def test_variance_far_from_zero() -> None:
    x = random(4, 8, 3, 5, 5, seed=1) + 1000.0
    mean, var = torch.zeros(3), torch.ones(3)
    norm_lif(x, mean, var, training=True, momentum=1.0)
    exact = x.double().transpose(0, 2).flatten(1)
    assert_within(mean, exact.mean(1), 1e-3)
    assert_within(var, exact.var(1), 1e-4 * exact.var(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_golden_normalisation(backend: Backend, dtype: torch.dtype) -> None:
    """Neurons that neither leak nor reset show what they see: one step's state is its current."""
    data = {k: torch.from_numpy(v).to(dtype) for k, v in golden("robustconv_tdbn").items()}
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    x = data["x"][None].requires_grad_()
    weight, bias = (data[name].requires_grad_() for name in ("weight", "bias"))
    mean, var = torch.zeros(5, dtype=dtype), torch.ones(5, dtype=dtype)

    def seen(training: bool, mean: Tensor | None, var: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"leak": 0.0, "reset": "none", "return_state": True}
        _, state = norm_lif(
            x, mean, var, weight, bias, training=training, backend=backend, **options
        )
        assert isinstance(state, Tensor)
        return state

    y = seen(True, mean, var)
    y.backward(data["gout"])
    assert x.grad is not None
    for name, ours in (
        ("y_train", y),
        ("gx_train", x.grad[0]),
        ("gw", weight.grad),
        ("gb", bias.grad),
        ("running_mean", mean),
        ("running_var", var),
        ("y_eval", seen(False, mean, var)),
        ("y_eval_nostats", seen(False, None, None)),
    ):
        assert ours is not None
        assert_within(ours, data[name], tolerance * data[name].abs().max().clamp(min=1), name)


def test_only_the_input_is_saved() -> None:
    x = random(8, 4, 16, 8, 8).requires_grad_()
    layer = snnkern.NormLIF(16)
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    large = [t for t in saved if t.numel() > 16]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("surrogate", [ATan(), Rate()])
def test_who_asks_for_the_input_alone_gets_its_gradient_without_those_of_parameters(
    surrogate: Surrogate, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    def watched_run(op: Any, *arguments: Any) -> Any:
        if op is torch.ops.snnkern.norm_lif_backward.default:
            done.append(arguments[-2:])  # gradients of the neurons' parameters, sums per channel
        return run(op, *arguments)

    def watched_sum(steps: Tensor) -> Tensor:
        done.append("sums")
        return sum_over_time(steps)

    monkeypatch.setattr(norm_lif_functions, "run", watched_run)
    monkeypatch.setattr(norm_lif_functions, "sum_over_time", watched_sum)
    x = random(5, 2, 3, 4, 4).requires_grad_()
    leaves = [torch.full((3,), value).requires_grad_() for value in (1.5, 0.2, 0.5, 0.8)]
    weight, bias, leak, threshold = (1 * leaf for leaf in leaves)  # of leaves it is not known
    spikes = norm_lif(
        x,
        torch.zeros(3),
        torch.ones(3),
        weight,
        bias,
        training=training,
        leak=leak,
        threshold=threshold,
        surrogate=surrogate,
    )
    total = (random(5, 2, 3, 4, 4, seed=1) * spikes).sum()

    def gradients(*wanted: Tensor) -> tuple[tuple[Tensor, ...], list[Any]]:
        done.clear()
        found = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True)
        return found, list(done)

    together, with_all = gradients(x, *leaves)
    (alone,), with_x = gradients(x)
    of_affine, with_affine = gradients(x, *leaves[:2])
    (of_threshold,), with_threshold = gradients(leaves[3])
    assert torch.equal(alone, together[0])
    for actual, expected in zip(of_affine, together, strict=False):
        assert torch.equal(actual, expected)
    if isinstance(surrogate, Rate):
        assert with_all == with_affine == ["sums"]
        assert with_x == with_threshold == ["sums"] * training
        assert of_threshold is together[4] is None
    else:
        assert with_all == [(True, True)]
        assert with_x == [(False, training)]
        assert with_affine == [(False, True)]
        assert with_threshold == [(True, training)]
        assert torch.equal(of_threshold, together[4])


def test_the_layer_is_batch_norm_and_lif() -> None:
    torch.manual_seed(0)
    layer = snnkern.NormLIF(4, leak=0.5, surrogate=ATan(), learn_threshold=True).double()
    norm = nn.BatchNorm2d(4).double()
    neurons = snnkern.LIF(0.5, surrogate=ATan(), learn_threshold=True).double()
    both = nn.Sequential(snnkern.nn.TimeDistributed(norm), neurons)
    assert set(layer.state_dict()) == {*norm.state_dict(), *neurons.state_dict()}
    x = random(5, 2, 4, 3, 3, dtype=torch.float64)
    for mode in (True, True, False):
        layer.train(mode)
        both.train(mode)
        assert torch.equal(layer(x), both(x))
    for name, value in norm.state_dict().items():
        assert_within(layer.state_dict()[name], value, 1e-12, name)
    with snnkern.gradient(layer, "relu"), snnkern.gradient(both, "relu"):
        assert_within(layer(x[:1]), both(x[:1]), 1e-12)
    assert repr(layer).startswith("NormLIF(4, leak=0.5, threshold=1")
    with pytest.raises(ValueError, match=r"stateful is True, expected False"):
        snnkern.NormLIF(4, stateful=True)


@pytest.mark.parametrize("overload", ["default", "reference"])
def test_opcheck(overload: str) -> None:
    x, gs = random(5, 2, 3, 4, 4), random(5, 2, 3, 4, 4, seed=1)
    scale, shift, mean = (random(3, seed=i) for i in (2, 3, 4))
    neuron = raw_neuron(torch.tensor(0.5), torch.tensor(0.75))[1:]
    ops = torch.ops.snnkern
    for layout in ("contiguous", "channels_last"):
        data = laid_out(x, layout)
        opcheck(getattr(ops.norm_lif_forward, overload), (data, scale, shift, *neuron, 0, True))
        for flag in (False, True):
            options = (False, 3, [2.0, 0.0], False, None, None, flag, not flag)
            arguments = (gs, None, None, data, scale, shift, mean, *neuron, *options)
            opcheck(getattr(ops.norm_lif_backward, overload), arguments)
        opcheck(getattr(ops.channel_moments, overload), (data, mean))
        g = laid_out(gs, layout).clone(memory_format=torch.preserve_format)
        opcheck(getattr(ops.norm_backward_, overload), (g, data, mean, scale, shift, mean))


def test_it_compiles_whole() -> None:
    torch._dynamo.reset()
    layer = snnkern.NormLIF(3, surrogate=ATan())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = random(5, 2, 3, 4, 4)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(mine).sum().backward()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.load_state_dict(snnkern.NormLIF(3).state_dict())
    compiled(theirs).sum().backward()
    assert mine.grad is not None
    assert theirs.grad is not None
    assert_within(theirs.grad, mine.grad, 1e-5)
    for name, value in layer.state_dict().items():
        assert_within(value, state[name], 1e-6, name)


def _one_rank(
    rank: int, store: str, x: Tensor, expected: dict[str | None, dict[str, Tensor]]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    tolerance = 1e-10 if x.dtype == torch.float64 else 1e-5
    for mode, whole in expected.items():
        mine = x[:, rank::2].clone()
        before = mine.clone()
        results = _results(mine, mode, process_group="world")
        assert torch.equal(mine, before)
        assert_within(results.pop("gradient"), whole["gradient"][:, rank::2], tolerance)
        for name, value in results.items():
            assert_within(value, whole[name], tolerance, name)
    leave()


def _results(x: Tensor, mode: str | None, **options: Any) -> dict[str, Tensor]:
    """The gradient of the input, and the layer's buffers."""
    layer = snnkern.NormLIF(3, surrogate=ATan(), **options).to(x.dtype)
    x = x.requires_grad_()
    with snnkern.gradient(layer, mode):  # type: ignore[arg-type]
        out = layer(x)
    out.backward(
        torch.linspace(-1, 1, out[:, 0].numel(), dtype=x.dtype)
        .view_as(out[:, 0])[:, None]
        .expand_as(out)
    )
    assert x.grad is not None
    return {"gradient": x.grad} | dict(layer.named_buffers())


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 6, 3, 2, 2), torch.float64), ((4, 6, 3), torch.float32)]
)
def test_statistics_are_shared_between_processes(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = random(*shape, dtype=dtype)
    expected = {mode: _results(x.clone(), mode) for mode in (None, "rate", "relu")}
    spawn(_one_rank, (str(tmp_path / "store"), x, expected), nprocs=2)


def test_evaluation_and_training_in_one_backward() -> None:
    layer = snnkern.NormLIF(3)
    x = random(4, 2, 3, 5, 5).requires_grad_()
    evaluated = layer.eval()(x).sum()
    trained = layer.train()(x).sum()
    (evaluated + trained).backward()
    assert x.grad is not None


def test_bad_arguments() -> None:
    x = random(4, 2, 3)
    with pytest.raises(ValueError, match=r"expected more than one number per channel"):
        norm_lif(x[:1, :1], None, None)
    with pytest.raises(TypeError, match=r"weight has dtype float64 and x has torch.float32"):
        norm_lif(x, None, None, torch.ones(3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"bias is 'x', expected a floating-point tensor"):
        norm_lif(x, None, None, None, "x")
    bad: tuple[tuple[tuple[Any, ...], str], ...] = (
        ((torch.zeros(2), torch.ones(2)), r"running_mean has shape \[2\] on cpu, expected \[3\]"),
        ((torch.zeros(3), None), r"running_mean and running_var are one given and one None"),
        ((None, None, torch.ones(4)), r"weight has shape \[4\] on cpu, expected \[3\]"),
    )
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            norm_lif(x, *arguments)
    with pytest.raises(ValueError, match=r"x has shape \[4, 2\], expected \[T, N, C, ...\]"):
        norm_lif(x[..., 0], None, None)
    with pytest.raises(ValueError, match=r"eps is 0, expected a finite number above 0"):
        norm_lif(x, None, None, eps=0)
    with pytest.raises(TypeError, match=r"timesteps is given, expected none"):
        norm_lif(x, None, None, timesteps=3)
    with pytest.raises(TypeError, match=r"colour"):
        norm_lif(x, None, None, colour=3)
    with pytest.raises(ValueError, match=r"num_features is 0, expected an int of at least 1"):
        snnkern.NormLIF(0)
