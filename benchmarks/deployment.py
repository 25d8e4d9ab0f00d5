"""What a trained network costs where it is deployed: spike by spike, dense, and as ReLU network.

    python -m benchmarks.deployment --save-results

trains the ReLU network of VGG11 on handwritten digits, enlarged to 32x32, converts it to a spiking
one of the same weights, and measures both, image by image and in batches: in plain PyTorch, with
snnkern's layers, compiled by snnkern, and the ReLU network in ONNX Runtime. Then thresholds are
raised and lowered, so that every layer fires at a given rate. Training is kept in a file: the same
command goes on with it.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm, trange

import snnkern
from benchmarks.bench_memory import Merged
from benchmarks.comparison import Findings, command
from snnkern._files import write_atomically
from snnkern._table import Table, percent
from snnkern.bench import Quartiles
from snnkern.data import enlarged_digits
from snnkern.models import SpikingNetwork, vgg11
from snnkern.nn import LIF, NormLIF, TimeDistributed, watch_membranes, watch_spikes

TIMESTEPS, EPOCHS, BATCH = 8, 3, 32
SCALE = 0.3  # of converted thresholds
BATCHES, THREADS = (1, 32), (1, 2)
COMPILED = "compiled by snnkern"
DENSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
# Of surrogates of compact support: how far from the threshold these listen.
WIDTHS = (1.0, 0.5, 0.25)


def vgg(timesteps: int = 0, **options: Any) -> SpikingNetwork:
    """The network; without timesteps, of ReLUs."""
    return vgg11(timesteps=timesteps, bias=False, **options).eval()


def train(images: Tensor, labels: Tensor, path: Path, quiet: bool) -> SpikingNetwork:
    """The ReLU network after a few epochs, or from the file."""
    torch.manual_seed(0)
    network = vgg()
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network
    optimiser = torch.optim.Adam(network.parameters(), 2e-4)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images)).split(BATCH)
        for batch in tqdm(order, f"epoch {epoch + 1}", leave=False, disable=quiet):
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    write_atomically(path, lambda file: torch.save(network.state_dict(), file))
    return network


class PlainLIF(nn.Module):
    """A loop over time, as PyTorch users write it for evaluation."""

    def __init__(self, layer: LIF) -> None:
        super().__init__()
        if (layer.charge, layer.reset, layer.strict) != ("leak", "hard", False):
            raise ValueError(f"layer is {layer}, expected a hard reset")
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, ...] -> [T, N, ...]``."""
        acting = self.layer.dynamics()
        leak, threshold = acting["leak"], acting["threshold"]
        u, spikes = torch.zeros_like(x[0]), []
        for current in x.unbind(0):
            v = leak * u + current
            spikes.append((v >= threshold).to(v.dtype))
            u = v * (1 - spikes[-1])
        return torch.stack(spikes)


def batch_norm(layer: NormLIF) -> nn.BatchNorm2d:
    """That of a layer, by itself."""
    norm = nn.BatchNorm2d(layer.num_features, layer.eps).eval()
    norm.load_state_dict({name: layer.state_dict()[name] for name in norm.state_dict()})
    return norm


def in_plain_torch(network: SpikingNetwork) -> nn.Module:
    """The network in layers of torch alone, the image repeated for every step."""
    network = copy.deepcopy(network)
    layers: list[nn.Module] = []
    for layer in network.layers.children():
        if isinstance(layer, NormLIF):
            layers += [Merged(batch_norm(layer)), PlainLIF(layer)]
        elif isinstance(layer, LIF):
            layers.append(PlainLIF(layer))
        elif isinstance(layer, TimeDistributed):
            layers.append(Merged(layer.module))
        else:
            layers.append(layer)
    network.layers = nn.Sequential(*layers)
    return network


def unpacked(network: SpikingNetwork) -> SpikingNetwork:
    """The same of the layers of torch.nn, which multiply every spike."""
    plain = vgg(network.timesteps, pack=False)
    plain.load_state_dict(network.state_dict())
    return plain


def as_relus(network: SpikingNetwork) -> nn.Module:
    """The ReLU network without a time axis."""
    layers: list[nn.Module] = []
    for layer in copy.deepcopy(network).layers.children():
        if isinstance(layer, NormLIF):
            layers += [batch_norm(layer), nn.ReLU()]
        elif isinstance(layer, LIF):
            layers.append(nn.ReLU())
        elif isinstance(layer, TimeDistributed):
            layers.append(layer.module)
    return nn.Sequential(network.normalize, *layers).eval()


def in_onnx_runtime(network: nn.Module, images: Tensor, threads: int) -> Callable[[Tensor], Any]:
    """The ReLU network as its users would run it."""
    import onnxruntime

    file = io.BytesIO()
    export: Any = torch.onnx.export  # whose hints know paths alone
    axes = {"images": {0: "batch"}}
    export(network, (images,), file, dynamo=False, input_names=["images"], dynamic_axes=axes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"images": x.numpy()})[0]


def layers_of(network: nn.Module, images: Tensor) -> list[tuple[float, int]]:
    """Of every layer the share of neurons that fire in a step, and how many neurons it has."""
    found: list[tuple[float, int]] = []

    def see(_: str, spikes: Tensor) -> None:
        found.append((spikes.mean().item(), spikes[0, 0].numel()))

    with torch.no_grad(), watch_spikes(network, see):
        network(images)
    return found


def listening(network: nn.Module, images: Tensor) -> list[str]:
    """For every width how many neurons a surrogate of that support lets listen, in sentences."""
    near: dict[float, list[Tensor]] = {width: [] for width in WIDTHS}

    def see(name: str, membranes: Tensor) -> None:
        layer = network.get_submodule(name)
        assert isinstance(layer, LIF)
        distance = membranes - layer.dynamics()["threshold"]
        for width, layers in near.items():
            layers.append(distance.abs() < width)

    with torch.no_grad(), watch_membranes(network, see):
        network(images)
    lines = []
    for width, layers in near.items():
        shares = [layer.float().mean().item() for layer in layers]
        maps = [layer for layer in layers if layer.dim() == 5]
        idle = [
            max(1 - layer.flatten(3).any(dim).float().mean().item() for layer in maps)
            for dim in (3, 2)
        ]
        lines.append(
            f"less than {width:g} from its threshold is a share of {min(shares):.2f} to "
            f"{max(shares):.2f} of the neurons of a layer in a step; without any such neuron are "
            f"up to {idle[0]:.2f} of the channels of an image and {idle[1]:.2f} of the positions"
        )
    return lines


def fire_at(network: SpikingNetwork, density: float, images: Tensor) -> None:
    """Sets thresholds so that every layer fires at this density."""
    layers = [module for module in network.modules() if isinstance(module, LIF)]
    for index, layer in enumerate(layers):
        low, high = 1e-4, 1e4
        for _ in range(16):
            middle = (low * high) ** 0.5
            layer.threshold.data.fill_(middle)
            if layers_of(network, images)[index][0] > density:
                low = middle
            else:
                high = middle


def accuracy(run: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> float:
    """Share of images that are classified rightly."""
    with torch.no_grad():
        logits = [torch.as_tensor(run(batch)) for batch in images.split(BATCH)]
    return float((torch.cat(logits).argmax(1) == labels).float().mean())


class Row(NamedTuple):
    """One contender in one setting."""

    setting: str
    threads: int
    batch: int
    what: str
    milliseconds: float
    ratio: Quartiles

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        shown = f"{self.milliseconds:.2f}", str(self.ratio)
        return self.setting, str(self.threads), str(self.batch), self.what, *shown


def measure(
    setting: str,
    contenders: dict[str, Callable[[Tensor], Any]],
    images: Tensor,
    rounds: int,
    quiet: bool,
) -> list[Row]:
    """Interleaved, after a round to warm up; ratios are over snnkern's compiled network."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.no_grad():
        words = f"{setting}, batch of {len(images)}"
        for _ in trange(rounds + 1, desc=words, leave=False, disable=quiet):
            for name, run in contenders.items():
                start = perf_counter()
                run(images)
                seconds[name].append(perf_counter() - start)
    kept = {name: times[1:] for name, times in seconds.items()}
    return [
        Row(
            setting,
            torch.get_num_threads(),
            len(images),
            name,
            1e3 * statistics.median(times) / len(images),
            Quartiles.of_ratios(times, kept[COMPILED]),
        )
        for name, times in kept.items()
    ]


def all_rows(folder: Path, rounds: int, quiet: bool) -> tuple[list[Row], list[str]]:
    """Everything that is measured, and sentences about the networks."""
    training, test = enlarged_digits()
    (images, labels), (seen, classes) = training[:], test[:]
    relu = train(images, labels, folder / "vgg11.pt", quiet).eval()
    batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    network = snnkern.convert(relu, batches, TIMESTEPS, scale=SCALE, progress=False).eval()
    relus = as_relus(unpacked(relu))
    rows: list[Row] = []

    def spiking() -> dict[str, Callable[[Tensor], Any]]:
        dense = unpacked(network)
        return {
            "plain PyTorch": in_plain_torch(dense),
            "snnkern, dense": dense,
            "snnkern, by events": network,
            COMPILED: snnkern.compile_inference(network),
        }

    layers = layers_of(network, seen[:BATCH])
    spikes = sum(TIMESTEPS * share * count for share, count in layers)
    notes = [
        f"accuracy on {len(seen)} images: ReLU network {percent(accuracy(relus, seen, classes))}, "
        f"spiking {percent(accuracy(network, seen, classes))}, compiled "
        f"{percent(accuracy(snnkern.compile_inference(network), seen, classes))}",
        f"{spikes:,.0f} spikes per image; shares of neurons that fire in a step, by layer: "
        + ", ".join(f"{share:.3f}" for share, _ in layers),
        *listening(network, seen[:BATCH]),
    ]
    for threads in THREADS:
        torch.set_num_threads(threads)
        alone: dict[str, Callable[[Tensor], Any]] = {
            "ReLU, PyTorch": relus,
            "ReLU, ONNX Runtime": in_onnx_runtime(relus, seen[:2], threads),
        }
        for batch in BATCHES:
            rows += measure("as trained", spiking() | alone, seen[:batch], rounds, quiet)
    for density in DENSITIES:
        fire_at(network, density, seen[:2])
        for threads in THREADS:
            torch.set_num_threads(threads)
            few = max(3, rounds // 2)
            rows += measure(f"{density:.0%} fire", spiking(), seen[:8], few, quiet)
    return rows, notes


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9)


def measured(options: argparse.Namespace) -> Findings:
    snnkern.keep_pages()
    rows, notes = all_rows(options.folder, options.rounds, options.quiet)
    caption = (
        f"VGG11 at 32x32, T = {TIMESTEPS}, float32, pages kept; medians of {options.rounds} "
        "interleaved rounds (half as many where thresholds were set). " + "; ".join(notes) + "."
    )
    head = ("network", "threads", "batch", "what", "ms per image", "time over compiled (quartiles)")
    table = Table.of(caption, head, [row.cells() for row in rows])
    return Findings((table,), [row._asdict() for row in rows])


def main(arguments: Sequence[str] | None = None) -> int:
    return command("deployment", __doc__, add_options, measured, arguments, trains=True)


if __name__ == "__main__":
    sys.exit(main())
