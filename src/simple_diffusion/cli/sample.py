"""`simple-diffusion sample`: draw images from a trained model, or the film of how they come out of noise."""

import argparse
import math
import time
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import (
    FIRST,
    command,
    count,
    device_options,
    ema_option,
    open_model,
    parse_labels,
    path,
    sampling_options,
    sampling_text,
    say,
    whole,
)

PANELS, FRAMES = 10, 50
"""How many moments a strip and an animation show, where there are as many."""

MOST_PIXELS = 2**28
"""Of a grid: 20,000 small images, which take 800 MB while it is drawn."""


def add(commands: Any) -> None:
    sub = command(commands, "sample", run, "draw images from a trained model, or the film of their making")
    sub.add_argument("model", metavar="MODEL", help="a run folder or a .safetensors file")
    sub.add_argument("--n", type=count, help="how many (default 100, of a film 4)")
    sub.add_argument(
        "--label", metavar="A,B", help="classes to draw, by number or name, or none (default all, one a row)"
    )
    sub.add_argument(
        "--view", type=whole(0, 7), default=0, metavar="N", help="of a model told its augmentation: 0 is plain"
    )
    sampling_options(sub)
    ema_option(sub)
    sub.add_argument("--film", action="store_true", help="show the way from noise to each image, x_t above x0_hat")
    sub.add_argument("--shares", type=shares, metavar="A,B", help="moments of a film: 0 is the first step, 1 the image")
    sub.add_argument(
        "--out",
        type=path,
        metavar="PATH",
        help=".png or .webp a grid, .npz arrays, else a folder of PNGs; of a film .png strips, .gif or .webp animated",
    )
    sub.add_argument("--dry-run", action="store_true", help="say what would be drawn; write nothing")
    device_options(sub)


def shares(text: str) -> tuple[float, ...]:
    """`0,0.25,1` -> shares of the way."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if len(numbers) > 100 or not all(0 <= number <= 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of up to 100 numbers from 0 to 1 like 0,0.25,1")
    return numbers


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    ending = None if args.out is None else args.out.suffix
    if args.film:
        if ending not in (None, ".png", ".gif", ".webp"):
            raise UsageError(f"--out {args.out} can't hold a film: use .png for strips, .gif or .webp for an animation")
        return
    if args.shares is not None:
        raise UsageError("--shares names the moments of a film: add --film, or drop it")
    if ending == ".gif":
        raise UsageError(f"--out {args.out} is for films: add --film, or use .png or .webp for a grid")
    if ending not in (None, ".png", ".webp", ".npz", ""):
        endings = ".png, .webp, .npz, or a folder's name"
        raise UsageError(f"--out {args.out} has an ending that is not known: use {endings}")


def run(args: argparse.Namespace) -> dict[str, Any]:
    check(args)

    import torch

    from ..data.arrays import npz
    from ..model.generate import generate
    from ..system.files import write_atomic
    from ..viz.grids import WEBP_SIDE, deal_into_rows, grid_size, make_grid, png, webp
    from ..viz.trajectory import MAX_IMAGES

    n = args.n or (4 if args.film else 100)
    if args.film and n > MAX_IMAGES:
        raise UsageError(f"a film shows at most {MAX_IMAGES} images, not {n}: use a smaller --n")
    model = open_model(args)
    info = model.info
    chosen = parse_labels(args.label, info.class_names) if args.label is not None else list(range(info.classes))
    labels = torch.tensor([chosen[i % len(chosen)] for i in range(n)]) if chosen else None
    if args.view:
        views = model.spec.augment_labels
        if args.view >= views:
            raise UsageError(f"the model has no view {args.view}: it was told {views} (0 is plain)")
        plain = torch.full((n,), info.classes) if labels is None else labels
        asked = plain + args.view * (info.classes + 1)
    else:
        asked = labels
    one_class_a_row = not args.film and 1 < len(chosen) <= n
    columns = math.ceil(n / len(chosen)) if one_class_a_row else math.ceil(math.sqrt(n))
    out = args.out
    if out is None:
        folder = Path(args.model) / "samples" if Path(args.model).is_dir() else Path()
        out = folder / ("film.png" if args.film else f"n{n}-seed{args.seed}.png")
    if out.suffix == ".webp" and (1 + args.film) * max(grid_size(n, columns, info.height, info.width)) > WEBP_SIDE:
        raise UsageError(f"--out {out} would be larger than WebP allows, {WEBP_SIDE:,} pixels: use .png")
    if (
        out.suffix == ".png"
        and not args.film
        and math.prod(grid_size(n, columns, info.height, info.width)) > MOST_PIXELS
    ):
        raise UsageError(f"--out {out} would have more than {MOST_PIXELS:,} pixels: use .npz, or a folder's name")
    what = f"{'a film of ' if args.film else ''}{sampling_text(model, n)}"
    if args.dry_run:
        say(args, f"Would draw {what}, into {out}.")
        return {"n": n, "out": str(out)}

    began = time.perf_counter()
    if args.film:
        if not FIRST:  # a film is short: the first process draws it alone
            return {}
        write_atomic(out, film_file(model, n, asked, args.seed, args.shares, out.suffix))
        seconds = time.perf_counter() - began
        say(args, f"Drew {what}, in {seconds:.1f} s: {out}")
        return {"n": n, "seconds": round(seconds, 2), "out": str(out)}
    pixels = generate(model, n, asked, args.seed, quiet=args.json)
    if not FIRST:
        return {}
    seconds = time.perf_counter() - began
    if out.suffix == ".npz":
        named = labels is not None and (labels < info.classes).all()
        write_atomic(out, npz(pixels, labels if named else None))
    elif out.suffix:
        sheet = make_grid(deal_into_rows(pixels, len(chosen)) if one_class_a_row else pixels, columns)
        write_atomic(out, webp(sheet) if out.suffix == ".webp" else png(sheet))
    else:
        for i, image in enumerate(pixels):
            name = f"{i:06d}.png" if labels is None else f"{i:06d}-{labels[i]}.png"
            write_atomic(out / name, png(make_grid(image[None], 1, gap=0, scale=1)))
    say(args, f"Drew {what}, in {seconds:.1f} s ({n / seconds:,.0f} images/s): {out}")
    return {"n": n, "seconds": round(seconds, 2), "out": str(out)}


def film_file(model: Any, n: int, labels: Any, seed: int, shares: tuple[float, ...] | None, ending: str) -> bytes:
    """The content of a film's file: strips for .png, else an animation."""
    from ..viz.grids import animation, frames, png, strips
    from ..viz.trajectory import FRACTIONS, record_trajectory

    if shares is None and ending == ".png" and model.config.grid == "uniform":
        shares = FRACTIONS
    elif shares is None:
        moments = PANELS if ending == ".png" else FRAMES
        shares = tuple((i + 1) / moments for i in range(moments))
    denoiser, times, sampler = model.sampler()
    device = next(model.denoiser.parameters()).device
    shape = (n, *model.info.shape)
    films = record_trajectory(
        denoiser, shape, times, labels, sampler=sampler, seed=seed, fractions=shares, device=device
    )
    return png(strips(*films)) if ending == ".png" else animation(frames(*films), ending[1:].upper())
