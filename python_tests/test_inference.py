"""Networks compiled for inference: the spikes of the plain network, and what is refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import snnkern
from snnkern import _load
from snnkern.functional import check_options
from snnkern.inference import DenseLayer, Spikes
from snnkern.models import SpikingNetwork, resnet12, resnet20, vgg5, wrn16_4
from snnkern.nn import LIF, NormLIF, Residual, TimeDistributed, events

NETWORKS: dict[str, Callable[[], SpikingNetwork]] = {
    "hard": lambda: vgg5(timesteps=5, input_shape=(3, 8, 8), threshold=0.3),
    "soft": lambda: vgg5(
        timesteps=5, input_shape=(3, 8, 8), threshold=0.3, leak=0.9, reset="soft", pack=False
    ),
    "kundu": lambda: vgg5(timesteps=5, paper="kundu", input_shape=(3, 8, 8), threshold=0.3),
    "signed": lambda: vgg5(timesteps=12, paper="sharmin", input_shape=(3, 8, 8), threshold=0.01),
    "euler": lambda: vgg5(
        timesteps=5, input_shape=(3, 8, 8), threshold=0.2, charge="euler", rate=0.7, leak=None
    ),
    "resnet12": lambda: resnet12(timesteps=3, input_shape=(3, 8, 8), threshold=0.3),
    "resnet20": lambda: resnet20(
        timesteps=3, paper="ozdenizci", input_shape=(3, 8, 8), threshold=0.3
    ),
    "resnet12, rate coded": lambda: resnet12(
        timesteps=20, paper="sharmin", input_shape=(3, 8, 8), threshold=0.01
    ),
}


def after_training(network: SpikingNetwork) -> SpikingNetwork:
    """With running statistics of images."""
    generator = torch.Generator().manual_seed(1)
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(torch.rand(16, 3, 8, 8, generator=generator))
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_plain_network(name: str) -> None:
    torch.manual_seed(0)
    plain = after_training(NETWORKS[name]())
    images = torch.rand(6, 3, 8, 8)
    before = copy.deepcopy(plain.state_dict())
    compiled = snnkern.compile_inference(plain)
    with torch.no_grad():
        torch.manual_seed(2)
        expected = plain(images)
        torch.manual_seed(2)
        actual = compiled(images)
    assert expected.abs().max() > 0
    # A spike that rounding moves is a logit's change of 1 / T at least: of six images, at most one.
    off = (actual - expected).abs().amax(1) > 1e-4
    assert off.sum() <= 1
    for key, value in plain.state_dict().items():
        assert torch.equal(value, before[key])


def test_hardly_a_spike_differs_from_the_plain_network() -> None:
    torch.manual_seed(0)
    plain = after_training(NETWORKS["hard"]())
    expected: list[Tensor] = []
    for module in plain.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _, __, spikes: expected.append(spikes))
    images = torch.rand(32, 3, 8, 8)
    with torch.no_grad():
        plain(images)
    for module in plain.modules():
        module._forward_hooks.clear()
    compiled = snnkern.compile_inference(plain)
    spikes: Any = compiled.encoder(compiled.normalize(images))
    for stage, spikes_of_layer in zip(compiled._stages, expected, strict=True):
        found = stage(spikes)
        assert 0.005 < spikes_of_layer.mean() < 0.9
        as_images = spikes_of_layer.transpose(0, 1).reshape(found.size)
        assert (found.unpacked() != as_images).float().mean() < 1e-5
        spikes = Spikes.of(as_images, 5)  # one that differs makes others differ


@pytest.mark.parametrize("name", ["hard", "resnet12"])
def test_dense_layers_multiply_to_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    compiled = snnkern.compile_inference(after_training(NETWORKS[name]()))
    images = torch.rand(6, 3, 8, 8)
    calls = []
    multiply = DenseLayer.of_spikes

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return multiply(*arguments)

    monkeypatch.setattr(DenseLayer, "of_spikes", counted)
    monkeypatch.setattr(events, "share", lambda *_, **__: 0.0)
    by_events = compiled(images)
    assert not calls
    monkeypatch.setattr(events, "share", lambda *_, **__: 1.0)
    dense = compiled(images)
    assert len(calls) > 3
    assert by_events.abs().max() > 0
    assert ((by_events - dense).abs().amax(1) > 1e-4).sum() <= 1


@given(
    channels=st.integers(1, 70),
    out_channels=st.integers(1, 70),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    pool=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    extents=st.tuples(st.integers(3, 5), st.integers(3, 5)),
    samples=st.integers(1, 3),
    timesteps=st.integers(1, 4),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    reset=st.sampled_from(["hard", "soft", "none"]),
    parameters=st.sampled_from(["one", "channel", "neuron"]),
    more=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.skipif(_load.build_info is None, reason="nothing compiled to compare")
def test_the_op_is_the_reference(
    channels: int,
    out_channels: int,
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
    pool: tuple[int, int],
    extents: tuple[int, int],
    samples: int,
    timesteps: int,
    density: float,
    reset: Any,
    parameters: str,
    more: bool,
    seed: int,
) -> None:
    """Bit for bit, with weights whose sums do not round in any order."""
    draw = torch.Generator().manual_seed(seed)
    height, width = extents[0] + 2, extents[1] + 2
    size = [samples * timesteps, channels, height * pool[0], width * pool[1]]
    spikes = (torch.rand(size, generator=draw) < density).float()
    packed = snnkern.functional.pack_spikes(spikes.contiguous(memory_format=torch.channels_last))

    def whole(*shape: int) -> Tensor:
        return torch.randint(-16, 17, shape, generator=draw) / 64

    weight, bias = whole(out_channels, channels, *kernel), whole(out_channels)
    rows = torch.ops.snnkern.spike_rows(weight, 32)
    maps = [
        (extent + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for extent, k in zip((height, width), kernel, strict=True)
    ]
    neurons = out_channels * maps[0] * maps[1]
    count = {"one": 1, "channel": out_channels, "neuron": neurons}[parameters]
    leak = 0.5 + whole(count).abs()
    threshold = 0.25 + whole(count).abs()
    current = whole(samples * timesteps, *maps, out_channels) if more else None
    dynamics = check_options(
        "leak", 0.0, 1.0, "none", reset, 0.0, False, False, False, "bits", False, torch.float32
    ).dynamics
    arguments = (
        packed,
        timesteps,
        size,
        pool,
        rows,
        bias,
        current,
        (stride, stride),
        (padding, padding),
        (dilation, dilation),
        leak,
        threshold,
        None,
        torch.full((neurons,), 0.125),
        None,
        *dynamics,
    )
    op = torch.ops.snnkern.spike_conv2d_lif
    expected = op.reference(*arguments)
    assert torch.equal(op(*arguments), expected)


def test_samples_that_share_a_chunk_do_not_matter() -> None:
    torch.manual_seed(0)
    compiled = snnkern.compile_inference(after_training(NETWORKS["hard"]()))
    images = torch.rand(70, 3, 8, 8)
    together = compiled(images)
    torch.testing.assert_close(
        torch.cat([compiled(image) for image in images.split(1)]), together, rtol=1e-6, atol=1e-6
    )


def test_a_compiled_network_is_written_and_read() -> None:
    compiled = snnkern.compile_inference(after_training(NETWORKS["resnet12"]()))
    images = torch.rand(2, 3, 8, 8)
    expected = compiled(images)
    file = io.BytesIO()
    torch.save(compiled, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(images), expected)


def of_layers(*layers: nn.Module) -> SpikingNetwork:
    network = vgg5(timesteps=2, input_shape=(3, 8, 8))
    network.layers = nn.Sequential(*layers)
    return network


def behind_a_sum(*layers: nn.Module) -> SpikingNetwork:
    branch = TimeDistributed(nn.Conv2d(4, 4, 3, padding=1))
    return of_layers(
        TimeDistributed(nn.Conv2d(3, 4, 3)), LIF(0.9), Residual(branch), *layers
    ).eval()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Linear(3, 3), "expected a snnkern.models.SpikingNetwork"),
        (lambda: vgg5(timesteps=2).double(), r"float64 on cpu, expected float32"),
        (lambda: vgg5(timesteps=0), "timesteps=0"),
        (lambda: wrn16_4(timesteps=2), "Residual elsewhere than behind neurons"),
        (lambda: of_layers(LIF(0.9)), "neurons without a convolution"),
        (lambda: of_layers(TimeDistributed(nn.Conv2d(3, 4, 3)), LIF(0.9), nn.GELU()), "GELU"),
        (
            lambda: of_layers(
                TimeDistributed(nn.Conv2d(3, 4, 3)), LIF(0.9), TimeDistributed(nn.AvgPool2d(2))
            ),
            "ends in pooling",
        ),
        (lambda: behind_a_sum(NormLIF(4)), "a NormLIF behind a sum"),
        (
            lambda: behind_a_sum(TimeDistributed(nn.BatchNorm2d(4)), LIF(0.9)),
            "BatchNorm2d.* behind a sum",
        ),
        (
            lambda: of_layers(TimeDistributed(nn.AvgPool2d(2, ceil_mode=True))),
            "whose windows are not side by side",
        ),
        (
            lambda: of_layers(TimeDistributed(nn.Conv2d(3, 4, 3)), LIF(0.9, return_state=True)),
            "return_state",
        ),
        (
            lambda: of_layers(
                TimeDistributed(nn.Sequential(nn.Conv2d(3, 4, 3), LIF(0.9))), LIF(0.9)
            ),
            "neurons in a TimeDistributed",
        ),
        (
            lambda: of_layers(
                TimeDistributed(nn.Conv2d(3, 4, 3)), NormLIF(4, track_running_stats=False)
            ),
            "running statistics",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused(model: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        snnkern.compile_inference(model())


def test_hooks_of_all_modules_are_refused() -> None:
    network = NETWORKS["hard"]().eval()
    with (
        register_module_forward_hook(lambda module, inputs, output: -output),
        pytest.raises(TypeError, match=r"hooks for all modules, .*, expected none"),
    ):
        snnkern.compile_inference(network)
    snnkern.compile_inference(network)


def test_other_images_are_refused() -> None:
    compiled = snnkern.compile_inference(after_training(NETWORKS["hard"]()))
    with pytest.raises(TypeError, match=r"x is torch.float64"):
        compiled(torch.rand(2, 3, 8, 8).double())
    with pytest.raises(TypeError, match=r"\[0, 3, 8, 8\]"):
        compiled(torch.rand(0, 3, 8, 8))
    with pytest.raises(ValueError, match="the images make maps of"):
        compiled(torch.rand(2, 3, 12, 12))
