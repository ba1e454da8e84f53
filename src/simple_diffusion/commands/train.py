"""`simple-diffusion train`: train a model on a data set, a folder of images, or an .npz or .npy file."""

import argparse
import math
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import STARTED, card_text, command, data_options, device_options, duration, load, positive, say, whole


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
    length.add_argument("--epochs", type=positive, metavar="N", help="passes over the data")
    length.add_argument("--steps", type=positive, metavar="N", help="updates")
    sub.add_argument("--preset", metavar="NAME", help="a row of the table of presets; `list` prints it")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; `help` lists them")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="the run folder (default runs/DATA-1, -2, ...)")
    sub.add_argument("--seed", type=whole, metavar="N", help="of weights, data order and noise (default 0)")
    sub.add_argument(
        "--dry-run", action="store_true", help="say what would be done and how long it takes; write nothing"
    )
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..config import PRESETS, Config, fitted, parse_settings, settings_help
    from ..hardware import pick_device

    if args.preset == "list":
        say(args, "\n".join(f"  {name:<8} {about}" for name, (about, _) in PRESETS.items()))
        return {name: values for name, (_, values) in PRESETS.items()}
    if "help" in args.set:
        say(args, settings_help())
        return {}
    if args.preset is not None and args.preset not in PRESETS:
        raise UsageError(f"no preset is called {args.preset!r}: choose one of {', '.join(PRESETS)}")

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
    config = Config(**values)

    from dataclasses import replace

    import torch

    from ..run import forecast, free_folder, refuse_taken, train_run

    if args.out is not None:
        refuse_taken(args.out)  # before the data is loaded
    device = pick_device(args.device)
    config = fitted(config, device)
    images = load(args, config.data, config.size, config.skip_bad == "yes")
    if args.epochs:
        config = replace(config, steps=math.ceil(args.epochs * len(images) / config.batch))
    say(args, card_text(images))
    if args.dry_run:
        result = forecast(config, images, device)
        say(args, result["text"])
        return result
    folder = args.out or free_folder(Path("runs"), images.stem)
    length = f"{config.steps:,} steps" if config.steps else f"{config.seconds:g} s"
    say(args, f"Training for {length} on {device.type} in {config.precision}, into {folder}.")
    if images.left_out:
        say(args, f"The images that were left out: {folder / 'left-out.csv'}")
    result = train_run(config, images, folder, device, STARTED, quiet=args.json)
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
