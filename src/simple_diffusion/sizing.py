"""Which size of network suits a run by the clock on this machine: the largest that still sees enough images."""

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from .config import PRESETS, Card, Config, network_of
from .hardware import PRECISIONS
from .ranks import of_first, world

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


def training_flops(config: Config, card: Card) -> float:
    """FLOP of training on one image, three times those of the network's forward pass; nothing is computed."""
    with torch.device("meta"):
        network = network_of(config, card)
        x, noise_level = torch.empty(1, *card.shape), torch.empty(1)
        cond = torch.empty(1, dtype=torch.int64) if card.classes else None
        with FlopCounterMode(display=False) as counter:
            network(x, noise_level, cond)
    return 3.0 * counter.get_total_flops()


def size_for(config: Config, card: Card, device: torch.device) -> tuple[str, str]:
    """(name of the size for a run of `config.seconds` on images like the card's, why), the same in all its processes.

    config   fitted to the device
    """
    kind = "cpu" if device.type == "cpu" else "gpu"
    (speed,) = of_first(matmul_speed(PRECISIONS[config.precision], device))
    budget = config.seconds * SHARES[kind] * speed * world()
    sizes = SIZES[kind]
    costs = {name: training_flops(replace(config, **PRESETS[name][1]), card) for name in sizes}
    *_, size = [name for name, images in sizes.items() if images * costs[name] <= budget]
    larger = next((name for name, images in sizes.items() if images > sizes[size]), None)
    why = f"it should see about {budget / costs[size]:,.0f} images at {speed / 1e9:,.0f} GFLOP/s of matrix products"
    if larger:
        why += f", and {larger} about {budget / costs[larger]:,.0f}, fewer than the {sizes[larger]:,.0f} it needs"
    return size, why
