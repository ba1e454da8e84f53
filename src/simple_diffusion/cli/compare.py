"""`simple-diffusion compare`: did a change help? Two models, or one with two samplers, from the same noise."""

import argparse
import time
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from .options import (
    checkable_labels,
    command,
    data_of,
    data_options,
    device_options,
    expect_sampling,
    path,
    png_only,
    refuse_without_labels,
    sampling_text,
    say,
    seed,
    whole,
)

PAIRS = 30
"""Pairs in the picture."""


def add(commands: Any) -> None:
    sub = command(commands, "compare", run, "test whether one of two models, or of two settings, is better")
    sub.add_argument("a", metavar="A", help="a run folder or a .safetensors file")
    sub.add_argument("b", metavar="B", nargs="?", help="another one (default A with the settings of --set)")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings to sample B with")
    sub.add_argument("--n", type=whole(2, 10**6), default=5000, metavar="N", help="images of each (default 5000)")
    sub.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the noise (default 0)")
    sub.add_argument("--data", metavar="DATA", help="real images to compare with (default the training data of A)")
    sub.add_argument("--out", type=path, default=Path("compare.png"), metavar="FILE.png", help="picture of the pairs")
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    png_only(args.out)
    if args.b is None and not args.set:
        raise UsageError("nothing to compare: name a second model, or change a setting with --set sampler=heun")

    from dataclasses import asdict

    from ..data.labels import labels_for
    from ..evaluation.extractors import extractor_for
    from ..evaluation.features import ImageFeatures, cached_features
    from ..evaluation.paired import check_count, conclusion, differences
    from ..system.files import write_atomic

    a, b = read_models(args)
    images, n = data_of(args, a, args.n)
    labels = labels_for(a.info, images, n, args.seed)
    changed = changed_settings(a.config, b.config)
    for key, (before, after) in changed.items():
        say(args, f"{key}: {before} -> {after}")

    extractor = extractor_for(images, quiet=args.json)
    real = cached_features(images, extractor, extractor.name)
    check_count(n, real)
    pixels_a, speed_a = timed_samples(args, "A", a, n, labels)
    pixels_b, speed_b = timed_samples(args, "B", b, n, labels)
    of_a, of_b = (ImageFeatures(*extractor(pixels)) for pixels in (pixels_a, pixels_b))
    found = differences(of_a, of_b, real, checkable_labels(labels, a, images, extractor))
    say(args, f"{extractor.name}, {n:,} pairs, seed {args.seed}:")
    for difference in found:
        say(args, f"  {difference}")
    say(args, f"Speed: A {speed_a:,.0f} images/s, B {speed_b:,.0f} images/s.")
    answer = conclusion(found[0])
    note = "" if args.b is None else " Two seeds of one training can differ as much: compare several seeds."
    say(args, f"By FID: {answer}.{note}")
    write_atomic(args.out, picture_of(pixels_a, pixels_b))
    say(args, f"Pairs, A above B: {args.out}")
    return {
        "a": args.a,
        "b": args.b or args.a,
        "n": n,
        "extractor": extractor.name,
        "changed": changed,
        "scores": [asdict(difference) | {"better": difference.verdict} for difference in found],
        "conclusion": answer,
        "images_per_second": [round(speed, 1) for speed in (speed_a, speed_b)],
        "out": str(args.out),
    }


def read_models(args: argparse.Namespace) -> tuple[Any, Any]:
    """(A, B with the settings of --set). Raises DataError where they are of different data."""
    from ..model.config import parse_settings
    from ..model.model_file import read

    changes = parse_settings(args.set)
    a, b = (read(path, args.device, args.precision) for path in (args.a, args.b or args.a))
    if a.info.shape != b.info.shape or a.info.class_names != b.info.class_names:
        raise DataError(f"{args.a} and {args.b} have different shapes or classes: compare models of the same data")
    refuse_without_labels(changes, b.info)
    expect_sampling(args, a)
    return a, b.changed(**changes)


def changed_settings(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ: name -> (value of a, value of b)."""
    pairs = {key: (value, getattr(b, key)) for key, value in vars(a).items()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def timed_samples(args: argparse.Namespace, name: str, model: Any, n: int, labels: Any) -> tuple[Any, float]:
    """(n images, images a second)."""
    from ..model.generate import generate

    say(args, f"{name}: {sampling_text(model, n)}")
    began = time.perf_counter()
    pixels = generate(model, n, labels, args.seed, quiet=args.json)
    return pixels, n / (time.perf_counter() - began)


def picture_of(a: Any, b: Any) -> bytes:
    """The first pairs in rows of 10, A's images above B's: a PNG file's content."""
    from ..viz.grids import make_grid, pairs_in_rows, png

    return png(make_grid(pairs_in_rows(a[:PAIRS], b[:PAIRS]), 10))
