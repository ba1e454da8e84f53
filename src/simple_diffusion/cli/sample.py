"""`simple-diffusion sample`: generate images with a trained model, or show their denoising trajectories."""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
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
    refuse_folder,
    sampling_options,
    sampling_text,
    say,
    whole,
)

PANELS, FRAMES = 10, 50
"""Steps that a strip and an animation show by default, where the trajectory has as many."""

MOST_PIXELS = 2**28
"""Pixels of the largest grid: 60,000 images of 32 x 32, twice enlarged, which take 800 MB of memory."""


def add(commands: Any) -> None:
    sub = command(commands, "sample", run, "generate images, or show how they emerge from noise")
    sub.add_argument("model", metavar="MODEL", help="a run folder or a .safetensors file")
    sub.add_argument("--n", type=count, metavar="N", help="number of images (default 100; 4 with --trajectory)")
    sub.add_argument(
        "--label", metavar="A,B", help="classes by number or name, or none (default all classes, one a row)"
    )
    sub.add_argument(
        "--augmentation",
        type=whole(0, 7),
        default=0,
        metavar="N",
        help="augmentation to condition on (default 0, none), for a model trained with augmentation",
    )
    sampling_options(sub)
    ema_option(sub)
    sub.add_argument("--trajectory", action="store_true", help="show x_t, and below it x0_hat, from noise to image")
    sub.add_argument("--film", dest="trajectory", action="store_true", help=argparse.SUPPRESS)  # its old name
    sub.add_argument(
        "--at", type=fractions, metavar="A,B", help="fractions of the trajectory to show: 0 first step, 1 image"
    )
    sub.add_argument(
        "--out",
        type=path,
        metavar="PATH",
        help=".png or .webp for a grid, .npz for arrays, or a new folder for PNGs by class; with --trajectory, .png "
        "for strips, .gif or .webp for an animation",
    )
    sub.add_argument("--dry-run", action="store_true", help="print what would be generated; write nothing")
    device_options(sub)


def fractions(text: str) -> tuple[float, ...]:
    """`0,0.25,1` -> fractions of the trajectory."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if len(numbers) > 100 or not all(0 <= number <= 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"must be at most 100 numbers from 0 to 1 like 0,0.25,1, got {text!r}")
    return numbers


@dataclass(frozen=True, eq=False)
class Plan:
    """What is generated, and where it is written.

    labels   int64 `[n]`, the classes; None for a model without classes
    cond     int64 `[n]`: the labels, with the augmentation; or None
    rows     of the grid, one class each; 0 where the images fill a square
    at       fractions of the trajectory, or None for the default
    """

    model: Any
    n: int
    seed: int
    labels: Any
    cond: Any
    rows: int
    at: tuple[float, ...] | None
    out: Path

    @property
    def columns(self) -> int:
        """Of the grid."""
        return math.ceil(self.n / self.rows) if self.rows else math.ceil(math.sqrt(self.n))

    @property
    def known_labels(self) -> Any:
        """The labels, or None without classes or with the null label among them."""
        return None if self.labels is None or (self.labels >= self.model.info.classes).any() else self.labels


def run(args: argparse.Namespace) -> dict[str, Any]:
    check_ending(args)
    plan = plan_of(args)
    check_size(plan, args.trajectory)
    what = f"{'the trajectories of ' if args.trajectory else ''}{sampling_text(plan.model, plan.n)}"
    if args.dry_run:
        say(args, f"Would generate {what}, into {plan.out}.")
        return {"n": plan.n, "out": str(plan.out)}

    began = time.perf_counter()
    if args.trajectory:
        if not FIRST:  # one batch, which cannot be shared
            return {}
        write_trajectory(plan)
        seconds = time.perf_counter() - began
        speed = ""
    else:
        from ..model.generate import generate

        pixels = generate(plan.model, plan.n, plan.cond, plan.seed, quiet=args.json)
        if not FIRST:
            return {}
        seconds = time.perf_counter() - began
        speed = f" ({plan.n / seconds:,.0f} images/s)"
        WRITERS[plan.out.suffix](plan, pixels)
    say(args, f"Generated {what}, in {seconds:.1f} s{speed}: {plan.out}")
    return {"n": plan.n, "seconds": round(seconds, 2), "out": str(plan.out)}


def check_ending(args: argparse.Namespace) -> None:
    """Raise UsageError for an --out or --at that does not fit the rest."""
    out: Path | None = args.out
    ending = None if out is None else out.suffix
    if out is not None and ending:
        refuse_folder(out)
    if args.trajectory:
        if ending not in (None, *TRAJECTORY_ENDINGS):
            raise UsageError(
                f"--out {args.out} cannot hold a trajectory: use .png for strips, .gif or .webp for an animation"
            )
        return
    if args.at is not None:
        raise UsageError("--at selects steps of a trajectory: add --trajectory, or drop --at")
    if ending == ".gif":
        raise UsageError(f"--out {args.out} is an animation: add --trajectory, or use .png or .webp for a grid")
    if ending is not None and ending not in WRITERS:
        raise UsageError(f"--out {args.out} must end in .png, .webp or .npz, or be a folder")
    if out is not None and not ending and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out {out} is not an empty folder: name a new one, so that two sets of images do not mix")


def plan_of(args: argparse.Namespace) -> Plan:
    """What the options ask for. Raises UsageError for labels or an augmentation that the model does not have."""
    import torch

    from ..viz.trajectory import MAX_IMAGES

    n = args.n or (4 if args.trajectory else 100)
    if args.trajectory and n > MAX_IMAGES:
        raise UsageError(f"--trajectory shows at most {MAX_IMAGES} images, got --n {n}: use a smaller --n")
    model = open_model(args)
    info = model.info
    chosen = parse_labels(args.label, info.class_names) if args.label is not None else list(range(info.classes))
    labels = torch.tensor([chosen[i % len(chosen)] for i in range(n)]) if chosen else None
    rows = len(chosen) if not args.trajectory and 1 < len(chosen) <= n else 0
    out = args.out or default_out(args, n)
    return Plan(model, n, args.seed, labels, conditioning(args.augmentation, model, labels, n), rows, args.at, out)


def conditioning(augmentation: int, model: Any, labels: Any, n: int) -> Any:
    """The labels with the number of the augmentation: int64 `[n]`, or None."""
    import torch

    if not augmentation:
        return labels
    known = model.spec.augment_labels
    if known == 1:
        raise UsageError(
            f"--augmentation needs a model trained with augment_conditioning=yes, got {augmentation}: drop it"
        )
    if augmentation >= known:
        raise UsageError(
            f"--augmentation must be from 0 to {known - 1} for this model, got {augmentation}: 0 is no augmentation"
        )
    classes = model.info.classes
    return (torch.full((n,), classes) if labels is None else labels) + augmentation * (classes + 1)


def default_out(args: argparse.Namespace, n: int) -> Path:
    """In the run folder, else in the working directory."""
    folder = Path(args.model) / "samples" if Path(args.model).is_dir() else Path()
    return folder / ("trajectory.png" if args.trajectory else f"n{n}-seed{args.seed}.png")


def check_size(plan: Plan, trajectory: bool) -> None:
    """Raise UsageError for a picture that its format or the memory cannot hold."""
    from ..viz.grids import WEBP_SIDE, grid_size

    info = plan.model.info
    size = grid_size(plan.n, plan.columns, info.height, info.width)
    if plan.out.suffix == ".webp" and (1 + trajectory) * max(size) > WEBP_SIDE:
        raise UsageError(f"--out {plan.out} would be larger than WebP allows, {WEBP_SIDE:,} pixels: use .png")
    if plan.out.suffix == ".png" and not trajectory and math.prod(size) > MOST_PIXELS:
        raise UsageError(f"--out {plan.out} would have more than {MOST_PIXELS:,} pixels: use .npz or a folder")


# --- writers


def write_grid(plan: Plan, pixels: Any) -> None:
    """The images in a grid, one class a row where there are classes."""
    from ..system.files import write_atomic
    from ..viz.grids import deal_into_rows, make_grid, png, webp

    encode = {".png": png, ".webp": webp}[plan.out.suffix]
    write_atomic(plan.out, encode(make_grid(deal_into_rows(pixels, plan.rows) if plan.rows else pixels, plan.columns)))


def write_npz(plan: Plan, pixels: Any) -> None:
    """Images, and their labels with the names of the classes unless one of them is the null label."""
    from ..data.arrays import npz
    from ..system.files import write_atomic

    write_atomic(plan.out, npz(pixels, plan.known_labels, plan.model.info.class_names))


def write_folder(plan: Plan, pixels: Any) -> None:
    """A PNG file for each image, in a folder for each class unless one of the labels is the null label."""
    from ..data.folder import folder_name
    from ..system.files import new_folder, write_atomic
    from ..viz.grids import png, single

    labels = None if plan.known_labels is None else plan.known_labels.tolist()
    with new_folder(plan.out) as out:
        folders = [out] * plan.n
        if labels is not None:
            by_class = {label: out / folder_name(plan.model.info.class_names[label]) for label in labels}
            for folder in by_class.values():
                folder.mkdir()  # fails where the system takes two names for the same
            folders = [by_class[label] for label in labels]
        for i, (folder, image) in enumerate(zip(folders, pixels, strict=True)):
            write_atomic(folder / f"{i:06d}.png", png(single(image)))


WRITERS: dict[str, Callable[[Plan, Any], None]] = {
    ".png": write_grid,
    ".webp": write_grid,
    ".npz": write_npz,
    "": write_folder,
}
"""Ending of --out -> what writes it."""

TRAJECTORY_ENDINGS = (".png", ".gif", ".webp")


def write_trajectory(plan: Plan) -> None:
    from ..system.files import write_atomic

    write_atomic(plan.out, trajectory_file(plan.model, plan.n, plan.cond, plan.seed, plan.at, plan.out.suffix))


def trajectory_file(model: Any, n: int, cond: Any, seed: int, at: tuple[float, ...] | None, ending: str) -> bytes:
    """The content of a trajectory's file: strips for .png, an animation for .gif or .webp."""
    from ..viz.grids import animation, frames, png, strips
    from ..viz.trajectory import FRACTIONS, record_trajectory

    if at is None and ending == ".png" and model.config.grid == "uniform":
        at = FRACTIONS
    elif at is None:
        shown = PANELS if ending == ".png" else FRAMES
        at = tuple((i + 1) / shown for i in range(shown))
    denoiser, times, sampler = model.sampler()
    shape = (n, *model.info.shape)
    pair = record_trajectory(denoiser, shape, times, cond, sampler=sampler, seed=seed, fractions=at)
    return png(strips(*pair)) if ending == ".png" else animation(frames(*pair), ending[1:].upper())
