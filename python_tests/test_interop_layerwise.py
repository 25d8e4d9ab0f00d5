"""snnTorch models layer by layer, beside themselves step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from python_tests.helpers import need
from python_tests.twins import assert_same_calls
from snnkern.interop import layerwise

snn = need("snntorch")
utils = need("snntorch.utils")

T = 6
LEARNT = {"learn_beta": True, "learn_threshold": True}
NEURONS: dict[str, Callable[..., nn.Module]] = {
    "subtract": lambda **more: snn.Leaky(0.9, **LEARNT, **more),
    "zero": lambda **more: snn.Leaky(0.9, reset_mechanism="zero", **LEARNT, **more),
    "none": lambda **more: snn.Leaky(0.5, reset_mechanism="none", **LEARNT, **more),
    "now": lambda **more: snn.Leaky(0.9, reset_delay=False, **LEARNT, **more),
    "synaptic": lambda **more: snn.Synaptic(0.8, 0.9, learn_alpha=True, **LEARNT, **more),
    "left": lambda **more: snn.Leaky(0.9, spike_grad=snn.surrogate.SFS(), **more),
}
EVERY_NEURON = pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)


@pytest.fixture(autouse=True)
def _no_instances() -> None:
    snn.SpikingNeuron.instances.clear()


def exact(model: nn.Module) -> None:
    """Weights that convolutions of images as below add up without rounding, in any order."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight" in name or "bias" in name:
                parameter.copy_((parameter * 16).round() / 16 + ("bias" in name) * 0.5)


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(*shape, generator=generator) * 8).round() / 4


class Loop(nn.Module):
    """The loop over time in forward; ``inner`` is what a step does."""

    conv: Any
    fc: Any
    lif1: Any
    lif2: Any

    def __init__(self, make: Callable[..., nn.Module] = NEURONS["subtract"], **more: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.lif1 = make(**more)
        self.fc = nn.Linear(4 * 9, 5)
        self.lif2 = make(**more)
        exact(self)


class Passed(Loop):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, second = self.start(self.lif1), self.start(self.lif2)
        spikes, membranes = [], []
        for step in range(T):
            s, *first = self.lif1(self.conv(x[step]), *first)
            s = F.max_pool2d(s, 2)
            s, *second = self.lif2(self.fc(s.flatten(1)), *second)
            spikes.append(s)
            membranes.append(second[-1])
        return torch.stack(spikes, dim=0), torch.stack(membranes, dim=1), second[-1]

    @staticmethod
    def start(lif: Any) -> list[Tensor]:
        states = lif.reset_mem()
        return list(states) if isinstance(states, tuple) else [states]


class Hidden(Loop):
    """Resets by the library's function, iterates over its input, adds spikes up."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        utils.reset(self)
        total: Any = 0
        for x_t in x:
            s = self.lif1(self.conv(x_t))
            s = F.avg_pool2d(s, 2)
            s = self.lif2(self.fc(torch.flatten(s, 1)))
            total = total + s
        return (total,)


class Constant(Loop):
    """One image for all steps, with a residual connection and batch in front."""

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self)
        spikes = []
        for _ in range(T):
            current = self.conv(x)
            s = self.lif1(current) + current
            s += 1
            spikes.append(self.lif2(self.fc(F.max_pool2d(s, 2).flatten(1))))
        return torch.stack(spikes)


def run(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def stepwise(model: nn.Module, x: Tensor) -> Any:
    """The user's loop around a model of single steps, which the other one does without."""
    if hasattr(model, "timesteps"):
        return model(x)
    outputs = [model(x_t) for x_t in x.unbind(0)]
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs)
    return tuple(torch.stack(column) for column in zip(*outputs, strict=True))


def states(model: nn.Module) -> dict[str, Tensor]:
    """Those after the call; of resets to zero what the next step makes of them."""
    found: dict[str, Tensor] = {}
    for module in model.modules():
        if isinstance(module, snn.Leaky | snn.Synaptic):
            mem = module.mem.detach()
            if module.reset_mechanism == "zero" and module.reset_delay:
                mem = torch.where(mem > module.threshold, 0, mem)
            found[f"mem {len(found)}"] = mem
    return found


class Renamed(nn.Module):
    """Gradients under the names of the model inside."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        if hasattr(inner, "timesteps"):
            self.timesteps = inner.timesteps

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)

    def named_parameters(self, *args: Any, **options: Any) -> Any:
        inner = getattr(self.inner, "model", self.inner)
        return inner.named_parameters(*args, **options)


def compare(
    build: Callable[[], nn.Module], inputs: list[Tensor], call: Any, detach: bool = False
) -> tuple[Any, Any]:
    """The model and the fast one, each built: the library's reset does not find copies."""
    model, fast = build(), layerwise(build(), T)

    def between(model: nn.Module) -> None:
        for module in model.modules():
            if detach and isinstance(module, snn.Leaky | snn.Synaptic):
                module.mem.detach_()
                if isinstance(module, snn.Synaptic):
                    module.syn.detach_()

    assert_same_calls(Renamed(model), Renamed(fast), inputs, call, states, between)
    return model, fast


@EVERY_NEURON
def test_a_loop_that_passes_states(make: Callable[..., nn.Module]) -> None:
    compare(
        lambda: Passed(make),
        [images(T, 3, 2, 6, 6), images(T, 3, 2, 6, 6), images(T, 2, 2, 6, 6)],
        run,
    )


@pytest.mark.parametrize("name", ["subtract", "zero", "none", "synaptic"])
def test_a_loop_around_hidden_states(name: str) -> None:
    compare(
        lambda: Hidden(NEURONS[name], init_hidden=True),
        [images(T, 3, 2, 6, 6), images(T, 3, 2, 6, 6)],
        run,
    )


@EVERY_NEURON
def test_a_model_of_single_steps(make: Callable[..., nn.Module]) -> None:
    """Its states go on from call to call."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            make(init_hidden=True),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 9, 5),
            make(init_hidden=True, output=True),
        )
        exact(model)
        return model

    compare(build, [images(T, 3, 2, 6, 6), images(T, 3, 2, 6, 6)], stepwise, detach=True)


def test_what_is_constant_in_time_is_computed_once() -> None:
    make = NEURONS["subtract"]
    x = images(3, 2, 6, 6)

    def step() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), make(init_hidden=True))
        exact(model)
        return model

    _, loop = compare(lambda: Constant(make, init_hidden=True), [x, x], run)
    held = x.expand(T, *x.shape)
    _, single = compare(step, [held], stepwise)
    seen: list[int] = []
    for conv in (loop.model.conv, single.model[0]):
        conv.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    loop(x), single(held)
    assert seen == [3, 3]


def test_all_steps_are_one_batch() -> None:
    seen: list[int] = []
    model = Passed()
    model.fc.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    layerwise(model, T)(images(T, 3, 2, 6, 6))
    assert seen == [T * 3]


class Normalised(Loop):
    def __init__(self) -> None:
        super().__init__(init_hidden=True)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self)
        spikes = []
        for t in range(T):
            s = self.lif1(self.norm(self.conv(x[:, t])))
            s = self.drop(F.max_pool2d(s, 2))
            spikes.append(self.lif2(self.fc(s.view(s.size(0), -1))))
        return torch.stack(spikes)


def test_batch_norm_in_training_sees_one_step_at_a_time() -> None:
    x = images(3, T, 2, 6, 6)

    def build() -> nn.Module:
        model: Any = Normalised()
        model.conv.bias = None  # of no use before a norm
        model.drop.eval()
        return model  # type: ignore[no-any-return]

    model, fast = compare(build, [x, x], run)
    assert model.norm.num_batches_tracked == 2 * T
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(fast.model.norm, name), getattr(model.norm, name))
    model.eval(), fast.eval()
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))


class ReadsAStepTwice(Loop):
    """For the shape of the state, and a parameter of the model's own at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros_like(x[0])
        spikes = []
        for t in range(T):
            s, mem = self.lif1(x[t] * self.gain + x[t], mem)
            spikes.append(s)
        return torch.stack(spikes)


def test_an_input_that_is_read_more_than_once() -> None:
    compare(ReadsAStepTwice, [images(T, 3, 7), images(T, 3, 7)], run)


def test_an_input_with_more_steps_than_the_loop() -> None:
    """Indices take the first ones; what iterates over it would take them all, and is refused."""
    x = images(T + 2, 3, 2, 6, 6)
    compare(Passed, [x], run)
    fast = layerwise(Hidden(init_hidden=True), T)
    for steps in (x, x[: T - 1]):
        with pytest.raises(ValueError, match=f"x has {len(steps)} time steps, expected {T}"):
            fast(steps)


def test_copies() -> None:
    fast = layerwise(Passed(), T)
    x = images(T, 3, 2, 6, 6)
    # Before a call: the library's states, which are part of a graph then, cannot be copied.
    twin = copy.deepcopy(fast)
    expected = fast(x)
    assert twin.model is not fast.model
    assert all(torch.equal(a, b) for a, b in zip(twin(x), expected, strict=True))


class EveryOther(Loop):
    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros_like(x[0])
        spikes = []
        for t in range(T):
            s, mem = self.lif1(x[2 * t], mem)
            spikes.append(s)
        return torch.stack(spikes)


class Recurrent(Loop):
    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self)
        s: Any = x.new_zeros(3, 5)
        spikes = []
        for t in range(T):
            s1 = self.lif1(self.conv(x[t])).flatten(1)[:, :36]
            s = self.lif2(self.fc(s1) + s)
            spikes.append(s)
        return torch.stack(spikes)


class Crossed(Loop):
    """Each neuron starts from the other one's state."""

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes = []
        for t in range(T):
            s, mem = self.lif1(x[t], mem2)
            s, mem2 = self.lif2(s, mem1)
            mem1 = mem
            spikes.append(s)
        return torch.stack(spikes)


class Branching(Loop):
    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.lif1(x) if x.sum() > 0 else self.lif2(x)
        return spikes


class PassesOneStep(Loop):
    def forward(self, x: Tensor, mem: Tensor) -> Any:
        return self.lif1(self.conv(x), mem)


REFUSED: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "recurrent": (
        lambda: Recurrent(init_hidden=True),
        T,
        "lif2_1 reads add_1, which is nothing that its step 0 reads",
    ),
    "every other step": (EveryOther, T, "which is nothing that its step 0 reads"),
    "crossed": (Crossed, T, "starts from .*, expected the state that its own step before left"),
    "branching": (lambda: Branching(init_hidden=True), T, "cannot be traced"),
    "another number of steps": (Passed, T + 1, f"'lif1': {T}, .* expected each {T + 1} times"),
    "states of one step": (PassesOneStep, T, "lif1 is called with states"),
    "no neurons": (lambda: nn.Linear(2, 2), T, "holds no neuron"),
    "one step": (Passed, 1, "timesteps is 1"),
}


@pytest.mark.parametrize(("make", "timesteps", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_says_why(make: Callable[[], nn.Module], timesteps: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        layerwise(make(), timesteps)


def test_the_model_is_left_as_it_was_by_a_refusal() -> None:
    model = Recurrent(init_hidden=True)
    model.lif1(images(3, 4))
    before = model.lif1.mem
    with pytest.raises(ValueError, match="step"):
        layerwise(model, T)
    assert model.lif1.mem is before


def test_an_input_of_another_number_of_steps() -> None:
    fast = layerwise(nn.Sequential(nn.Linear(2, 2), snn.Leaky(0.9, init_hidden=True)), T)
    with pytest.raises(ValueError, match=rf"shape \[4, 3, 2\], expected \[{T}, N, ...\]"):
        fast(torch.rand(4, 3, 2))
