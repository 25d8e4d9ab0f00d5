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
from snnkern.models import Normalize, SpikingNetwork, conv_net, fc_net
from snnkern.nn import LIF, TimeDistributed


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
    assert {"Normalize", "SpikingNetwork", "conv_net", "fc_net"} == set(snnkern.models.__all__)
