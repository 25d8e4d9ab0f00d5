"""Activity, distances, singular values and operations, against hand counts and plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from snnkern.measures import (
    AC_ENERGY,
    MAC_ENERGY,
    cost,
    perturbation_distance,
    singular_values,
    spike_distance,
    spiking_activity,
)
from snnkern.models import SpikingNetwork, conv_net, fc_net, resnet12, resnet20, wrn16_4
from snnkern.nn import IF, MeanReadout, RateCoding, Residual, TimeDistributed

T = 4


def small_network() -> SpikingNetwork:
    """Two inputs to three neurons to two logits; neuron i takes weight i + 1 times pixel 0."""
    hidden, last = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        hidden.weight.copy_(torch.tensor([[0.25, 0.0], [0.5, 0.0], [1.0, 0.0]]))
        last.weight.copy_(torch.eye(2, 3))
    layers = nn.Sequential(TimeDistributed(hidden), IF(reset="soft"), TimeDistributed(last))
    return SpikingNetwork(T, nn.Identity(), layers, MeanReadout())


def test_activity_by_hand() -> None:
    # Neurons that take 0.25, 0.5 and 1 fire once, twice and four times in four steps.
    activity = spiking_activity(small_network(), torch.tensor([[1.0, 0.3]]))
    assert list(activity) == ["layers.1"]
    layer = activity["layers.1"]
    assert (layer.spikes, layer.neurons, layer.timesteps) == (7, 3, T)
    assert layer.per_neuron == 7 / 3
    assert layer.time_averaged == 7 / 12


def test_activity_is_a_mean_over_images() -> None:
    activity = spiking_activity(small_network(), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert activity["layers.1"].spikes == 3.5
    assert activity["layers.1"].neurons == 3


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    neurons = IF()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neurons = neurons

        def forward(self, x: Tensor) -> Tensor:
            spikes: Tensor = self.neurons(self.neurons(x.expand(T, *x.shape)))
            return spikes

    x = torch.tensor([[1.0, 0.5]])
    activity = spiking_activity(Twice(), x)["neurons"]
    assert (activity.spikes, activity.neurons) == (12, 4)
    # The second neuron falls silent in both uses.
    distance = spike_distance(Twice(), x, torch.tensor([[1.0, 0.0]]))["neurons"]
    assert distance.train == torch.tensor(4.0).sqrt()


def test_a_relu_network_spikes_nowhere() -> None:
    model = small_network()
    model.timesteps = 0
    assert spiking_activity(model, torch.ones(1, 2)) == {}


def test_distances_by_hand() -> None:
    x, adversarial = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]])
    # Currents halve: 0.125, 0.25 and 0.5 fire 0, 1 and 2 times, at steps -, 4 and 2, 4.
    distance = spike_distance(small_network(), x, adversarial)["layers.1"]
    rates = torch.tensor([1.0, 1.0, 2.0]) / T
    torch.testing.assert_close(distance.rate, rates.norm().reshape(1))
    # Neuron 0 loses step 4, neuron 1 loses step 2 of {2, 4}, neuron 2 loses steps 1 and 3.
    torch.testing.assert_close(distance.train, torch.tensor([4.0]).sqrt())
    torch.testing.assert_close(perturbation_distance(x, adversarial), torch.tensor([0.5]))


@given(seed=st.integers(0, 1000))
def test_trains_differ_at_least_as_much_as_rates(seed: int) -> None:
    torch.manual_seed(seed)
    model = fc_net(3, T, input_shape=(1, 4, 4), hidden=(12, 9))
    x, other = torch.rand(2, 5, 1, 4, 4)
    layers = spike_distance(model, x, other)
    assert len(layers) == 2
    for distance in layers.values():
        # Jensen: ||mean over t||^2 <= mean over t of ||.||^2.
        assert (distance.rate <= distance.train / T**0.5 + 1e-6).all()
    for distance in spike_distance(model, x, x).values():
        assert (distance.train == 0).all()


def test_an_encoder_draws_the_same_for_both() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(RateCoding(T), TimeDistributed(nn.Linear(9, 6)), IF())
    x = torch.rand(3, 9)
    before = torch.get_rng_state()
    assert (spike_distance(model, x, x)["2"].train == 0).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_distances_refuse_what_does_not_fit() -> None:
    model, x = small_network(), torch.ones(2, 2)
    for measure in (perturbation_distance, lambda *pair: spike_distance(model, *pair)):
        with pytest.raises(ValueError, match=r"adversarial has shape \[1, 2\], expected .* \[2, 2"):
            measure(x, x[:1])


def test_singular_values_of_orthogonal_rows() -> None:
    layer = nn.Conv2d(2, 4, 3)
    nn.init.orthogonal_(layer.weight)
    values = singular_values(nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 3)))
    assert list(values) == ["0", "2"]
    torch.testing.assert_close(values["0"], torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)


def test_operations_by_hand() -> None:
    # The first layer, 6 weights, sees a constant input and runs once. The second has 2 weights for
    # each of 7 spikes; in terms of table 6: 6 weights times 7 / 3 spikes per neuron.
    counted = cost(small_network(), torch.tensor([[1.0, 0.3]]))
    first, last = counted.layers.values()
    assert (first.dense, first.macs, first.acs) == (6, 6, 0)
    assert (last.dense, last.macs) == (6, 0)
    assert last.acs == pytest.approx(14)
    assert counted.energy() == pytest.approx(6 * 4.6 + 14 * 0.9)
    assert counted.energy("int") == pytest.approx(6 * 3.2 + 14 * 0.1)
    assert counted.dense_energy() == pytest.approx(12 * 4.6)


def test_dense_operations_do_not_depend_on_the_batch() -> None:
    layers = nn.Sequential(nn.Linear(9, 6), IF(), nn.Linear(6, 3))
    counted = cost(nn.Sequential(RateCoding(T), layers), torch.ones(5, 9))
    assert [layer.dense for layer in counted.layers.values()] == [54, 18]


def test_rate_coding_never_multiplies() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(RateCoding(T), TimeDistributed(nn.Linear(9, 6)), IF())
    (layer,) = cost(layers, torch.ones(3, 9)).layers.values()
    assert layer.macs == 0
    assert layer.acs == pytest.approx(9 * 6 * T)


def test_operations_of_a_convolution() -> None:
    """Dense operations are those of table 6; behind spikes, dense times activity."""
    torch.manual_seed(0)
    model = conv_net(3, T, input_shape=(1, 8, 8), channels=(4, 6), hidden=(5,))
    x = torch.rand(2, 1, 8, 8)
    counted = cost(model, x).layers
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    activity = list(spiking_activity(model, x).values())
    for number, (name, module) in enumerate(convolutions.items()):
        k, (h, w) = module.kernel_size[0], _output_size(model, name, x)
        dense = k**2 * h * w * module.out_channels * module.in_channels
        assert counted[name].dense == dense
        if number == 0:
            assert counted[name].macs == dense
        else:
            expected = dense * activity[number - 1].per_neuron
            assert counted[name].acs == pytest.approx(expected, rel=1e-5)


def _widening_block(positions: int, before: int, after: int, same: int) -> int:
    """Multiplications of a block that widens, its shortcut, and ``same`` more convolutions."""
    return positions * (9 * before * after + same * 9 * after**2 + before * after)


# 8x8 images of one channel. The last is the block that widens and who feeds both of its branches.
@pytest.mark.parametrize(
    ("build", "first", "rest", "branches", "feeder"),
    [
        (
            resnet12,
            64 * 9 * 64,
            2 * 64 * 9 * 64**2
            + 2 * 16 * 9 * 64**2
            + _widening_block(4, 64, 128, 1)
            + _widening_block(1, 128, 256, 1)
            + _widening_block(1, 256, 512, 1)
            + 512 * 3,
            "layers.blocks.1.0",
            "layers.blocks.0.1",
        ),
        (
            resnet20,
            64 * 9 * 16,
            64 * 6 * 9 * 16**2
            + _widening_block(16, 16, 32, 5)
            + _widening_block(4, 32, 64, 5)
            + 64 * 3,
            "layers.blocks.3.0",
            "layers.blocks.2.1",
        ),
        (
            wrn16_4,
            64 * 9 * 16,
            _widening_block(64, 16, 64, 3)
            + _widening_block(16, 64, 128, 3)
            + _widening_block(4, 128, 256, 3)
            + 256 * 3,
            "layers.blocks.2.1",
            "layers.blocks.2.0",
        ),
    ],
)
def test_operations_of_a_residual_network(
    build: Any, first: int, rest: int, branches: str, feeder: str
) -> None:
    """Behind the first convolution all accumulate, two branches each on the spikes they share."""
    torch.manual_seed(0)
    model = build(3, T, input_shape=(1, 8, 8), threshold=0.3)
    x = torch.rand(2, 1, 8, 8)
    counted = cost(model, x)
    assert sum(layer.dense for layer in counted.layers.values()) == first + rest
    macs = {name: layer.macs for name, layer in counted.layers.items() if layer.macs}
    assert macs == {"layers.stem.0.module": first}
    activity = spiking_activity(model, x)[feeder].per_neuron
    assert activity > 0
    for branch in ("shortcut", "branch"):
        layer = counted.layers[f"{branches}.{branch}.0.module"]
        assert layer.acs == pytest.approx(layer.dense * activity, rel=1e-5)


def test_both_branches_of_a_block_that_sees_the_image_multiply() -> None:
    def layer() -> TimeDistributed:
        return TimeDistributed(nn.Linear(9, 9))

    block = Residual(nn.Sequential(layer(), IF(), layer()), layer())
    model = SpikingNetwork(T, nn.Identity(), nn.Sequential(block, IF()), MeanReadout())
    counted = cost(model, torch.rand(2, 9)).layers
    multiplying = [name for name, operations in counted.items() if operations.macs]
    assert sorted(multiplying) == ["layers.0.branch.0.module", "layers.0.shortcut.module"]


def _output_size(model: nn.Module, name: str, x: Tensor) -> tuple[int, int]:
    sizes: list[tuple[int, int]] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: sizes.append((output.shape[2], output.shape[3]))
    )
    model(x)
    handle.remove()
    return sizes[0]


def test_a_relu_network_multiplies_everywhere() -> None:
    model = small_network()
    model.timesteps = 0
    counted = cost(model, torch.ones(1, 2))
    assert [layer.acs for layer in counted.layers.values()] == [0, 0]
    assert counted.energy() == counted.dense_energy()


def test_the_model_is_left_as_it_was() -> None:
    model = small_network().train()
    parameters = [p.clone() for p in model.parameters()]
    x = torch.ones(1, 2)
    spiking_activity(model, x)
    spike_distance(model, x, x)
    cost(model, x)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    for parameter, before in zip(model.parameters(), parameters, strict=True):
        assert torch.equal(parameter, before)
        assert parameter.requires_grad


def test_an_operation_costs_its_parts() -> None:
    """Table 7: a multiply-accumulate is a multiplication (3.7, 3.1 pJ) and an addition."""
    assert MAC_ENERGY["float"] == pytest.approx(3.7 + AC_ENERGY["float"])
    assert MAC_ENERGY["int"] == pytest.approx(3.1 + AC_ENERGY["int"])
