"""How long a run takes and how many images it will see, and which network size suits a length of time."""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..data.images import Images
from ..data.info import DataInfo
from ..model.build import ModelSpec
from ..model.config import Config
from ..model.presets import PRESETS
from ..system.device import PRECISIONS
from ..system.distributed import broadcast, world_size
from .milestones import PICTURES
from .steps import start_training

RECOGNIZABLE = 15_000
"""Training images after which most samples are recognizable, judged by eye on Fashion-MNIST (docs/notes/quality.md)."""

OVERHEAD = 0.03
"""Share of a run that pictures, checkpoints and the report take."""

SIZES: Mapping[str, Mapping[str, float]] = {
    "cpu": {"tiny": 0, "small": 20e3, "base": 50e3, "large": 4e6},
    "gpu": {"base": 0, "large": 8e5},
}
"""Presets by size, and the number of images from which each is taken, as it then should give a lower FID than the one
before in the same time: estimates from runs on Fashion-MNIST (docs/notes/quality.md)."""

MATMUL_SHARE = {"cpu": 0.3, "gpu": 0.05}
"""Speed of training as a share of the speed of a large matrix product, at the lower end of what was measured
(docs/notes/quality.md, docs/notes/network.md)."""

MEASURED = 4.0
"""Seconds of training steps that a dry run measures."""


# --- the forecast -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """How a run will end.

    speed    training images a second
    seconds  length of the run
    images   training images that it will have seen
    epochs   passes over the data
    memory   bytes that this process has taken at most so far, 0 if unknown
    """

    speed: float
    seconds: float
    images: float
    epochs: float
    memory: int

    def __str__(self) -> str:
        memory = f", with {self.memory / 1e9:.2g} GB of memory" if self.memory else ""
        wait = RECOGNIZABLE / self.speed
        enough = self.images >= RECOGNIZABLE
        advice = f"{duration(wait)} from the start" if enough else f"so train for {duration(2 * wait)}"
        return (
            f"At {self.speed:,.0f} images/s, the run sees {self.images:,.0f} images ({self.epochs:.1f} epochs) in "
            f"{duration(self.seconds)}{memory}. Samples of Fashion-MNIST are recognizable after about "
            f"{RECOGNIZABLE:,} images, {advice}; photographs need more."
        )


def forecast(
    config: Config, count: int, speed: float, device: torch.device, seen: float = 0, elapsed: float = 0
) -> Forecast:
    """How a run will end if it continues at the same speed.

    count    images of the data
    speed    training images a second
    seen     training images so far
    elapsed  seconds so far
    """
    speed_with_overhead = speed * (1 - OVERHEAD)
    if config.steps:
        images = float(config.steps * config.batch)
        seconds = elapsed + (images - seen) / speed_with_overhead
    else:
        seconds = config.seconds
        images = seen + speed_with_overhead * max(seconds - elapsed, 0)
    return Forecast(speed, seconds, images, images / count, peak_memory(device))


def duration(seconds: float) -> str:
    """A length of time for people, in days, hours, minutes or seconds."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def peak_memory(device: torch.device) -> int:
    """Bytes of GPU memory, or of main memory, that this process has taken at most so far; 0 if unknown."""
    if device.type == "cuda":  # pragma: no cover (GPU)
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # pragma: no cover (Python on Windows does not report it)
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def dry_run(config: Config, images: Images, device: torch.device) -> dict:
    """What a run would take on this machine, measured over a few steps; nothing is written.

    Returns a sentence as "text", and its numbers.
    """
    spec = ModelSpec(config, DataInfo.of(images))
    denoiser, steps = start_training(spec, images, device, lambda n: config.lr * 1e-3)
    next(steps), next(steps)  # the first ones are slower
    began, n = time.perf_counter(), 0
    while not n or time.perf_counter() - began < MEASURED:
        next(steps)
        n += 1
    speed = n * config.batch / (time.perf_counter() - began)

    parameters = parameter_count(denoiser)
    expected = forecast(config, len(images), speed, device)
    text = (
        f"Network: {parameters / 1e6:.2f} M parameters, trained on {device.type} in {config.precision} with batch size "
        f"{config.batch}. {expected} The first picture appears after {duration(expected.seconds * PICTURES[0])}."
    )
    return {
        "text": text,
        "parameters": parameters,
        "images_per_second": round(speed),
        "seconds": round(expected.seconds),
        "images": round(expected.images),
        "memory": expected.memory,
        "config": asdict(config),
    }


def parameter_count(network: torch.nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


# --- the size of the network ------------------------------------------------------------------------------------------


def choose_size(spec: ModelSpec, device: torch.device) -> tuple[str, str]:
    """(name of the preset whose size suits a timed run on these data, a sentence with the reason).

    All processes choose the same.
    """
    config = spec.config
    kind = "cpu" if device.type == "cpu" else "gpu"
    speed = broadcast(matmul_speed(PRECISIONS[config.precision], device))[0]
    budget = config.seconds * MATMUL_SHARE[kind] * speed * world_size()  # in FLOP

    sizes = SIZES[kind]
    specs = {name: spec.changed(**PRESETS[name][1]) for name in sizes}
    images = {name: budget / training_flops(specs[name]) for name in sizes}
    size = [name for name in sizes if sizes[name] <= images[name]][-1]
    with torch.device("meta"):
        parameters = parameter_count(specs[size].network())

    reason = (
        f"{size}, {parameters / 1e6:.1f} M parameters: in {duration(config.seconds)} it sees about {images[size]:,.0f} "
        f"images, at {speed / 1e9:,.0f} GFLOP/s of matrix products"
    )
    larger = next((name for name in sizes if sizes[name] > sizes[size]), None)
    if larger:
        reason += f"; {larger} would see {images[larger]:,.0f} and needs {sizes[larger]:,.0f}"
    return size, reason


def matmul_speed(dtype: torch.dtype, device: torch.device, times: int = 4) -> float:
    """FLOP/s of a large matrix product: the median of `times` measurements after two that warm up."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    seconds = []
    for _ in range(times + 2):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":  # pragma: no cover (GPU)
            torch.cuda.synchronize(device)
        elif device.type == "mps":  # pragma: no cover (GPU)
            torch.mps.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / median(seconds[2:])


def training_flops(spec: ModelSpec) -> float:
    """FLOP of training on one image: three times those of the forward pass. Nothing is computed."""
    info = spec.info
    with torch.device("meta"):
        network = spec.network()
        x, noise_level = torch.empty(1, *info.shape), torch.empty(1)
        cond = torch.empty(1, dtype=torch.int64) if info.classes else None
        with FlopCounterMode(display=False) as counter:
            network(x, noise_level, cond)
    return 3.0 * counter.get_total_flops()
