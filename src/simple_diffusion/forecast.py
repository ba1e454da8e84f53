"""What a run would take on this machine, measured over a few steps of it."""

import time
from dataclasses import asdict

import torch

from .config import Card, Config
from .data.images import Images
from .run import PICTURES, start_training

MEASURED = 4.0
"""Seconds of steps that a forecast looks at."""


def spelled(seconds: float) -> str:
    """A length of time in the largest unit of which there are two."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def forecast(config: Config, images: Images, device: torch.device) -> dict:
    """What a run would take on this machine, measured over a few steps of it; writes nothing."""
    card = Card.of(images)
    denoiser, steps = start_training(config, card, images, device, lambda n: config.lr * 1e-3)
    next(steps), next(steps)  # the first ones warm up
    began, n = time.perf_counter(), 0
    while not n or time.perf_counter() - began < MEASURED:
        next(steps)
        n += 1
    speed = n * config.batch / (time.perf_counter() - began)
    length = config.steps * config.batch / speed if config.steps else config.seconds
    parameters = sum(p.numel() for p in denoiser.parameters())
    seen = speed * length
    text = (
        f"A U-Net of {parameters / 1e6:.2f} M parameters would train on {device.type} in {config.precision} at about "
        f"{speed:,.0f} images/s, batches of {config.batch}: {spelled(length)} to the end, {seen:,.0f} images, "
        f"{seen / len(images):.1f} epochs; the first pictures come after {spelled(length * PICTURES[0])}."
    )
    return {
        "text": text,
        "parameters": parameters,
        "images_per_second": round(speed),
        "seconds": round(length),
        "images": round(seen),
        "config": asdict(config),
    }
