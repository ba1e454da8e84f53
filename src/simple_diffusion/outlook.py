"""What a run comes to, told from the speed of its first steps."""

import sys
from dataclasses import dataclass

import torch

from .config import Config

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
