"""`simple-diffusion evaluate`: score a model or an .npz of samples against real images."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from .options import (
    FIRST,
    command,
    data_options,
    device_options,
    ema_option,
    load,
    open_model,
    path,
    read_as,
    sampling_options,
    sampling_text,
    say,
    whole,
)

FEW_IMAGES = 5000
"""Up to here a training set is searched for copies under all its symmetries: there it costs seconds."""


def add(commands: Any) -> None:
    sub = command(commands, "evaluate", run, "score a model or an .npz of samples against real images")
    sub.add_argument("what", metavar="WHAT", help="a run folder, a .safetensors file, or an .npz or .npy of samples")
    sub.add_argument("--data", metavar="DATA", help="what to compare with (default the data the model was trained on)")
    sub.add_argument("--n", type=whole(2, 10**6), help="samples to draw (default 10000, or twice a small data set)")
    sampling_options(sub)
    ema_option(sub)
    sub.add_argument(
        "--extractor",
        default="classifier",
        choices=("classifier", "inception"),
        help="what to look through: a classifier of the data (default), or Inception, for published FIDs",
    )
    sub.add_argument("--extractor-seeds", type=whole(1, 100), default=1, metavar="K", help="classifiers to score with")
    sub.add_argument("--inception-weights", type=path, metavar="FILE", help="weights of Inception, fetched by hand")
    sub.add_argument("--out", type=path, metavar="FOLDER", help="pictures and scores (default in the run folder)")
    data_options(sub)
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if Path(args.what).suffix in (".npz", ".npy") and args.data is None:
        raise UsageError(f"{args.what} does not say what it imitates: add --data, for instance --data fashion-mnist")
    if args.extractor == "inception" and args.extractor_seeds > 1:
        raise UsageError("there is one Inception: drop --extractor-seeds or --extractor inception")
    if args.extractor != "inception" and args.inception_weights:
        raise UsageError("--inception-weights are for Inception: add --extractor inception")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out} is a file: name a folder")

    from ..data.images import Images
    from ..data.labels import labels_for
    from ..data.sources import held_out
    from ..evaluation.features import check
    from ..evaluation.scores import evaluate as score
    from ..model.generate import generate
    from ..system.files import write_atomic

    model, samples = None, None
    if Path(args.what).suffix in (".npz", ".npy"):
        samples = load(args, args.what, args.size, args.skip_bad)
        source, out = args.data, Path(args.what).with_suffix("")
    else:
        args.model = args.what
        model = open_model(args)
        source = args.data or model.info.name
        out = Path(args.what) if Path(args.what).is_dir() else Path(args.what).with_suffix("")
    out = args.out or out / "evaluation"
    size, skip_bad = read_as(args, None if model is None else model.config)
    train = load(args, source, size, skip_bad)
    if model is not None and args.data is None and train.fingerprint != model.info.fingerprint:
        raise DataError(f"{source} is not what the model was trained on any more: name the data with --data")
    if samples is not None:
        check(samples, train)  # before minutes go into an extractor
    test = held_out(source, root=args.data_root, size=size or None, skip_bad=skip_bad)
    extractors = extractors_for(args, train) if FIRST else {}

    seconds = 0.0
    if samples is None:
        assert model is not None
        n = args.n or min(10000, 2 * len(train))
        labels = labels_for(model.info, train, n, args.seed)
        began = time.perf_counter()
        few = min(n, 128)
        generate(model, few, None if labels is None else labels[:few], args.seed)
        estimate = (time.perf_counter() - began) * n / few
        say(args, f"Drawing {sampling_text(model, n)}: about {estimate:.0f} s.")
        began = time.perf_counter()
        pixels = generate(model, n, labels, args.seed, quiet=args.json)
        known = train.class_names == model.info.class_names  # else the labels mean something else to the data
        samples = Images(train.name, pixels, labels if known else None, train.class_names)
        seconds = time.perf_counter() - began
    elif args.n is not None:
        samples = samples[: args.n]
    if not FIRST:  # it helped to draw
        return {}
    views = searched_views(train, model)
    results = [score(samples, train, test, extractor, name, views) for name, extractor in extractors.items()]
    for result in results:
        say(args, str(result))
    if len(results) > 1:
        say(args, spread_text(results))
    answer = {"what": args.what, "data": train.name, "n": len(samples), "sampling_seconds": round(seconds, 1)}
    answer |= {"extractors": [result.as_dict() for result in results]}
    write_atomic(out / "scores.json", json.dumps(answer, indent=1).encode())
    write_pictures(out, results[0], samples, train, test, model)
    say(args, f"Scores and pictures: {out}")
    return answer


def extractors_for(args: argparse.Namespace, train: Any) -> dict[str, Any]:
    """The extractors of the command line, by name."""
    from ..evaluation.extractors import extractor_for

    if args.extractor == "inception":
        from ..evaluation.inception import NAME, inception

        return {NAME: inception(args.inception_weights, args.device)}
    made = [extractor_for(train, seed=seed, quiet=args.json) for seed in range(args.extractor_seeds)]
    return {extractor.name: extractor for extractor in made}


def searched_views(train: Any, model: Any) -> list:
    """The views of a training image in which copies are searched: all symmetries, or those that were trained on."""
    from ..augmentation import identity, symmetries

    _, height, width = train.shape
    if len(train) <= FEW_IMAGES:
        return symmetries(height == width)
    return [identity] if model is None else model.spec.augmentations


def spread_text(results: list) -> str:
    """How far several extractors disagree, score by score."""
    lines = [f"Over {len(results)} extractors:"]
    for scores in zip(*(result.scores for result in results), strict=True):
        values = [score.value for score in scores if score.value is not None]
        if values:
            lines.append(f"  {scores[0].name}: {min(values):.4g} to {max(values):.4g}")
    return "\n".join(lines)


def write_pictures(out: Path, evaluation: Any, samples: Any, train: Any, test: Any, model: Any) -> None:
    """PNG files of the closest pairs of sample and training image and, for a model, of the error by noise level."""
    from ..denoising_error import error_curves
    from ..evaluation.scores import closest_pairs
    from ..system.files import write_atomic
    from ..viz.grids import make_grid, png
    from ..viz.plots import plot_denoising_error

    for space, copies in evaluation.copies.items():
        write_atomic(out / f"closest-in-{space}.png", png(make_grid(closest_pairs(copies, samples, train), 10)))
    if model is not None:
        own = model.info.in_own_classes
        curves = error_curves(model.denoiser, own(train), None if test is None else own(test))
        write_atomic(out / "levels.png", plot_denoising_error(curves))
