"""report.html: a training run on one page, also while it trains. The page loads nothing from elsewhere.

This module collects the facts from the run folder (log.csv, samples/, evaluation/, trajectory.png, levels.json), the
configuration and the data; the template report.html.jinja lays them out. Files that do not exist yet are left out, or
replaced by the command that makes them.
"""

import base64
import csv
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data.images import Images
from ..data.info import DataInfo
from ..denoising_error import ErrorCurve
from ..model.build import ModelSpec
from ..model.config import Config
from ..randomness import permutation
from ..system.files import write_atomic
from ..system.terminal import command_line
from ..viz.grids import make_grid, png
from ..viz.svg import Line, Plot, plot
from .log import FILE as LOG

FILE = "report.html"
TRAJECTORY_FILES = ("trajectory.png", "film.png")
"""Names of the denoising trajectory, today's first: runs of earlier versions have the second."""
LEVELS_FILE = "levels.json"
BOUNDS_OF_0_1 = {
    "mean and covariance only": ErrorCurve("linear denoiser", [], "upper bound"),
    "training set by heart": ErrorCurve("ideal denoiser", [], "lower bound"),
}
"""The bounds in levels.json of version 0.1, by their names there."""
REFRESH = 10
"""Seconds after which a browser reloads the page of a run that still trains."""
DAMAGED = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""Errors from reading a JSON file whose content has another form."""


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page, as a data URI."""

    source: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Progress:
    """How much of the run is done; the sentence is empty before the first row of the log."""

    fraction: float
    sentence: str


@dataclass(frozen=True)
class Samples:
    """The newest samples and the denoising trajectory; all samples of the run if there are several."""

    large: list[Picture]
    history: list[Picture]


@dataclass(frozen=True)
class ExtractorScores:
    """The rows of the tables of one feature extractor."""

    rows: list[tuple[str, ...]]
    by_class: list[tuple[str, ...]]


@dataclass(frozen=True)
class Scores:
    """Scores of `evaluate`, and its pictures of the samples that are nearest to training images."""

    extractors: list[ExtractorScores]
    nearest: list[Picture]


@dataclass(frozen=True)
class Data:
    """What the data is; examples and the number of images in each class only if the images are available."""

    sentence: str
    examples: Picture | None
    classes: list[tuple[str, str]]


@dataclass(frozen=True)
class Settings:
    """(name, value) of the settings that differ from the defaults, and of all."""

    changed: list[tuple[str, str]]
    all: list[tuple[str, str]]


def write_report(
    folder: Path,
    spec: ModelSpec,
    command: str,
    *,
    images: Images | None = None,
    levels: Sequence[ErrorCurve] = (),
    progress: float = 1.0,
    live: bool = False,
) -> None:
    """Write report.html atomically. Raises ResourceError.

    folder     run folder
    command    command that reproduces the run
    images     training images, if they are available
    levels     recent training loss by noise level, with its bounds
    progress   fraction of the run that is done, in [0, 1]
    live       whether the run still trains; a browser then reloads the page regularly
    """
    rows = read_log(folder)
    page = {
        "title": folder.name,
        "subtitle": f"{spec.info.name}, {spec.config.network}",
        "refresh": REFRESH if live else None,
        "progress": progress_of(spec.config, rows, progress),
        "samples": samples_of(folder, spec.info),
        "loss": loss_plots(rows, levels),
        "error": error_plot(folder),
        "scores": scores_of(folder),
        "data": data_of(spec.info, images),
        "settings": settings_of(spec.config),
        "commands": {
            "train": command,
            "report": command_line(["simple-diffusion", "report", str(folder)]),
            "evaluate": command_line(["simple-diffusion", "evaluate", str(folder)]),
        },
    }
    write_atomic(folder / FILE, render(page).encode(errors="backslashreplace"))  # a path may hold other bytes


def render(page: dict[str, Any]) -> str:
    """The page as HTML, with every value escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("simple_diffusion", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("run/report.html.jinja").render(page)


# --- the facts, section by section


def progress_of(config: Config, rows: list[dict[str, float]], progress: float) -> Progress:
    """Steps and time so far, the time left, and the total time that was expected at the start."""
    if not rows:
        return Progress(progress, "")
    last, seconds = rows[-1], rows[-1]["seconds"]
    sentence = f"{last['step']:,.0f} steps and {last['images']:,.0f} images in {seconds:,.0f} s"
    if progress < 1:
        sentence += f"; about {seconds / max(progress, 1e-9) - seconds:,.0f} s left"
    early = rows[: max(1, len(rows) // 20)]
    planned = config.seconds or early[-1]["seconds"] / early[-1]["step"] * config.steps
    return Progress(progress, f"{sentence}. Total time expected at the start: {planned:,.0f} s.")


def samples_of(folder: Path, info: DataInfo) -> Samples:
    """The grids that were sampled during training, and the denoising trajectory."""
    grids = sorted((folder / "samples").glob("step-*.png"))
    steps = [int(path.stem.split("-")[1]) for path in grids]
    large = []
    if grids:
        caption = f"Samples after {steps[-1]:,} steps, from the same noise as all other grids of this run."
        if info.classes:
            caption += f" One class per row: {', '.join(info.class_names[:10])}."
        large.append(picture(grids[-1], caption))
    trajectories = [folder / name for name in TRAJECTORY_FILES if (folder / name).is_file()]
    if trajectories:
        caption = "Denoising trajectory: the noisy image x_t, and below it the x0 prediction."
        large.append(picture(trajectories[0], caption))
    history = [
        picture(path, f"step {step:,}", f"Samples after {step:,} steps")
        for path, step in zip(grids, steps, strict=True)
    ]
    return Samples(large, history if len(history) > 1 else [])


def loss_plots(rows: list[dict[str, float]], levels: Sequence[ErrorCurve]) -> list[Plot]:
    """Loss, held-out loss, learning rate and speed over the run, and the recent loss by noise level."""

    def column(name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in rows if name in row]

    losses = [Line("training", column("loss")), Line("held-out", column("held_out_loss"))]
    plots = [
        plot(losses, "Loss", "step", log_y=True),
        plot([Line("", column("learning_rate"))], "Learning rate", "step"),
        plot([Line("", column("images_per_second"))], "Images per second", "step"),
        plot([line_of(curve) for curve in levels], "Recent loss by noise level", "noise level σ/α", log_x=True),
    ]
    return [found for found in plots if found is not None]


def error_plot(folder: Path) -> Plot | None:
    """The error of the model at each noise level, with its bounds; None if levels.json is missing or damaged."""
    try:
        lines = [line_of(curve) for curve in curves_in(read_json(folder / LEVELS_FILE))]
        return plot(lines, "Mean squared error per pixel", "noise level σ/α", log_x=True, log_y=True)
    except DAMAGED:
        return None


def curves_in(record: dict[str, Any]) -> list[ErrorCurve]:
    """The curves in levels.json, also in its form of version 0.1. Raises what `DAMAGED` lists."""
    if "errors" not in record:
        curves = [ErrorCurve(**curve) for curve in record["curves"]]
        return [replace(curve, points=[point for point in curve.points if None not in point]) for curve in curves]
    return [
        replace(BOUNDS_OF_0_1.get(name, ErrorCurve(name, [])), points=list(zip(record["levels"], errors, strict=True)))
        for name, errors in record["errors"].items()
    ]


def line_of(curve: ErrorCurve) -> Line:
    """The curve as a line; a bound is named with its kind."""
    bound = curve.kind != "model"
    return Line(f"{curve.name} ({curve.kind})" if bound else curve.name, curve.points, bound)


def scores_of(folder: Path) -> Scores | None:
    """What `evaluate` measured; None if evaluation/scores.json is missing or damaged."""
    try:
        found = [extractor_scores(record) for record in read_json(folder / "evaluation" / "scores.json")["extractors"]]
    except DAMAGED:
        return None
    pictures = {space: folder / "evaluation" / f"closest-in-{space}.png" for space in ("pixels", "features")}
    nearest = [
        picture(path, f"Samples nearest to a training image in {space}, each above that image.")
        for space, path in pictures.items()
        if path.is_file()
    ]
    return Scores(found, nearest)


def extractor_scores(record: dict[str, Any]) -> ExtractorScores:
    """The rows of the tables from the scores of one extractor. Raises what `DAMAGED` lists."""
    rows: list[tuple[str, ...]] = []
    for score in record["scores"]:
        value = score["note"] if score["value"] is None else f"{score['value']:.4g}"
        interval = "" if not score.get("interval") else "{:.4g} to {:.4g}".format(*score["interval"])
        if "interval" not in score and score["error"] is not None:  # files of version 0.1 and before
            interval = f"± {1.96 * score['error']:.2g}"
        value_of_real = score.get("baseline", score.get("floor"))  # "floor" in files of version 0.1 and before
        baseline = "" if value_of_real is None else f"{value_of_real:.4g}"
        rows.append((score["name"], value, interval, baseline, f"{score['n']:,}", score["extractor"]))
    by_class: list[tuple[str, ...]] = [
        (name, *(f"{score['name']} {score['value']:.4g}" for score in scores if score["value"] is not None))
        for name, scores in record["by_class"].items()
    ]
    return ExtractorScores(rows, by_class)


def data_of(info: DataInfo, images: Images | None) -> Data:
    """Count, size and statistics of the images; with the images also examples, classes, and what to know of them."""
    kind = {1: "gray", 3: "color"}[info.channels]
    sentence = f"{info.count:,} {kind} images of {info.height} × {info.width} pixels. Pixels in [-1, 1] have mean "
    sentence += f"{info.mean:.3f} and standard deviation {info.std:.3f}."
    if images is None:
        return Data(sentence, None, [])
    if images.duplicates:
        sentence += f" {images.duplicates:,} are exact duplicates of earlier ones."
    if images.left_out:
        count = len(images.left_out)
        sentence += f" {count:,} more could not be read and were left out; left-out.csv lists them with the reason."
    chosen = permutation(len(images), 0, "data sheet")[:30]
    examples = embed(png(make_grid(images.pixels[chosen], 10)), "Examples.", "Images of the training data")
    classes: list[tuple[str, str]] = []
    if images.labels is not None:
        counts = images.labels.bincount(minlength=images.classes).tolist()
        classes = [(name, f"{count:,}") for name, count in zip(images.class_names, counts, strict=True)]
    return Data(sentence, examples, classes)


def settings_of(config: Config) -> Settings:
    values, defaults = asdict(config), asdict(Config())
    changed = [(key, str(value)) for key, value in values.items() if value != defaults[key]]
    return Settings(changed, [(key, str(value)) for key, value in values.items()])


# --- files


def picture(path: Path, caption: str, alt: str = "") -> Picture:
    """A PNG file; the alternative text is the caption unless another is given."""
    return embed(path.read_bytes(), caption, alt)


def embed(content: bytes, caption: str, alt: str = "") -> Picture:
    """The content of a PNG file."""
    return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", caption, alt or caption)


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of log.csv as numbers, without empty cells; rows that are not complete are left out."""
    rows = []
    with suppress(OSError):
        for row in csv.DictReader(io.StringIO((folder / LOG).read_text(encoding="utf-8", errors="replace"))):
            with suppress(ValueError, TypeError):
                rows.append({name: float(cell) for name, cell in row.items() if cell != ""})
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if the file is missing or damaged."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes())
    return None
