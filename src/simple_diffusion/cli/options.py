"""What the commands share: the parser, types of options, groups of options, loading and printing."""

import argparse
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..errors import DataError, SimpleDiffusionError, UsageError, is_out_of_memory, printable, reason
from ..system.terminal import note, show

STARTED = time.perf_counter()
"""When the command started: `train --for` counts from here."""

SHARED = "TORCHELASTIC_RUN_ID" in os.environ
"""Whether torchrun started this process, as one of several."""

FIRST = not SHARED or os.environ.get("RANK") == "0"
"""Whether this is the process that prints and writes."""

RENAMED = {
    "--evaluations": "--nfe",
    "--shares": "--at",
    "--view": "--augmentation",
}
"""Old name of an option -> its name now."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors: one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        words = [word.partition("=")[0] for word in message.split()]
        if message.startswith("unrecognized arguments:"):
            for word in words:
                if word in RENAMED:
                    raise UsageError(f"`{word}` is now called `{RENAMED[word]}`")
        message = message.replace("unrecognized arguments:", "unknown option or argument:")
        raise UsageError(f"{message}: see {self.prog} --help")


def duration(text: str) -> float:
    """`90s`, `10min`, `1.5h` or plain seconds -> seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|min|m|h)?", text)
    seconds = float(match[1]) * {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= 1e8:
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 10min or 2h, at most 27777h, got {text!r}")
    return seconds


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an option that takes an integer from low, 0 or more, to high."""

    def number(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be an integer from {low:,} to {high:,}, got {text!r}")
        return int(text)

    return number


seed = whole(0, 2**63 - 1)
count = whole(1, 10**6)
"""A number of images, or of passes over the data."""


def real(low: float, high: float) -> Callable[[str], float]:
    """The type of an option that takes a number from low to high."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}, got {text!r}")
        return value

    return number


scale = real(0, 100)
"""A guidance scale."""
ema_length = real(0.01, 0.27)
"""The standard deviation of the averaging profile, as a fraction of the run."""


def path(text: str) -> Path:
    """A path. An empty one comes from a shell variable that is not set, and is refused."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path to a file or folder, got ''")
    return Path(text)


def command(commands: Any, name: str, run: Callable, help: str) -> Parser:
    """A command's parser, with the options that every command has."""
    sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False)
    sub.set_defaults(run=run)
    sub.add_argument("--json", action="store_true", help="print the result as JSON, and all other text to stderr")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return sub


def data_options(sub: Parser) -> None:
    sub.add_argument("--data-root", type=path, metavar="FOLDER", help="folder that data sets are downloaded to")
    sub.add_argument("--size", type=whole(1, 1024), metavar="PIXELS", help="resize images to this height and width")
    sub.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, and list them")


def device_options(sub: Parser) -> None:
    device_option(sub)
    sub.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of the network (default auto)"
    )


def device_option(sub: Parser) -> None:
    devices = ("auto", "cpu", "cuda", "mps")
    sub.add_argument("--device", default="auto", choices=devices, help="where to compute (default auto)")


def sampling_options(sub: Parser) -> None:
    sub.add_argument(
        "--guidance", type=scale, metavar="SCALE", help="classifier-free guidance: 0 ignores labels, 1 is none"
    )
    sub.add_argument(
        "--autoguidance", type=scale, metavar="SCALE", help="guidance by an early snapshot of the run: 1 is none"
    )
    sub.add_argument("--steps", type=whole(1, 10000), metavar="N", help="number of sampler steps")
    sub.add_argument("--sampler", metavar="NAME", help="ddpm, ddim, heun, dpmpp, ... (default the model's)")
    sub.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the noise (default 0)")


def ema_option(sub: Parser) -> None:
    sub.add_argument(
        "--ema", type=ema_length, metavar="LENGTH", help="post-hoc EMA length, from about 0.04 to 0.16, such as 0.08"
    )


def table_row(columns: Collection[str], cells: Sequence[str] | None = None) -> str:
    """A row of a table whose columns are as wide as their titles, at least 9 characters; without cells, the titles."""
    words = columns if cells is None else cells
    first, *rest = (word.rjust(max(9, len(title))) for title, word in zip(columns, words, strict=True))
    return "  ".join(["  " + first.strip().ljust(len(first)), *rest]).rstrip()


@contextmanager
def optional(args: argparse.Namespace, what: str) -> Iterator[None]:
    """Say that `what` is left out where memory, disk or data fail, so that what was measured before is not lost."""
    try:
        yield
    except (SimpleDiffusionError, MemoryError, RuntimeError, OSError) as error:
        known = isinstance(error, (SimpleDiffusionError, OSError)) or is_out_of_memory(error)
        if args.debug or not known or isinstance(error, BrokenPipeError):
            raise
        say(args, f"Without {what}: {'not enough memory' if is_out_of_memory(error) else reason(error)}.")


def say(args: argparse.Namespace, text: str) -> None:
    """Print text for a person, from the first process only: to stdout, or with --json to stderr."""
    text = printable(text, keep="\n")  # names of files and classes may hold control characters
    if FIRST:
        (note if args.json else show)(text)


def load(args: argparse.Namespace, source: str, size: int | None, skip_bad: bool, moved: str = ""):
    """The images of DATA, read as the options ask; images that are left out are reported on stderr.

    moved   how to name data that is no longer where a model was trained on it, for an error
    """
    from ..data.images import first_reasons, split_name
    from ..data.sources import load_images

    try:
        images = load_images(source, root=args.data_root, size=size or None, skip_bad=skip_bad)
    except DataError as error:
        if not moved or os.path.exists(split_name(source)[0]):
            raise
        raise DataError(f"{error}; if the data has moved, {moved}") from error
    _, height, width = images.shape
    args.memory = f"for {len(images):,} images of {height} x {width} pixels", "use a smaller --size, or fewer images"
    if FIRST and (bad := images.left_out):
        total = len(bad) + len(images)
        note(f"left out {len(bad):,} of {total:,} images: {first_reasons(bad)}")
    return images


def read_as(args: argparse.Namespace, config: Any) -> tuple[int, bool]:
    """(size, skip_bad) with which images are read: from the options, else from the model's configuration, if any."""
    if config is None:
        return args.size or 0, args.skip_bad
    return args.size or config.size, args.skip_bad or config.skip_bad == "yes"


def png_only(file: Path, option: str = "--out") -> None:
    """Raise UsageError unless the file's name ends in .png, and for a folder."""
    if file.suffix != ".png":
        raise UsageError(f"{option} {file} must end in .png")
    refuse_folder(file, option)


def refuse_folder(file: Path, option: str = "--out") -> None:
    """Raise UsageError where a file is to be written and there is a folder."""
    if file.is_dir():
        raise UsageError(f"{option} {file} is a folder: name a file")


def data_of(args: argparse.Namespace, model: Any, n: int):
    """(images, n): the real images to compare a model with, and n limited to twice their number.

    The images are those of --data, or those that the model was trained on. Raises DataError where the shapes differ.
    """
    config = model.config
    moved = "" if args.data else "name it with --data"
    images = load(args, args.data or config.data, *read_as(args, config), moved)
    if images.shape != model.info.shape:
        raise DataError(f"the images of {images.name} have another shape than the model's: name its data with --data")
    return images, min(n, 2 * len(images))


def checkable_labels(labels, model, images, extractor):
    """The labels of samples, int64 `[n]`, if the extractor predicts the classes that the model has; else None."""
    same_classes = images.class_names == model.info.class_names and extractor.classes == images.classes
    return labels if same_classes else None


def info_text(images) -> str:
    """A summary of a data set, in a paragraph."""
    channels, height, width = images.shape
    kind = {1: "gray", 3: "color"}[channels]
    classes = f" in {images.classes} classes ({', '.join(images.class_names)})" if images.classes else ""
    text = f"{images.name}: {len(images):,} {kind} images of {height} x {width} pixels{classes}; "
    text += f"mean {images.mean:.3f}, standard deviation {images.std:.3f} in [-1, 1]."
    if images.duplicates:
        text += f" {images.duplicates:,} are exact duplicates of earlier ones."
    if images.notes:
        text += f" Note: {'; '.join(images.notes)}."
    return printable(text)


def parse_labels(text: str, class_names: tuple[str, ...]) -> list[int]:
    """`3,5` or `Bag,Sneaker` -> numbers of classes; `none` -> the null label. Raises UsageError."""
    from ..data.images import class_list, class_number

    labels = []
    for word in map(str.strip, text.split(",")):
        label = class_number(word, class_names)
        if label is None and class_names and word.casefold() == "none":
            label = len(class_names)
        if label is None:
            raise UsageError(f"the model has no label {word!r}: its labels are {class_list(class_names)}")
        labels.append(label)
    return labels


def open_model(args: argparse.Namespace):
    """The model of the command line, with the settings that the options change."""
    from ..model.model_file import read
    from ..model.posthoc_ema import posthoc_model

    settings = sampling_settings(args)
    model = read(args.model, args.device, args.precision)
    if args.ema is not None:
        model = posthoc_model(args.model, model, args.ema)
    refuse_without_labels(settings, model.info)
    expect_sampling(args, model)
    return model.changed(**settings)


def refuse_without_labels(settings: Collection[str], info: Any) -> None:
    """Raise UsageError where a setting that needs labels is given for data that has none."""
    for setting in ("guidance", "drop_labels"):
        if setting in settings and not info.classes:
            raise UsageError(f"{setting} needs labels, and {info.name} has none: leave {setting} out")


def expect_sampling(args: argparse.Namespace, model: Any) -> None:
    """Say what needs memory and what to do, in case there is too little."""
    from ..model.generate import sampling_batch

    device = next(model.denoiser.parameters()).device
    _, height, width = model.info.shape
    batch = sampling_batch(device, height, width)
    fix = "set OMP_NUM_THREADS=1 to sample one batch at a time" if device.type == "cpu" else "use --device cpu"
    args.memory = f"to sample batches of {batch} images of {height} x {width} pixels on {device.type}", fix


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that `sampling_options` change. Raises UsageError, before a model is read, for a wrong one."""
    from ..model.config import Config

    given = {"guidance": args.guidance, "sampler_steps": args.steps, "sampler": args.sampler}
    given["autoguidance"] = args.autoguidance
    settings = {key: value for key, value in given.items() if value is not None}
    Config(**settings, snapshot=0.1)  # autoguidance needs one, and only the model's configuration says if there is one
    return settings


def sampling_seconds(model, n: int, labels, seed: int) -> float:
    """Seconds that n images take to generate, estimated from at most 128 of them."""
    from ..model.generate import generate

    few = min(n, 128)
    began = time.perf_counter()
    generate(model, few, None if labels is None else labels[:few], seed)
    return (time.perf_counter() - began) * n / few


def sampling_text(model, n: int) -> str:
    """What is generated, and how."""
    config = model.config
    guidance = f", guidance {config.guidance:g}" if model.info.classes else ""
    return f"{n:,} images of {printable(model.info.name)}, {config.sampler} in {config.sampler_steps} steps{guidance}"
