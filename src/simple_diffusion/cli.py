"""The command `simple-diffusion`: options in, library calls, a few plain sentences out.

torch is imported inside the commands, so that `--help` answers at once.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .errors import DataError, SimpleDiffusionError, UsageError

STARTED = time.perf_counter()

# A thread that waits for another one sleeps instead of spinning. It must be said before torch is imported. On two quiet
# cores it costs a tenth; beside one other busy program spinning costs nine tenths (docs/notes/network.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one sentence, exit code 2."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("unrecognized arguments:", "no such option:")
        raise UsageError(f"{message}: see {self.prog} --help")


def duration(text: str) -> float:
    """`90s`, `10min`, `1.5h` or plain seconds -> seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|m|h)?", text)
    seconds = float(match[1]) * {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= 1e8:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time like 90s, 10min or 2h")
    return seconds


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 999999999")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0 up, below 2^63."""
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2^63 - 1")
    return int(text)


def parser() -> Parser:
    """All commands with their options."""
    top = Parser(
        prog="simple-diffusion",
        description="Train a diffusion model on images, and draw images from it.",
        epilog="simple-diffusion COMMAND --help tells more.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: Callable, help: str) -> Parser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print the result as JSON, everything else to stderr")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    def data_options(sub: Parser) -> None:
        sub.add_argument("--data-root", metavar="PATH", help="where data sets lie and are downloaded to")
        sub.add_argument("--size", type=positive, help="bring images to this height and width")

    def device_options(sub: Parser) -> None:
        sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
        sub.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))

    sub = command("train", train, "train a model on a data set, a folder of images, or an .npz or .npy file")
    sub.add_argument("data", nargs="?", metavar="DATA", help="digits (default), fashion-mnist, mnist, or a path")
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

    sub = command("sample", sample, "draw images from a trained model")
    sub.add_argument("model", metavar="MODEL", help="a run folder or a .safetensors file")
    sub.add_argument("--n", type=positive, default=100, help="how many (default 100)")
    sub.add_argument("--label", metavar="A,B", help="classes to draw, by number or name (default all, one a row)")
    sub.add_argument("--guidance", type=float, metavar="SCALE", help="1 is none, above 1 stronger")
    sub.add_argument("--steps", type=positive, metavar="N", help="steps of the sampler")
    sub.add_argument("--sampler", metavar="NAME", help="ddpm, ddim, heun or dpmpp")
    sub.add_argument("--seed", type=whole, default=0, metavar="N", help="of the noise (default 0)")
    sub.add_argument("--out", type=Path, metavar="PATH", help=".png a grid, .npz arrays, else a folder of PNGs")
    sub.add_argument("--dry-run", action="store_true", help="say what would be drawn; write nothing")
    device_options(sub)

    sub = command("evaluate", evaluate, "score a model or an .npz of samples against real images")
    sub.add_argument("what", metavar="WHAT", help="a run folder, a .safetensors file, or an .npz or .npy of samples")
    sub.add_argument("--data", metavar="DATA", help="what to compare with (default the data the model was trained on)")
    sub.add_argument("--n", type=positive, help="samples to draw (default 10000, or twice a small data set)")
    sub.add_argument("--guidance", type=float, metavar="SCALE", help="as for sample")
    sub.add_argument("--steps", type=positive, metavar="N", help="as for sample")
    sub.add_argument("--sampler", metavar="NAME", help="as for sample")
    sub.add_argument("--seed", type=whole, default=0, metavar="N", help="of the noise (default 0)")
    sub.add_argument("--extractor-seeds", type=positive, default=1, metavar="K", help="classifiers to score with")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="pictures and scores (default in the run folder)")
    data_options(sub)
    device_options(sub)

    sub = command("data", show_data, "say what is in a data set, and draw some of it; downloads what is missing")
    sub.add_argument("data", nargs="?", default="digits", metavar="DATA", help="as for train")
    sub.add_argument("--out", type=Path, metavar="FILE.png", help="a grid of images (default none)")
    data_options(sub)

    sub = command("schedules", show_schedules, "draw noise schedules on common axes")
    sub.add_argument("names", nargs="*", metavar="NAME", help="linear, cosine, flow, karras (default all)")
    sub.add_argument("--out", type=Path, default=Path("schedules.png"), metavar="FILE.png")

    sub = command("classifier", classify, "train the classifier whose features judge samples of a data set")
    sub.add_argument("data", nargs="?", default="digits", metavar="DATA", help="as for train")
    sub.add_argument("--epochs", type=positive, metavar="N", help="passes over the data (default minutes on two cores)")
    sub.add_argument("--out", type=Path, metavar="FILE.safetensors", help="its stem is the extractor's name")
    sub.add_argument("--seed", type=whole, default=0, metavar="N", help="of weights, split and data order (default 0)")
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    data_options(sub)
    return top


def say(args: argparse.Namespace, text: str) -> None:
    """Human words: to stdout, or to stderr where stdout is for JSON."""
    print(text, file=sys.stderr if args.json else sys.stdout, flush=True)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """simple-diffusion train"""
    from .config import PRESETS, Config, fitted, parse_settings, settings_help
    from .hardware import pick_device

    if args.preset == "list":
        say(args, "\n".join(f"  {name:<8} {about}" for name, (about, _) in PRESETS.items()))
        return {name: values for name, (_, values) in PRESETS.items()}
    if "help" in args.set:
        say(args, settings_help())
        return {}
    if args.preset is not None and args.preset not in PRESETS:
        raise UsageError(f"no preset is called {args.preset!r}: choose one of {', '.join(PRESETS)}")

    values: dict[str, Any] = dict(PRESETS[args.preset][1]) if args.preset else {}
    values |= parse_settings(args.set)
    given = {"data": args.data, "seed": args.seed, "size": args.size, "seconds": args.seconds, "steps": args.steps}
    values |= {key: value for key, value in given.items() if value is not None}
    if args.precision != "auto":
        values["precision"] = args.precision
    if values.get("steps") or args.epochs:
        values["seconds"] = 0.0
    elif values.get("seconds"):
        values["steps"] = 0
    if args.epochs:
        values["steps"] = 1  # until the size of the data is known
    config = Config(**values)

    from dataclasses import replace

    import torch

    from .run import forecast, free_folder, refuse_taken, train_run

    if args.out is not None:
        refuse_taken(args.out)  # before the data is loaded
    device = pick_device(args.device)
    config = fitted(config, device)
    images = load(args, config.data, config.size)
    if args.epochs:
        config = replace(config, steps=math.ceil(args.epochs * len(images) / config.batch))
    say(args, card_text(images))
    if args.dry_run:
        result = forecast(config, images, device)
        say(args, result["text"])
        return result
    folder = args.out or free_folder(Path("runs"), Path(images.name).resolve().stem)
    length = f"{config.steps:,} steps" if config.steps else f"{config.seconds:g} s"
    say(args, f"Training for {length} on {device.type} in {config.precision}, into {folder}.")
    result = train_run(config, images, folder, device, STARTED, quiet=args.json)
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
        "picture": str(result.picture),
        "threads": torch.get_num_threads(),
    }


def load(args: argparse.Namespace, source: str, size: int | None):
    """The images of DATA, as the options say."""
    from .data.sources import load_images

    return load_images(source, root=args.data_root, size=size or None)


def card_text(images) -> str:
    """What is in a data set, in a paragraph."""
    channels, height, width = images.shape
    kind = {1: "grey", 3: "colour"}[channels]
    classes = f" in {images.classes} classes ({', '.join(images.class_names)})" if images.classes else ""
    text = f"{images.name}: {len(images):,} {kind} images of {height} x {width} pixels{classes}; "
    text += f"mean {images.mean:.3f}, deviation {images.std:.3f} in [-1, 1]."
    return " ".join([text, *images.notes])


def labels_of(text: str, class_names: tuple[str, ...]) -> list[int]:
    """`3,5` or `Bag,Sneaker` -> numbers of classes. Raises UsageError."""
    names = {name.casefold(): i for i, name in enumerate(class_names)}
    labels = []
    for word in text.split(","):
        word = word.strip()
        label = names.get(word.casefold(), int(word) if re.fullmatch(r"\d{1,9}", word) else -1)
        if not 0 <= label < len(class_names):
            known = ", ".join(f"{i} {name}" if name != str(i) else name for i, name in enumerate(class_names))
            raise UsageError(f"the model has no label {word!r}: it knows {known or 'no labels'}")
        labels.append(label)
    return labels


def opened(args: argparse.Namespace):
    """The model of the command line, with its config as the options change it."""
    from dataclasses import replace

    from .checkpoint import read

    model = read(args.model, args.device, args.precision)
    given: dict[str, Any] = {"guidance": args.guidance, "sampler_steps": args.steps, "sampler": args.sampler}
    config = replace(model.config, **{key: value for key, value in given.items() if value is not None})
    return replace(model, config=config)


def sampling_text(model, n: int) -> str:
    """What is drawn, and how."""
    config = model.config
    guidance = f", guidance {config.guidance:g}" if model.card.classes else ""
    return f"{n:,} images of {model.card.name}, {config.sampler} in {config.sampler_steps} steps{guidance}"


def sample(args: argparse.Namespace) -> dict[str, Any]:
    """simple-diffusion sample"""
    if args.out is not None and args.out.suffix not in (".png", ".npz", ""):
        raise UsageError(f"--out {args.out} has an ending that is not known: use .png, .npz, or a folder's name")

    import torch

    from .figures import grid, npz, png, rows_of
    from .files import write_atomic
    from .run import draw

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


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """simple-diffusion evaluate"""
    if Path(args.what).suffix in (".npz", ".npy") and args.data is None:
        raise UsageError(f"{args.what} does not say what it imitates: add --data, for instance --data fashion-mnist")

    from .data.images import Images
    from .data.sources import held_out
    from .evaluation import check, labels_like, pictures
    from .evaluation import evaluate as score
    from .extractors import extractor_for
    from .files import write_atomic
    from .run import draw

    model, samples = None, None
    if Path(args.what).suffix in (".npz", ".npy"):
        samples = load(args, args.what, args.size)
        source, size, out = args.data, args.size, Path(args.what).with_suffix("")
    else:
        args.model = args.what
        model = opened(args)
        source, size = args.data or model.card.name, args.size or model.config.size
        out = Path(args.what) if Path(args.what).is_dir() else Path(args.what).with_suffix("")
    out = args.out or out / "evaluation"
    train = load(args, source, size)
    if model is not None and args.data is None and train.fingerprint != model.card.fingerprint:
        raise DataError(f"{source} is not what the model was trained on any more: name the data with --data")
    if samples is not None:
        check(samples, train)  # before minutes go into an extractor
    test = held_out(source, root=args.data_root, size=size or None)
    extractors = [extractor_for(train, seed=seed, quiet=args.json) for seed in range(args.extractor_seeds)]

    seconds = 0.0
    if samples is None:
        assert model is not None
        n = args.n or min(10000, 2 * len(train))
        labels = labels_like(train, n, args.seed) if model.card.classes else None
        began = time.perf_counter()
        few = min(n, 128)
        draw(model, few, labels, args.seed)
        estimate = (time.perf_counter() - began) * n / few
        say(args, f"Drawing {sampling_text(model, n)}: about {estimate:.0f} s.")
        began = time.perf_counter()
        samples = Images(train.name, draw(model, n, labels, args.seed, quiet=args.json), labels, train.class_names)
        seconds = time.perf_counter() - began
    elif args.n is not None and args.n < len(samples):
        labels = None if samples.labels is None else samples.labels[: args.n]
        samples = Images(samples.name, samples.pixels[: args.n], labels, samples.class_names)
    results = [score(samples, train, test, extractor, extractor.name) for extractor in extractors]
    for result in results:
        say(args, str(result))
    if len(results) > 1:
        say(args, spread_text(results))
    answer = {"what": args.what, "data": train.name, "n": len(samples), "sampling_seconds": round(seconds, 1)}
    answer |= {"extractors": [result.as_dict() for result in results]}
    write_atomic(out / "scores.json", json.dumps(answer, indent=1).encode())
    for name, picture in pictures(results[0], samples, train, test, model).items():
        write_atomic(out / name, picture)
    say(args, f"Scores and pictures: {out}")
    return answer


def spread_text(results: list) -> str:
    """How far several extractors disagree, score by score."""
    lines = [f"Over {len(results)} extractors:"]
    for scores in zip(*(result.scores for result in results), strict=True):
        values = [score.value for score in scores if score.value is not None]
        if values:
            lines.append(f"  {scores[0].name}: {min(values):.4g} to {max(values):.4g}")
    return "\n".join(lines)


def show_data(args: argparse.Namespace) -> dict[str, Any]:
    """simple-diffusion data"""
    import torch

    images = load(args, args.data, args.size)
    say(args, card_text(images))
    counts: dict[str, int] = {}
    if images.labels is not None:
        counts = dict(zip(images.class_names, images.labels.bincount(minlength=images.classes).tolist(), strict=True))
        say(args, "\n".join(f"  {count:>7,}  {name}" for name, count in counts.items()))
    if args.out is not None:
        from .figures import grid, png
        from .files import write_atomic
        from .randomness import permutation

        shuffled = permutation(len(images), 0, "data sheet")
        if images.labels is None:
            chosen = shuffled[:64]
        else:
            chosen = torch.cat([shuffled[images.labels[shuffled] == c][:10] for c in range(min(images.classes, 20))])
        write_atomic(args.out, png(grid(images.pixels[chosen], 8 if images.labels is None else 10)))
        say(args, f"Picture: {args.out}")
    channels, height, width = images.shape
    return {
        "name": images.name,
        "count": len(images),
        "channels": channels,
        "height": height,
        "width": width,
        "classes": counts,
        "mean": images.mean,
        "std": images.std,
        "fingerprint": images.fingerprint,
        "notes": list(images.notes),
    }


def show_schedules(args: argparse.Namespace) -> dict[str, Any]:
    """simple-diffusion schedules"""
    import torch

    from .figures import schedule_curves
    from .files import write_atomic
    from .schedules import SCHEDULES

    for name in args.names:
        if name not in SCHEDULES:
            raise UsageError(f"no schedule is called {name!r}: choose among {', '.join(SCHEDULES)}")
    chosen = {name: SCHEDULES[name]() for name in args.names or SCHEDULES}
    write_atomic(args.out, schedule_curves(chosen))
    say(args, f"{', '.join(chosen)}: {args.out}")
    t = torch.linspace(0, 1, 11, dtype=torch.float64)[1:]
    return {
        name: {"t": t.tolist(), "alpha": s.alpha(t).tolist(), "sigma": s.sigma(t).tolist()}
        for name, s in chosen.items()
    }


def classify(args: argparse.Namespace) -> dict[str, Any]:
    """simple-diffusion classifier"""
    if args.out is not None and args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out} has an ending that is not known: use .safetensors")

    from dataclasses import asdict

    from .data.sources import held_out
    from .extractors import make_extractor, name_of, save_extractor

    images = load(args, args.data, args.size)
    test = held_out(args.data, root=args.data_root, size=args.size)
    out = args.out or Path(f"{name_of(images, args.seed)}.safetensors")
    say(args, card_text(images))
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


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit: 0 ok, 2 usage, 3 data, 4 diverged, 5 model file, 6 disk, 130 and 143 by a signal."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = parser().parse_args(argv)
        if args.version:
            from . import __version__

            print(__version__)
        elif args.command is None:
            parser().print_help()
        else:
            result = args.run(args)
            if args.json:
                print(json.dumps(result))
    except SimpleDiffusionError as error:
        if "--debug" in argv:
            raise
        print(f"simple-diffusion: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("simple-diffusion: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        if "--debug" in argv:
            raise
        print(f"simple-diffusion: {error}: free the disk or choose another place", file=sys.stderr)
        raise SystemExit(6) from None
