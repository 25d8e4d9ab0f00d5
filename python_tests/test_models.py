from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import snnkern
from python_tests.helpers import assert_same_bits, assert_within, random
from snnkern.models import Normalize, SpikingNetwork, conv_net, fc_net, vgg5, vgg11
from snnkern.nn import LIF, SharedDropout, TimeDistributed


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return random(*shape, dtype=dtype).sigmoid()


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Liang et al. 2022, on MNIST and on NMNIST.
@pytest.mark.parametrize(
    ("build", "shape", "count"),
    [
        (fc_net, (1, 28, 28), 535_818),
        (conv_net, (1, 28, 28), 1_682_954),
        (fc_net, (2, 34, 34), 1_318_154),
        (conv_net, (2, 34, 34), 2_732_106),
    ],
)
@pytest.mark.parametrize("spiking_output", [False, True])
def test_parameter_counts_of_the_paper(
    build: Any, shape: tuple[int, int, int], count: int, spiking_output: bool
) -> None:
    model = build(timesteps=2, input_shape=shape, spiking_output=spiking_output)
    assert parameters_of(model) == count
    logits = model(images(2, *shape))
    assert logits.shape == (2, 10)
    if spiking_output:
        assert set((logits * 2).tolist()[0]) <= {0.0, 1.0, 2.0}


def small(build: Any, timesteps: int, **options: Any) -> SpikingNetwork:
    sizes = {"channels": (3, 4)} if build is conv_net else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(
            3,
            timesteps,
            input_shape=(2, 5, 10),
            hidden=(7,),
            mean=[0.4, 0.5],
            std=[0.25, 0.2],
            **sizes,
            **options,
        )
    assert isinstance(model, SpikingNetwork)
    return model.double()


def plain_relu(build: Any, model: SpikingNetwork, x: Tensor) -> Tensor:
    """The same weights, layer by layer, in torch.nn.functional."""
    x = (x - model.normalize.get_buffer("mean")) / model.normalize.get_buffer("std")
    weights = [p for name, p in model.named_parameters() if "threshold" not in name]
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    if build is conv_net:
        for weight, bias in layers[:2]:
            x = F.conv2d(x, weight, bias, stride=2, padding=1).relu()
        layers = layers[2:]
    x = x.flatten(1)
    for weight, bias in layers[:-1]:
        x = F.linear(x, weight, bias).relu()
    return F.linear(x, *layers[-1])


@pytest.mark.parametrize("build", [fc_net, conv_net])
def test_no_time_steps_is_the_relu_network(build: Any) -> None:
    model = small(build, 0)
    x = images(4, 2, 5, 10, dtype=torch.float64)
    expected = plain_relu(build, model, x)
    assert_within(model(x).detach(), expected.detach(), 1e-12)
    model.timesteps = 3
    assert not torch.allclose(model(x), expected)
    model.timesteps = 0
    assert_within(model(x).detach(), expected.detach(), 1e-12)


@pytest.mark.parametrize("build", [fc_net, conv_net])
@pytest.mark.parametrize("spiking_output", [False, True])
def test_a_network_is_its_layers_step_by_step(build: Any, spiking_output: bool) -> None:
    model = small(build, 5, leak=0.5, threshold=0.25, spiking_output=spiking_output)
    x = images(4, 2, 5, 10, dtype=torch.float64)
    expected = model(x)
    mean, std = (model.normalize.get_buffer(name) for name in ("mean", "std"))
    states: dict[nn.Module, Tensor] = {}
    total = torch.zeros(4, 3, dtype=torch.float64)
    assert isinstance(model.layers, nn.Sequential)
    for _ in range(5):
        step = (x - mean) / std
        for layer in model.layers:
            if isinstance(layer, LIF):
                v = 0.5 * states.get(layer, torch.zeros_like(step)) + step
                step = (v >= 0.25).double()
                states[layer] = torch.where(step > 0, 0.0, v)
            else:
                assert isinstance(layer, TimeDistributed)
                step = layer.module(step)
        total = total + step
    assert_within(expected.detach(), (total / 5).detach(), 1e-12)


def test_timesteps_can_be_changed() -> None:
    model = small(fc_net, 4)
    x = images(3, 2, 5, 10, dtype=torch.float64)
    for timesteps in (1, 7, 0, 2):
        model.timesteps = timesteps
        assert model.timesteps == timesteps
        assert_same_bits(model(x).detach(), small(fc_net, timesteps)(x).detach())
    for wrong, kind in ((-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(kind, match=f"timesteps is {wrong}"):
            model.timesteps = wrong  # type: ignore[assignment]
        assert model.timesteps == 2


@pytest.mark.parametrize("timesteps", [-1, "8", None])
def test_impossible_timesteps_are_refused(timesteps: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"timesteps is .*expected an int"):
        fc_net(timesteps=timesteps, input_shape=(1, 2, 2), hidden=(3,))


@pytest.mark.parametrize("build", [fc_net, conv_net])
@pytest.mark.parametrize("timesteps", [0, 1, 4])
def test_an_ordinary_module_from_images_to_logits(build: Any, timesteps: int) -> None:
    model = small(build, timesteps, threshold=0.25)
    assert isinstance(model, nn.Module)
    x = images(3, 2, 5, 10, dtype=torch.float64).requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert x.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    # One image does not see the others.
    alone = torch.cat([model(image[None]) for image in x.detach()])
    assert_within(model(x).detach(), alone.detach(), 1e-12)


@pytest.mark.parametrize("timesteps", [0, 3])
def test_copies(timesteps: int) -> None:
    model = small(conv_net, timesteps)
    x = images(2, 2, 5, 10, dtype=torch.float64)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.timesteps == timesteps
        assert_same_bits(twin(x).detach(), model(x).detach())
    fresh = small(conv_net, timesteps)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(model.state_dict())
    assert_same_bits(fresh(x).detach(), model(x).detach())


def test_neuron_options_reach_every_layer() -> None:
    model = conv_net(
        timesteps=2,
        input_shape=(1, 4, 4),
        channels=(2, 3),
        hidden=(4, 5),
        spiking_output=True,
        leak=0.25,
        threshold=0.25,
        strict=True,
        learn_threshold=True,
    )
    neurons = [module for module in model.modules() if isinstance(module, LIF)]
    assert len(neurons) == 5
    for neuron in neurons:
        assert neuron.get_buffer("leak").item() == neuron.threshold.item() == 0.25
        assert neuron.strict
        assert isinstance(neuron.threshold, nn.Parameter)


def test_normalize() -> None:
    x = images(2, 3, 4, 4)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    y = Normalize(mean, std)(x)
    for c in range(3):
        assert_within(y[:, c], (x[:, c] - mean[c]) / std[c], 1e-6)


@pytest.mark.parametrize(("mean", "std"), [([0.1], [0.5, 0.5]), ([0.1], [0.0]), ([0.1], [-1.0])])
def test_impossible_normalisation_is_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match=r"mean is \[0\.1\] and std is"):
        Normalize(mean, std)


def test_the_public_names() -> None:
    assert snnkern.models.fc_net is fc_net
    names = {"Normalize", "SpikingNetwork", "conv_net", "fc_net", "vgg5", "vgg11"}
    assert names == set(snnkern.models.__all__)


# Ding et al. 2022, Ozdenizci & Legenstein 2023, Kundu et al. 2021, Sharmin et al. 2020.
@pytest.mark.parametrize(
    ("build", "options", "count", "neuron_layers", "dropouts"),
    [
        (vgg5, {"paper": "ding"}, 50_604_682, 5, 0),
        (vgg5, {"paper": "kundu"}, 50_595_530, 5, 3),
        (vgg5, {"paper": "sharmin"}, 9_670_336, 5, 1),
        (vgg11, {"paper": "ding"}, 61_377_034, 10, 0),
        (vgg11, {"paper": "ozdenizci"}, 61_365_834, 10, 2),
        (vgg11, {"paper": "ozdenizci", "bias": True}, 61_377_044, 10, 2),
        (vgg11, {"paper": "kundu", "num_classes": 100}, 61_728_468, 10, 7),
    ],
)
@pytest.mark.parametrize("pack", [True, False])
def test_vgg_is_of_the_size_of_the_papers(
    build: Any, options: dict[str, Any], count: int, neuron_layers: int, dropouts: int, pack: bool
) -> None:
    with torch.device("meta"):
        model = build(pack=pack, **options)
    assert parameters_of(model) == count
    modules = list(model.modules())
    assert sum(isinstance(module, LIF) for module in modules) == neuron_layers
    assert sum(isinstance(module, SharedDropout | nn.Dropout) for module in modules) == dropouts
    packing = [
        type(m).__module__ == "snnkern.nn.packed"
        for m in modules
        if type(m).__name__ in ("Conv2d", "Linear", "AvgPool2d")
    ]
    assert all(packing) if pack else not any(packing)


def test_vgg11_has_the_neurons_of_the_paper() -> None:
    model = vgg11(timesteps=1).eval()
    neurons = []
    with torch.no_grad(), snnkern.nn.watch_spikes(model, lambda _, s: neurons.append(s.numel())):
        assert model(images(1, 3, 32, 32)).shape == (1, 10)
    assert sum(neurons) == 286_720
    assert neurons[:3] == [64 * 32 * 32, 128 * 16 * 16, 256 * 16 * 16]


def test_vgg5_without_time_is_the_relu_network() -> None:
    model = vgg5(4, timesteps=0, input_shape=(2, 8, 8), mean=[0.4, 0.5], std=[0.2, 0.3]).double()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, snnkern.NormLIF)]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    x = images(3, 2, 8, 8, dtype=torch.float64)
    mean = torch.tensor([0.4, 0.5]).reshape(-1, 1, 1)
    std = torch.tensor([0.2, 0.3]).reshape(-1, 1, 1)
    y = (x - mean) / std
    for number, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        y = F.conv2d(y, conv.weight, conv.bias, padding=1)
        y = F.batch_norm(y, None, None, norm.weight, norm.bias, training=True).relu()
        y = F.avg_pool2d(y, 2) if number in (0, 2) else y
    y = y.flatten(1)
    for linear in linears:
        y = F.linear(y.relu(), linear.weight, linear.bias)
    torch.testing.assert_close(model(x), y)


def test_papers_and_images_that_no_vgg_has_are_refused() -> None:
    with pytest.raises(ValueError, match="paper is 'sharmin', expected one of ding, ozdenizci"):
        vgg11(paper="sharmin")
    with pytest.raises(ValueError, match="whose maps reach 14x7 before pooling by 2"):
        vgg5(input_shape=(1, 28, 14))
    with pytest.raises(TypeError, match="widths"):
        vgg5(widths=3)


@pytest.mark.parametrize("timesteps", [0, 30])
def test_sharmin_takes_quantised_pixels_and_a_leak(timesteps: int) -> None:
    torch.manual_seed(0)
    model = vgg5(
        3,
        timesteps,
        paper="sharmin",
        input_shape=(1, 4, 4),
        bits=2,
        leak=0.95,
        threshold=0.01,
        dropout=0.0,
    )
    assert all(m.get_buffer("leak") == 0.95 for m in model.modules() if isinstance(m, LIF))
    shades = torch.tensor([0.1, 0.3, 0.6, 0.95])
    rounded = torch.tensor([0, 1 / 3, 2 / 3, 1])
    results = []
    for pixels in (shades, rounded):
        torch.manual_seed(1)
        results.append(model(pixels.view(4, 1, 1, 1).expand(4, 1, 4, 4)))
    assert torch.equal(*results)
    assert len(results[0].unique(dim=0)) > 1
    model.encoder.bits = None
    torch.manual_seed(1)
    assert not torch.equal(model(shades.view(4, 1, 1, 1).expand(4, 1, 4, 4)), results[0])
    with pytest.raises(ValueError, match="bits is 2 and paper is 'ding', expected None"):
        vgg5(bits=2)


def test_sharmin_draws_signed_spikes_and_delays_them() -> None:
    model = vgg5(3, 8, paper="sharmin", input_shape=(1, 4, 4), threshold=0.05)
    assert model.timesteps == 8
    seen: list[Tensor] = []
    model.encoder.register_forward_hook(lambda _, __, spikes: seen.append(spikes))
    model(images(2, 1, 4, 4))
    assert set(seen[0].unique().tolist()) == {-1.0, 0.0, 1.0}
    model.timesteps = 5  # five layers of neurons, each a step late: nothing arrives
    assert not model(images(1, 1, 4, 4)).any()
    model.timesteps = 0
    assert model(images(1, 1, 4, 4)).shape == (1, 3)
