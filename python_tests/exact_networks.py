"""Small networks with known margins: ``python -m python_tests.exact_networks`` solves them anew."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from snnkern.certify import exact
from snnkern.models import SpikingNetwork, fc_net

FILE = Path(__file__).parent / "data" / "exact_networks.npz"
WIDTHS = ((4, 6, 3), (6, 8, 3), (6, 6, 6, 3))
COUNT = 40


class Solved(NamedTuple):
    """A network, a box of one image, its class, and what is known of its margins [K - 1]."""

    net: SpikingNetwork
    lower: Tensor
    upper: Tensor
    y: Tensor
    margin: Tensor  # that of a witness
    bound: Tensor  # of the closed set
    witness: Tensor


def network(number: int) -> tuple[SpikingNetwork, float]:
    """Network and radius of one case; its weights are drawn elsewhere."""
    widths = WIDTHS[number % 3]
    net = fc_net(
        widths[-1],
        1 + number % 4,
        input_shape=(1, 1, widths[0]),
        hidden=widths[1:-1],
        spiking_output=number // 2 % 2 == 1,
        reset=("hard", "hard", "soft", "none")[number // 3 % 4],
        leak=(0.0, 0.5, 0.9, 1.0)[number // 4 % 4],
        threshold=(0.5, 1.0)[number // 5 % 2],
        strict=number % 5 == 0,
    )
    return net.double().eval(), (0.02, 0.05, 0.1)[number // 2 % 3]


def freeze() -> None:
    """Draws the networks, solves them and keeps both."""
    arrays: dict[str, Any] = {}
    for number in range(COUNT):
        net, radius = network(number)
        draws = torch.Generator().manual_seed(number)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=1.0 if parameter.dim() > 1 else 0.3, generator=draws)
        x = torch.rand(1, *net_shape(net), generator=draws).double()
        y = net(x).argmax(1)
        lower, upper = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
        solved = exact.margins(net, lower, upper, y)
        kept = {"lower": lower, "upper": upper, "y": y, "margin": solved.found[0]}
        kept |= {"bound": solved.lower[0], "witness": solved.inputs[0]}
        kept |= {f"weight{k}": p.detach() for k, p in enumerate(net.parameters())}
        arrays |= {f"{number}.{name}": value.numpy() for name, value in kept.items()}
        print(number, solved.lower.tolist(), solved.found.tolist())
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **arrays)


def net_shape(net: SpikingNetwork) -> tuple[int, int, int]:
    """Of an image of the network."""
    return (1, 1, next(net.parameters()).shape[1])


@lru_cache
def solved(number: int) -> Solved:
    """One of the networks, as it was kept."""
    with np.load(FILE) as file:
        prefix = f"{number}."
        data = {
            name.removeprefix(prefix): torch.from_numpy(file[name])
            for name in file
            if name.startswith(prefix)
        }
    net, _ = network(number)
    with torch.no_grad():
        for k, parameter in enumerate(net.parameters()):
            parameter.copy_(data[f"weight{k}"])
    names = ("lower", "upper", "y", "margin", "bound", "witness")
    return Solved(net, *(data[name] for name in names))


if __name__ == "__main__":
    freeze()
