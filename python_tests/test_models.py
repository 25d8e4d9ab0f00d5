from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import snnkern
from python_tests.helpers import assert_same_bits, assert_within, random
from snnkern.models import (
    Normalize,
    SpikingNetwork,
    conv_net,
    fc_net,
    resnet12,
    resnet20,
    vgg5,
    vgg11,
    vgg11_tiny_imagenet,
    wrn16_4,
)
from snnkern.nn import LIF, Direct, NormLIF, Residual, SharedDropout, TimeDistributed
from snnkern.training.rat import project_branch_weights


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
    names = {"Normalize", "SpikingNetwork", "conv_net", "fc_net", "resnet12", "resnet20"}
    names |= {"vgg5", "vgg11", "vgg11_tiny_imagenet", "wrn16_4"}
    assert names == set(snnkern.models.__all__)


# Ding et al. 2022, Ozdenizci & Legenstein 2023, Kundu et al. 2021, Sharmin et al. 2020, Rathi et
# al. 2020. The nine convolutions of the latter's VGG11 are added up by hand: nobody states the sum.
VGG11_OF_RATHI = (
    9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 4 * 512 * 512)
    + 8192 * 1024
    + 1024 * 1024
    + 1024 * 100
)


@pytest.mark.parametrize(
    ("build", "options", "count", "neuron_layers", "dropouts"),
    [
        (vgg5, {"paper": "ding"}, 50_604_682, 5, 0),
        (vgg5, {"paper": "kundu"}, 50_595_530, 5, 3),
        (vgg5, {"paper": "sharmin"}, 9_670_336, 5, 1),
        (vgg5, {"paper": "rathi"}, 50_595_520, 5, 3),
        (vgg11, {"paper": "ding"}, 61_377_034, 10, 0),
        (vgg11, {"paper": "ozdenizci"}, 61_365_834, 10, 2),
        (vgg11, {"paper": "ozdenizci", "bias": True}, 61_377_044, 10, 2),
        (vgg11, {"paper": "kundu", "num_classes": 100}, 61_728_468, 10, 7),
        (vgg11, {"paper": "rathi", "num_classes": 100}, VGG11_OF_RATHI, 11, 8),
        (vgg11_tiny_imagenet, {"paper": "ozdenizci"}, 12_139_593, 9, 0),
        (resnet12, {"paper": "kundu"}, 4_986_582, 11, 6),
        (resnet12, {"paper": "sharmin"}, 4_986_560, 11, 6),
        (resnet12, {"paper": "rathi"}, 4_986_560, 11, 6),
        (resnet20, {"paper": "ozdenizci"}, 272_501, 19, 0),
        (resnet20, {"paper": "sharmin"}, 11_253_440, 19, 10),
        (resnet20, {"paper": "rathi"}, 11_253_440, 19, 10),
        (wrn16_4, {"paper": "ding"}, 2_748_902, 13, 0),
        (wrn16_4, {"paper": "ozdenizci", "num_classes": 100, "bias": True}, 2_772_045, 13, 0),
    ],
)
@pytest.mark.parametrize("pack", [True, False])
def test_a_network_is_of_the_size_of_the_papers(
    build: Any, options: dict[str, Any], count: int, neuron_layers: int, dropouts: int, pack: bool
) -> None:
    with torch.device("meta"):
        model = build(pack=pack, **options)
    assert parameters_of(model) == count
    modules = list(model.modules())
    assert sum(isinstance(module, LIF) for module in modules) == neuron_layers
    masks = [type(module) for module in modules if isinstance(module, nn.Dropout)]
    # Drawn anew in every step in one paper, the same for all steps in the others.
    assert masks == [nn.Dropout if options["paper"] == "ozdenizci" else SharedDropout] * dropouts
    packing = [
        type(m).__module__ == "snnkern.nn.packed"
        for m in modules
        if type(m).__name__ in ("Conv2d", "Linear", "AvgPool2d")
    ]
    assert all(packing) if pack else not any(packing)


@pytest.mark.parametrize(
    ("build", "first", "count"),
    [
        (vgg11, [64 * 32**2, 128 * 16**2, 256 * 16**2], 286_720),
        (wrn16_4, [16 * 32**2, 64 * 32**2, 64 * 32**2], 475_136),
        # Seven layers of 16 channels, six of 32 and of 64 on maps half as wide each time.
        (resnet20, [16 * 32**2] * 7, 7 * 16 * 32**2 + 6 * 32 * 16**2 + 6 * 64 * 8**2),
        (
            resnet12,
            [64 * 32**2] * 3,
            3 * 64 * 32**2 + 2 * (64 * 256 + 128 * 64 + 256 * 16 + 512 * 4),
        ),
    ],
)
def test_networks_have_the_neurons_of_the_papers(build: Any, first: list[int], count: int) -> None:
    model = build(timesteps=1).eval()
    neurons = []
    with torch.no_grad(), snnkern.nn.watch_spikes(model, lambda _, s: neurons.append(s.numel())):
        assert model(images(1, 3, 32, 32)).shape == (1, 10)
    assert sum(neurons) == count
    assert neurons[: len(first)] == first


def test_weights_at_the_start() -> None:
    """He's initialisation by the number of outputs; normal linear layers in hybrid training."""
    model = resnet12(10, 2, bias=True, input_shape=(3, 8, 8))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            outputs = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.1)
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1)
            assert not module.bias.any()
    for module in wrn16_4(input_shape=(1, 8, 8)).modules():
        if isinstance(module, nn.Linear):
            assert module.weight.abs().max() <= module.in_features**-0.5  # that of torch
            assert not module.bias.any()


def test_dropout_rates() -> None:
    """The paper's own rate behind hidden layers goes before the option."""
    with torch.device("meta"):
        model = vgg5(paper="rathi", dropout=0.3)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.5, 0.5]


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


def test_a_readout_instead_of_the_papers() -> None:
    torch.manual_seed(0)
    mean = vgg11(4, 6, paper="ozdenizci", input_shape=(3, 8, 8), readout="mean").eval()
    total = vgg11(4, 6, paper="ozdenizci", input_shape=(3, 8, 8), readout="sum").eval()
    total.load_state_dict(mean.state_dict())
    x = images(2, 3, 8, 8)
    assert_within(total(x).detach(), 6 * mean(x).detach(), 1e-5)
    with pytest.raises(ValueError, match="readout is 'max', expected one of mean, sum"):
        vgg11(readout="max")


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


# Residual networks, against the same weights in torch.nn.functional, step by step


class Fire:
    """The neurons of a network in the order of their use, for one step at a time."""

    def __init__(self, model: nn.Module, mode: str) -> None:
        self.neurons = [module for module in model.modules() if isinstance(module, LIF)]
        self.mode = mode
        self.states: list[Any] = [0.0] * len(self.neurons)
        self.fired: list[Any] = [0.0] * len(self.neurons)
        self.ever: list[Tensor] = []
        self.used = 0

    def __call__(self, x: Tensor) -> Tensor:
        if self.mode == "relu":
            return x.relu()
        number = self.used % len(self.neurons)
        self.used += 1
        neuron, u = self.neurons[number], self.states[number]
        leak: Any = neuron.leak
        threshold = neuron.threshold
        delayed = neuron.reset == "delayed_soft"
        v = x * 0 + u if delayed else leak * u + x
        if neuron.reset == "hard":
            z = v - threshold
            s = (z >= 0).double()
            slope = (1 - z.abs()).clamp(min=0)
        else:
            z = v / threshold - 1
            s = (z > 0).double()
            slope = 0.3 * (1 - z.abs()).clamp(min=0)
        if self.mode == "straight":
            z, slope = v - threshold, torch.ones_like(v)
        spikes: Tensor = s + slope.detach() * (z - z.detach())
        if neuron.reset == "hard":
            self.states[number] = v * (1 - spikes)
        elif neuron.reset == "soft":
            self.states[number] = v - threshold * s
        else:
            self.states[number] = leak * v + x - threshold * s
        self.fired[number] = torch.maximum(s, torch.as_tensor(self.fired[number]))
        if self.mode == "rate":
            spikes = s + self.ever[number] * (x - x.detach())
        return spikes


def weights_of(model: nn.Module) -> Any:
    """Convolutions in the order of the modules, a shortcut's before those past which it leads."""
    return iter([m.weight for m in model.modules() if isinstance(m, nn.Conv2d)])


def norms_of(model: nn.Module) -> Any:
    """Batch norms in evaluation mode, in the order of the modules."""

    def norm(m: Any) -> Any:
        return lambda x: F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias)

    return iter([norm(m) for m in model.modules() if isinstance(m, NormLIF | nn.BatchNorm2d)])


def branch_weights_of(model: nn.Module) -> Any:
    return iter([m.branch_weights for m in model.modules() if isinstance(m, Residual)])


def plain_hybrid(model: nn.Module, x: Tensor, fire: Fire) -> Tensor:
    w = weights_of(model)
    for _ in range(3):
        x = fire(F.conv2d(x, next(w), padding=1))
    x = F.avg_pool2d(x, 2)
    for stride in (1, 2, 2, 2):
        past = x if stride == 1 else F.conv2d(x, next(w), stride=stride)
        y = fire(F.conv2d(x, next(w), stride=stride, padding=1))
        x = fire(F.conv2d(y, next(w), padding=1) + past)
    return x.flatten(1)


def plain_resnet20(model: nn.Module, x: Tensor, fire: Fire) -> Tensor:
    w, norm, share = weights_of(model), norms_of(model), branch_weights_of(model)
    x = fire(next(norm)(F.conv2d(x, next(w), padding=1)))
    for stride in (1, 1, 1, 2, 1, 1, 2, 1, 1):
        past = x if stride == 1 else next(norm)(F.conv2d(x, next(w), stride=stride))
        y = fire(next(norm)(F.conv2d(x, next(w), stride=stride, padding=1)))
        y = next(norm)(F.conv2d(y, next(w), padding=1))
        x = fire(torch.einsum("i,i...->...", next(share), torch.stack([past, y])))
    return x.mean((2, 3))


def plain_wrn(model: nn.Module, x: Tensor, fire: Fire) -> Tensor:
    w, norm, share = weights_of(model), norms_of(model), branch_weights_of(model)
    x = F.conv2d(x, next(w), padding=1)
    for stride, widens in zip((1, 1, 2, 1, 2, 1), (True, False) * 3, strict=True):
        a = fire(next(norm)(x))
        past = F.conv2d(a, next(w), stride=stride) if widens else x
        y = F.conv2d(a, next(w), stride=stride, padding=1)
        y = F.conv2d(fire(next(norm)(y)), next(w), padding=1)
        x = torch.einsum("i,i...->...", next(share), torch.stack([past, y]))
    return fire(next(norm)(x)).mean((2, 3))


RESIDUAL = [
    pytest.param(resnet12, "kundu", plain_hybrid, id="resnet12-kundu"),
    pytest.param(resnet12, "sharmin", plain_hybrid, id="resnet12-sharmin"),
    pytest.param(resnet20, "ozdenizci", plain_resnet20, id="resnet20-ozdenizci"),
    pytest.param(wrn16_4, "ding", plain_wrn, id="wrn16_4-ding"),
    pytest.param(wrn16_4, "ozdenizci", plain_wrn, id="wrn16_4-ozdenizci"),
]


def small_residual(build: Any, paper: str) -> SpikingNetwork:
    """In evaluation mode; with norms, thresholds and branch weights that are not their defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Where every layer delays its spikes by a step, it takes eleven to come to the end.
        timesteps = 12 if paper == "sharmin" else 5
        neuron = {"leak": 0.9, "threshold": 0.35}
        model = build(3, timesteps, paper=paper, input_shape=(2, 8, 8), bias=True, **neuron)
        for module in model.modules():
            if isinstance(module, NormLIF | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2)
                for parameter, mean in ((module.weight, 1.0), (module.bias, 0.2)):
                    assert parameter is not None
                    nn.init.normal_(parameter, mean, 0.2)
            if isinstance(module, Residual) and module.branch_weights is not None:
                nn.init.uniform_(module.branch_weights, 0.3, 0.8)
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.bias)
    if paper == "sharmin":
        model.encoder = Direct(timesteps)  # what is drawn is no function of the weights
    assert isinstance(model, SpikingNetwork)
    return model.double().eval()


def plain_residual(model: SpikingNetwork, plain: Any, paper: str, x: Tensor, mode: str) -> Tensor:
    centre, scale = (0.5, 0.5) if paper == "sharmin" else (0.0, 1.0)
    steps = 1 if mode == "relu" else model.timesteps
    (linear,) = (module for module in model.modules() if isinstance(module, nn.Linear))
    fire = Fire(model, mode)
    if mode == "rate":
        first = Fire(model, "time")
        for _ in range(steps):
            plain(model, ((x - centre) / scale).detach(), first)
        fire.ever = first.fired
    logits = [linear(plain(model, (x - centre) / scale, fire)) for _ in range(steps)]
    assert not fire.neurons or fire.used % len(fire.neurons) == 0
    total = torch.stack(logits).sum(0)
    return total if paper == "kundu" else total / steps


GRADIENTS: dict[str, Any] = {
    "time": None,
    "straight": snnkern.surrogate.StraightThrough(),
    "rate": "rate",
    "relu": "relu",
}


@pytest.mark.parametrize(("build", "paper", "plain"), RESIDUAL)
@pytest.mark.parametrize("mode", GRADIENTS)
def test_a_residual_network_is_its_layers_step_by_step(
    build: Any, paper: str, plain: Any, mode: str
) -> None:
    """Logits and all gradients: through time, through the rate and of the ReLU network."""
    model = small_residual(build, paper)
    x = images(2, 2, 8, 8, dtype=torch.float64).requires_grad_()
    wanted = [x, *model.parameters()]

    def outcome(logits: Tensor) -> tuple[Tensor, ...]:
        loss = F.cross_entropy(logits, torch.tensor([0, 2]))
        grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        return logits.detach(), *grads

    with snnkern.gradient(model, GRADIENTS[mode]):
        actual = outcome(model(x))
    expected = outcome(plain_residual(model, plain, paper, x, mode))
    names = ["logits", "images", *(name for name, _ in model.named_parameters())]
    for name, one, other in zip(names, actual, expected, strict=True):
        if mode == "rate" and name.endswith(("threshold", "leak")):
            continue  # BPTR leaves them alone
        assert_within(one, other, 1e-9 * (1 + float(other.abs().max())), name)
    assert actual[1].abs().max() > 0
    if mode == "relu":
        timesteps, model.timesteps = model.timesteps, 0
        assert_within(model(x).detach(), actual[0], 1e-12)
        model.timesteps = timesteps
        assert not torch.allclose(model(x).detach(), actual[0])


@pytest.mark.parametrize(("build", "paper", "plain"), RESIDUAL)
def test_neurons_are_found_in_the_order_of_their_use(build: Any, paper: str, plain: Any) -> None:
    """Thresholds are calibrated one layer after the other, or those of the stem alone."""
    model = small_residual(build, paper)
    used: list[str] = []
    with snnkern.nn.watch_spikes(model, lambda name, _: used.append(name)):
        model(images(1, 2, 8, 8, dtype=torch.float64))
    found = [name for name, module in model.named_modules() if isinstance(module, LIF)]
    assert used == found
    in_stem = [name for name in found if name.startswith("layers.stem.")]
    assert len(in_stem) == {resnet12: 3, resnet20: 1, wrn16_4: 0}[build]
    assert found[: len(in_stem)] == in_stem


@pytest.mark.parametrize(("build", "paper", "plain"), RESIDUAL)
@pytest.mark.parametrize("timesteps", [0, 3])
def test_only_the_first_convolution_of_a_residual_network_sees_the_image(
    build: Any, paper: str, plain: Any, timesteps: int
) -> None:
    """It runs once, not once for every step; all others see spikes, or means of them."""
    model = small_residual(build, paper).float()
    model.timesteps = timesteps
    rows: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with torch.no_grad():
        model(images(2, 2, 8, 8))
    assert rows == [2] + [2 * max(timesteps, 1)] * (len(rows) - 1)


@pytest.mark.parametrize(("build", "blocks"), [(resnet20, 9), (wrn16_4, 6), (resnet12, 0)])
def test_branch_weights_are_found_and_projected(build: Any, blocks: int) -> None:
    model = build(input_shape=(1, 8, 8))
    weights = [p for name, p in model.named_parameters() if name.endswith(".branch_weights")]
    assert len(weights) == blocks
    for parameter in weights:
        assert parameter.tolist() == [0.5, 0.5]
        with torch.no_grad():
            parameter[0] = 0.9
    project_branch_weights(model)
    for parameter in weights:
        assert_within(parameter.detach(), torch.tensor([0.7, 0.3]), 1e-6)


def test_the_stem_draws_at_most_nine_tenths() -> None:
    model = resnet12(3, 4, paper="rathi", input_shape=(1, 8, 8))
    seen: list[Tensor] = []
    model.encoder.register_forward_hook(lambda _, __, spikes: seen.append(spikes))
    torch.manual_seed(0)
    model(torch.ones(64, 1, 8, 8))
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}
    assert abs(seen[0].mean().item() - 0.9) < 0.01  # of 16384 draws: four standard deviations
    assert isinstance(model.readout, snnkern.nn.SumReadout)


def test_copies_of_residual_networks() -> None:
    model = small_residual(resnet20, "ozdenizci")
    x = images(1, 2, 8, 8, dtype=torch.float64)
    fresh = resnet20(3, 5, input_shape=(2, 8, 8), bias=True, leak=0.9).double().eval()
    fresh.load_state_dict(model.state_dict())
    for twin in (pickle.loads(pickle.dumps(model)), fresh):
        assert_same_bits(twin(x).detach(), model(x).detach())


@pytest.mark.parametrize("build", [resnet12, resnet20, wrn16_4])
def test_training_a_residual_network_of_packing_layers(build: Any) -> None:
    """Dropout, batch statistics and both branches included, it is the plain one."""
    x = images(2, 1, 8, 8)
    results = []
    for pack in (True, False):
        torch.manual_seed(0)
        model = build(3, 4, input_shape=(1, 8, 8), threshold=0.3, pack=pack)
        logits = model(x)
        wanted = list(model.parameters())
        results.append([logits, *torch.autograd.grad(logits.square().sum(), wanted)])
    for packed, plain in zip(*results, strict=True):
        assert_same_bits(packed.detach(), plain.detach())
    assert results[0][1].any()


@pytest.mark.parametrize("build", [resnet12, resnet20, wrn16_4])
def test_bounds_of_residual_networks_hold(build: Callable[..., SpikingNetwork]) -> None:
    torch.manual_seed(0)
    model = build(3, 2, input_shape=(1, 8, 8), threshold=0.1).eval()
    x, y, eps = images(2, 1, 8, 8), torch.tensor([0, 2]), 0.02
    lower = snnkern.certify.bounds(model, x - eps, x + eps, y, method="ibp")
    assert lower.isfinite().all()
    for _ in range(20):
        logits = model(x + eps * (2 * torch.rand_like(x) - 1)).detach()
        others = torch.stack([row[torch.arange(3) != c] for row, c in zip(logits, y, strict=True)])
        margins = logits.gather(1, y[:, None]) - others
        assert (margins >= lower).all()


def test_papers_and_images_that_no_resnet_has_are_refused() -> None:
    with pytest.raises(ValueError, match="paper is 'ding', expected one of kundu, rathi, sharmin"):
        resnet12(paper="ding")
    with pytest.raises(ValueError, match="paper is 'kundu', expected one of ding, ozdenizci"):
        wrn16_4(paper="kundu")
    with pytest.raises(ValueError, match="whose maps reach 7x7 before pooling by 2"):
        resnet12(input_shape=(1, 7, 7))
    # Strides halve odd maps too.
    assert wrn16_4(3, 1, input_shape=(1, 7, 5))(images(2, 1, 7, 5)).shape == (2, 3)
