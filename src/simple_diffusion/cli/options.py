"""What all commands share: types of options, groups of options, words to the user."""

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UsageError, printable

STARTED = time.perf_counter()
"""When the command began: the clock of `train --for` counts from here."""

SHARED = "TORCHELASTIC_RUN_ID" in os.environ
"""Did torchrun start this process, beside others?"""

FIRST = not SHARED or os.environ.get("RANK") == "0"
"""Is this the process that speaks and writes?"""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one sentence, exit code 2."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("unrecognized arguments:", "no such option:")
        raise UsageError(f"{message}: see {self.prog} --help")


def duration(text: str) -> float:
    """`90s`, `10min`, `1.5h` or plain seconds -> seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|min|m|h)?", text)
    seconds = float(match[1]) * {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= 1e8:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time like 90s, 10min or 2h, at most 27777h")
    return seconds


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from low, 0 or more, to high."""

    def number(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low:,} to {high:,}")
        return int(text)

    return number


seed = whole(0, 2**63 - 1)
count = whole(1, 10**6)
"""How many images, or passes over the data."""


def real(low: float, high: float) -> Callable[[str], float]:
    """The type of an option that is a number from low to high."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
        return value

    return number


scale = real(0, 100)
"""A strength of guidance."""
ema_length = real(0.01, 0.27)
"""Of the averaged weights: the standard deviation of the averaging profile, as a share of the run."""


def path(text: str) -> Path:
    """A path; an empty one is a shell's variable that was not set."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no path: name a file or folder")
    return Path(text)


def command(commands: Any, name: str, run: Callable, help: str) -> Parser:
    """A command's parser, with the options that every command has."""
    sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    sub.set_defaults(run=run)
    sub.add_argument("--json", action="store_true", help="print the result as JSON, everything else to stderr")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return sub


def data_options(sub: Parser) -> None:
    sub.add_argument("--data-root", type=path, metavar="PATH", help="where data sets lie and are downloaded to")
    sub.add_argument("--size", type=whole(1, 1024), help="bring images to this height and width")
    sub.add_argument("--skip-bad", action="store_true", help="leave out images that can't be read, and say which")


def device_options(sub: Parser) -> None:
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    sub.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))


SAMPLERS = ("ddpm", "ddpm-beta", "ddim", "heun", "dpmpp", "dpmpp-sde")
"""The names in `samplers.SAMPLERS`, which would import torch. A test compares the two."""


def sampling_options(sub: Parser) -> None:
    sub.add_argument("--guidance", type=scale, metavar="SCALE", help="0 ignores labels, 1 is none, above 1 stronger")
    sub.add_argument("--autoguidance", type=scale, metavar="SCALE", help="by an early snapshot: 1 is none")
    sub.add_argument("--steps", type=whole(1, 10000), metavar="N", help="steps of the sampler")
    sub.add_argument("--sampler", choices=SAMPLERS)
    sub.add_argument("--seed", type=seed, default=0, metavar="N", help="of the noise (default 0)")


def ema_option(sub: Parser) -> None:
    sub.add_argument(
        "--ema", type=ema_length, metavar="WIDTH", help="of the averaged weights, chosen afterwards, like 0.08"
    )


def table_row(columns: Collection[str], cells: Sequence[str] | None = None) -> str:
    """A row of a table whose columns are as wide as their titles, at least 8 characters; without cells, the titles."""
    words = columns if cells is None else cells
    first, *rest = (word.rjust(max(8, len(title))) for title, word in zip(columns, words, strict=True))
    return "  ".join(["  " + first.strip().ljust(len(first)), *rest]).rstrip()


def say(args: argparse.Namespace, text: str) -> None:
    """Human words: to stdout, or to stderr where stdout is for JSON; of several processes the first one speaks."""
    text = printable(text, keep="\n")  # it has names of files and classes in it, and they may hold anything
    if FIRST:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)


def load(args: argparse.Namespace, source: str, size: int | None, skip_bad: bool):
    """The images of DATA, as the options say; what was left out is said on stderr."""
    from ..data.images import first_reasons
    from ..data.sources import load_images

    images = load_images(source, root=args.data_root, size=size or None, skip_bad=skip_bad)
    if FIRST and (bad := images.left_out):
        total = len(bad) + len(images)
        print(f"left out {len(bad):,} of {total:,} images: {first_reasons(bad)}", file=sys.stderr, flush=True)
    return images


def read_as(args: argparse.Namespace, config: Any) -> tuple[int, bool]:
    """(size, skip_bad): how images are read, by the options, else as a model's were; without a model by the options."""
    if config is None:
        return args.size or 0, args.skip_bad
    return args.size or config.size, args.skip_bad or config.skip_bad == "yes"


def png_only(file: Path, option: str = "--out") -> None:
    """Raise UsageError for a picture with another ending than .png."""
    if file.suffix != ".png":
        raise UsageError(f"{option} {file} has another ending than .png: use .png")


def data_of(args: argparse.Namespace, model: Any, n: int):
    """(the images that a model's are compared with, at most so many samples of it as mean something): --data, or those
    that it was trained on. Raises DataError where the shapes differ."""
    from ..errors import DataError

    config = model.config
    images = load(args, args.data or config.data, *read_as(args, config))
    if images.shape != model.info.shape:
        raise DataError(f"the images of {images.name} have another shape than the model's: name its data with --data")
    return images, min(n, 2 * len(images))


def info_text(images) -> str:
    """What is in a data set, in a paragraph."""
    channels, height, width = images.shape
    kind = {1: "grey", 3: "colour"}[channels]
    classes = f" in {images.classes} classes ({', '.join(images.class_names)})" if images.classes else ""
    text = f"{images.name}: {len(images):,} {kind} images of {height} x {width} pixels{classes}; "
    text += f"mean {images.mean:.3f}, deviation {images.std:.3f} in [-1, 1]."
    return printable(" ".join([text, *images.notes]))


def parse_labels(text: str, class_names: tuple[str, ...]) -> list[int]:
    """`3,5` or `Bag,Sneaker` -> numbers of classes; `none` -> the label that means none. Raises UsageError."""
    from ..data.images import class_number

    labels = []
    for word in map(str.strip, text.split(",")):
        label = class_number(word, class_names)
        if label is None and class_names and word.casefold() == "none":
            label = len(class_names)
        if label is None:
            known = ", ".join(f"{i} {name}" if name != str(i) else name for i, name in enumerate(class_names))
            raise UsageError(f"the model has no label {word!r}: it knows {known or 'no labels'}")
        labels.append(label)
    return labels


def open_model(args: argparse.Namespace):
    """The model of the command line, with its config as the options change it."""
    from ..model.model_file import read
    from ..model.posthoc_ema import posthoc_model

    model = read(args.model, args.device, args.precision)
    if args.ema is not None:
        model = posthoc_model(args.model, model, args.ema)
    return model.changed(**sampling_settings(args))


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that `sampling_options` change."""
    given = {"guidance": args.guidance, "sampler_steps": args.steps, "sampler": args.sampler}
    given["autoguidance"] = args.autoguidance
    return {key: value for key, value in given.items() if value is not None}


def sampling_text(model, n: int) -> str:
    """What is drawn, and how."""
    config = model.config
    guidance = f", guidance {config.guidance:g}" if model.info.classes else ""
    return f"{n:,} images of {printable(model.info.name)}, {config.sampler} in {config.sampler_steps} steps{guidance}"
