"""`simple-diffusion train`: train a model on a data set, a folder of images, or an .npz or .npy file."""

import argparse
import math
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError
from ..run.folder import refuse_held
from .options import (
    FIRST,
    STARTED,
    command,
    count,
    data_options,
    device_options,
    duration,
    info_text,
    load,
    path,
    say,
    seed,
    whole,
)

SHAPE = {"network", "widths", "blocks", "patch"}
"""Settings that choose the size of the network."""


def add(commands: Any) -> None:
    sub = command(commands, "train", run, "train a model on a data set, a folder of images, or an .npz or .npy file")
    sub.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="digits (default), fashion-mnist, mnist, a path or hub:OWNER/NAME; DATA[CLASS] is one class",
    )
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--for", type=duration, dest="seconds", metavar="TIME", help="90s, 10min, 2h (default 3min)")
    length.add_argument("--epochs", type=count, metavar="N", help="passes over the data")
    length.add_argument("--steps", type=whole(1, 10**9), metavar="N", help="updates")
    sub.add_argument("--preset", metavar="NAME", help="a row of the table that `list` prints (default by --for)")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; `help` lists them")
    sub.add_argument("--out", type=path, metavar="FOLDER", help="the run folder (default runs/DATA-1, -2, ...)")
    sub.add_argument("--resume", action="store_true", help="go on with the run in --out, as if it had never stopped")
    sub.add_argument("--seed", type=seed, metavar="N", help="of weights, data order and noise (default 0)")
    sub.add_argument(
        "--dry-run", action="store_true", help="say what would be done and how long it takes; write nothing"
    )
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.resume and (args.out is None or not args.out.is_dir()):
        if args.out is None:
            raise UsageError("--resume goes on with a run: name its folder with --out FOLDER")
        raise CheckpointError(f"there is no run in {args.out}: name a run folder, or start one without --resume")
    if args.out is not None and FIRST:
        refuse_held(args.out)

    from ..model.config import Config, fitted, parse_settings, settings_help
    from ..model.presets import PRESETS
    from ..system.device import pick_device

    if args.preset == "list":
        say(args, "\n".join(f"  {name:<8} {about}" for name, (about, _) in PRESETS.items()))
        return {name: values for name, (_, values) in PRESETS.items()}
    if "help" in args.set:
        say(args, settings_help())
        return {}
    if args.preset is not None and args.preset not in PRESETS:
        raise UsageError(f"--preset {args.preset!r} is not known: choose one of {', '.join(PRESETS)}")

    given = {"data": args.data, "seed": args.seed, "size": args.size, "seconds": args.seconds, "steps": args.steps}
    given["skip_bad"] = "yes" if args.skip_bad else None
    given["precision"] = None if args.precision == "auto" else args.precision
    if args.epochs:
        given["steps"] = 1  # until the size of the data is known
    preset = PRESETS[args.preset][1] if args.preset else {}
    values: dict[str, Any] = {}
    for layer in (preset, parse_settings(args.set), {key: value for key, value in given.items() if value is not None}):
        if layer.get("steps") or layer.get("seconds"):  # a run has one length: the last word counts
            values |= {"steps": 0, "seconds": 0.0}
        values |= layer
    if args.resume:
        return resume(args, values)
    device = pick_device(args.device)
    config = fitted(Config(**values), device)

    from ..data.info import DataInfo
    from ..model.build import ModelSpec
    from ..run.estimate import forecast, size_for
    from ..run.folder import free_folder, refuse_taken

    if args.out is not None:
        refuse_taken(args.out)  # before the data is loaded
    images = load_data(args, config)
    config = in_steps(args, config, images)
    if args.preset is None and config.seconds and not SHAPE & values.keys():
        size, why = size_for(ModelSpec(config, DataInfo.of(images)), device)
        config = fitted(Config(**PRESETS[size][1] | values), device)
        say(args, f"The size that suits {config.seconds:g} s on this machine is {size}: {why}.")
    if args.dry_run:
        result = forecast(config, images, device)
        say(args, result["text"])
        return result
    return train(args, config, images, args.out or free_folder(Path("runs"), images.stem))


def resume(args: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    """Go on with a run, whose settings may be said again but not changed."""
    from dataclasses import replace

    from ..data.info import DataInfo
    from ..model.build import ModelSpec
    from ..run.checkpoint import latest

    checkpoint = latest(args.out)
    config = replace(checkpoint.spec.config, **values)
    images = load_data(args, config)
    config = in_steps(args, config, images)
    checkpoint.refuse_changes(ModelSpec(config, DataInfo.of(images)))
    for remark in checkpoint.remarks():
        say(args, f"Note: {remark}.")
    if args.dry_run:
        say(args, f"Would go on from step {checkpoint.numbers.n:,} of {args.out}.")
        return {"step": checkpoint.numbers.n}
    return train(args, config, images, args.out, checkpoint.numbers.n)


def load_data(args: argparse.Namespace, config: Any) -> Any:
    """The images of the config; says what they are."""
    images = load(args, config.data, config.size, config.skip_bad == "yes")
    say(args, info_text(images))
    return images


def in_steps(args: argparse.Namespace, config: Any, images: Any) -> Any:
    """The config with --epochs as steps."""
    from dataclasses import replace

    return replace(config, steps=math.ceil(args.epochs * len(images) / config.batch)) if args.epochs else config


def train(args: argparse.Namespace, config: Any, images: Any, folder: Path, step: int | None = None) -> dict[str, Any]:
    """Train, from the beginning or on from a step, and say how it went."""
    import torch

    from ..run.trainer import train_run
    from ..system.device import pick_device

    device = pick_device(args.device)
    length = f"{config.steps:,} steps" if config.steps else f"{config.seconds:g} s"
    start = "Training" if step is None else f"Going on from step {step:,}"
    say(args, f"{start} for {length} on {device.type} in {config.precision}, into {folder}.")
    if images.left_out:
        say(args, f"The images that were left out: {folder / 'left-out.csv'}")
    result = train_run(config, images, folder, device, STARTED, args.json, resume=step is not None)
    if result.held_out_loss is not None:
        say(
            args,
            f"The lowest held-out loss is {result.held_out_loss:.4f}"
            + ("; it had not fallen for long, so the run stopped early." if result.gave_up else "."),
        )
    say(
        args,
        f"{'Stopped' if result.signal else 'Done'} after {result.step:,} steps, {result.images:,} images and "
        f"{result.seconds:.0f} s at {result.images_per_second:,.0f} images/s; the loss is {result.loss:.4f}.",
    )
    if result.picture:
        say(args, f"Pictures: {result.picture}")
    say(args, f"Model: {folder}; draw from it with: simple-diffusion sample {folder}")
    if result.signal:
        say(args, f"Go on with it: simple-diffusion train --resume --out {folder}")
        raise SystemExit(128 + result.signal)
    return {
        "run": str(folder),
        "steps": result.step,
        "images": result.images,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second),
        "loss": result.loss,
        "held_out_loss": result.held_out_loss,
        "picture": str(result.picture),
        "threads": torch.get_num_threads(),
    }
