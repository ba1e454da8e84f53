"""`simple-diffusion race`: which sampler in how many steps, which guidance, which average suits this model?"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import BusyError, UsageError
from ..run.folder import hold
from .options import command, data_of, data_options, device_options, path, png_only, say, scale, seed, whole, width

COSTS = (5, 7, 10, 14, 20, 30)


def add(commands: Any) -> None:
    sub = command(
        commands, "race", run, "every sampler at several costs on one model, or strengths of guidance, or averages"
    )
    sub.add_argument("model", metavar="MODEL", help="a run folder or a .safetensors file")
    sub.add_argument("--n", type=whole(2, 10**6), default=2000, help="images of each (default 2000)")
    sub.add_argument("--seed", type=seed, default=0, metavar="N", help="of the noise (default 0)")
    sub.add_argument(
        "--evaluations",
        type=costs,
        default=COSTS,
        metavar="N,N,...",
        help=f"of the network an image, at which they race (default {','.join(map(str, COSTS))})",
    )
    instead = sub.add_mutually_exclusive_group()
    instead.add_argument(
        "--guidance",
        type=several(scale, "1,1.5,2"),
        metavar="X,X,...",
        help="race strengths of guidance instead of samplers, like 1,1.5,2",
    )
    instead.add_argument(
        "--ema",
        type=several(width, "0.04,0.08,0.16"),
        metavar="X,X,...",
        help="race widths of the averaged weights instead of samplers, like 0.04,0.08,0.16",
    )
    sub.add_argument("--write", action="store_true", help="make the winner the model's default")
    sub.add_argument("--data", metavar="DATA", help="what to compare with (default the model's data)")
    sub.add_argument("--out", type=path, default=Path("race.png"), metavar="FILE.png", help="the picture of the race")
    data_options(sub)
    device_options(sub)


def costs(text: str) -> tuple[int, ...]:
    """`5,10,20` -> numbers of evaluations."""
    words = text.split(",")
    numbers = tuple(int(word) if word.isascii() and word.isdecimal() else 0 for word in words)
    if len(numbers) > 20 or not all(2 <= number <= 10000 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of up to 20 whole numbers from 2 to 10000 like 5,10,20")
    return numbers


def several(kind: Callable[[str], float], example: str) -> Callable[[str], tuple[float, ...]]:
    """The type of an option that is a list of numbers of a kind."""

    def numbers(text: str) -> tuple[float, ...]:
        words = text.split(",")
        if len(words) > 20:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of up to 20 numbers like {example}")
        return tuple(kind(word) for word in words)

    return numbers


def run(args: argparse.Namespace) -> dict[str, Any]:
    png_only(args.out)

    from ..data.labels import labels_for
    from ..evaluation.extractors import extractor_for
    from ..evaluation.features import featured
    from ..evaluation.paired import check_count
    from ..evaluation.sweep import Course
    from ..model.model_file import read

    model = read(args.model, args.device, args.precision)
    if args.guidance and not model.info.classes:
        raise UsageError(f"{args.model} knows no classes, and guidance is towards one: leave --guidance out")
    images, n = data_of(args, model, args.n)
    labels = labels_for(model.info, images, n, args.seed)
    extractor = extractor_for(images, quiet=args.json)
    real = featured(images, extractor, extractor.name)
    check_count(n, real)
    known = images.class_names == model.info.class_names and extractor.classes == images.classes
    course = Course(n, labels, args.seed, extractor, real, known)
    if args.guidance:
        return strengths(args, model, course)
    return averages(args, model, course) if args.ema else samplers(args, model, course)


def samplers(args: argparse.Namespace, model, course) -> dict[str, Any]:
    """The race of samplers."""
    from ..evaluation.sweep import choice, drawn, drawn_by, entrants, front, race
    from ..samplers import FINE, SAMPLERS
    from ..system.files import write_atomic
    from ..viz.plots import plot_sampler_sweep

    config, n, labels, extractor = model.config, course.n, course.labels, course.extractor
    began, few = time.perf_counter(), min(n, 128)
    drawn(model, drawn_by("dpmpp", 10), few, None if labels is None else labels[:few], course.seed)
    laps_to_run = entrants(args.evaluations)
    evaluations = sum(SAMPLERS[name].nfe(steps) for name, steps in [*laps_to_run, FINE])
    estimate = (time.perf_counter() - began) / few / 10 * evaluations * n
    say(args, f"{len(laps_to_run)} laps of {n:,} images: about {estimate:.0f} s for drawing.")
    laps = []
    for lap in race(model, args.evaluations, course):
        laps.append(lap)
        away = "" if lap.distance is None else f", {lap.distance:.2g} from the fine solution"
        score = f"FID {lap.fid:.4g} ± {1.96 * lap.error:.2g}, KID {lap.kid:.2g}{away}"
        say(args, f"  {lap.sampler:<9} {lap.steps:>3} steps, {lap.cost:>3} evaluations: {score}")
    best, on_front = choice(laps, course.real), front(laps)
    names = ", ".join(f"{lap.sampler} in {lap.steps}" for lap in on_front)
    say(args, f"FID of {extractor.name} at n = {n:,}. Nothing cheaper is better than {names}.")
    say(args, f"The cheapest that can't be told from the best: {best.sampler} in {best.steps} steps.")
    curves = {name: [lap for lap in laps if lap.sampler == name] for name in dict.fromkeys(lap.sampler for lap in laps)}
    quality = {name: [(lap.cost, lap.fid) for lap in of_name] for name, of_name in curves.items()}
    distance = {
        name: [(lap.cost, lap.distance) for lap in of_name if lap.distance is not None]
        for name, of_name in curves.items()
    }
    line = [(lap.cost, lap.fid) for lap in on_front]
    write_atomic(args.out, plot_sampler_sweep(quality, distance, line, f"FID, {extractor.name}, n = {n:,}"))
    say(args, f"Picture: {args.out}")
    if args.write:
        save_if_unchanged(args.model, model.changed(**best.settings()))
        before = f"{config.sampler} in {config.sampler_steps}"
        say(args, f"{args.model} now draws with {best.sampler} in {best.steps} steps; before: {before}.")
    rows = [
        {key: getattr(lap, key) for key in ("sampler", "steps", "fid", "error", "kid", "distance")}
        | {"evaluations": lap.cost, "on_front": lap in on_front}
        for lap in laps
    ]
    return result(args, course) | {"laps": rows, "choice": best.settings()}


def save_if_unchanged(path: str, model) -> None:
    """Write the model where it was read. Raises BusyError where a run is at work in its folder, or was meanwhile."""
    from ..model.model_file import model_file, read, save

    with hold(Path(path)) if Path(path).is_dir() else nullcontext():
        if read(path).step != model.step:
            raise BusyError(f"{path} was trained on while it raced: race it again to --write")
        save(model_file(path), model)


Lap = tuple[str, float, Any]
"""(name of the curve, what is swept, its marks)"""


def strengths(args: argparse.Namespace, model, course) -> dict[str, Any]:
    """The race of strengths of guidance."""
    from ..evaluation.sweep import GUIDANCE, guidance_race

    laps: list[Lap] = []
    pushes: list[dict[str, Any]] = []
    for (low, high), strength, marks in guidance_race(model, args.guidance, course):
        laps.append(("at every level" if (low, high) == (0, 1e4) else f"from {low:g} to {high:g}", strength, marks))
        pushes.append({"scale": strength, "interval": (low, high)} | asdict(marks))
        say(args, format_point("guidance", *laps[-1]))
    drawn_sweep(args, laps, course, "scale of guidance", "sigma/alpha")
    best = min(range(len(laps)), key=lambda i: laps[i][2].fid)
    name, strength, _ = laps[best]
    settings = dict(zip(GUIDANCE, (strength, *pushes[best]["interval"]), strict=True))
    say(args, f"Lowest FID: guidance {strength:g} {name}. Recall falls as guidance grows.")
    if args.write:
        save_if_unchanged(args.model, model.changed(**settings))
        say(args, f"{args.model} now draws with guidance {strength:g} {name}.")
    return result(args, course) | {"pushes": pushes, "choice": settings}


def averages(args: argparse.Namespace, model, course) -> dict[str, Any]:
    """The race of widths of the averaged weights."""
    from ..model.posthoc_ema import posthoc_model

    made = {each: posthoc_model(args.model, model, each) for each in args.ema}  # it is seen at once whether each can be
    laps: list[Lap] = []
    for each, changed in made.items():
        laps.append(("", each, course.marks(changed)))
        say(args, format_point("ema", *laps[-1]))
    drawn_sweep(args, laps, course, "width of the average", "")
    _, best, _ = min(laps, key=lambda lap: lap[2].fid)
    say(args, f"Lowest FID: an average of width {best:g}; the run was drawn from with {model.config.ema_length:g}.")
    if args.write:
        save_if_unchanged(args.model, made[best].changed(ema_length=best))
        say(args, f"{args.model} now draws with an average of width {best:g}.")
    widths = [{"width": each} | asdict(marks) for _, each, marks in laps]
    return result(args, course) | {"widths": widths, "choice": {"ema_length": best}}


def format_point(word: str, name: str, value: float, marks: Any) -> str:
    """A lap of a sweep, in a line."""
    seen = "" if marks.accuracy is None else f", accuracy {marks.accuracy:.3f}"
    score = f"FID {marks.fid:.4g} ± {1.96 * marks.error:.2g}, recall {marks.recall:.3f}{seen}"
    return f"  {word} {value:<4g} {name:<16}: {score}"


def drawn_sweep(args: argparse.Namespace, laps: list[Lap], course, axis: str, legend: str) -> None:
    """The picture of a sweep, a panel each for FID, recall and accuracy."""
    from ..system.files import write_atomic
    from ..viz.plots import plot_scores

    panels = {}
    for title, key in (("FID", "fid"), ("recall", "recall"), ("accuracy", "accuracy")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for name, value, marks in laps:
            if getattr(marks, key) is not None:
                lines.setdefault(name, []).append((value, getattr(marks, key)))
        if lines:
            panels[f"{title}, n = {course.n:,}"] = lines
    write_atomic(args.out, plot_scores(panels, axis, legend))
    say(args, f"Picture: {args.out}")


def result(args: argparse.Namespace, course) -> dict[str, Any]:
    """What the result of any race says."""
    return {"n": course.n, "extractor": course.extractor.name, "written": args.write, "out": str(args.out)}
