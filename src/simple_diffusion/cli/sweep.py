"""`simple-diffusion sweep`: which sampler, guidance or EMA length suits a model best?"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BusyError
from ..run.folder import hold
from .options import (
    checkable_labels,
    command,
    data_of,
    data_options,
    device_options,
    ema_length,
    expect_sampling,
    path,
    png_only,
    refuse_without_labels,
    sampling_seconds,
    say,
    scale,
    seed,
    table_row,
    whole,
)

NFES = (5, 7, 10, 14, 20, 30)


def add(commands: Any) -> None:
    sub = command(commands, "sweep", run, "score one model under several samplers, guidance scales or EMA lengths")
    sub.add_argument("model", metavar="MODEL", help="a run folder or a .safetensors file")
    sub.add_argument("--n", type=whole(2, 10**6), default=2000, metavar="N", help="images at each point (default 2000)")
    sub.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the noise (default 0)")
    sub.add_argument(
        "--nfe",
        type=nfe_list,
        default=NFES,
        metavar="N,N,...",
        help=f"network evaluations for one image, for every sampler (default {','.join(map(str, NFES))})",
    )
    instead = sub.add_mutually_exclusive_group()
    instead.add_argument(
        "--guidance",
        type=list_of(scale, "1,1.5,2"),
        metavar="X,X,...",
        help="sweep guidance scales instead of samplers, for example 1,1.5,2",
    )
    instead.add_argument(
        "--ema",
        type=list_of(ema_length, "0.04,0.08,0.16"),
        metavar="X,X,...",
        help="sweep EMA lengths instead of samplers, for example 0.04,0.08,0.16",
    )
    sub.add_argument("--write", action="store_true", help="save the best settings as the model's defaults")
    sub.add_argument("--data", metavar="DATA", help="real images to compare with (default the model's training data)")
    sub.add_argument("--out", type=path, default=Path("sweep.png"), metavar="FILE.png", help="plot of the scores")
    data_options(sub)
    device_options(sub)


def nfe_list(text: str) -> tuple[int, ...]:
    """`5,10,20` -> numbers of function evaluations."""
    words = text.split(",")
    numbers = tuple(int(word) if word.isascii() and word.isdecimal() else 0 for word in words)
    if len(numbers) > 20 or not all(2 <= number <= 10000 for number in numbers):
        raise argparse.ArgumentTypeError(f"must be at most 20 integers from 2 to 10000 like 5,10,20, got {text!r}")
    return numbers


def list_of(kind: Callable[[str], float], example: str) -> Callable[[str], tuple[float, ...]]:
    """The type of an option that is a list of numbers of a kind."""

    def numbers(text: str) -> tuple[float, ...]:
        words = text.split(",")
        if len(words) > 20:
            raise argparse.ArgumentTypeError(f"must be at most 20 numbers like {example}, got {text!r}")
        return tuple(kind(word) for word in words)

    return numbers


@dataclass(frozen=True)
class Plan:
    """What is swept, how it is printed, and which point is chosen.

    grid         the settings of each point
    model_with   the model with some settings
    columns      title and text of each column of the table that shows the settings
    choose       the best point
    choice       the sentence that names it
    plot         (points, name of the extractor, number of images) -> a PNG file's content
    reference    the settings of the exact solution of the ODE, for a sweep of samplers; else None
    """

    grid: list[dict[str, Any]]
    model_with: Callable[[dict[str, Any]], Any]
    columns: dict[str, Callable[[Any], str]]
    choose: Callable[[Sequence[Any]], Any]
    choice: Callable[[Any], str]
    plot: Callable[[Sequence[Any], str, int], bytes]
    reference: dict[str, Any] | None = None


SCORES: dict[str, Callable[[Any], str]] = {
    "FID": lambda point: f"{point.fid:.4f}",
    "95 % interval of FID": lambda point: "{:.4f} to {:.4f}".format(*point.interval),
    "KID x 1000": lambda point: f"{1000 * point.kid:.3f}",
    "precision": lambda point: f"{point.precision:.3f}",
    "recall": lambda point: f"{point.recall:.3f}",
    "accuracy": lambda point: "" if point.accuracy is None else f"{point.accuracy:.3f}",
    "distance": lambda point: "" if point.distance is None else f"{point.distance:.4f}",
}
"""Title and text of each column of scores."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    png_only(args.out)

    from ..data.labels import labels_for
    from ..evaluation.extractors import extractor_for
    from ..evaluation.features import cached_features
    from ..evaluation.paired import check_count
    from ..evaluation.sweep import Scorer, pareto_front, sweep
    from ..model.model_file import read
    from ..system.files import write_atomic

    model = read(args.model, args.device, args.precision)
    refuse_without_labels({"guidance"} if args.guidance else (), model.info)
    expect_sampling(args, model)
    images, n = data_of(args, model, args.n)
    labels = labels_for(model.info, images, n, args.seed)
    extractor = extractor_for(images, quiet=args.json)
    real = cached_features(images, extractor, extractor.name)
    check_count(n, real)
    checkable = checkable_labels(labels, model, images, extractor)
    plan = plan_of(args, model, real)

    def sample(settings: dict[str, Any]):
        return float_samples(plan.model_with(settings), n, labels, args.seed)

    seconds = estimate(plan, n, labels, args.seed)
    what = "1 configuration" if len(plan.grid) == 1 else f"{len(plan.grid)} configurations"
    say(args, f"{what}, {n:,} images each: about {seconds:.0f} s to sample.")
    reference = None if plan.reference is None else sample(plan.reference)
    left_out = {"accuracy"} if checkable is None else set()
    left_out |= {"distance"} if reference is None else set()
    columns = plan.columns | {title: text for title, text in SCORES.items() if title not in left_out}
    say(args, table_row(columns))
    points = []
    for point in sweep(sample, plan.grid, Scorer(extractor, real, checkable), reference):
        points.append(point)
        say(args, table_row(columns, [text(point) for text in columns.values()]))
    answers = [point.as_dict() for point in points]
    if plan.reference is not None:
        front = pareto_front(points)
        answers = [point.as_dict() | {"nfe": point.nfe, "on_front": point in front} for point in points]
    best = plan.choose(points)
    say(args, f"{plan.choice(best)} FID of {extractor.name}, n = {n:,}.")
    write_atomic(args.out, plan.plot(points, extractor.name, n))
    say(args, f"Plot: {args.out}")
    if args.write:
        save_if_unchanged(args.model, plan.model_with(best.settings))
        say(args, f"Saved as the defaults of {args.model}.")
    return {
        "n": n,
        "extractor": extractor.name,
        "points": answers,
        "choice": best.settings,
        "written": args.write,
        "out": str(args.out),
    }


def float_samples(model, n: int, labels, seed: int):
    """n samples from the noise of a seed: float `[n, C, H, W]` about [-1, 1], on the CPU."""
    import torch

    from ..model.generate import generate_batches

    return torch.cat([x.cpu() for _, x in generate_batches(model, n, labels, seed)])


def estimate(plan: Plan, n: int, labels, seed: int) -> float:
    """Seconds that all points take to sample, from a few images with the last settings."""
    from ..evaluation.sweep import nfe_of

    seconds = sampling_seconds(plan.model_with(plan.grid[-1]), n, labels, seed)
    if plan.reference is None:
        return seconds * len(plan.grid)
    return seconds / nfe_of(plan.grid[-1]) * sum(map(nfe_of, [*plan.grid, plan.reference]))


def save_if_unchanged(path: str, model) -> None:
    """Write the model where it was read. Raises BusyError where its run is training, or was trained meanwhile."""
    from ..model.model_file import model_file, read, save

    with hold(Path(path)) if Path(path).is_dir() else nullcontext():
        if read(path).step != model.step:
            raise BusyError(f"{path} was trained further during the sweep: sweep again to --write")
        save(model_file(path), model)


def plan_of(args: argparse.Namespace, model, real) -> Plan:
    """What the options ask for."""
    if args.guidance:
        return guidance_plan(args, model)
    return ema_plan(args, model) if args.ema else sampler_plan(args, model, real)


def lowest_fid(points: Sequence[Any]):
    return min(points, key=lambda point: point.fid)


def sampler_plan(args: argparse.Namespace, model, real) -> Plan:
    """Every sampler at each NFE."""
    from ..evaluation.sweep import REFERENCE, cheapest_tied, pareto_front, sampler_grid
    from ..viz.plots import plot_sampler_sweep

    def plot(points: Sequence[Any], extractor: str, n: int) -> bytes:
        quality, distance = {}, {}
        for point in points:
            name = point.settings["sampler"]
            quality.setdefault(name, []).append((point.nfe, point.fid))
            if point.distance is not None:
                distance.setdefault(name, []).append((point.nfe, point.distance))
        front = [(point.nfe, point.fid) for point in pareto_front(points)]
        return plot_sampler_sweep(quality, distance, front, f"FID, {extractor}, n = {n:,}")

    return Plan(
        grid=sampler_grid(args.nfe),
        model_with=lambda settings: model.changed(**settings),
        columns={
            "sampler": lambda point: point.settings["sampler"],
            "steps": lambda point: str(point.settings["sampler_steps"]),
            "NFE": lambda point: str(point.nfe),
        },
        choose=lambda points: cheapest_tied(points, real),
        choice=lambda best: (
            f"Best: {best.settings['sampler']} in {best.settings['sampler_steps']} steps, the lowest NFE that is "
            "statistically tied with the lowest FID."
        ),
        plot=plot,
        reference=REFERENCE,
    )


def guidance_plan(args: argparse.Namespace, model) -> Plan:
    """Every guidance scale, in the model's interval of noise levels and at all levels."""
    from ..evaluation.sweep import EVERYWHERE, guidance_grid

    def interval(point) -> str:
        low, high = (point.settings[key] for key in ("guidance_low", "guidance_high"))
        return "all" if (low, high) == EVERYWHERE else f"{low:g} to {high:g}"

    mine = model.config.guidance_low, model.config.guidance_high
    return Plan(
        grid=guidance_grid(args.guidance, dict.fromkeys((mine, EVERYWHERE))),
        model_with=lambda settings: model.changed(**settings),
        columns={
            "guidance": lambda point: f"{point.settings['guidance']:g}",
            "sigma/alpha": interval,
        },
        choose=lowest_fid,
        choice=lambda best: f"Lowest FID: guidance {best.settings['guidance']:g} at sigma/alpha {interval(best)}.",
        plot=lambda points, _, n: plot_panels(points, n, "guidance", "guidance scale", interval, "sigma/alpha"),
    )


def ema_plan(args: argparse.Namespace, model) -> Plan:
    """Every EMA length. Raises UsageError at once where one of them cannot be made."""
    from ..model.posthoc_ema import posthoc_model

    models = {length: posthoc_model(args.model, model, length) for length in args.ema}
    return Plan(
        grid=[{"ema_length": length} for length in models],
        model_with=lambda settings: models[settings["ema_length"]].changed(**settings),
        columns={"EMA length": lambda point: f"{point.settings['ema_length']:g}"},
        choose=lowest_fid,
        choice=lambda best: (
            f"Lowest FID: EMA length {best.settings['ema_length']:g}; the model's is {model.config.ema_length:g}."
        ),
        plot=lambda points, _, n: plot_panels(points, n, "ema_length", "EMA length", lambda point: "", ""),
    )


def plot_panels(
    points: Sequence[Any], n: int, setting: str, axis: str, curve: Callable[[Any], str], legend: str
) -> bytes:
    """FID, recall and accuracy against a setting, a panel each; `curve` names the curve of a point."""
    from ..viz.plots import plot_scores

    panels = {}
    for title, name in (("FID", "fid"), ("recall", "recall"), ("accuracy", "accuracy")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            if (value := getattr(point, name)) is not None:
                lines.setdefault(curve(point), []).append((point.settings[setting], value))
        if lines:
            panels[f"{title}, n = {n:,}"] = lines
    return plot_scores(panels, axis, legend)
