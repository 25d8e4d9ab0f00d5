"""What `make gpu` runs on a machine with an NVIDIA GPU: build, tests, sanitizer, measurements.

Needs torch with CUDA, nvcc, and the packages of the tests; no network. A folder of wheels named by
WHEELS is installed beside the checkout first (SpikingJelly, to compare with). Writes
benchmarks/results/<gpu>.json and .md.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import setup

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WHEELS = ROOT / "build" / "wheels"
ROUNDS = 20
SHAPE = (8, 256, 128, 32, 32)
STEPS = (4, 8, 16, 32)
STEP_SHAPE = (64, 128, 32, 32)
SANITIZER_ERRORS = 77


class Time(NamedTuple):
    """One contender in one case."""

    case: str
    contender: str
    milliseconds: float
    ideal_bytes: int  # of the whole call; 0 where it has no ideal
    copy: float  # bytes per second that a copy reaches

    @property
    def share(self) -> float:
        """Of the bandwidth of a copy."""
        return self.ideal_bytes / (self.milliseconds / 1e3) / self.copy


def run(*command: str | Path, seconds: int, **environment: str) -> tuple[int, str]:
    """Exit status and the end of the output, which is also printed."""
    print("+", *command, flush=True)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            timeout=seconds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"stopped after {seconds} s"
    print(done.stdout[-6000:], flush=True)
    return done.returncode, done.stdout


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "").strip("= ")


def build() -> None:
    if wheels := os.environ.get("WHEELS"):
        files = sorted(Path(wheels).glob("*.whl"))
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
        status, text = run(*pip, "--upgrade", "--target", WHEELS, *files, seconds=60)
        if status:
            raise SystemExit(f"WHEELS={wheels} cannot be installed: {last_line(text)}")
    command = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    status, text = run(*command, seconds=240, SNNKERN_BUILD="cuda")
    if status:
        raise SystemExit(f"the CUDA build failed: {last_line(text)}")


def test() -> tuple[bool, str]:
    parallel = ("-n", "8") if find_spec("xdist") else ()
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *parallel)
    status, text = run(*command, seconds=270, OMP_NUM_THREADS="1")
    return status == 0, last_line(text)


def sanitize() -> Iterator[tuple[bool, str]]:
    """memcheck and racecheck; a tool that the machine does not let run is told, not passed over."""
    found = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if found is None:
            yield True, f"{tool}: not run, compute-sanitizer is not there"
            continue
        options = (found, "--tool", tool, "--error-exitcode", str(SANITIZER_ERRORS))
        command = (*options, sys.executable, "-m", "benchmarks.gpu", "small")
        status, text = run(*command, seconds=60, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        if status == 0:
            yield True, f"{tool}: {last_line(text)}"
        elif status == SANITIZER_ERRORS:
            yield False, f"{tool}: {last_line(text)}"
        else:
            yield True, f"{tool}: not run ({last_line(text)})"


def small() -> None:
    """Every kernel once on a few neurons, for the sanitizer."""
    from snnkern import functional

    for dtype in (torch.float32, torch.bfloat16):
        for timesteps, neurons in ((4, 64), (100, 31)):
            for options in ({}, {"charge": "decay", "tau": 2.0, "synapse": "jump"}):
                synapse = {"synapse_decay": 0.5} if options else {}
                x = torch.randn(timesteps, 3, 4, neurons, device="cuda", dtype=dtype)
                leaf = x.requires_grad_()
                threshold = torch.ones(4, device="cuda", requires_grad=True)
                call: Any = functional.lif
                call(
                    leaf, threshold=threshold, **options, **synapse, backend="cuda"
                ).sum().backward()
                norm: Any = functional.norm_lif
                norm(leaf, training=True, backend="cuda").sum().backward()
    torch.cuda.synchronize()


def milliseconds(call: Callable[[], Any]) -> float:
    """Median over rounds, the L2 cache emptied before each."""
    properties = torch.cuda.get_device_properties(0)
    flush = torch.empty(4 * properties.L2_cache_size, dtype=torch.int8, device="cuda")
    for _ in range(3):
        call()
    times = []
    for _ in range(ROUNDS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(statistics.median(times))


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy as large as the input of the cases."""
    a, b = (torch.zeros(math.prod(SHAPE), device="cuda") for _ in range(2))
    return 2 * a.numel() * a.element_size() / (milliseconds(lambda: b.copy_(a)) / 1e3)


def backward_of(outputs: Tensor, leaf: Tensor) -> Callable[[], Any]:
    grad = torch.randn_like(outputs)
    return lambda: torch.autograd.grad(outputs, leaf, grad, retain_graph=True)


def kernels(copy: float) -> Iterator[Time]:
    """Every op that runs on the GPU, at the shape of the acceptance."""
    from snnkern import functional

    lif: Any = functional.lif
    norm_lif: Any = functional.norm_lif
    backends = [b for b in ("cuda", "triton") if not functional.why_not(b, torch.device("cuda"))]
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(SHAPE, device="cuda", dtype=dtype)
        size = x.numel() * x.element_size()
        name = str(dtype).removeprefix("torch.")
        for backend in backends:
            for op, call, forward, backward in (
                ("lif", partial(lif, leak=0.9), 2, 3),
                ("norm_lif", partial(norm_lif, training=True, leak=0.9), 3, 5),
            ):
                with torch.no_grad():
                    plain = partial(call, x, backend=backend)
                    time = milliseconds(plain)
                yield Time(f"{op} forward {name}", backend, time, forward * size, copy)
                leaf = x.detach().requires_grad_()
                back = backward_of(call(leaf, backend=backend), leaf)
                yield Time(
                    f"{op} backward {name}", backend, milliseconds(back), backward * size, copy
                )


def contenders() -> dict[str, Callable[[Tensor], Tensor]]:
    """Layers of the neuron of snnkern.bench."""
    from benchmarks import baselines
    from snnkern import bench, functional

    lif: Any = functional.lif
    layers: dict[str, Callable[[Tensor], Tensor]] = {
        backend: partial(lif, **bench.OPTIONS, backend=backend)
        for backend in ("cuda", "triton")
        if not functional.why_not(backend, torch.device("cuda"))
    }
    layers |= {"torch.compile": baselines.compiled_lif_loop} | baselines.spikingjelly_layers
    if baselines.spikingjelly_layers:
        from spikingjelly.activation_based import functional as peer
        from spikingjelly.activation_based import neuron, surrogate

        node = neuron.LIFNode(
            tau=1 / (1 - bench.LEAK),
            decay_input=False,
            v_threshold=bench.THRESHOLD,
            v_reset=0.0,
            surrogate_function=surrogate.ATan(bench.ALPHA),
            detach_reset=True,
            step_mode="m",
            backend="triton",
        )

        def triton(x: Tensor) -> Tensor:
            spikes: Tensor = node(x)
            peer.reset_net(node)
            return spikes

        layers["SpikingJelly, Triton"] = triton
    return layers


def against_others(copy: float) -> Iterator[Time]:
    for timesteps in STEPS:
        x = torch.randn(timesteps, *STEP_SHAPE, device="cuda")
        leaf = x.detach().requires_grad_()
        size = x.numel() * x.element_size()
        for name, layer in contenders().items():
            with torch.no_grad():
                time = milliseconds(partial(layer, x))
            yield Time(f"T={timesteps} forward", name, time, 2 * size, copy)

            def step(layer: Callable[[Tensor], Tensor] = layer, leaf: Tensor = leaf) -> Any:
                spikes = layer(leaf)
                return torch.autograd.grad(spikes, leaf, spikes.detach())

            yield Time(f"T={timesteps} forward+backward", name, milliseconds(step), 5 * size, copy)


def insist_on_spikes(network: torch.nn.Module) -> torch.nn.Module:
    """Layers right behind neurons pack, others do not: nobody has to look at values first."""
    from snnkern.nn import LIF, TimeDistributed, packed

    before: torch.nn.Module = network
    for layer in network.get_submodule("layers").children():
        if isinstance(layer, TimeDistributed):
            for part in layer.modules():
                if isinstance(part, packed.SpikeInput):
                    part.spike_input = isinstance(before, LIF)
        before = layer
    return network


def vgg_networks() -> dict[str, torch.nn.Module]:
    """VGG11 with our layers, and with those of torch and a loop over time."""
    from benchmarks.bench_memory import make_plain, ours
    from snnkern.bench import lif_loop

    return {
        "snnkern": insist_on_spikes(ours(pack=True)),
        "plain PyTorch": make_plain(ours(pack=False), lif_loop),
    }


def training_step(network: torch.nn.Module, device: str = "cuda") -> Callable[[], None]:
    """Forward and backward in bfloat16, then SGD with momentum; batches of 64 images of 32x32."""
    images = torch.rand(64, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(64, device=device) % 10
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimiser.step()

    return step


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def activation_bytes(network: torch.nn.Module) -> int:
    """The most that a step allocates beside parameters, gradients and momentum."""
    step = training_step(network)
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def training(copy: float, about: dict[str, str]) -> Iterator[Time]:
    """A training step of VGG11: eager, compiled, and as a CUDA graph; and its memory."""
    case = "VGG11 step, T=8, 64 images, bfloat16"
    compiler: Any = torch.compile
    for name, network in vgg_networks().items():
        moved: Any = network.to("cuda")
        moved.to(memory_format=torch.channels_last)
        about[f"activations of {case}, {name}"] = f"{activation_bytes(network) / 2**20:.0f} MiB"
        steps = {
            case: training_step(network),
            f"{case}, CUDA graph": captured(training_step(network)),
            f"{case}, torch.compile": training_step(compiler(network)),
        }
        for title, step in steps.items():
            yield Time(title, name, milliseconds(step), 0, copy)


def table(times: list[Time]) -> str:
    header = ("case", "contender", "ms", "GB/s of the ideal traffic", "of a copy")
    rows = [
        (
            time.case,
            time.contender,
            f"{time.milliseconds:.3f}",
            f"{time.share * time.copy / 1e9:.0f}" if time.ideal_bytes else "",
            f"{100 * time.share:.0f} %" if time.ideal_bytes else "",
        )
        for time in times
    ]
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measure(about: dict[str, str]) -> None:
    import snnkern

    copy = copy_bandwidth()
    about = dict(about)
    times = [*kernels(copy), *against_others(copy), *training(copy, about)]
    about |= {
        "gpu": torch.cuda.get_device_name(0),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "snnkern": snnkern.__version__,
        "copy": f"{copy / 1e9:.0f} GB/s",
        "command": "make gpu",
    }
    stem = re.sub(r"[^a-z0-9]+", "-", about["gpu"].lower()).strip("-")
    document = {"about": about, "times": [time._asdict() | {"share": time.share} for time in times]}
    facts = "\n".join(f"- {name}: {value}" for name, value in about.items())
    (RESULTS / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    text = f"# {about['gpu']}\n\n{facts}\n\n{table(times)}\n"
    (RESULTS / f"{stem}.md").write_text(text)
    print(text)


def main() -> None:
    if obstacle := setup.cuda_obstacle(torch):
        raise SystemExit(f"make gpu cannot run here: {obstacle}")
    if not torch.cuda.is_available():
        raise SystemExit("make gpu cannot run here: torch finds no GPU")
    build()
    sys.path.append(str(WHEELS))
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    good, tests = test()
    checks = list(sanitize())
    measure({"tests": tests} | {f"sanitizer {n}": text for n, (_, text) in enumerate(checks, 1)})
    if not (good and all(passed for passed, _ in checks)):
        raise SystemExit("something above failed")


if __name__ == "__main__":
    small() if sys.argv[1:] == ["small"] else main()
