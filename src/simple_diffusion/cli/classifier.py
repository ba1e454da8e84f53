"""`simple-diffusion classifier`: train a classifier of a data set, whose features `evaluate` uses."""

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import (
    STARTED,
    command,
    count,
    data_options,
    device_option,
    info_text,
    load,
    path,
    refuse_folder,
    say,
    seed,
)


def add(commands: Any) -> None:
    sub = command(commands, "classifier", run, "train a classifier of a data set, as a feature extractor for scores")
    sub.add_argument("data", nargs="?", default="digits", metavar="DATA", help="as for train (default digits)")
    sub.add_argument(
        "--epochs", type=count, metavar="N", help="passes over the data (default: some minutes on two cores)"
    )
    sub.add_argument(
        "--out", type=path, metavar="FILE.safetensors", help="file of the extractor; its stem becomes the name"
    )
    sub.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of the weights, split and data order (default 0)"
    )
    device_option(sub)
    data_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.out is not None and args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out} must end in .safetensors")
    if args.out is not None:
        refuse_folder(args.out)

    from dataclasses import asdict

    from ..data.sources import held_out
    from ..evaluation.extractors import make_extractor, name_of, save_extractor

    images = load(args, args.data, args.size, args.skip_bad)
    test = held_out(
        args.data, class_names=images.class_names, root=args.data_root, size=args.size, skip_bad=args.skip_bad
    )
    out = args.out or Path(f"{name_of(images, args.seed)}.safetensors")
    say(args, info_text(images))
    made = make_extractor(images, out.stem, test=test, seed=args.seed, epochs=args.epochs, device=args.device)
    save_extractor(out, made)
    record = made.record
    task = f"{record.classes} classes" if record.classes else "8 symmetries of each image"
    on_test = "" if record.test_accuracy is None else f", {record.test_accuracy:.2%} on the test set"
    say(
        args,
        f"Trained {made.name} on {task} for {record.epochs} epochs in {time.perf_counter() - STARTED:.0f} s; "
        f"accuracy {record.validation_accuracy:.2%} on held-out training images{on_test}.",
    )
    say(args, f"Extractor: {out}")
    return {"out": str(out), **asdict(record), "name": made.name}
