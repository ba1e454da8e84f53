"""`simple-diffusion data`: say what is in a data set, and draw some of it; downloads what is missing."""

import argparse
from pathlib import Path
from typing import Any

from .options import card_text, command, data_options, load, say


def add(commands: Any) -> None:
    sub = command(commands, "data", run, "say what is in a data set, and draw some of it; downloads what is missing")
    sub.add_argument("data", nargs="?", default="digits", metavar="DATA", help="as for train")
    sub.add_argument("--out", type=Path, metavar="FILE.png", help="a grid of images (default none)")
    data_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    images = load(args, args.data, args.size)
    say(args, card_text(images))
    counts: dict[str, int] = {}
    if images.labels is not None:
        counts = dict(zip(images.class_names, images.labels.bincount(minlength=images.classes).tolist(), strict=True))
        say(args, "\n".join(f"  {count:>7,}  {name}" for name, count in counts.items()))
    if args.out is not None:
        from ..figures import grid, png
        from ..files import write_atomic
        from ..randomness import permutation

        shuffled = permutation(len(images), 0, "data sheet")
        if images.labels is None:
            chosen = shuffled[:64]
        else:
            chosen = torch.cat([shuffled[images.labels[shuffled] == c][:10] for c in range(min(images.classes, 20))])
        write_atomic(args.out, png(grid(images.pixels[chosen], 8 if images.labels is None else 10)))
        say(args, f"Picture: {args.out}")
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
    }
