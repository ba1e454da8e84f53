"""`simple-diffusion evaluate`: score a model, or samples, against real images."""

import argparse
import time
from dataclasses import dataclass
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
    optional,
    path,
    read_as,
    sampling_options,
    sampling_seconds,
    sampling_text,
    say,
    whole,
)

FEW_IMAGES = 5000
"""Up to this size a training set is searched for near-duplicates under all its symmetries, which takes seconds."""


def add(commands: Any) -> None:
    sub = command(commands, "evaluate", run, "score a model, or samples, against real images")
    sub.add_argument(
        "what", metavar="WHAT", help="a run folder or .safetensors file, or samples: a folder of images, .npz or .npy"
    )
    sub.add_argument("--data", metavar="DATA", help="real images to compare with (default the model's training data)")
    sub.add_argument(
        "--n", type=whole(2, 10**6), metavar="N", help="number of samples (default 10000, or twice a small data set)"
    )
    sampling_options(sub)
    ema_option(sub)
    sub.add_argument(
        "--extractor",
        default="classifier",
        choices=("classifier", "inception"),
        help="network for the features: a classifier of the data (default), or Inception for published FIDs",
    )
    sub.add_argument(
        "--extractor-seeds", type=whole(1, 100), default=1, metavar="K", help="score with K classifiers (default 1)"
    )
    sub.add_argument("--inception-weights", type=path, metavar="FILE", help="a downloaded file of Inception's weights")
    sub.add_argument(
        "--out", type=path, metavar="FOLDER", help="for scores and pictures (default `evaluation` in the run folder)"
    )
    data_options(sub)
    device_options(sub)


@dataclass(frozen=True, eq=False)
class Plan:
    """What is scored, against what.

    model     or None for samples from a file
    samples   from the file, or None for a model
    train     real images that the samples are compared with
    test      real images that the model has not seen, or None
    """

    model: Any
    samples: Any
    train: Any
    test: Any
    out: Path


def run(args: argparse.Namespace) -> dict[str, Any]:
    check_options(args)
    plan = plan_of(args)
    if FIRST:
        from ..system.files import make_folder

        make_folder(plan.out)  # it may fail, so before minutes of work
    extractors = extractors_for(args, plan.train) if FIRST else {}
    samples, seconds = samples_of(args, plan)
    if not FIRST:  # this process has only helped to generate
        return {}

    from ..evaluation.scores import evaluate
    from ..system.files import to_json, write_atomic

    _, height, width = samples.shape
    what = f"to compare {len(samples):,} samples with {len(plan.train):,} images of {height} x {width} pixels"
    args.memory = what, "use a smaller --n, or --data with fewer or smaller images"
    augmentations = searched_augmentations(plan.train, plan.model)
    results = []
    for name, extractor in extractors.items():
        results.append(evaluate(samples, plan.train, plan.test, extractor, name, augmentations))
        say(args, str(results[-1]))
    if len(results) > 1:
        say(args, spread_text(results))
    answer = {"what": args.what, "data": plan.train.name, "n": len(samples), "sampling_seconds": round(seconds, 1)}
    answer |= {"extractors": [result.as_dict() for result in results]}
    write_atomic(plan.out / "scores.json", to_json(answer, indent=1).encode())
    write_pictures(args, plan, results[0], samples)
    say(args, f"Scores and pictures: {plan.out}")
    return answer


def is_samples(what: str) -> bool:
    """Whether WHAT names samples, a file or a folder of images, and not a model or a run folder."""
    path = Path(what)
    run = ("model.safetensors", "checkpoints", "config.toml")
    return path.suffix in (".npz", ".npy") or (path.is_dir() and not any((path / name).exists() for name in run))


def check_options(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not fit together."""
    if is_samples(args.what) and args.data is None:
        raise UsageError(
            f"{args.what} holds samples and no model, and needs real images to compare with: add --data, such as "
            "--data fashion-mnist"
        )
    if args.extractor == "inception" and args.extractor_seeds > 1:
        raise UsageError("--extractor-seeds is for classifiers: drop --extractor-seeds or --extractor inception")
    if args.extractor != "inception" and args.inception_weights:
        raise UsageError("--inception-weights needs Inception: add --extractor inception")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out} is a file: name a folder")


def plan_of(args: argparse.Namespace) -> Plan:
    """Load the model or the samples, and the real images. Raises DataError where they do not fit."""
    from ..data.sources import held_out
    from ..evaluation.features import check_samples

    model = samples = None
    what = Path(args.what)
    if is_samples(args.what):
        source = args.data
    else:
        args.model = args.what
        model = open_model(args)
        source = args.data or model.info.name
    size, skip_bad = read_as(args, None if model is None else model.config)
    train = load(args, source, size, skip_bad, moved="" if args.data else "name it with --data")
    if model is not None and args.data is None and train.fingerprint != model.info.fingerprint:
        raise DataError(f"{source} has changed since the model was trained: name the data with --data")
    if model is None:
        samples = in_classes_of(train, load_samples(args, train))
        check_samples(samples, train)  # before an extractor is trained, which can take minutes
    test = held_out(source, class_names=train.class_names, root=args.data_root, size=size or None, skip_bad=skip_bad)
    if model is None and what.is_dir():
        out = Path(f"{what}-evaluation")  # not among the samples
    else:
        out = (what if what.is_dir() else what.with_suffix("")) / "evaluation"
    return Plan(model, samples, train, test, args.out or out)


def load_samples(args: argparse.Namespace, train: Any) -> Any:
    """The samples. Raises DataError where those in a folder have another size than the data, unless --size is given."""
    from ..data.folder import image_sizes

    _, height, width = train.shape
    if not Path(args.what).is_dir() or args.size is not None:
        return load(args, args.what, args.size, args.skip_bad)
    if odd := sorted(image_sizes(args.what) - {(height, width)}):
        raise DataError(
            f"{args.what} has images of {odd[0][0]} x {odd[0][1]} pixels and {train.name} of {height} x {width}: use "
            "samples of the data's size, or resize both with --size"
        )
    return load(args, args.what, height if height == width else None, args.skip_bad)


def in_classes_of(train: Any, samples: Any) -> Any:
    """The samples with the labels of the data, by the names of the classes. Raises DataError for another class."""
    known = samples.in_classes(train.class_names)
    if len(known) < len(samples):
        from ..data.images import class_list

        raise DataError(
            f"{samples.name} has the classes {class_list(samples.class_names)} and {train.name} the classes "
            f"{class_list(train.class_names)}: name the data that the samples were made for with --data"
        )
    return known


def samples_of(args: argparse.Namespace, plan: Plan) -> tuple[Any, float]:
    """(the samples, seconds that it took to generate them)."""
    from ..randomness import permutation

    if plan.samples is not None:
        samples = plan.samples  # often in the order of their classes
        if args.n is not None and args.n < len(samples):
            samples = samples[permutation(len(samples), args.seed, "samples")[: args.n]]
        return samples, 0.0

    from ..data.images import Images
    from ..data.labels import labels_for
    from ..model.generate import generate

    model, train = plan.model, plan.train
    n = args.n or min(10000, 2 * len(train))
    labels = labels_for(model.info, train, n, args.seed)
    estimate = sampling_seconds(model, n, labels, args.seed)
    say(args, f"Generating {sampling_text(model, n)}: about {estimate:.0f} s.")
    began = time.perf_counter()
    pixels = generate(model, n, labels, args.seed, quiet=args.json)
    samples = Images(train.name, pixels, labels, model.info.class_names)
    if train.class_names != model.info.class_names:  # then the labels have another meaning in this data
        samples = Images(train.name, pixels)
    return samples, time.perf_counter() - began


def extractors_for(args: argparse.Namespace, train: Any) -> dict[str, Any]:
    """The extractors of the command line, by name."""
    from ..evaluation.extractors import extractor_for

    if args.extractor == "inception":
        from ..evaluation.inception import NAME, inception

        return {NAME: inception(args.inception_weights, args.device)}
    made = [extractor_for(train, seed=seed, quiet=args.json) for seed in range(args.extractor_seeds)]
    return {extractor.name: extractor for extractor in made}


def searched_augmentations(train: Any, model: Any) -> list:
    """The augmentations of a training image among which near-duplicates are searched: all symmetries of a small data
    set, else those that the model is trained with."""
    from ..augmentation import identity, symmetries

    _, height, width = train.shape
    if len(train) <= FEW_IMAGES:
        return symmetries(height == width)
    return [identity] if model is None else model.spec.augmentations


def spread_text(results: list) -> str:
    """The range of each score over several extractors."""
    lines = [f"Over {len(results)} extractors:"]
    for scores in zip(*(result.scores for result in results), strict=True):
        values = [score.value for score in scores if score.value is not None]
        if values:
            lines.append(f"  {scores[0].name:<9}  {min(values):.4g} to {max(values):.4g}")
    return "\n".join(lines)


def write_pictures(args: argparse.Namespace, plan: Plan, evaluation: Any, samples: Any) -> None:
    """PNG files of the closest pairs of sample and training image and, for a model, of the error by noise level."""
    from ..denoising_error import error_curves
    from ..evaluation.scores import closest_pairs
    from ..system.files import write_atomic
    from ..viz.grids import make_grid, png
    from ..viz.plots import plot_denoising_error

    for name in ("closest-in-pixels", "closest-in-features", "levels"):  # of an earlier evaluation
        (plan.out / f"{name}.png").unlink(missing_ok=True)
    for space, found in evaluation.near_duplicates.items():
        with optional(args, f"closest-in-{space}.png"):
            picture = png(make_grid(closest_pairs(found, samples, plan.train), 10))
            write_atomic(plan.out / f"closest-in-{space}.png", picture)
    if plan.model is not None:
        say(args, "Measuring the denoising error at each noise level: about a minute.")
        with optional(args, "levels.png"):
            own = plan.model.info.in_own_classes
            curves = error_curves(plan.model.denoiser, own(plan.train), None if plan.test is None else own(plan.test))
            write_atomic(plan.out / "levels.png", plot_denoising_error(curves))
