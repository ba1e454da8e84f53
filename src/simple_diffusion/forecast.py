"""What a run would take on this machine, measured over a few steps of it."""

import time
from dataclasses import asdict

import torch

from .config import Card, Config
from .data.images import Images
from .outlook import outlook, spelled
from .run import PICTURES, start_training

MEASURED = 4.0
"""Seconds of steps that a forecast looks at."""


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
