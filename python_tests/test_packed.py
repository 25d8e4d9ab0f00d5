"""Spikes as bits: the ops, their functions, and the layers that keep their input that way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import snnkern
from python_tests.helpers import (
    COMPILED,
    LAYOUTS,
    RUNNABLE,
    assert_same_bits,
    laid_out,
    lif,
    pack_spikes,
    random,
    unpack_spikes,
)
from snnkern import functional
from snnkern._layout import step_strides
from snnkern.functional import SPIKE_DTYPES, Backend
from snnkern.models import vgg5
from snnkern.nn import AvgPool2d, Conv2d, Linear, MaxPool2d, TimeDistributed

OVERLOADS = ("default", "reference")
SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple)


def spikes_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (random(*shape, seed=seed) > 0.3).to(dtype)


@pytest.mark.parametrize("overload", OVERLOADS)
def test_opcheck(overload: str) -> None:
    pack, unpack = (
        getattr(getattr(torch.ops.snnkern, f"{name}pack_spikes"), overload) for name in ("", "un")
    )
    for layout, dtype in zip(LAYOUTS, SPIKE_DTYPES, strict=False):
        x = laid_out(spikes_of((5, 2, 3, 4), dtype), layout)
        opcheck(pack, (x,))
        opcheck(unpack, (pack(x)[0], list(x.shape), list(x.stride()), dtype))


@settings(max_examples=60)
@given(
    st.one_of(SHAPES, st.sampled_from([(2, 1, 16_384 + 3), (3, 40_000), (700, 3)])),
    st.sampled_from(LAYOUTS),
    st.sampled_from(SPIKE_DTYPES),
    st.sampled_from(RUNNABLE),
)
def test_bits_are_those_of_memory_and_come_back(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, backend: Backend
) -> None:
    x = laid_out(spikes_of(shape, dtype), layout)
    packed = pack_spikes(x, backend=backend)
    neurons = x[0].numel()
    dense = torch.empty_strided(x.shape, (neurons, *step_strides(x)), dtype=torch.uint8).copy_(x)
    in_memory = dense.as_strided((len(x), neurons), (neurons, 1)).numpy()
    assert np.array_equal(packed.numpy(), np.packbits(in_memory, axis=1, bitorder="little"))
    for to in (None, torch.float16, torch.bool):
        unpacked = unpack_spikes(packed, x, to, backend=backend)
        assert unpacked.dtype == (to or dtype)
        assert torch.equal(unpacked.to(dtype), x)
        assert unpacked.stride() == dense.stride()
    assert torch.equal(unpack_spikes(packed, x.shape).to(dtype), x) or layout != "contiguous"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "padded", "time last"])
def test_the_format_is_that_of_lif(backend: Backend, layout: str) -> None:
    x = laid_out(random(5, 2, 3, 7), layout)
    spikes = lif(x, 0.9, backend=backend)
    bits = lif(x, 0.9, spike_format="bits", backend=backend)
    assert torch.equal(pack_spikes(spikes, backend=backend), bits)
    assert torch.equal(unpack_spikes(bits, x, backend=backend), spikes)


@pytest.mark.parametrize("value", [-1.0, 0.5, 1.0 + 2**-7, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", functional.FLOAT_DTYPES)
def test_other_values_are_refused_by_name(
    value: float, dtype: torch.dtype, two_threads: None
) -> None:
    messages = set()
    for place in ((0, 0, 0), (1, 1, 17_000), (2, 1, 20_000)):
        x = spikes_of((3, 2, 20_001), dtype)
        x[2, 1, 20_000] = 3.0  # not the first, except at the last place
        x[place] = value
        for backend in RUNNABLE:
            with pytest.raises(ValueError, match="expected 0 and 1 alone") as error:
                pack_spikes(x, backend=backend)
            messages.add(str(error.value))
    shown = f"{torch.tensor(value, dtype=dtype).item():g}"
    assert messages == {f"spikes has the value {shown}, expected 0 and 1 alone"}


def test_the_sign_of_zero_is_no_spike(backend: Backend) -> None:
    x = torch.tensor([[0.0, -0.0, 1.0]])
    assert pack_spikes(x, backend=backend).tolist() == [[4]]


def test_threads_do_not_matter(two_threads: None) -> None:
    x = spikes_of((5, 3, 70_001))
    packed = pack_spikes(x)
    unpacked = unpack_spikes(packed, x)
    torch.set_num_threads(1)
    assert torch.equal(packed, pack_spikes(x))
    assert torch.equal(unpacked, x)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x, b: pack_spikes(x.tolist()), TypeError, "spikes is of type list"),
        (lambda x, b: pack_spikes(x.long()), TypeError, "spikes has dtype torch.int64, expected"),
        (lambda x, b: pack_spikes(x[0, 0]), ValueError, r"spikes has shape \[3\], expected"),
        (lambda x, b: pack_spikes(x[:, :0]), ValueError, "so no samples"),
        (lambda x, b: pack_spikes(x.to_sparse()), TypeError, "spikes has layout torch.sparse_coo"),
        (lambda x, b: pack_spikes(x.clone().requires_grad_()), ValueError, "requires a gradient"),
        (lambda x, b: pack_spikes(x, backend="cuda"), RuntimeError, "backend is 'cuda'"),
        (lambda x, b: unpack_spikes(x, x), TypeError, "packed is dtype torch.float32, expected"),
        (lambda x, b: unpack_spikes(b, x[:2]), ValueError, r"packed has shape \[4, 1\], expected"),
        (lambda x, b: unpack_spikes(b, (4, 9)), ValueError, r"expected \[4, 2\] for spikes"),
        (lambda x, b: unpack_spikes(b, x, torch.int8), TypeError, "dtype is torch.int8, expected"),
        (lambda x, b: unpack_spikes(b, x.to("meta")), ValueError, "packed is on cpu, expected"),
    ],
)
def test_bad_arguments(
    call: Callable[[Any, Any], object], kind: type[Exception], message: str
) -> None:
    x = spikes_of((4, 2, 3))
    with pytest.raises(kind, match=message):
        call(x, pack_spikes(x))


def test_the_raw_ops_protect_memory() -> None:
    packed = pack_spikes(spikes_of((4, 9)))
    unpack = torch.ops.snnkern.unpack_spikes.default
    for size, stride in (((4, 17), (17, 1)), ((5, 9), (9, 1)), ((4, 9), (9,)), ((), ())):
        if COMPILED:
            with pytest.raises(RuntimeError, match=r"packed spikes need|x has no dimension"):
                unpack(packed, size, stride, torch.float32)


# Layers


def outcome(
    layer: nn.Module, x: Tensor, amp: torch.dtype | None = None, frozen: bool = False
) -> list[Tensor]:
    """Output and gradients for a gradient of the output that is the same every time."""
    x = x.detach().clone().requires_grad_()  # in its layout
    wanted = [x] if frozen else [x, *layer.parameters()]
    layer.requires_grad_(not frozen)
    with torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
        y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, wanted, random(*y.shape, dtype=y.dtype, seed=9))]


def assert_alike(
    ours: nn.Module, theirs: nn.Module, x: Tensor, amp: torch.dtype | None, frozen: bool = False
) -> None:
    ours.load_state_dict(theirs.state_dict())
    expected = outcome(theirs, x, amp, frozen)
    for actual, other in zip(outcome(ours, x, amp, frozen), expected, strict=True):
        assert_same_bits(actual, other)
        assert actual.stride() == other.stride()


AMP = st.sampled_from([None, None, torch.bfloat16, torch.float16])
VALUES = st.sampled_from(["spikes", "spikes", "analog"])


def drawn_input(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    x = spikes_of(shape, dtype)
    if data.draw(VALUES) == "analog":
        x = x + 0.25 * random(*shape, seed=1).to(dtype)
    if len(shape) == 4 and data.draw(st.booleans()):
        return x.contiguous(memory_format=torch.channels_last)
    return x


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@settings(max_examples=60)
@given(st.data())
def test_convolution_is_that_of_torch(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    padding = data.draw(st.sampled_from(["numbers", "same", "valid"]))
    groups = data.draw(st.sampled_from([1, 3]))
    options: dict[str, Any] = {
        "kernel_size": pair(1, 4),
        "stride": (1, 1) if padding == "same" else pair(1, 2),
        "padding": pair(0, 2) if padding == "numbers" else padding,
        "dilation": pair(1, 2),
        "groups": groups,
        "bias": data.draw(st.booleans()),
        "padding_mode": data.draw(st.sampled_from(["zeros", "zeros", "circular", "replicate"])),
    }
    amp = data.draw(AMP)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    shape = data.draw(st.sampled_from([(4, 3, 9, 8), (1, 3, 8, 8), (3, 8, 9)]))
    x = drawn_input(data, shape, dtype)
    ours, theirs = (kind(3, 6, **options).to(dtype) for kind in (Conv2d, nn.Conv2d))
    assert_alike(ours, theirs, x, amp, frozen=data.draw(st.booleans()))


@settings(max_examples=40)
@given(st.data())
def test_linear_is_that_of_torch(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(6, 9), (4, 3, 9), (2, 3, 2, 9), (9,), (1, 9)]))
    amp, bias = data.draw(AMP), data.draw(st.booleans())
    x = drawn_input(data, shape, torch.float32)
    assert_alike(
        Linear(9, 5, bias=bias), nn.Linear(9, 5, bias=bias), x, amp, data.draw(st.booleans())
    )


@settings(max_examples=40)
@given(st.data())
def test_pooling_is_that_of_torch(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(4, 3, 9, 8), (1, 1, 7, 7), (3, 8, 9)]))
    x = drawn_input(data, shape, data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    kernel, stride = data.draw(st.integers(2, 3)), data.draw(st.sampled_from([None, 1, (2, 3)]))
    options: Any = {"padding": data.draw(st.integers(0, 1)), "ceil_mode": data.draw(st.booleans())}
    largest = options | {"dilation": data.draw(st.integers(1, 2))}
    mean = options | {"count_include_pad": data.draw(st.booleans())}
    assert_alike(
        MaxPool2d(kernel, stride, **largest), nn.MaxPool2d(kernel, stride, **largest), x, None
    )
    assert_alike(AvgPool2d(kernel, stride, **mean), nn.AvgPool2d(kernel, stride, **mean), x, None)


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes kept for backward besides parameters, every storage once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    saved: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        y = layer(x)
    del y
    return sum(count for place, count in saved.items() if place not in parameters)


def layers(**options: Any) -> list[tuple[nn.Module, Tensor]]:
    return [
        (Conv2d(3, 4, 3, **options), spikes_of((6, 3, 8, 8))),
        (Linear(40, 7, **options), spikes_of((6, 40))),
        (MaxPool2d(2, **options), spikes_of((6, 3, 8, 8))),
    ]


def test_what_is_kept_for_backward() -> None:
    for layer, x in layers():
        x.requires_grad_()
        assert saved_bytes(layer, x) == x.numel() / 8
        analog = (x * 0.5).detach().requires_grad_()
        indices = layer(analog).numel() * 8 if isinstance(layer, MaxPool2d) else 0
        assert saved_bytes(layer, analog) == 4 * x.numel() + indices
        layer.requires_grad_(False)
        assert saved_bytes(layer, x) == (x.numel() / 8 if isinstance(layer, MaxPool2d) else 0)
        assert saved_bytes(AvgPool2d(2), spikes_of((6, 3, 8, 8)).requires_grad_()) == 0
    for layer, x in layers(spike_input=False):
        indices = layer(x).numel() * 8 if isinstance(layer, MaxPool2d) else 0
        assert saved_bytes(layer, x.requires_grad_()) == 4 * x.numel() + indices


def test_nothing_is_packed_that_nobody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("packed for nothing")

    monkeypatch.setattr(functional, "pack_if_spikes", fail)
    for layer, x in layers():
        with torch.no_grad():
            layer(x.clone().requires_grad_())
        layer.requires_grad_(False)
        layer(x)
        if not isinstance(layer, MaxPool2d):
            layer(x.requires_grad_()).sum().backward()
    for layer, x in layers(spike_input=False):
        layer(x.requires_grad_())


def test_spike_input_insists() -> None:
    for layer, x in layers(spike_input=True):
        layer(x.requires_grad_()).sum().backward()
        with pytest.raises(ValueError, match=r"spikes has the value 0\.5, expected"):
            layer(x * 0.5)
        assert "spike_input=True" in repr(layer)
    with pytest.raises(TypeError, match="spike_input is 'yes' of type str"):
        layers(spike_input="yes")
    assert repr(Linear(3, 4)) == repr(nn.Linear(3, 4))


def test_an_empty_batch_is_no_error() -> None:
    for layer, x in layers():
        layer(x[:0].requires_grad_()).sum().backward()


def compiled(layer: nn.Module, x: Tensor, amp: bool) -> list[Tensor]:
    run: Any = torch.compile(layer, fullgraph=True, dynamic=amp, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        y = run(x)
    return list(torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y)))


@pytest.mark.parametrize("spike_input", [None, True])
def test_the_layers_compile_whole(spike_input: bool | None) -> None:
    torch._dynamo.reset()
    for layer, x in layers(spike_input=spike_input):
        net = nn.Sequential(AvgPool2d(1), layer) if x.dim() == 4 else layer
        x.requires_grad_()
        for amp in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                y = net(x)
            wanted = [x, *net.parameters()]
            expected = torch.autograd.grad(y, wanted, torch.ones_like(y))
            torch.testing.assert_close(compiled(net, x, amp), list(expected))
    for layer, x in layers(spike_input=spike_input):
        analog = (x * 0.5).requires_grad_()
        if spike_input is None:
            compiled(layer, analog, amp=False)
        else:
            with pytest.raises(RuntimeError, match="spikes has a value other than 0 and 1"):
                compiled(layer, analog, amp=False)


def test_compiled_autograd() -> None:
    for layer, x in layers():
        expected = outcome(layer, x)
        with torch._dynamo.config.patch(compiled_autograd=True):
            run = torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager"))
            leaf = x.clone().requires_grad_()
            layer.zero_grad()
            y = layer(leaf)
            with run:
                y.backward(random(*y.shape, seed=9))
        for tensor, grad in zip([leaf, *layer.parameters()], expected[1:], strict=True):
            assert tensor.grad is not None
            assert_same_bits(tensor.grad, grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    for layer, x in layers():
        expected = outcome(layer, x)
        x.requires_grad_()
        y = checkpoint(layer, x, use_reentrant=reentrant)
        y.backward(random(*y.shape, seed=9))
        assert x.grad is not None
        assert_same_bits(x.grad, expected[1])
        for parameter, grad in zip(layer.parameters(), expected[2:], strict=True):
            assert parameter.grad is not None
            assert_same_bits(parameter.grad, grad)


def test_a_layer_used_twice_and_differentiated_twice() -> None:
    ours, theirs = Linear(9, 9), nn.Linear(9, 9)
    ours.load_state_dict(theirs.state_dict())
    x = spikes_of((6, 9))
    grads = []
    for layer in (ours, theirs):
        y = layer((layer(x) > 0).float()) + layer(x)
        y.sum().backward(retain_graph=True)
        y.sum().backward()
        assert layer.weight.grad is not None
        grads.append(layer.weight.grad)
    assert_same_bits(grads[0], grads[1])


def test_the_input_may_be_changed_afterwards() -> None:
    for layer, x in layers():
        expected = outcome(layer, x)
        changed = x.clone().requires_grad_()
        seen = changed.clone()
        y = layer(seen)
        seen.mul_(0)
        grads = torch.autograd.grad(y, [changed, *layer.parameters()], random(*y.shape, seed=9))
        for actual, other in zip(grads, expected[1:], strict=True):
            assert_same_bits(actual, other)


def test_a_second_derivative_is_refused_where_spikes_were_packed() -> None:
    for layer, x in layers():
        y = layer(x.requires_grad_())
        with pytest.raises(NotImplementedError, match=r"a second derivative of snnkern\.nn"):
            torch.autograd.grad(y.sum(), x, create_graph=True)


def test_a_second_derivative_is_that_of_torch_where_nothing_was_packed() -> None:
    frozen = Conv2d(3, 4, 3).requires_grad_(False)
    pairs: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [
        (AvgPool2d(2), lambda x: F.avg_pool2d(x, 2)),
        (frozen, lambda x: F.conv2d(x, frozen.weight, frozen.bias)),
        (learnt := Conv2d(3, 4, 3), lambda x: F.conv2d(x, learnt.weight, learnt.bias)),
        (MaxPool2d(2), lambda x: F.max_pool2d(x, 2)),
    ]
    for pair in pairs:
        seconds = []
        for layer in pair:
            x = random(2, 3, 4, 4).requires_grad_()
            (first,) = torch.autograd.grad(layer(x * x).pow(3).sum(), x, create_graph=True)
            seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
        assert seconds[0].any()
        torch.testing.assert_close(seconds[0], seconds[1])


def test_a_held_image_runs_through_the_layers_once() -> None:
    shapes = []
    conv = Conv2d(3, 4, 3)
    conv.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    x = spikes_of((2, 3, 8, 8)).expand(5, -1, -1, -1, -1)
    y = TimeDistributed(nn.Sequential(conv, AvgPool2d(2), nn.Flatten()))(x)
    assert shapes == [(2, 3, 8, 8)]
    assert y.shape[:2] == (5, 2)
    assert y.stride(0) == 0


@pytest.mark.parametrize("spike_input", [None, True])
def test_gradients_through_the_rate_are_those_of_the_plain_network(
    spike_input: bool | None,
) -> None:
    def net(kinds: Any, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            snnkern.LIF(threshold=0.5),
            TimeDistributed(kinds.Conv2d(2, 3, 3, padding=1, **options)),
            snnkern.LIF(threshold=0.2),
            TimeDistributed(kinds.MaxPool2d(2, **options)),
            TimeDistributed(nn.Sequential(nn.Flatten(), kinds.Linear(12, 4, **options))),
            snnkern.nn.MeanReadout(),
        )

    x = random(3, 2, 2, 4, 4)
    results = []
    for one in (net(snnkern.nn, spike_input=spike_input), net(nn)):
        with snnkern.gradient(one, "rate"):
            results.append(outcome(one, x))
    assert results[0][1].any()
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def small_vgg(pack: bool, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vgg5(3, 8, input_shape=(1, 4, 4), pack=pack, **options)


@pytest.mark.parametrize("paper", ["ding", "sharmin"])
def test_a_network_of_packing_layers_is_the_plain_one(paper: str) -> None:
    x = random(2, 1, 4, 4).sigmoid()
    results = []
    for pack in (True, False):
        net = small_vgg(pack, paper=paper, threshold=0.1)
        torch.manual_seed(0)
        results.append(outcome(net, x))
    assert results[1][1].any()
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected)
    assert repr(copy.deepcopy(small_vgg(True))) == repr(small_vgg(False))


def test_certificates_know_the_layers() -> None:
    x = random(2, 1, 2, 2).sigmoid()
    bounds = []
    for kinds in (snnkern.nn, nn):
        torch.manual_seed(0)
        parts: Any = kinds
        layers = nn.Sequential(
            TimeDistributed(parts.Conv2d(1, 4, 3, padding=1)),
            snnkern.LIF(),
            TimeDistributed(nn.Sequential(parts.AvgPool2d(2), nn.Flatten())),
            snnkern.nn.SharedDropout(0.5),
            TimeDistributed(parts.Linear(4, 3)),
        )
        net = snnkern.models.SpikingNetwork(
            3, snnkern.models.Normalize([0.0], [1.0]), layers, snnkern.nn.MeanReadout()
        ).eval()
        y = torch.tensor([0, 1])
        bounds.append(snnkern.certify.bounds(net, x - 0.1, x + 0.1, y, method="ibp"))
    assert_same_bits(bounds[0].detach(), bounds[1].detach())


def test_shared_dropout_has_one_mask_for_all_steps() -> None:
    layer = snnkern.nn.SharedDropout(0.5)
    x = torch.ones(4, 3, 50, requires_grad=True)
    y = layer(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(y, y[:1].expand(y.shape))
    assert not torch.equal(y[0, 0], y[0, 1])
    assert saved_bytes(layer, x) == 4 * 3 * 50
    assert layer.eval()(x) is x
