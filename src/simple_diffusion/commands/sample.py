"""`simple-diffusion sample`: draw images from a trained model."""

import argparse
import math
import time
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import command, device_options, labels_of, opened, positive, sampling_options, sampling_text, say


def add(commands: Any) -> None:
    sub = command(commands, "sample", run, "draw images from a trained model")
    sub.add_argument("model", metavar="MODEL", help="a run folder or a .safetensors file")
    sub.add_argument("--n", type=positive, default=100, help="how many (default 100)")
    sub.add_argument("--label", metavar="A,B", help="classes to draw, by number or name (default all, one a row)")
    sampling_options(sub)
    sub.add_argument("--out", type=Path, metavar="PATH", help=".png a grid, .npz arrays, else a folder of PNGs")
    sub.add_argument("--dry-run", action="store_true", help="say what would be drawn; write nothing")
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.out is not None and args.out.suffix not in (".png", ".npz", ""):
        raise UsageError(f"--out {args.out} has an ending that is not known: use .png, .npz, or a folder's name")

    import torch

    from ..figures import grid, npz, png, rows_of
    from ..files import write_atomic
    from ..run import draw

    model = opened(args)
    card = model.card
    chosen = labels_of(args.label, card.class_names) if args.label is not None else list(range(card.classes))
    labels = torch.tensor([chosen[i % len(chosen)] for i in range(args.n)]) if chosen else None
    out = args.out
    if out is None:
        folder = Path(args.model) / "samples" if Path(args.model).is_dir() else Path()
        out = folder / f"n{args.n}-seed{args.seed}.png"
    if args.dry_run:
        say(args, f"Would draw {sampling_text(model, args.n)}, into {out}.")
        return {"n": args.n, "out": str(out)}

    began = time.perf_counter()
    pixels = draw(model, args.n, labels, args.seed, quiet=args.json)
    seconds = time.perf_counter() - began
    if out.suffix == ".npz":
        write_atomic(out, npz(pixels, labels))
    elif out.suffix == ".png":
        columns = math.ceil(args.n / len(chosen)) if 1 < len(chosen) <= args.n else math.ceil(math.sqrt(args.n))
        one_class_a_row = rows_of(pixels, len(chosen)) if 1 < len(chosen) <= args.n else pixels
        write_atomic(out, png(grid(one_class_a_row, columns)))
    else:
        for i, image in enumerate(pixels):
            name = f"{i:06d}.png" if labels is None else f"{i:06d}-{labels[i]}.png"
            write_atomic(out / name, png(grid(image[None], 1, gap=0, scale=1)))
    say(args, f"Drew {sampling_text(model, args.n)}, in {seconds:.1f} s ({args.n / seconds:,.0f} images/s): {out}")
    return {"n": args.n, "seconds": round(seconds, 2), "out": str(out)}
