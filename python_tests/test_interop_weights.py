"""Weights in files of the structure that the papers' repositories write, into our networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnkern.interop.weights import load_weights
from snnkern.models import resnet12, resnet20, vgg5, vgg11, wrn16_4

T = 4
SHAPE = (3, 16, 16)


class Spikes(nn.Module):
    """Neurons on ``[T * N, ...]`` with a hard reset, of SNN-RAT and RobustSNNConversion."""

    def __init__(self, v_th: float | None = None) -> None:
        super().__init__()
        self.v_th: Any = 1.0 if v_th is None else nn.Parameter(torch.tensor(v_th))

    def forward(self, x: Tensor) -> Tensor:
        mem, spikes = torch.zeros_like(x[: len(x) // T]), []
        for x_t in x.unflatten(0, (T, -1)).unbind(0):
            mem = mem + x_t
            s = (mem >= self.v_th).to(x)
            mem = (1 - s) * mem
            spikes.append(s)
        return torch.cat(spikes)


class OverTime(nn.Module):
    """The readout of those: the mean over the merged time steps."""

    def logits(self, x: Any, *parts: nn.Module) -> Tensor:
        x = x.repeat(T, 1, 1, 1)
        for part in parts:
            x = part(x)
        logits: Tensor = x.unflatten(0, (T, -1)).mean(0)
        return logits


def convolutions(table: str, channels: int, bias: bool, v_th: float | None) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for entry in table.split():
        if entry == "A":
            layers.append(nn.AvgPool2d(2))
        else:
            layers.append(nn.Conv2d(channels, int(entry), 3, padding=1, bias=bias))
            channels = int(entry)
            layers += [nn.BatchNorm2d(channels), Spikes(v_th)]
    return layers


def classifier(features: int, bias: bool, v_th: float | None) -> nn.Sequential:
    # With the places of dropout, which has no weights, where RobustSNNConversion has it.
    drop = [] if v_th is None else [nn.Dropout(0.0)]
    sizes = ((features, 4096), (4096, 4096))
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in sizes:
        layers += [nn.Linear(a, b, bias=bias), Spikes(v_th), *drop]
    return nn.Sequential(*layers, nn.Linear(4096, 10, bias=bias))


class DingVGG5(OverTime):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(*convolutions("64 A", 3, True, None))
        self.layer2 = nn.Sequential(*convolutions("128 128 A", 64, True, None))
        self.classifier = classifier(128 * 4 * 4, True, None)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x, self.layer1, self.layer2, self.classifier)


class OzdenizciVGG11(OverTime):
    def __init__(self) -> None:
        super().__init__()
        table = "64 A 128 256 A 512 512 512 A 512 512"
        self.features = nn.Sequential(*convolutions(table, 3, False, 0.4))
        self.classifier = classifier(512 * 2 * 2, False, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x, self.features, self.classifier)


class Convex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.comb = nn.Parameter(torch.tensor([0.3, 0.8]))


class Block(nn.Module):
    """Defined in another order than ours: the shortcut after the branch."""

    def __init__(self, inputs: int, outputs: int, stride: int, v_th: float | None) -> None:
        super().__init__()
        self.bn1, self.act1 = nn.BatchNorm2d(inputs), Spikes(v_th)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(outputs), Spikes(v_th)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs
        self.convShortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.convex = Convex()

    def forward(self, x: Tensor) -> Tensor:
        s = self.act1(self.bn1(x))
        branch = self.conv2(self.act2(self.bn2(self.conv1(s))))
        past = x if self.convShortcut is None else self.convShortcut(s)
        total: Tensor = self.convex.comb[0] * past + self.convex.comb[1] * branch
        return total


def blocks(v_th: float | None) -> list[Block]:
    widths = [(16, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    return [Block(*width, v_th) for width in widths]


class DingWRN(OverTime):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        every = blocks(None)
        self.block1 = nn.Sequential(*every[:2])
        self.block2 = nn.Sequential(*every[2:4])
        self.block3 = nn.Sequential(*every[4:])
        self.bn1, self.act = nn.BatchNorm2d(256), Spikes()
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        parts = (self.conv1, self.block1, self.block2, self.block3, self.bn1, self.act, pool)
        return self.logits(x, *parts, self.fc)


class OzdenizciWRN(OverTime):
    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        head = [nn.BatchNorm2d(256), Spikes(0.3), nn.AdaptiveAvgPool2d(1)]
        self.features = nn.Sequential(stem, *blocks(0.4), *head)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(256, 10, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x, self.features, self.classifier)


class PostBlock(nn.Module):
    """A block of ResNet20: neurons behind the sum, and a shortcut that is defined last."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.act1, self.act2 = Spikes(0.4), Spikes(0.3)
        self.convex = Convex()
        self.shortcut = nn.Sequential()
        if stride != 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        total = self.convex.comb[0] * self.shortcut(x) + self.convex.comb[1] * branch
        spikes: Tensor = self.act2(total)
        return spikes


class OzdenizciResNet20(OverTime):
    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), Spikes(0.5)]
        widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)]
        every = [PostBlock(*width) for width in [*widths, (64, 64, 1), (64, 64, 1)]]
        self.features = nn.Sequential(*stem, *every, nn.AdaptiveAvgPool2d((1, 1)))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x, self.features, self.classifier)


class KunduVGG5(nn.Module):
    """Thresholds and leaks beside the layers, by the number of the layer; a soft reset."""

    features: Any
    classifier: Any

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (64, "A", 128, 128, "A"):
            if isinstance(width, str):
                layers[-1] = nn.AvgPool2d(2)  # in place of the dropout
            else:
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers += [conv, nn.ReLU(), nn.Dropout(0.0)]
                channels = width
        self.features = nn.Sequential(*layers)
        linear: list[nn.Module] = []
        for inputs in (128 * 4 * 4, 4096):
            linear += [nn.Linear(inputs, 4096, bias=False), nn.ReLU(), nn.Dropout(0.0)]
        self.classifier = nn.Sequential(*linear, nn.Linear(4096, 10, bias=False))
        kinds = [*self.features, *self.classifier[:-1]]
        self.numbers = [n for n, m in enumerate(kinds) if isinstance(m, nn.Conv2d | nn.Linear)]
        self.threshold, self.leak = nn.ParameterDict(), nn.ParameterDict()
        for n in sorted(self.numbers, key=str):  # as text, the way torch once ordered them
            self.threshold[f"t{n}"] = nn.Parameter(torch.tensor([0.2 + 0.02 * n]))
            self.leak[f"l{n}"] = nn.Parameter(torch.tensor(0.99 - 0.01 * n))

    def forward(self, x: Tensor) -> Tensor:
        mem: dict[int, Tensor] = {}
        total = torch.zeros(len(x), 10)
        layers = [*self.features, nn.Flatten(), *self.classifier[:-1]]
        for _ in range(T):
            out, n = x, 0
            for layer in layers:
                out = layer(out)
                if n in self.numbers and not isinstance(layer, nn.Flatten):
                    threshold = self.threshold[f"t{n}"]
                    mem[n] = self.leak[f"l{n}"] * mem.get(n, torch.zeros(())) + out
                    out = (mem[n] / threshold - 1 > 0).to(x)
                    mem[n] = mem[n] - threshold * out
                n += not isinstance(layer, nn.Flatten)
            total = total + self.classifier[-1](out)
        return total


class DietBlock(nn.Module):
    """Names alone: what acts stands in the network."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        convs = (
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        self.residual: Any = nn.Sequential(convs[0], nn.ReLU(), nn.Dropout(0.0), convs[1])
        past = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.identity = nn.Sequential(*([] if stride == 1 else [past]))


class KunduResNet12(nn.Module):
    """The names of DIET-SNN, which HIRE-SNN builds on, with the neurons of HIRE-SNN."""

    pre_process: Any

    def __init__(self) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        for inputs in (3, 64, 64):
            conv = nn.Conv2d(inputs, 64, 3, padding=1, bias=False)
            stem += [conv, nn.ReLU(), nn.Dropout(0.0)]
        stem[-1] = nn.AvgPool2d(2)
        self.pre_process = nn.Sequential(*stem)
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        for number, width in enumerate(widths, 1):
            self.add_module(f"layer{number}", nn.Sequential(DietBlock(*width)))
        self.classifier = nn.Sequential(nn.Linear(512, 10, bias=False))
        self.threshold, self.leak = nn.ParameterDict(), nn.ParameterDict()
        for n in sorted((0, 3, 6, *range(9, 17)), key=str):
            self.threshold[f"t{n}"] = nn.Parameter(torch.tensor(0.1 + 0.01 * n))
            self.leak[f"l{n}"] = nn.Parameter(torch.tensor(0.99 - 0.01 * n))

    def forward(self, x: Tensor) -> Tensor:
        mem: dict[int, Tensor] = {}

        def fire(n: int, current: Tensor) -> Tensor:
            threshold = self.threshold[f"t{n}"]
            mem[n] = self.leak[f"l{n}"] * mem.get(n, torch.zeros(())) + current
            spikes: Tensor = (mem[n] / threshold - 1 > 0).to(current)
            mem[n] = mem[n] - threshold * spikes
            return spikes

        total = torch.zeros(len(x), 10)
        for _ in range(T):
            out = x
            for n in (0, 3, 6):
                out = fire(n, self.pre_process[n](out))
            out = self.pre_process[8](out)
            for number in range(4):
                (block,) = self.get_submodule(f"layer{number + 1}").children()
                assert isinstance(block, DietBlock)
                past = block.identity(out)
                out = fire(9 + 2 * number, block.residual[0](out))
                out = fire(10 + 2 * number, block.residual[3](out) + past)
            total = total + self.classifier(out.flatten(1))
        return total


def trained(make: Any) -> nn.Module:
    """With norms, weights and logits that say something."""
    torch.manual_seed(0)
    model: nn.Module = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.5)
                module.bias.uniform_(0, 0.5)
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.1, 0.5)  # type: ignore[union-attr]
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(0, (3 / module.weight[0].numel()) ** 0.5)
    return model.eval()


NETWORKS: dict[str, tuple[Any, Any]] = {
    "SNN-RAT VGG5": (DingVGG5, lambda: vgg5(timesteps=T, input_shape=SHAPE)),
    "SNN-RAT WRN16-4": (DingWRN, lambda: wrn16_4(timesteps=T, input_shape=SHAPE)),
    "RobustSNNConversion VGG11": (
        OzdenizciVGG11,
        lambda: vgg11(timesteps=T, input_shape=SHAPE, paper="ozdenizci"),
    ),
    "RobustSNNConversion WRN16-4": (
        OzdenizciWRN,
        lambda: wrn16_4(timesteps=T, input_shape=SHAPE, paper="ozdenizci"),
    ),
    "RobustSNNConversion ResNet20": (
        OzdenizciResNet20,
        lambda: resnet20(timesteps=T, input_shape=SHAPE, paper="ozdenizci"),
    ),
    "HIRE ResNet12": (
        KunduResNet12,
        lambda: resnet12(timesteps=T, input_shape=SHAPE, paper="kundu"),
    ),
    "HIRE VGG5": (KunduVGG5, lambda: vgg5(timesteps=T, input_shape=SHAPE, paper="kundu")),
}


@pytest.mark.parametrize(("theirs", "ours"), NETWORKS.values(), ids=NETWORKS)
def test_logits_are_those_of_their_network(theirs: Any, ours: Any, tmp_path: Path) -> None:
    """From the file of a checkpoint of DataParallel.

    Run in float64: in float32 sums of another order let a spike flip, and what follows it.
    """
    own, network = trained(theirs), ours().eval()
    state = {f"module.{name}": value for name, value in own.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "best.pth")
    load_weights(network, tmp_path / "best.pth")
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        expected, logits = own.double()(x), network.double()(x)
    assert expected.std() > 0.01
    # Sums of some thousand terms around 1 are 1e-12 off; another spike would be worth 1e-4.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


def test_what_does_not_fit_is_refused_and_nothing_copied() -> None:
    state = trained(DingVGG5).state_dict()
    for change, why in (
        (
            {"layer1.0.weight": torch.zeros(64, 3, 5, 5)},
            r"layer1.0.weight has shape \[64, 3, 5, 5\]",
        ),
        ({"layer3.0.weight": torch.zeros(1)}, "7 of kind 'weight', expected 6"),
        ({"more.weight": torch.zeros(1)}, r"weights has \['more.weight'\]"),
        ({"layer1.0.gamma": torch.zeros(1)}, r"weights has \['layer1.0.gamma'\]"),
        ({"layer1.0.weight": 3}, "expected tensors alone"),
    ):
        network = vgg5(timesteps=T, input_shape=SHAPE)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with pytest.raises(ValueError, match=why):
            load_weights(network, {**state, **change})  # type: ignore[dict-item]
        after = network.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
    with pytest.raises(
        ValueError, match=r"of kind 'bias', expected 0|weights has \['layer1.0.bias'"
    ):
        load_weights(vgg5(timesteps=T, input_shape=SHAPE, bias=False), state)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of the file ran",))


def test_a_file_with_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_weights(vgg5(timesteps=T, input_shape=SHAPE), tmp_path / "evil.pth")
