"""Convolutions and linear layers of spikes by their events, beside the dense ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import snnkern
from python_tests.helpers import COMPILED, random
from snnkern import functional
from snnkern.autograd import POINT
from snnkern.functional import pack_spikes, spike_conv2d, spike_linear
from snnkern.nn import AvgPool2d, Conv2d, Linear, events

BACKENDS: list[Any] = [None, "reference"]
needs_kernel = pytest.mark.skipif(not COMPILED, reason="without compiled kernels all is dense")


def spikes_of(*shape: int, density: float = 0.2, channels_last: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    x = (torch.rand(shape, generator=generator) < density).float()
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def graded_of(spikes: Tensor) -> Tensor:
    """Spikes that are worth something of their own each; the layout stays."""
    return spikes * random(*spikes.shape, seed=4)


def assert_near(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Relative to the largest element: sums of either sign cancel."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max()
    assert error <= relative * expected.double().abs().max(), float(error)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_convolution_is_the_dense_one(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, padding = pair(1, 5), pair(0, 5)
    stride, dilation = ((1, 1), (1, 1)) if data.draw(st.booleans()) else (pair(1, 3), pair(1, 2))
    size = tuple(
        data.draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 12))
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    )
    images, channels = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 3, 8, 17, 130]))
    density = data.draw(st.sampled_from([0.0, 0.03, 0.3, 1.0]))
    x = spikes_of(images, channels, *size, density=density, channels_last=data.draw(st.booleans()))
    graded = data.draw(st.booleans())
    if graded:
        x = graded_of(x)
    outputs = data.draw(st.sampled_from([1, 16, 33, 70]))
    weight = random(outputs, channels, *kernel, seed=1).requires_grad_()
    bias = random(outputs, seed=2).requires_grad_() if data.draw(st.booleans()) else None
    leaf = x.clone().requires_grad_()
    wanted = [leaf, weight] + ([] if bias is None else [bias])
    doubles = [t.detach().double().requires_grad_() for t in wanted]
    double_bias = None if bias is None else doubles[2]
    truth = F.conv2d(doubles[0], doubles[1], double_bias, stride, padding, dilation)
    grad = random(*truth.shape, seed=3)
    if data.draw(st.booleans()):
        grad = grad.contiguous(memory_format=torch.channels_last)
    expected = [truth, *torch.autograd.grad(truth, doubles, grad.double())]
    for backend in BACKENDS:
        if graded:
            bits, geometry = functional.pack_nonzero(leaf), (stride, padding, dilation)
            overload = backend or "default"
            y = functional.convolve_packed(
                leaf, bits, weight, bias, geometry, overload, graded=True
            )
        else:
            y = spike_conv2d(leaf, weight, bias, stride, padding, dilation, backend=backend)
        assert y.is_contiguous(memory_format=torch.channels_last)
        for actual, other in zip([y, *torch.autograd.grad(y, wanted, grad)], expected, strict=True):
            assert_near(actual, other)


@pytest.mark.parametrize("shape", [(3, 5000), (2, 3, 40), (7, 1), (2, 2, 3, 300)])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_linear_is_the_dense_one(shape: tuple[int, ...], density: float) -> None:
    x = spikes_of(*shape, density=density).requires_grad_()
    weight, bias = (random(*size).requires_grad_() for size in ((150, shape[-1]), (150,)))
    doubles = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    truth = F.linear(*doubles)
    grad = random(*truth.shape, seed=3)
    expected = [truth, *torch.autograd.grad(truth, doubles, grad.double())]
    for backend in BACKENDS:
        y = spike_linear(x, weight, bias, backend=backend)
        grads = torch.autograd.grad(y, (x, weight, bias), grad)
        for actual, other in zip((y, *grads), expected, strict=True):
            assert_near(actual, other)
        bits = pack_spikes(x.detach())
        assert torch.equal(spike_linear(bits, weight, bias, like=shape, backend=backend), y)


@pytest.mark.parametrize(
    ("x", "shape", "stride"),
    [
        (spikes_of(2, 1500, 4, 5), (70, 1500, 3, 3), 1),
        (spikes_of(3, 400, 6, 6), (64, 400, 3, 3), 1),
        (spikes_of(1, 5, 90, 80, density=0.05), (64, 5, 3, 3), 1),
        (spikes_of(2, 5, 150, 140, density=0.05), (100, 5, 3, 3), 2),
    ],
)
@pytest.mark.parametrize("graded", [False, True])
def test_large_layers_go_in_several_passes(
    x: Tensor, shape: tuple[int, ...], stride: int, graded: bool
) -> None:
    """Beyond a cache: groups of channels, parts of images, their rows one by one."""
    weight = random(*shape).requires_grad_()
    if graded:
        x = graded_of(x)
        geometry = ((stride, stride), (1, 1), (1, 1))
        bits = functional.pack_nonzero(x)
        y = functional.convolve_packed(x, bits, weight, None, geometry, graded=True)
    else:
        y = spike_conv2d(x, weight, stride=stride, padding=1)
    (grad,) = torch.autograd.grad(y, weight, y.detach())
    double = weight.detach().double().requires_grad_()
    truth = F.conv2d(x.double(), double, stride=stride, padding=1)
    assert_near(y, truth)
    assert_near(grad, torch.autograd.grad(truth, double, y.detach().double())[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.float64])
def test_spikes_of_any_dtype_and_bits(dtype: torch.dtype) -> None:
    weight = random(20, 3, 3, 3)
    for channels_last in (False, True):
        x = spikes_of(4, 3, 9, 7, channels_last=channels_last)
        expected = spike_conv2d(x, weight, padding=1)
        assert torch.equal(spike_conv2d(x.to(dtype), weight, padding=1), expected)
        bits = pack_spikes(x)
        assert torch.equal(spike_conv2d(bits, weight, padding=1, like=x), expected)
        if not channels_last:
            assert torch.equal(spike_conv2d(bits, weight, padding=1, like=x.shape), expected)
        strided = x.repeat_interleave(2, dim=3)[..., ::2]
        assert torch.equal(spike_conv2d(strided, weight, padding=1), expected)


def test_bfloat16_sums_in_float32() -> None:
    x = spikes_of(4, 300, 9, 7, density=0.5).bfloat16().requires_grad_()
    weight = random(20, 300, 3, 3).bfloat16().requires_grad_()
    bias = random(20).bfloat16().requires_grad_()
    y = spike_conv2d(x, weight, bias, padding=1)
    wide = [t.detach().float().requires_grad_() for t in (x, weight, bias)]
    expected = spike_conv2d(wide[0], wide[1], wide[2], padding=1)
    assert torch.equal(y, expected.bfloat16())
    grads = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    wide_grads = torch.autograd.grad(expected, wide, torch.ones_like(expected))
    for actual, other, tensor in zip(grads, wide_grads, (x, weight, bias), strict=True):
        assert actual.dtype == tensor.dtype
        assert_near(actual, other, 2**-7)


def test_threads_do_not_matter(two_threads: None) -> None:
    x, weight = spikes_of(6, 40, 16, 16), random(100, 40, 3, 3).requires_grad_()
    layer = Conv2d(40, 100, 3, padding=1, event_driven=True)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        y = spike_conv2d(x, weight, padding=1)
        z = layer(graded_of(x))
        grads = torch.autograd.grad([y, z], [weight, layer.weight], [y.detach(), z.detach()])
        results.append((y, z, *grads))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_rows_follow_the_weight() -> None:
    x, weight = spikes_of(2, 3, 6, 6), random(16, 3, 3, 3)
    assert functional.spike_rows(weight, POINT) is functional.spike_rows(weight, POINT)
    strided = functional.spike_rows(weight, ((2, 2), (0, 0), (1, 1)))
    assert strided.shape[4] >= functional.spike_rows(weight, POINT).shape[4]
    for change in (
        lambda: weight.mul_(2),
        lambda: setattr(weight, "data", random(16, 3, 3, 3, seed=7)),
    ):
        change()
        assert_near(spike_conv2d(x, weight), F.conv2d(x, weight))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x, w: spike_conv2d(x * 0.5, w), ValueError, r"spikes has the value 0\.5, expected"),
        (lambda x, w: spike_conv2d(x, w.double()), TypeError, "weight is dtype torch.float64"),
        (
            lambda x, w: spike_conv2d(x, w[:, :2]),
            ValueError,
            r"shape \[2, 3, 6, 6\], expected \[N, 2",
        ),
        (lambda x, w: spike_conv2d(x, w[0]), ValueError, r"weight has shape \[3, 3, 3\], expected"),
        (
            lambda x, w: spike_conv2d(x, w, w[0, 0, 0]),
            ValueError,
            r"bias has shape \[3\], expected",
        ),
        (lambda x, w: spike_conv2d(x, w, stride=0), ValueError, "stride is 0, expected"),
        (lambda x, w: spike_conv2d(x, w, padding=(1,)), ValueError, r"padding is \(1,\), expected"),
        (lambda x, w: spike_conv2d(x, w, dilation=3), ValueError, r"at least the \[7, 7\] that"),
        (lambda x, w: spike_conv2d(x, w, like=x), TypeError, "spikes is dtype torch.float32"),
        (
            lambda x, w: spike_conv2d(pack_spikes(x)[:1], w, like=x),
            ValueError,
            r"spikes has shape \[1, 14\], expected \[2, 14\]",
        ),
        (
            lambda x, w: spike_conv2d(pack_spikes(x), w, like=x.transpose(1, 3)),
            ValueError,
            "channels first or last",
        ),
        (spike_linear, ValueError, "weight has shape"),
        (lambda x, w: spike_linear(x, w[:, 0, 0]), ValueError, r"expected \[N, \.\.\., 3\]"),
        (lambda x, w: spike_conv2d(x, w, backend="cuda"), RuntimeError, "backend is 'cuda'"),
    ],
)
def test_bad_arguments(
    call: Callable[[Tensor, Tensor], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call(spikes_of(2, 3, 6, 6), random(4, 3, 3, 3))


@pytest.mark.parametrize("overload", ["default", "reference"])
def test_opcheck(overload: str) -> None:
    ops = torch.ops.snnkern
    for channels_last in (False, True):
        x = spikes_of(2, 3, 6, 5, channels_last=channels_last)
        bits, weight = pack_spikes(x), random(20, 3, 3, 2)
        layout = (list(x.shape), list(x.stride()))
        opcheck(getattr(ops.count_spikes, overload), (bits,))
        opcheck(getattr(ops.fingerprint, overload), (weight.view(torch.int32),))
        opcheck(getattr(ops.spike_rows, overload), (weight, 32))
        rows = ops.spike_rows(weight, 32)
        for bias in (None, random(20)):
            for values in (None, x):
                arguments = (bits, values, *layout, rows, bias, 20, [1, 2], [1, 0], [1, 1])
                opcheck(getattr(ops.spike_conv2d, overload), arguments)
        grad = random(2, 20, 6, 4)
        for values in (None, x):
            opcheck(
                getattr(ops.spike_conv2d_weight, overload),
                (grad, bits, values, *layout, [3, 2], [1, 0], 32),
            )


def test_the_reference_is_bit_for_bit_what_the_kernel_reads() -> None:
    weight = random(37, 5, 3, 2)
    ops = torch.ops.snnkern
    assert torch.equal(ops.spike_rows(weight, 16), ops.spike_rows.reference(weight, 16))
    bits = pack_spikes(spikes_of(3, 1001))
    assert int(ops.count_spikes(bits)) == int(ops.count_spikes.reference(bits))
    assert int(ops.count_spikes(bits)) == int(spikes_of(3, 1001).sum())
    for words in (weight.view(torch.int32), random(40_001).bfloat16().view(torch.int16)):
        assert int(ops.fingerprint(words)) == int(ops.fingerprint.reference(words))


@needs_kernel
def test_the_raw_ops_protect_memory() -> None:
    ops = torch.ops.snnkern
    x = spikes_of(2, 3, 6, 6)
    bits, rows = pack_spikes(x), ops.spike_rows(random(20, 3, 3, 3), 32)
    for huge in (2**31, 2**59):
        with pytest.raises(RuntimeError, match="too large a one"):
            ops.spike_conv2d_weight(
                random(2, 20, 6, 6), bits, None, x.shape, x.stride(), [3, 3], [1, 1], huge
            )
    size, strides, ones = list(x.shape), list(x.stride()), [1, 1]
    for wrong in (
        {"values": x[:1]},
        {"values": x.double()},
        {"values": x.contiguous(memory_format=torch.channels_last)},
        {"size": [2, 3, 6, 7]},
        {"strides": [108, 1, 3, 36]},
        {"rows": rows[:, :, :2].contiguous()},
        {"rows": rows.double()},
        {"bias": random(19)},
        {"out": 40},
        {"padding": [-1, 0]},
        {"dilation": [9, 1]},
        {"dilation": [2**63 - 1, 1]},
        {"padding": [2**62, 1]},
        {"stride": [0, 1]},
    ):
        a: dict[str, Any] = {
            "values": None, "size": size, "strides": strides, "rows": rows, "bias": None, "out": 20,
            "stride": ones, "padding": ones, "dilation": ones,
        } | wrong  # fmt: skip
        with pytest.raises(RuntimeError, match="snnkern: "):
            ops.spike_conv2d(bits, *a.values())
    for grad in (random(2, 20, 6, 5), random(1, 20, 6, 6)):
        with pytest.raises(RuntimeError, match="grad has another shape"):
            ops.spike_conv2d_weight(grad, bits, None, size, strides, [3, 3], ones, 32)
    with pytest.raises(RuntimeError, match="graded spikes have the shape and the layout"):
        ops.spike_conv2d_weight(x, bits, x[:, :2], size, strides, [3, 3], ones, 32)


def test_a_second_derivative_is_refused() -> None:
    weight = random(4, 3, 3, 3).requires_grad_()
    y = spike_conv2d(spikes_of(2, 3, 6, 6).requires_grad_(), weight)
    with pytest.raises(NotImplementedError, match="second derivative of"):
        torch.autograd.grad(y.sum(), weight, create_graph=True)


# Layers


def layer_of(kind: str, **options: Any) -> tuple[Any, nn.Module, Tensor]:
    """A layer that is large enough to choose, torch's, and an input."""
    torch.manual_seed(0)
    ours: nn.Module
    theirs: nn.Module
    if kind == "conv":
        ours, theirs = Conv2d(64, 64, 3, padding=1, **options), nn.Conv2d(64, 64, 3, padding=1)
        x = spikes_of(16, 64, 16, 16, density=0.05)
    else:
        ours, theirs = Linear(256, 512, **options), nn.Linear(256, 512)
        x = spikes_of(1024, 256, density=0.05)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, x


def went_by_events(layer: Any) -> bool:
    return bool(layer.choice.by_events)


@needs_kernel
@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("mode", ["training", "frozen", "inference"])
def test_layers_go_by_events_where_spikes_are_few(kind: str, mode: str) -> None:
    ours, theirs, x = layer_of(kind)
    for layer in (ours, theirs):
        layer.requires_grad_(mode == "training")
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_(mode != "inference")
        with torch.set_grad_enabled(mode != "inference"):
            y = layer(leaf)
        wanted = [leaf, *layer.parameters()] if mode == "training" else [leaf]
        grads = () if mode == "inference" else torch.autograd.grad(y, wanted, y.detach())
        results.append([y, *grads])
    assert went_by_events(ours)
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)


@needs_kernel
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_what_does_not_pay_is_that_of_torch(kind: str) -> None:
    ours, theirs, x = layer_of(kind)
    dense = (torch.rand(x.shape) < 0.8).float()
    for value in (dense, 0.5 * dense):
        for learns in (True, False):
            layer: Any = copy.deepcopy(ours).requires_grad_(learns)
            with torch.set_grad_enabled(learns):
                assert torch.equal(layer(value), theirs(value))
            assert not went_by_events(layer)
            assert "density of some images at least" in layer.choice.reason
            assert layer.choice.graded == (value is not dense)
            assert layer.choice.density == pytest.approx(0.8, abs=0.05)
    few = x[:1]
    assert torch.equal(ours(few), theirs(few))
    assert "fewer than" in str(ours.choice.reason)
    never, theirs, x = layer_of(kind, event_driven=False)
    assert torch.equal(never(x), theirs(x))


@needs_kernel
@pytest.mark.parametrize("learns", [True, False])
def test_the_choice_depends_on_the_input_alone(learns: bool) -> None:
    ours: Any
    ours, _, x = layer_of("conv")
    ours.requires_grad_(learns)
    for value in (1.0, 0.5):
        limit = events.limit(
            x, ours.weight, 16 * 256, graded=value != 1.0, trains=learns, sums_weights=True
        )
        assert 0.4 < limit < 0.7
        for density in (0.02, limit + 0.02, limit - 0.02, 0.9, limit - 0.02):
            ours(value * spikes_of(16, 64, 16, 16, density=density))
            assert went_by_events(ours) == (density < limit)
            assert ours.choice.graded == (value != 1.0)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_event_driven_insists(kind: str) -> None:
    ours, theirs, x = layer_of(kind, event_driven=True)
    if not COMPILED:
        with pytest.raises(ValueError, match="event_driven is True, which cannot be: "):
            ours(x)
        return
    for some in (x, x[:1], torch.ones_like(x)):
        assert_near(ours(some), theirs(some))
    assert_near(ours(x * 0.5), theirs(x * 0.5))
    ours.spike_input = True
    with pytest.raises(ValueError, match=r"spikes has the value 0\.5, expected"):
        ours(x * 0.5)
    with pytest.raises(ValueError, match=r"which cannot be: weights of torch\.float64"):
        copy.deepcopy(ours).double()(x.double())
    assert "event_driven=True" in repr(ours)
    assert ours(x[:0]).shape[0] == 0


def test_bad_options() -> None:
    with pytest.raises(TypeError, match="event_driven is 1 of type int"):
        Linear(3, 4, event_driven=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spike_input is False"):
        Linear(3, 4, event_driven=True, spike_input=False)
    if COMPILED:
        with pytest.raises(ValueError, match="which cannot be: groups=3"):
            Conv2d(3, 6, 3, groups=3, event_driven=True)(spikes_of(2, 3, 6, 6))


@needs_kernel
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_layers_compile_whole(kind: str) -> None:
    torch._dynamo.reset()
    ours, _, x = layer_of(kind, event_driven=True)
    run: Any = torch.compile(ours, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    results = []
    for layer in (run, ours):
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, [leaf, *ours.parameters()], y.detach())])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    choosing, theirs, x = layer_of(kind)
    run = torch.compile(choosing, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(x), theirs(x))
    assert not went_by_events(choosing)


@needs_kernel
def test_autocast() -> None:
    ours, theirs, x = layer_of("conv")
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = ours(x), theirs(x)
    assert went_by_events(ours)
    assert y.dtype == torch.bfloat16
    assert_near(y, expected, 2**-7)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ours.parameters())


@needs_kernel
def test_a_network_learns_and_is_attacked_as_by_dense_layers() -> None:
    """What is behind the first neurons is drawn anew by rounding, so the input is spikes."""
    first = Conv2d(64, 128, 3, padding=1)
    net = nn.Sequential(first, nn.Flatten(), Linear(128 * 64, 16, event_driven=False))
    x = spikes_of(32, 64, 8, 8, density=0.05).requires_grad_()
    gradients = []
    for choice in (False, None):
        first.event_driven = choice
        loss = F.cross_entropy(net(x), torch.arange(32) % 16)
        gradients.append(torch.autograd.grad(loss, [x, *net.parameters()]))
    assert went_by_events(first)
    for actual, expected in zip(*gradients, strict=True):
        assert_near(actual, expected, 1e-4)


@needs_kernel
@pytest.mark.parametrize("behind", [nn.AvgPool2d(2), AvgPool2d(2), "sum"], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_pooling_and_sums_make_of_spikes_goes_by_events(
    behind: Any, channels_last: bool, dtype: torch.dtype
) -> None:
    ours, theirs, x = layer_of("conv")
    ours, theirs, x = ours.to(dtype), theirs.to(dtype), x.to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    if dtype == torch.bfloat16:  # whose dense products take less time
        x[:, 16:] = 0
    x = x + x.flip(0) if behind == "sum" else behind(torch.cat([x, x, x, x]))
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        grads = torch.autograd.grad(y, [leaf, *layer.parameters()], y.detach())
        results.append([y, *grads])
    assert went_by_events(ours)
    assert ours.choice.graded
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, expected, 1e-5 if dtype == torch.float32 else 2**-6)
    with torch.no_grad():
        assert torch.equal(ours(x), results[0][0])
    lines = snnkern.info(nn.Sequential(ours)).splitlines()
    assert "of graded spikes" in lines[1]


@needs_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0])
def test_values_that_are_no_numbers_go_where_dense_products_take_them(value: float) -> None:
    layer = Conv2d(3, 20, 3, padding=1, event_driven=True)
    x = graded_of(spikes_of(2, 3, 6, 6))
    x[0, 1, 2, 2] = value
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected, equal_nan=True)


def test_integers_are_no_input_that_a_layer_chooses_for() -> None:
    """Torch refuses them, whatever their density; who insists on events gets them."""
    ours, _, x = layer_of("conv")
    for few in (True, False):
        with torch.set_grad_enabled(few), pytest.raises(RuntimeError, match="should be the same"):
            ours(x.to(torch.uint8))
    if COMPILED:
        ours.event_driven = True
        assert torch.equal(ours(x.to(torch.uint8)), ours(x))


@needs_kernel
@pytest.mark.parametrize("value", [1.0, 0.5])
def test_the_two_passes_of_a_checkpoint_choose_alike(value: float) -> None:
    """The first does not record, and only some images are looked at: here the densest."""
    ours, _, _ = layer_of("conv")
    x = value * spikes_of(16, 64, 16, 16, density=0.3)
    x[::4] = value * spikes_of(4, 64, 16, 16, density=0.8)
    chosen = []
    ours.register_forward_hook(lambda *_: chosen.append(went_by_events(ours)))
    leaf = x.requires_grad_()
    checkpoint(ours, leaf, use_reentrant=True).sum().backward()
    assert chosen == [False, False]


@needs_kernel
def test_who_keeps_nothing_of_spikes_does_not_insist_on_them() -> None:
    """Whatever the density: an attack's or a bound's input is no spikes."""
    for density in (0.05, 0.9):
        ours, theirs, x = layer_of("conv", spike_input=True)
        ours.requires_grad_(False)
        graded = 0.5 * spikes_of(*x.shape, density=density)
        assert_near(ours(graded), theirs(graded))


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_transforms_of_torch_func_see_the_layers_of_torch(kind: str) -> None:
    for learns in (True, False):
        ours, theirs, x = layer_of(kind)
        ours.requires_grad_(learns)
        theirs.requires_grad_(learns)
        results = []
        for layer in (ours, theirs):
            net = nn.Sequential(layer, AvgPool2d(2)) if kind == "conv" else layer
            run = torch.func.grad(lambda t, net=net: net(t).square().sum())
            results.append([run(x), torch.func.vmap(net, chunk_size=8)(x[:8, None])])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected)
    if COMPILED:
        insists, _, x = layer_of(kind, event_driven=True)
        with pytest.raises(ValueError, match=r"which cannot be: a transform of torch\.func"):
            torch.func.grad(lambda t: insists(t).sum())(x)


def test_a_parametrization_is_asked_once() -> None:
    for kind in ("conv", "linear"):
        ours, theirs, x = layer_of(kind)
        for layer in (ours, theirs):
            torch.manual_seed(0)
            nn.utils.parametrizations.spectral_norm(layer)
        assert_near(ours(x), theirs(x))


@needs_kernel
def test_info_tells_of_every_layer() -> None:
    conv, _, x = layer_of("conv")
    net = nn.Sequential(conv, nn.Flatten(), Linear(64 * 256, 4))
    assert snnkern.info(net).count("not called yet") == 2
    net(x)
    lines = snnkern.info(net).splitlines()
    assert lines[0].split() == ["layer", "density", "goes", "by", "because", "events", "dense"]
    assert lines[1].split()[:3] == ["0", f"{float(x.mean()):.3f}", "events"]
    assert "density below" in lines[1]
    assert lines[1].endswith(" ms")
    assert lines[2].split()[:4] == ["2", "dense", "fewer", "than"]


def fused_step(layer: nn.Module) -> None:
    """Of an optimiser that makes no new version of what it changes."""
    optimiser = torch.optim.Adam(layer.parameters(), 0.05, fused=True)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change",
    [
        fused_step,
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: layer.weight.data.neg_(),
        lambda layer: layer.weight.data.copy_(layer.weight.flip(0)),
        lambda layer: layer.weight.data.clamp_(-0.01, 0.01),
        lambda layer: setattr(layer.weight, "data", layer.weight.data + 1),
    ],
    ids=["fused", "mul", "negative", "order", "clamp", "set"],
)
def test_no_change_of_a_weight_goes_unnoticed(change: Any, dtype: torch.dtype) -> None:
    """Not those either that make no new version of it."""
    torch.manual_seed(0)
    layer = Conv2d(64, 64, 3, padding=1, event_driven=True).to(dtype)
    x = (torch.rand(2, 64, 6, 6) < 0.1).to(dtype)
    before = layer(x)
    change(layer)
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2)


def test_dtypes_that_torch_does_not_mix_are_refused() -> None:
    layer = Conv2d(4, 8, 3, event_driven=True)
    with pytest.raises(ValueError, match=r"input of torch.float64 for weights of torch.float32"):
        layer(torch.ones(1, 4, 5, 5, dtype=torch.float64))


def test_a_bias_may_lie_anywhere() -> None:
    spikes, weight, bias = torch.ones(1, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(3, 2)[:, 0]
    expected = F.conv2d(spikes, weight, bias)
    torch.testing.assert_close(spike_conv2d(spikes, weight, bias), expected)


@pytest.mark.parametrize(
    ("spikes", "weight"), [((0, 5), (3, 5)), ((2, 0), (3, 0)), ((2, 5), (0, 5))]
)
def test_nothing_is_refused_by_linear(spikes: tuple[int, ...], weight: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="neither empty"):
        spike_linear(torch.zeros(spikes), torch.zeros(weight))
