"""`simple-diffusion data`: summarize a data set, show some of its images, or add noise to them."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import command, data_options, info_text, load, path, png_only, say

PANELS = 8
"""Noise levels of `--noised`."""
DEFAULT = "cosine"
"""Schedule of `--noised`."""


def add(commands: Any) -> None:
    sub = command(commands, "data", run, "summarize a data set, and download it if it is missing")
    sub.add_argument("data", nargs="?", default="digits", metavar="DATA", help="as for train (default digits)")
    sub.add_argument("--out", type=path, metavar="FILE.png", help="a grid of images (default none)")
    sub.add_argument("--noised", type=path, metavar="FILE.png", help="images with noise added, t from 0 to 1")
    sub.add_argument("--schedule", metavar="NAME", help="noise schedule of --noised (default cosine)")
    data_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    check_options(args)
    images = load(args, args.data, args.size, args.skip_bad)
    say(args, info_text(images))
    counts: dict[str, int] = {}
    if images.labels is not None:
        counts = dict(zip(images.class_names, images.labels.bincount(minlength=images.classes).tolist(), strict=True))
        say(args, "\n".join(f"  {count:>7,}  {name}" for name, count in counts.items()))
    if args.out is not None:
        write_grid(args.out, images)
        say(args, f"Grid of images: {args.out}")
    if args.noised is not None:
        write_noised(args.noised, images, args.schedule or DEFAULT)
        say(args, f"Images with noise of the {args.schedule or DEFAULT} schedule, t from 0 to 1: {args.noised}")
    channels, height, width = images.shape
    return {
        "name": images.name,
        "count": len(images),
        "channels": channels,
        "height": height,
        "width": width,
        "classes": counts,
        "mean": images.mean,
        "std": images.std,
        "fingerprint": images.fingerprint,
        "duplicates": images.duplicates,
        "notes": list(images.notes),
        "left_out": images.left_out,
    }


def check_options(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not fit together, or an unknown schedule."""
    if args.schedule is not None and args.noised is None:
        raise UsageError("--schedule is for --noised: add --noised FILE.png, or drop --schedule")
    for option, file in (("--out", args.out), ("--noised", args.noised)):
        if file is not None:
            png_only(file, option)
    if args.schedule is not None:
        from ..schedules import SCHEDULES

        if args.schedule not in SCHEDULES:
            raise UsageError(f"--schedule must be one of {', '.join(SCHEDULES)}, got {args.schedule!r}")


def write_grid(out: Path, images: Any) -> None:
    """A grid of 64 images or, with classes, of 20 of each of the first 10 classes."""
    from ..system.files import write_atomic
    from ..viz.grids import make_grid, png

    labeled = images.labels is not None
    chosen = subset(images, 10, 20) if labeled else subset(images, 64)
    write_atomic(out, png(make_grid(images.pixels[chosen], 10 if labeled else 8)))


def write_noised(out: Path, images: Any, schedule: str) -> None:
    """A strip for each of 8 images, of 8 classes where there are as many, from clean to noise."""
    import torch

    from ..data.images import to_unit
    from ..schedules import SCHEDULES
    from ..system.files import write_atomic
    from ..viz.grids import png, strips
    from ..viz.trajectory import noise_images

    chosen = subset(images, 8) if images.labels is None else subset(images, 1, 8)
    times = torch.linspace(0, 1, PANELS)
    write_atomic(out, png(strips(noise_images(to_unit(images.pixels[chosen]), SCHEDULES[schedule](), times))))


def subset(images: Any, n: int, classes: int | None = None) -> Any:
    """Indices of n images, always the same; with `classes`, of n of each of the first classes, in order: int64."""
    import torch

    from ..randomness import permutation

    shuffled = permutation(len(images), 0, "data sheet")
    if classes is None:
        return shuffled[:n]
    labels = images.labels[shuffled]
    return torch.cat([shuffled[labels == c][:n] for c in range(min(images.classes, classes))])
