"""`simple-diffusion data`: say what is in a data set, draw some of it, or noise it; downloads what is missing."""

import argparse
from typing import Any

from ..errors import UsageError
from .options import command, data_options, info_text, load, path, png_only, say

PANELS = 8
"""Moments of `--noised`."""


def add(commands: Any) -> None:
    sub = command(commands, "data", run, "say what is in a data set, and draw some of it; downloads what is missing")
    sub.add_argument("data", nargs="?", default="digits", metavar="DATA", help="as for train")
    sub.add_argument("--out", type=path, metavar="FILE.png", help="a grid of images (default none)")
    sub.add_argument("--noised", type=path, metavar="FILE.png", help="images on their way into noise, t from 0 to 1")
    sub.add_argument("--schedule", metavar="NAME", help="noise schedule of --noised (default cosine)")
    data_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.schedule is not None and args.noised is None:
        raise UsageError("--schedule says how images are noised: add --noised FILE.png, or drop it")
    for option, file in (("--out", args.out), ("--noised", args.noised)):
        if file is not None:
            png_only(file, option)

    import torch

    from ..schedules import SCHEDULES

    schedule = args.schedule or "cosine"
    if schedule not in SCHEDULES:
        raise UsageError(f"no schedule is called {schedule!r}: choose among {', '.join(SCHEDULES)}")
    images = load(args, args.data, args.size, args.skip_bad)
    say(args, info_text(images))
    counts: dict[str, int] = {}
    if images.labels is not None:
        counts = dict(zip(images.class_names, images.labels.bincount(minlength=images.classes).tolist(), strict=True))
        say(args, "\n".join(f"  {count:>7,}  {name}" for name, count in counts.items()))
    if args.out is not None:
        from ..system.files import write_atomic
        from ..viz.grids import make_grid, png

        chosen = some(images, 64) if images.labels is None else some(images, 10, 20)
        write_atomic(args.out, png(make_grid(images.pixels[chosen], 8 if images.labels is None else 10)))
        say(args, f"Picture: {args.out}")
    if args.noised is not None:
        from ..data.images import to_unit
        from ..system.files import write_atomic
        from ..viz.grids import png, strips
        from ..viz.trajectory import noise_images

        chosen = some(images, 8) if images.labels is None else some(images, 1, 8)
        panels = noise_images(to_unit(images.pixels[chosen]), SCHEDULES[schedule](), torch.linspace(0, 1, PANELS))
        write_atomic(args.noised, png(strips(panels)))
        say(args, f"Noised by {schedule}, t from 0 to 1: {args.noised}")
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
        "notes": list(images.notes),
        "left_out": images.left_out,
    }


def some(images: Any, n: int, classes: int | None = None) -> Any:
    """Numbers of n images, always the same; or of n from each of the first classes, class by class: int64."""
    import torch

    from ..randomness import permutation

    shuffled = permutation(len(images), 0, "data sheet")
    if classes is None:
        return shuffled[:n]
    labels = images.labels[shuffled]
    return torch.cat([shuffled[labels == c][:n] for c in range(min(images.classes, classes))])
