"""How long a run takes, what it will reach, and which network size suits it."""

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

RECOGNISABLE = 15_000
"""Images that a network has to see until most of what it draws is recognisable: by eye, on Fashion-MNIST and digits
(docs/notes/quality.md)."""

BESIDE = 0.03
"""Share of a run that goes into pictures, checkpoints and the report."""


def spelled(seconds: float) -> str:
    """A length of time in the largest unit of which there are two."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def memory_taken(device: torch.device) -> int:
    """Bytes that this process has taken at most so far, of the GPU or the machine; 0 where that is not known."""
    if device.type == "cuda":  # pragma: no cover (GPU)
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # pragma: no cover (Windows, whose Python does not say)
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Outlook:
    """How a run will end.

    speed    images a second
    seconds  from its beginning to its end
    images   that it will have seen
    epochs   passes over the data
    memory   bytes that it has taken up to now
    """

    speed: float
    seconds: float
    images: float
    epochs: float
    memory: int

    def __str__(self) -> str:
        text = f"At {self.speed:,.0f} images/s it sees {self.images:,.0f} images, {self.epochs:.1f} epochs, in "
        memory = f", and takes {self.memory / 1e9:.2g} GB of memory" if self.memory else ""
        text += f"{spelled(self.seconds)}{memory}. "
        wait = RECOGNISABLE / self.speed
        if self.images < RECOGNISABLE:
            return text + f"Pictures are recognisable after some {RECOGNISABLE:,} images: give it {spelled(2 * wait)}."
        return text + f"Pictures are recognisable after some {RECOGNISABLE:,} images, {spelled(wait)} from the start."


def outlook(
    config: Config, count: int, speed: float, device: torch.device, seen: float = 0, elapsed: float = 0
) -> Outlook:
    """How a run will end that has seen so many images in so many seconds and goes on at a speed.

    count   images of the data
    speed   training images a second
    """
    pace = speed * (1 - BESIDE)
    if config.steps:
        images = float(config.steps * config.batch)
        seconds = elapsed + (images - seen) / pace
    else:
        seconds = config.seconds
        images = seen + pace * max(seconds - elapsed, 0)
    return Outlook(speed, seconds, images, images / count, memory_taken(device))


SIZES: Mapping[str, Mapping[str, float]] = {
    "cpu": {"tiny": 0, "small": 20e3, "base": 50e3, "large": 4e6},
    "gpu": {"base": 0, "large": 8e5},
}
"""Presets by size, and how many images each has to see before it draws better than the one before in the same time:
measured on Fashion-MNIST (docs/notes/quality.md). On a GPU small networks take no less time than `base`."""

SHARES = {"cpu": 0.3, "gpu": 0.05}
"""Of the speed of a large matrix product, what training reaches (docs/notes/network.md)."""


def matmul_speed(dtype: torch.dtype, device: torch.device, times: int = 4) -> float:
    """FLOP/s of a large matrix product in a dtype on a device, the median of so many after two that warm up."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    took = []
    for _ in range(times + 2):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":  # pragma: no cover (GPU)
            torch.cuda.synchronize(device)
        elif device.type == "mps":  # pragma: no cover (GPU)
            torch.mps.synchronize()
        took.append(time.perf_counter() - began)
    return 2 * size**3 / median(took[2:])


def training_flops(spec: ModelSpec) -> float:
    """FLOP of training on one image, three times those of the network's forward pass; nothing is computed."""
    info = spec.info
    with torch.device("meta"):
        network = spec.network()
        x, noise_level = torch.empty(1, *info.shape), torch.empty(1)
        cond = torch.empty(1, dtype=torch.int64) if info.classes else None
        with FlopCounterMode(display=False) as counter:
            network(x, noise_level, cond)
    return 3.0 * counter.get_total_flops()


def size_for(spec: ModelSpec, device: torch.device) -> tuple[str, str]:
    """(name of the size for a run of this length, on these data, by the clock; why): the same in all its processes."""
    config = spec.config
    kind = "cpu" if device.type == "cpu" else "gpu"
    (speed,) = broadcast(matmul_speed(PRECISIONS[config.precision], device))
    budget = config.seconds * SHARES[kind] * speed * world_size()
    sizes = SIZES[kind]
    costs = {name: training_flops(spec.changed(**PRESETS[name][1])) for name in sizes}
    *_, size = [name for name, images in sizes.items() if images * costs[name] <= budget]
    larger = next((name for name, images in sizes.items() if images > sizes[size]), None)
    why = f"it should see about {budget / costs[size]:,.0f} images at {speed / 1e9:,.0f} GFLOP/s of matrix products"
    if larger:
        why += f", and {larger} about {budget / costs[larger]:,.0f}, fewer than the {sizes[larger]:,.0f} it needs"
    return size, why


MEASURED = 4.0
"""Seconds of steps that a forecast looks at."""


def forecast(config: Config, images: Images, device: torch.device) -> dict:
    """What a run would take on this machine, measured over a few steps of it; writes nothing."""
    spec = ModelSpec(config, DataInfo.of(images))
    denoiser, steps = start_training(spec, images, device, lambda n: config.lr * 1e-3)
    next(steps), next(steps)  # the first ones warm up
    began, n = time.perf_counter(), 0
    while not n or time.perf_counter() - began < MEASURED:
        next(steps)
        n += 1
    speed = n * config.batch / (time.perf_counter() - began)
    parameters = sum(p.numel() for p in denoiser.parameters())
    expected = outlook(config, len(images), speed, device)
    text = (
        f"A network of {parameters / 1e6:.2f} M parameters would train on {device.type} in {config.precision}, in "
        f"batches of {config.batch}. {expected} The first picture is drawn after "
        f"{spelled(expected.seconds * PICTURES[0])}."
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
