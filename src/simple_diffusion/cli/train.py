"""`simple-diffusion train`: train a model on a data set, a folder of images, or an .npz or .npy file."""

import argparse
import math
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError
from ..run.folder import refuse_held
from ..system.terminal import command_line
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
    refuse_without_labels,
    say,
    seed,
    whole,
)

SHAPE = {"network", "widths", "blocks", "patch"}
"""Settings that determine the size of the network."""


def add(commands: Any) -> None:
    sub = command(commands, "train", run, "train a model on a data set, a folder of images, or an .npz or .npy file")
    sub.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="digits (default), fashion-mnist, mnist, a path or hub:OWNER/NAME; DATA[CLASS] for one class",
    )
    length = sub.add_mutually_exclusive_group()
    length.add_argument(
        "--for", type=duration, dest="seconds", metavar="TIME", help="training time: 90s, 10min, 2h (default 3min)"
    )
    length.add_argument("--epochs", type=count, metavar="N", help="number of passes over the data")
    length.add_argument("--steps", type=whole(1, 10**9), metavar="N", help="number of optimizer steps")
    sub.add_argument("--preset", metavar="NAME", help="preset settings; `--preset list` prints them (default by --for)")
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting; `--set help` lists them"
    )
    sub.add_argument("--out", type=path, metavar="FOLDER", help="run folder (default runs/DATA-1, -2, ...)")
    sub.add_argument("--resume", action="store_true", help="resume the run in --out, bit-exact")
    sub.add_argument("--seed", type=seed, metavar="N", help="seed of weights, data order and noise (default 0)")
    sub.add_argument("--dry-run", action="store_true", help="print the plan and how long it takes; write nothing")
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    check_folder(args)
    if (answer := lists(args)) is not None:
        return answer
    values = settings_of(args)
    return resume(args, values) if args.resume else start(args, values)


def check_folder(args: argparse.Namespace) -> None:
    """Raise an error where --resume has no run folder, or another process holds --out."""
    if args.resume and args.out is None:
        raise UsageError("--resume needs the folder of a run: add --out FOLDER")
    if args.resume and not args.out.is_dir():
        raise CheckpointError(f"there is no run in {args.out}: name a run folder, or drop --resume to start a new run")
    if args.out is not None and FIRST:
        refuse_held(args.out)


def lists(args: argparse.Namespace) -> dict[str, Any] | None:
    """Print the presets or the settings where the options ask for them; None where they do not."""
    from ..model.config import settings_help
    from ..model.presets import PRESETS

    if args.preset == "list":
        width = max(map(len, PRESETS))
        say(args, "\n".join(f"  {name:<{width}}  {about}" for name, (about, _) in PRESETS.items()))
        return {name: values for name, (_, values) in PRESETS.items()}
    if "help" in args.set:
        say(args, settings_help())
        return {}
    if args.preset is not None and args.preset not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}, got {args.preset!r}")
    return None


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the command line: the preset, then --set, then the other options, the later one in force."""
    from ..model.config import parse_settings
    from ..model.presets import PRESETS

    given = {"data": args.data, "seed": args.seed, "size": args.size, "seconds": args.seconds, "steps": args.steps}
    given["skip_bad"] = "yes" if args.skip_bad else None
    given["precision"] = None if args.precision == "auto" else args.precision
    if args.epochs:
        given["steps"] = 1  # until the size of the data is known
    preset = PRESETS[args.preset][1] if args.preset else {}
    values: dict[str, Any] = {}
    for layer in (preset, parse_settings(args.set), {key: value for key, value in given.items() if value is not None}):
        if layer.get("steps") or layer.get("seconds"):  # a run has one length
            values |= {"steps": 0, "seconds": 0.0}
        values |= layer
    return values


def start(args: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    """Train a new run, or with --dry-run print what it would do."""
    from ..data.info import DataInfo
    from ..model.build import ModelSpec
    from ..model.config import Config, fitted, parse_settings
    from ..model.presets import PRESETS
    from ..run.budget import Budget
    from ..run.estimate import choose_size, dry_run
    from ..run.folder import free_folder, refuse_taken
    from ..system.device import pick_device
    from ..system.distributed import on_rank0

    device = pick_device(args.device)
    config = fitted(Config(**values), device)
    if args.out is not None:
        refuse_taken(args.out)  # before the data is loaded
    images = load_data(args, config)
    refuse_without_labels(parse_settings(args.set), images)
    config = in_steps(args, config, images)
    if args.preset is None and config.seconds and not SHAPE & values.keys():
        size, reason = choose_size(ModelSpec(config, DataInfo.of(images)), device)
        config = fitted(Config(**PRESETS[size][1] | values), device)
        say(args, f"Network size: {reason}.")
    expect_training(args, config, images)
    if args.dry_run:
        result = dry_run(config, images, device)
        say(args, result["text"])
        return result
    runs = Path("runs")
    on_rank0(Budget(config, STARTED).refuse_late)  # before a folder is made
    return train(args, config, images, args.out or (free_folder(runs, images.stem) if FIRST else runs))


def resume(args: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    """Resume a run. Its settings may be repeated on the command line but not changed; its data may have moved."""
    from dataclasses import replace

    from ..data.info import DataInfo
    from ..model.build import ModelSpec
    from ..run.checkpoint import latest

    checkpoint = latest(args.out)
    config = replace(checkpoint.spec.config, **values)
    images = load_data(args, config, f"name it: simple-diffusion train DATA --resume --out {args.out}")
    config = in_steps(args, config, images)
    expect_training(args, config, images)
    checkpoint.refuse_changes(ModelSpec(config, DataInfo.of(images)))
    for remark in checkpoint.remarks():
        say(args, f"Note: {remark}.")
    if args.dry_run:
        say(args, f"Would resume {args.out} from step {checkpoint.numbers.n:,}.")
        return {"step": checkpoint.numbers.n}
    return train(args, config, images, args.out, checkpoint.numbers.n)


def load_data(args: argparse.Namespace, config: Any, moved: str = "") -> Any:
    """The images of the configuration, with a summary printed."""
    images = load(args, config.data, config.size, config.skip_bad == "yes", moved)
    say(args, info_text(images))
    return images


def in_steps(args: argparse.Namespace, config: Any, images: Any) -> Any:
    """The configuration with --epochs as steps."""
    from dataclasses import replace

    return replace(config, steps=math.ceil(args.epochs * len(images) / config.batch)) if args.epochs else config


def expect_training(args: argparse.Namespace, config: Any, images: Any) -> None:
    """Say what needs memory and what to do, in case there is too little."""
    _, height, width = images.shape
    what = f"to train on batches of {config.batch} images of {height} x {width} pixels"
    args.memory = what, "use --set accumulate=8, a smaller --set batch, a smaller --size, or --preset tiny"


def train(args: argparse.Namespace, config: Any, images: Any, folder: Path, step: int | None = None) -> dict[str, Any]:
    """Train, from the start or from `step`, and print the result."""
    import torch

    from ..run.trainer import train_run
    from ..system.device import pick_device

    device = pick_device(args.device)
    length = f"{config.steps:,} steps" if config.steps else f"{config.seconds:g} s"
    begin = "Training" if step is None else f"Resuming from step {step:,}"
    say(args, f"{begin} for {length} on {device.type} in {config.precision}, into {folder}.")
    if images.left_out:
        say(args, f"Images left out: {folder / 'left-out.csv'}")
    result = train_run(config, images, folder, device, STARTED, args.json, resume=step is not None)
    print_result(args, result, folder)
    if result.signal:
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


def print_result(args: argparse.Namespace, result: Any, folder: Path) -> None:
    """What was trained, and the next command."""
    if result.held_out_loss is not None:
        early = "; training stopped early, as it had stopped falling" if result.gave_up else ""
        say(args, f"Lowest held-out loss: {result.held_out_loss:.4f}{early}.")
    say(
        args,
        f"{'Stopped' if result.signal else 'Finished'} after {result.step:,} steps, {result.images:,} images and "
        f"{result.seconds:.0f} s ({result.images_per_second:,.0f} images/s); loss {result.loss:.4f}.",
    )
    if result.picture:
        say(args, f"Samples: {result.picture}")
    say(args, f"Model: {folder}; generate images with: {command_line(['simple-diffusion', 'sample', str(folder)])}")
    if result.signal:
        say(args, f"Resume with: {command_line(['simple-diffusion', 'train', '--resume', '--out', str(folder)])}")
