"""Networks for which a certificate would be false if something were overlooked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnkern
from python_tests.helpers import need
from snnkern.certify import bounds, ibp, smooth, verify
from snnkern.certify.bounds import _refuse_reduced_precision
from snnkern.models import Normalize, SpikingNetwork
from snnkern.nn import LIF, Conv2d, Events, MeanReadout, RateCoding, TimeDistributed
from snnkern.reference import Interval

METHODS: list[Any] = ["ibp", "crown", "best", "tight", "split"]
PIXELS = (1, 1, 2, 2)
LABEL = torch.tensor([0])


def network(*layers: nn.Module, timesteps: int = 3, channels: int = 1) -> SpikingNetwork:
    normalize = Normalize([0.0] * channels, [1.0] * channels)
    return SpikingNetwork(timesteps, normalize, nn.Sequential(*layers), MeanReadout()).eval()


def linear(features: int, classes: int = 2, **options: Any) -> list[nn.Module]:
    flat = TimeDistributed(nn.Flatten())
    return [flat, TimeDistributed(nn.Linear(features, classes, **options))]


def predicted(net: SpikingNetwork, x: Tensor, seed: int = 0) -> int:
    """Of one image, for the draws that a certificate names."""
    with torch.no_grad():
        pixels = net.normalize(x)
        coded = isinstance(net.encoder, RateCoding)
        draw = (torch.Generator().manual_seed(seed),) if coded else ()
        return int(net.readout(net.layers(net.encoder(pixels, *draw))).argmax())


@pytest.mark.parametrize("method", ["ibp", "best"])
@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.float64), (3, torch.float32)])
def test_draws_are_those_that_the_network_makes(
    channels: int, dtype: torch.dtype, method: Any
) -> None:
    """Of what normalisation gives: of its dtype, and a draw for each channel it makes of a grey."""
    certified = 0
    net = network(*linear(4 * channels), timesteps=4, channels=channels).to(dtype)
    net.encoder = RateCoding(4)
    layers: Any = net.layers
    for seed in range(40):
        torch.manual_seed(seed)
        layers[1].module.reset_parameters()
        x = torch.rand(PIXELS)
        for label in (0, 1):
            if bool(verify(net, x, torch.tensor([label]), 0.0, method).certified):
                certified += 1
                assert predicted(net, x) == label
    assert certified > 20
    x, shape = torch.rand(PIXELS), (4, 1, channels, 2, 2)
    wrong = torch.float32 if dtype == torch.float64 else torch.float64
    with pytest.raises(ValueError, match=r"draws is .*, expected .* as model\.normalize gives"):
        bounds(net, x, x, torch.tensor([0]), draws=torch.rand(shape, dtype=wrong))


@pytest.mark.parametrize("inner", [LIF(0.9, 0.6), nn.Sequential(nn.Identity(), LIF(0.9))], ids=str)
def test_steps_are_not_taken_for_samples(inner: nn.Module) -> None:
    net = network(*linear(4, 4), TimeDistributed(inner), TimeDistributed(nn.Linear(4, 2)))
    for method in METHODS:
        with pytest.raises(TypeError, match="expected"):
            verify(net, torch.rand(PIXELS), torch.tensor([0]), 0.0, method)


def test_a_negative_divisor_and_a_negative_deviation_keep_boxes_in_order() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        pool = TimeDistributed(nn.AvgPool2d(1, divisor_override=-1))
        net = network(pool, *linear(4))
        turned = network(*linear(4))
        deviation: Any = turned.normalize.std
        deviation.neg_()
        x = torch.rand(PIXELS)
        near = (x + 0.2 * (2 * torch.rand(500, *PIXELS[1:]) - 1)).clamp(0, 1)
        for model in (net, turned):
            with torch.no_grad():
                logits = model(near)
            for method in METHODS:
                lower, upper = (x - 0.2).clamp(0, 1), (x + 0.2).clamp(0, 1)
                low = bounds(model, lower, upper, torch.tensor([0]), method)
                assert (logits[:, 0] - logits[:, 1]).min() >= low.item()


def test_normalisation_by_no_number_is_refused() -> None:
    for mean, std in (([0.0], [float("nan")]), ([float("inf")], [1.0])):
        with pytest.raises(ValueError, match="expected one finite number"):
            Normalize(mean, std)


class Standardised(nn.Conv2d):
    """Forward is that of its base, which calls this."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = super()._conv_forward(x, weight - weight.mean(), bias)
        return y


class Stricter(LIF):
    def neuron_options(self) -> dict[str, Any]:
        return super().neuron_options() | {"strict": True}


class Falling(RateCoding):
    def rates(self, x: Tensor) -> Tensor:
        return 1 - x


class Commented(LIF):
    """Changes nothing."""

    def __init__(self) -> None:
        super().__init__(0.9)

    def extra_repr(self) -> str:
        return "commented"


def of_its_own() -> LIF:
    layer: Any = LIF(0.9)
    layer.dynamics = lambda: {"leak": torch.tensor(0.1), "threshold": torch.tensor(1.0)}
    return layer  # type: ignore[no-any-return]


def test_what_forward_calls_may_not_be_overridden() -> None:
    conv = TimeDistributed(Standardised(1, 3, 2))
    rated = network(*linear(4))
    rated.encoder = Falling(3)
    nets = [
        network(conv, LIF(0.9, 0.2), *linear(3)),
        network(*linear(4, 4), Stricter(0.9), TimeDistributed(nn.Linear(4, 2))),
        network(*linear(4, 4), of_its_own(), TimeDistributed(nn.Linear(4, 2))),
        rated,
    ]
    for net in nets:
        for method in METHODS:
            with pytest.raises(TypeError, match="model h"):
                verify(net, torch.rand(PIXELS), torch.tensor([0]), 0.1, method)
    same = network(*linear(4, 4), Commented(), TimeDistributed(nn.Linear(4, 2)))
    verify(same, torch.rand(PIXELS), torch.tensor([0]), 0.1)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_deviation_that_was_made_no_number_is_refused(value: float) -> None:
    net = network(*linear(4))
    deviation: Any = net.normalize.std
    deviation.fill_(value)
    x = torch.zeros(PIXELS)
    with pytest.raises(ValueError, match=r"model\.normalize is .*not finite, expected finite ones"):
        verify(net, x, LABEL, 0.1)


def test_errors_are_no_negative_numbers() -> None:
    turned = ibp.Affine(lambda t: -t, lambda t: -t, 0.0, 1, 1)
    x = torch.rand(PIXELS)
    with pytest.raises(ValueError, match="off by a negative number"):
        ibp.affine(Interval(x - 0.1, x), turned)


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
    net = network(*linear(4))
    refused = pytest.raises(RuntimeError, match=f"fp32_precision is '{value}', expected 'ieee'")
    with precision(owner, value), refused:
        verify(net, torch.rand(PIXELS), LABEL, 0.1)
    with precision(owner, "ieee"):
        verify(net, torch.rand(PIXELS), LABEL, 0.1)
    verify(net, torch.rand(PIXELS), LABEL, 0.1)


def test_reduced_precision_by_the_older_setting_is_refused() -> None:
    net = network(*linear(4))
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(RuntimeError, match=r"mkldnn\.matmul\.fp32_precision is 'bf16'"):
            verify(net, torch.rand(PIXELS), LABEL, 0.1)
    finally:
        torch.set_float32_matmul_precision("highest")
    verify(net, torch.rand(PIXELS), LABEL, 0.1)


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
    net = network(*linear(4))
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU keeps them")
    try:
        with pytest.raises(RuntimeError, match=r"expected torch.set_flush_denormal\(False\)"):
            verify(net, torch.rand(PIXELS), LABEL, 0.1)
    finally:
        torch.set_flush_denormal(False)
    verify(net, torch.rand(PIXELS), LABEL, 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_frames_of_one_box_may_differ(method: Any) -> None:
    """What is expanded in time is no constant input where events come frame by frame."""
    parts = [nn.Linear(1, 1), nn.Linear(1, 2), nn.Linear(2, 2)]
    values: list[Any] = [
        ([[1.0]], [0.0]), ([[1.0], [-1.0]], [0.0, 1.0]), ([[2.0, 2.0], [0.0, 0.0]], [-0.5, 0.0]),
    ]  # fmt: skip
    with torch.no_grad():
        for part, (weight, bias) in zip(parts, values, strict=True):
            part.weight.copy_(torch.tensor(weight))
            part.bias.copy_(torch.tensor(bias))
    one, two, three = (TimeDistributed(part) for part in parts)
    layers = [TimeDistributed(nn.Flatten()), one, LIF(0.0, 0.5), two, LIF(1.0, 1.9, reset="none")]
    net = SpikingNetwork(2, nn.Identity(), nn.Sequential(*layers, three), MeanReadout()).eval()
    net.encoder = Events(2)
    lower, upper = (torch.tensor(end).expand(1, 2, 1, 1, 1) for end in (0.4, 0.6))
    found = bounds(net, lower, upper, torch.tensor([0]), method).item()
    with torch.no_grad():
        logits = net(torch.tensor([0.6, 0.4]).view(1, 2, 1, 1, 1))[0]
    assert found <= float(logits[0] - logits[1])


@pytest.mark.parametrize("spike_format", ["bits", "uint8"])
def test_neurons_that_give_no_numbers_are_refused(spike_format: Any) -> None:
    net = network(*linear(4), LIF(0.9, spike_format=spike_format))
    with pytest.raises(TypeError, match="expected spike_format='input'"):
        verify(net, torch.rand(PIXELS), torch.tensor([0]), 0.1)


def test_counterexamples_are_within_the_radius() -> None:
    need("scipy")
    broken = 0
    for seed in range(12):
        torch.manual_seed(seed)
        net = network(*linear(4, 4), LIF(0.5, 0.3), TimeDistributed(nn.Linear(4, 2)))
        x = torch.rand(3, *PIXELS[1:])
        y = net(x).argmax(1)
        for eps in (0.1, 0.3):
            found = verify(net, x, y, eps, "exact")
            assert found.broken is not None
            assert found.counterexamples is not None
            broken += int(found.broken.sum())
            images = found.counterexamples[found.broken]
            assert ((images.double() - x[found.broken].double()).abs() <= eps).all()
            if len(images):
                assert (net(images).argmax(1) != y[found.broken]).any()
    assert broken > 2


@pytest.mark.parametrize("method", METHODS)
def test_sums_of_subnormal_numbers_are_not_certified(method: Any) -> None:
    net = network(TimeDistributed(nn.Flatten()), LIF(1.0, 0.05), *linear(4, bias=False)[1:])
    layers: Any = net.layers
    layer = layers[2]
    with torch.no_grad():
        layer.module.weight.zero_()
        layer.module.weight[0, 0], layer.module.weight[1, 0] = 4 * 2.0**-149, 2 * 2.0**-149
    found = verify(net, torch.full(PIXELS, 0.02), torch.tensor([0]), 0.0, method)
    assert not bool(found.certified)


def test_the_relu_network_of_a_block_is_not_certified_as_spiking() -> None:
    net = network(*linear(4, 4), LIF(0.9), TimeDistributed(nn.Linear(4, 2)))
    with (
        snnkern.gradient(net, "relu"),
        pytest.raises(TypeError, match=r"within snnkern\.gradient"),
    ):
        verify(net, torch.rand(PIXELS), torch.tensor([0]), 0.1)


def wide(spike_input: bool | None = None) -> SpikingNetwork:
    """Large enough for its layers to choose how to multiply."""
    torch.manual_seed(0)
    first = TimeDistributed(nn.Conv2d(1, 64, 3, padding=1))
    conv = TimeDistributed(Conv2d(64, 64, 3, padding=1, spike_input=spike_input))
    layers = [first, LIF(0.5, 3.0), conv, LIF(0.5), *linear(64 * 64)]
    return network(*layers, timesteps=8)


@pytest.mark.parametrize("method", ["ibp", "best"])
def test_layers_do_not_choose_how_bounds_are_multiplied(method: Any) -> None:
    x, y = torch.rand(16, 1, 8, 8), torch.zeros(16, dtype=torch.long)
    net = wide(spike_input=True)
    bounds(net, x, x, y, method)
    net = wide()
    layers: Any = net.layers
    conv = layers[2]
    for value in (torch.inf, torch.nan):
        with torch.no_grad():
            conv.module.weight[0, 5, 1, 1] = value
        with pytest.raises(ValueError, match="Conv2d whose weight has a value that is not"):
            bounds(net, x, x, y, method)


def test_smoothing_asks_that_draws_do_not_depend_on_each_other() -> None:
    need("scipy")
    x = torch.rand(2, *PIXELS[1:])

    class Other(SpikingNetwork):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2]

    carrying = network(*linear(4, 4), LIF(0.9, stateful=True), TimeDistributed(nn.Linear(4, 2)))
    batch: Any = nn.BatchNorm1d(4, track_running_stats=False)
    normed = network(*linear(4, 4), TimeDistributed(batch), TimeDistributed(nn.Linear(4, 2)))
    other = Other(3, Normalize([0.0], [1.0]), nn.Sequential(*linear(4)), MeanReadout()).eval()
    whole: Any = nn.Sequential(*linear(4))
    for net, kind, words in (
        (carrying, ValueError, "stateful=True"),
        (normed, TypeError, "running statistics"),
        (other, TypeError, "model is a Other"),
        (whole, TypeError, "model is a Sequential"),
    ):
        net.encoder = RateCoding(3)
        with pytest.raises(kind, match=words):
            smooth(net, x, draws=10, selection=2)


def test_a_grey_pixel_moves_every_channel_that_is_made_of_it() -> None:
    need("scipy")
    radii = []
    for channels in (1, 3):
        net = network(*linear(4 * channels), channels=channels)
        net.encoder = RateCoding(3)
        layers: Any = net.layers
        with torch.no_grad():
            layers[1].module.weight.zero_()
            layers[1].module.bias.copy_(torch.tensor([1.0, 0.0]))
        radii.append(smooth(net, torch.rand(PIXELS), draws=50, selection=2).radius.item())
    assert radii[1] == pytest.approx(radii[0] / 3, rel=1e-3)


MakeConv = Callable[[], nn.Module]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Conv2d(1, 2, 3, padding="same"),
        lambda: Conv2d(1, 2, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_every_padding_learns_by_bounds(make: MakeConv) -> None:
    torch.manual_seed(0)
    conv: Any = make()
    its = ibp.AFFINE[type(conv)](conv)
    weights, x = torch.rand(3, 2, 4, 4), torch.rand(3, 1, 4, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(conv(x), x, weights)
    found = its.back(weights, x.shape)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    assert conv.weight.grad.abs().sum() > 0
