"""`simple-diffusion schedules`: plot noise schedules, and show one image at their noise levels."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import command, data_options, load, path, png_only, say

TIMESTEPS = 1000
"""Of the schedules that are tables of betas."""
PANELS = 17
"""Noise levels at which the image is shown."""


def add(commands: Any) -> None:
    sub = command(commands, "schedules", run, "plot noise schedules, and show an image at their noise levels")
    sub.add_argument("names", nargs="*", metavar="NAME", help="linear, cosine, ... (default all continuous schedules)")
    sub.add_argument(
        "--data", default="digits", metavar="DATA", help="data set whose first image is shown (default digits)"
    )
    sub.add_argument(
        "--out", type=path, default=Path("schedules.png"), metavar="FILE.png", help="plot (default schedules.png)"
    )
    data_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    png_only(args.out)

    import torch

    from ..data.images import to_unit
    from ..system.files import write_atomic
    from ..viz.plots import plot_schedules
    from ..viz.trajectory import noise_images

    chosen = schedules_of(args.names)
    images = load(args, args.data, args.size, args.skip_bad)
    x0, times = to_unit(images.pixels[:1]), torch.linspace(0, 1, PANELS)
    panels = {name: noise_images(x0, schedule, times)[:, 0] for name, schedule in chosen.items()}
    write_atomic(args.out, plot_schedules(chosen, panels, lognormal_of(images)))
    say(args, f"{', '.join(chosen)}, on an image of {images.name}: {args.out}")
    t = torch.linspace(0, 1, 11, dtype=torch.float64)[1:]
    return {
        name: {"t": t.tolist(), "alpha": schedule.alpha(t).tolist(), "sigma": schedule.sigma(t).tolist()}
        for name, schedule in chosen.items()
    }


def schedules_of(names: list[str]) -> dict[str, Any]:
    """The schedules by name, all continuous ones by default. Raises UsageError for an unknown name."""
    from ..schedules import BETAS, SCHEDULES, Discrete

    known = BETAS.keys() | SCHEDULES.keys()
    for name in names:
        if name not in known:
            raise UsageError(f"NAME must be one of {', '.join(sorted(known))}, got {name!r}")
    return {
        name: SCHEDULES[name]() if name in SCHEDULES else Discrete(BETAS[name](TIMESTEPS))
        for name in names or SCHEDULES
    }


def lognormal_of(images: Any) -> tuple[float, float]:
    """Mean and standard deviation of ln(sigma/alpha) in training on these images, by default."""
    from ..data.info import DataInfo
    from ..losses import LogNormal
    from ..model.build import ModelSpec
    from ..model.config import Config

    density = ModelSpec(Config(), DataInfo.of(images)).density
    assert isinstance(density, LogNormal)
    return density.mean, density.std
