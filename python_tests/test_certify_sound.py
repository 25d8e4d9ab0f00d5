"""Networks and settings that certificates were wrong for: they hold, or are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnkern
from python_tests.test_certify import margins_of, one_layer, sample
from snnkern.certify import bounds, ibp, verify
from snnkern.certify.bounds import Method, _refuse_reduced_precision
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import IF, LIF, Events, MeanReadout, RateCoding, Residual, TimeDistributed, packed
from snnkern.nn.reading import runs_as
from snnkern.reference import Interval

METHODS: tuple[Method, ...] = ("ibp", "crown", "best", "split")
IMAGE, LABEL = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)


def least_margin(net: SpikingNetwork, lower: Tensor, upper: Tensor) -> Tensor:
    """Of label 0, over a few thousand images of the box, ``[1, K - 1]``."""
    with torch.no_grad():
        return margins_of(net, sample(lower, upper, 2000, 0), LABEL).amin(1)


def two_layers(middle: nn.Module, seed: int, timesteps: int = 3) -> SpikingNetwork:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        TimeDistributed(nn.Sequential(nn.Flatten(), nn.Linear(4, 6))),
        middle,
        TimeDistributed(nn.Linear(6, 3)),
    )
    return SpikingNetwork(timesteps, Normalize([0.0], [1.0]), layers, MeanReadout()).eval()


# Rate coding


def coded(normalize: nn.Module, features: int, seed: int) -> SpikingNetwork:
    torch.manual_seed(seed)
    layers = nn.Sequential(TimeDistributed(nn.Flatten()), TimeDistributed(nn.Linear(features, 3)))
    net = SpikingNetwork(4, normalize, layers, MeanReadout()).eval()
    net.encoder = RateCoding(4)
    return net


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda seed: coded(Normalize([0.0], [1.0]), 4, seed), (2, 1, 2, 2)),
        (lambda seed: coded(Normalize([0.0], [1.0]), 4, seed).double(), (2, 1, 2, 2)),
        (lambda seed: coded(Normalize([0.0] * 3, [1.0] * 3), 12, seed), (2, 1, 2, 2)),
        (lambda seed: coded(nn.Flatten(), 12, seed), (2, 3, 2, 2)),
        (lambda seed: coded(nn.AvgPool2d(2), 1, seed), (2, 1, 2, 2)),
        (lambda seed: coded(nn.Sequential(nn.BatchNorm2d(1)), 4, seed).train(), (2, 1, 2, 2)),
    ],
    ids=["plain", "double", "channels", "flat", "pooled", "training"],
)
def test_a_certificate_of_rate_coding_is_for_the_draw_that_it_names(
    make: Callable[[int], SpikingNetwork], shape: tuple[int, ...]
) -> None:
    for seed in range(20):
        net, x = make(seed), torch.rand(shape)
        y = torch.zeros(len(x), dtype=torch.int64)
        found = verify(net, x, y, 0.0, encoding_seed=seed)
        generator = torch.Generator().manual_seed(seed)
        net.eval()
        with torch.no_grad():
            coded_ = net.encoder(net.normalize(x), generator)
            logits = net.readout(net.layers(coded_)).double()
        margin = (logits[:, :1] - logits[:, 1:]).amin(1)
        assert (found.margin <= margin).all()
        assert (found.margin >= margin - 1e-4).all()


def test_draws_are_to_fit_what_the_encoder_sees() -> None:
    net = coded(Normalize([0.0] * 3, [1.0] * 3), 12, 0)
    with pytest.raises(ValueError, match=r"expected torch.float32 \[4, 1, 3, 2, 2\]"):
        bounds(net, IMAGE, IMAGE, LABEL, draws=torch.rand(4, 1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"draws is torch.float64 .*expected torch.float32"):
        bounds(net, IMAGE, IMAGE, LABEL, draws=torch.rand(4, 1, 3, 2, 2).double())
    bounds(net, IMAGE, IMAGE, LABEL, draws=torch.rand(4, 1, 3, 2, 2))


# Modules


@pytest.mark.parametrize(
    "inner",
    [
        LIF(0.9, 0.6),
        nn.Sequential(nn.Identity(), LIF(0.9, 0.6)),
        Residual(nn.Identity()),
        TimeDistributed(nn.Identity()),
        snnkern.nn.NormLIF(6),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_needs_time_is_refused_where_steps_are_samples(
    inner: nn.Module, method: Method
) -> None:
    with pytest.raises(TypeError, match="in a TimeDistributed, which takes steps for samples"):
        bounds(two_layers(TimeDistributed(inner), 0), IMAGE, IMAGE, LABEL, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_a_negative_divisor_is_bounded(method: Method) -> None:
    lower, upper = IMAGE - 0.3, IMAGE + 0.3
    for seed in range(5):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            TimeDistributed(nn.Sequential(nn.AvgPool2d(1, divisor_override=-1), nn.Flatten())),
            TimeDistributed(nn.Linear(4, 3)),
        )
        net = SpikingNetwork(3, Normalize([0.0], [1.0]), layers, MeanReadout()).eval()
        found = least_margin(net, lower, upper)
        bound = bounds(net, lower, upper, LABEL, method)
        assert (bound <= found).all()
        assert (bound >= found - 0.1).all()


def test_errors_are_no_negative_numbers() -> None:
    turned = ibp.Affine(lambda t: -t, lambda t: -t, 0.0, 1, 1)
    with pytest.raises(ValueError, match="off by a negative number"):
        ibp.affine(Interval(IMAGE - 0.1, IMAGE), turned)


@pytest.mark.parametrize("method", METHODS)
def test_what_normalize_divides_by_may_be_negative(method: Method) -> None:
    lower, upper = IMAGE - 0.3, IMAGE + 0.3
    for seed in range(5):
        net = two_layers(LIF(0.9, 0.3), seed)
        assert isinstance(net.normalize, Normalize)
        net.normalize.std.fill_(-0.5)
        bound = bounds(net, lower, upper, LABEL, method)
        assert (bound <= least_margin(net, lower, upper)).all()


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_what_normalize_divides_by_is_to_give_numbers(value: float) -> None:
    net = two_layers(LIF(0.9, 0.3), 0)
    assert isinstance(net.normalize, Normalize)
    net.normalize.std.fill_(value)
    with pytest.raises(ValueError, match=r"model\.normalize is .*not finite, expected finite ones"):
        verify(net, IMAGE, LABEL, 0.1)


@pytest.mark.parametrize(
    ("mean", "std"), [([0.0], [math.nan]), ([math.nan], [1.0]), ([0.0], [math.inf])]
)
def test_normalize_takes_finite_numbers(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match="expected one finite number per channel each"):
        Normalize(mean, std)


@pytest.mark.parametrize("spike_format", ["bits", "uint8"])
@pytest.mark.parametrize("method", METHODS)
def test_spikes_that_are_no_numbers_are_refused(method: Method, spike_format: Any) -> None:
    for net in (
        one_layer(TimeDistributed(nn.Linear(4, 3)), LIF(0.9, 0.5, spike_format=spike_format)),
        two_layers(LIF(0.9, 0.5, spike_format=spike_format), 0),
    ):
        with pytest.raises(TypeError, match=f"spike_format='{spike_format}'"):
            bounds(net, IMAGE, IMAGE, LABEL, method)


@pytest.mark.parametrize("method", [*METHODS, "tight"])
def test_frames_may_differ_where_memory_is_shared(method: Method) -> None:
    """The second class wins where the two frames lie on different sides of the threshold."""
    layers = nn.Sequential(
        TimeDistributed(nn.Flatten()),
        LIF(0.0, 0.5),
        TimeDistributed(nn.Linear(1, 2)),
        LIF(1.0, 1.9, reset="none"),
        TimeDistributed(nn.Linear(2, 2)),
    )
    for number, weight, bias in (
        (2, [[1.0], [-1.0]], [0.0, 1.0]),
        (4, [[2.0, 2.0], [0.0, 0.0]], [-0.5, 0.0]),
    ):
        linear = layers[number]
        assert isinstance(linear, TimeDistributed)
        with torch.no_grad():
            linear.module.get_parameter("weight").copy_(torch.tensor(weight))
            linear.module.get_parameter("bias").copy_(torch.tensor(bias))
    net = SpikingNetwork(2, nn.Identity(), layers, MeanReadout()).eval()
    net.encoder = Events(2)
    lower, upper = (torch.tensor(end).expand(1, 2, 1, 1, 1) for end in (0.4, 0.6))
    inside = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1, 1)
    logits = net(inside)
    assert bounds(net, lower, upper, LABEL, method) <= logits[0, 0] - logits[0, 1]


# Subclasses


class Standardised(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = super()._conv_forward(input, weight - weight.mean(), bias)
        return result


class Hot(LIF):
    def neuron_options(self) -> dict[str, Any]:
        return super().neuron_options() | {"threshold": 2 * self.threshold}


class Scaled(LIF):
    def dynamics(self) -> dict[str, Any]:
        return super().dynamics() | {"threshold": 2 * self.threshold}


class Shifted(snnkern.nn.NormLIF):
    def current(self, x: Tensor) -> Tensor:
        return super().current(x) + 1


class Negatives(RateCoding):
    def rates(self, x: Tensor) -> Tensor:
        return 1 - x


class Called(nn.Linear):
    def __call__(self, *args: Any, **options: Any) -> Tensor:
        result: Tensor = super().__call__(*args, **options)
        return -result


class Always(nn.Dropout):
    @property
    def training(self) -> bool:
        return True

    @training.setter
    def training(self, value: bool) -> None: ...


class Noisy(nn.Linear):
    @property
    def in_features(self) -> int:
        return 0

    @in_features.setter
    def in_features(self, value: int) -> None: ...


class Turned(nn.Module):
    def _call_impl(self, *args: Any, **options: Any) -> Tensor:
        result: Tensor = super()._call_impl(*args, **options)  # type: ignore[no-untyped-call]
        return -result


class Mixed(nn.Linear, Turned): ...


class Named(LIF):
    """What changes nothing."""

    note: str

    def __init__(self) -> None:
        super().__init__(0.9, 0.3)

    def extra_repr(self) -> str:
        return "named"


def with_own(module: nn.Module, name: str) -> nn.Module:
    setattr(module, name, getattr(module, name))
    return module


def compiled(module: nn.Module) -> nn.Module:
    module.compile()
    return module


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Standardised(1, 1, 1), nn.Conv2d),
        (Hot(), LIF),
        (Scaled(), LIF),
        (Shifted(3), snnkern.nn.NormLIF),
        (Negatives(3), RateCoding),
        (Called(2, 2), nn.Linear),
        (Always(), nn.Dropout),
        (Noisy(2, 2), nn.Linear),
        (Mixed(2, 2), nn.Linear),
        (packed.Linear(2, 2), nn.Linear),
        (with_own(LIF(), "neuron_options"), LIF),
        (with_own(LIF(), "dynamics"), LIF),
        (with_own(nn.Conv2d(1, 1, 1), "_conv_forward"), nn.Conv2d),
        (with_own(nn.Linear(1, 1), "_call_impl"), nn.Linear),
        (compiled(nn.Linear(1, 1)), nn.Linear),
        (torch.nn.utils.parametrizations.weight_norm(Called(2, 2)), nn.Linear),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_whatever_forward_calls_may_not_be_overridden(
    module: nn.Module, kind: type[nn.Module]
) -> None:
    assert not runs_as(module, kind)


def test_what_overrides_nothing_is_what_its_base_is() -> None:
    assert runs_as(IF(), LIF)
    assert runs_as(Named(), LIF)
    assert runs_as(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear)
    assert runs_as(
        torch.nn.utils.parametrizations.spectral_norm(packed.Linear(2, 2)), packed.Linear
    )
    net = two_layers(LIF(), 0)
    with snnkern.gradient(net, "rate"):
        assert all(runs_as(module, type(module)) for module in net.modules())


@pytest.mark.parametrize("method", METHODS)
def test_networks_of_such_subclasses_are_refused(method: Method) -> None:
    conv = SpikingNetwork(
        2,
        Normalize([0.0], [1.0]),
        nn.Sequential(
            TimeDistributed(Standardised(1, 1, 1)),
            TimeDistributed(nn.Flatten()),
            LIF(),
            TimeDistributed(nn.Linear(4, 3)),
        ),
        MeanReadout(),
    )
    rated = coded(Normalize([0.0], [1.0]), 4, 0)
    rated.encoder = Negatives(4)
    nets = {
        "Standardised": conv,
        "Hot": two_layers(Hot(0.9, 0.3), 0),
        "Scaled": two_layers(Scaled(0.9, 0.3), 0),
        "Negatives": rated,
    }
    for name, net in nets.items():
        with pytest.raises(TypeError, match=f"model holds a {name}, which has no interval rule"):
            verify(net, IMAGE, LABEL, 0.1, method)


# Settings


@contextmanager
def precision(owner: Any, value: str) -> Iterator[None]:
    before = owner.fp32_precision
    owner.fp32_precision = value
    try:
        yield
    finally:
        owner.fp32_precision = before


BACKENDS: Any = torch.backends


@pytest.mark.parametrize(
    "owner", [BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn, BACKENDS]
)
@pytest.mark.parametrize("value", ["tf32", "bf16"])
def test_reduced_precision_is_refused(owner: Any, value: str) -> None:
    net = two_layers(LIF(0.9, 0.3), 0)
    if owner is BACKENDS and value == "bf16":
        pytest.skip("torch takes it for CPUs alone")
    refused = pytest.raises(RuntimeError, match=f"fp32_precision is '{value}', expected 'ieee'")
    with precision(owner, value), refused:
        verify(net, IMAGE, LABEL, 0.1)
    with precision(owner, "ieee"):
        verify(net, IMAGE, LABEL, 0.1)
    verify(net, IMAGE, LABEL, 0.1)


def test_reduced_precision_by_the_older_setting_is_refused() -> None:
    net = two_layers(LIF(0.9, 0.3), 0)
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(RuntimeError, match=r"mkldnn\.matmul\.fp32_precision is 'bf16'"):
            verify(net, IMAGE, LABEL, 0.1)
    finally:
        torch.set_float32_matmul_precision("highest")
    verify(net, IMAGE, LABEL, 0.1)


def test_reduced_precision_of_a_gpu_is_refused() -> None:
    """Convolutions have TF32 there unless they are told otherwise."""
    gpu = torch.device("cuda")
    with pytest.raises(RuntimeError, match=r"cudnn\.conv\.fp32_precision is 'tf32'"):
        _refuse_reduced_precision(gpu)
    with (
        precision(BACKENDS.cudnn.conv, "ieee"),
        precision(BACKENDS.cuda.matmul, "tf32"),
        pytest.raises(RuntimeError, match=r"cuda\.matmul\.fp32_precision is 'tf32'"),
    ):
        _refuse_reduced_precision(gpu)


def test_lost_subnormal_numbers_are_refused() -> None:
    net = two_layers(LIF(0.9, 0.3), 0)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU keeps them")
    try:
        with pytest.raises(RuntimeError, match=r"expected torch.set_flush_denormal\(False\)"):
            verify(net, IMAGE, LABEL, 0.1)
    finally:
        torch.set_flush_denormal(False)
    verify(net, IMAGE, LABEL, 0.1)


def test_no_certificate_is_of_the_relu_network_that_stands_in_for_another() -> None:
    net = two_layers(LIF(0.9, 0.3), 3)
    with snnkern.gradient(net, "relu"), pytest.raises(TypeError, match=r"gradient\(model, 'relu'"):
        verify(net, IMAGE, LABEL, 0.1)
    with snnkern.gradient(net, "rate"):
        within = verify(net, IMAGE, LABEL, 0.1)
    assert torch.equal(within.margin, verify(net, IMAGE, LABEL, 0.1).margin)
    net.timesteps = 0
    assert verify(net, IMAGE, LABEL, 0.1).timesteps == 0
