"""`simple-diffusion classifier`: train the classifier whose features judge samples of a data set."""

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import STARTED, command, count, data_options, info_text, load, path, say, seed


def add(commands: Any) -> None:
    sub = command(commands, "classifier", run, "train the classifier whose features judge samples of a data set")
    sub.add_argument("data", nargs="?", default="digits", metavar="DATA", help="as for train")
    sub.add_argument("--epochs", type=count, metavar="N", help="passes over the data (default minutes on two cores)")
    sub.add_argument("--out", type=path, metavar="FILE.safetensors", help="its stem is the extractor's name")
    sub.add_argument("--seed", type=seed, default=0, metavar="N", help="of weights, split and data order (default 0)")
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    data_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.out is not None and args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out} has an ending that is not known: use .safetensors")

    from dataclasses import asdict

    from ..data.sources import held_out
    from ..evaluation.extractors import make_extractor, name_of, save_extractor

    images = load(args, args.data, args.size, args.skip_bad)
    test = held_out(args.data, root=args.data_root, size=args.size, skip_bad=args.skip_bad)
    out = args.out or Path(f"{name_of(images, args.seed)}.safetensors")
    say(args, info_text(images))
    made = make_extractor(images, out.stem, test=test, seed=args.seed, epochs=args.epochs, device=args.device)
    save_extractor(out, made)
    record = made.record
    result = "" if test is None else f", {record.test_accuracy:.2%} on the test set"
    task = f"{record.classes} classes" if record.classes else "8 symmetries of each image"
    say(
        args,
        f"{record.name} tells {task} apart: {record.validation_accuracy:.2%} right on the part of the training set "
        f"held out{result}, after {record.epochs} epochs and {time.perf_counter() - STARTED:.0f} s: {out}",
    )
    return {"out": str(out), **asdict(record)}
