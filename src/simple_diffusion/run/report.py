"""report.html: a run on one page that asks for nothing from elsewhere, also while it trains.

It is made of what stands in the run folder (log.csv, samples/, evaluation/, film.png, levels.json), of the config and
of the data card; what is not there yet is left out, or a sentence says which command adds it. Curves are SVG in the
text's colours, so that one page serves light, dark and print.
"""

import base64
import csv
import io
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from ..data.images import Images
from ..data.info import DataInfo
from ..denoising_error import ErrorCurve
from ..model.build import ModelSpec
from ..model.config import Config
from ..randomness import permutation
from ..system.files import write_atomic
from ..viz.grids import make_grid, png
from ..viz.plots import Points
from .log import FILE as LOG

FILE = "report.html"
FILM = "film.png"
LEVELS_FILE = "levels.json"
REFRESH = 10
"""Seconds after which a browser asks again for the page of a run that goes on."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --paper: #fdfdfb; --soft: #6a727b; --line: #d9dcdf; --mark: #b3461f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e8; --paper: #15181b; --soft: #98a1aa; --line: #33393f; --mark: #ff9a6b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 3px; }
.strip { display: flex; gap: .8rem; overflow-x: auto; padding-bottom: .5rem; }
.strip img { width: 11rem; max-width: none; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: .5rem 0; }
.pair { display: flex; flex-wrap: wrap; gap: 0 1.5rem; } .pair figure { flex: 1 1 22rem; }
svg { width: 100%; max-width: 26rem; height: auto; display: block; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } svg .axis { stroke: var(--line); }
svg polyline { fill: none; stroke: var(--mark); stroke-width: 1.6; } svg .second { stroke: var(--ink); }
svg .bound { stroke: var(--soft); stroke-dasharray: 4 3; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
td, th { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
code, pre { font: .88rem ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
progress { width: 100%; accent-color: var(--mark); }
@media print {
  body { max-width: none; } .strip { flex-wrap: wrap; overflow: visible; } figure, table { break-inside: avoid; }
}
"""


def embedded(content: bytes, alt: str) -> str:
    """A PNG file's content as a picture inside the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{escape(alt)}">'


def step_of(picture: Path) -> int:
    """The step after which samples/step-N.png was drawn."""
    return int(picture.stem.split("-")[1])


def figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Cells as plain text."""
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def ticks(low: float, high: float, log: bool) -> list[float]:
    """A few round numbers between two."""
    if log:
        powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        chosen = [p * m for p in powers for m in (1, 2, 5) if low <= p * m <= high]
        return [p for p in powers if low <= p <= high] if len(chosen) > 6 else chosen
    step = 10.0 ** math.floor(math.log10((high - low) or 1))
    step = next(step * m for m in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (step * m) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def curves(
    lines: Mapping[str, Points],
    title: str,
    x_name: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    dashed: Collection[str] = (),
) -> str:
    """Curves `name -> (x, y) ...` on common axes as SVG, those that are named in `dashed` as dashed lines.

    On a logarithmic axis nothing below a millionth of the largest value is drawn.
    """
    most = max((y for points in lines.values() for _, y in points if math.isfinite(y)), default=0.0)
    lines = {
        name: [(x, y) for x, y in points if math.isfinite(y) and (y > 1e-6 * most or not log_y)]
        for name, points in lines.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    width, height, left, bottom, top = 360, 210, 46, 34, 22

    def scale(value: float, low: float, high: float, log: bool) -> float:
        if log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return (value - low) / (high - low) if high > low else 0.5

    def at(x: float, y: float) -> tuple[float, float]:
        right, up = scale(x, min(xs), max(xs), log_x), scale(y, min(ys), max(ys), log_y)
        return left + right * (width - left - 8), height - bottom - up * (height - bottom - top)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text x="{left}" y="13">{escape(title)}</text>')
    for value in ticks(min(ys), max(ys), log_y):
        _, y = at(xs[0], value)
        parts.append(f'<line class="axis" x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{value:,.4g}</text>')
    for value in ticks(min(xs), max(xs), log_x):
        x, _ = at(value, ys[0])
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 15}" text-anchor="middle">{value:,.6g}</text>')
    parts.append(f'<text x="{width - 8}" y="{height - 3}" text-anchor="end">{escape(x_name)}</text>')
    kinds = iter(("", "second"))
    for name, points in lines.items():
        kind = "bound" if name in dashed else next(kinds, "second")
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
    svg = "".join([*parts, "</svg>"])
    if len(lines) == 1:
        return f"<figure>{svg}</figure>"
    colours = iter(("orange", "plain"))
    words = [f"{name}, dashed" if name in dashed else f"{name} ({next(colours, 'plain')})" for name in lines]
    return figure(svg, "; ".join(words))


def rows_of_log(folder: Path) -> list[dict[str, float]]:
    """The rows of log.csv as numbers; a cell that is empty is left out, and so is a line that is cut."""
    rows = []
    with suppress(OSError):
        for row in csv.DictReader(io.StringIO((folder / LOG).read_text(errors="replace"))):
            with suppress(ValueError, TypeError):
                rows.append({name: float(cell) for name, cell in row.items() if cell != ""})
    return rows


def sound(make: Callable[[], str], otherwise: str) -> str:
    """A part of the page, or a sentence where the file that it is made of is damaged."""
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"<p>{escape(otherwise)}</p>"


def read_json(path: Path) -> Any:
    """What a JSON file holds, None if it isn't there or isn't one."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def about_data(info: DataInfo, images: Images | None) -> str:
    """What the data is; with the images at hand also what was left out, and how many there are of each class."""
    kind = {1: "grey", 3: "colour"}[info.channels]
    text = f"{info.count:,} {kind} images of {info.height} × {info.width} pixels; mean {info.mean:.3f}, deviation "
    text += f"{info.std:.3f} in [-1, 1]."
    if images is not None and images.left_out:
        text += f" {len(images.left_out):,} more could not be read and were left out: left-out.csv says which and why."
    parts = [f"<p>{escape(text)}</p>"]
    if images is not None:
        chosen = permutation(len(images), 0, "data sheet")[:30]
        parts.append(figure(embedded(png(make_grid(images.pixels[chosen], 10)), "some of the images"), "Some of them."))
    if images is not None and images.labels is not None:
        counts = images.labels.bincount(minlength=images.classes).tolist()
        rows = [(name, f"{count:,}") for name, count in zip(images.class_names, counts, strict=True)]
        parts.append(table(rows, ("class", "images")))
    return "".join(parts)


def about_config(config: Config, command: str) -> str:
    """The command that repeats the run, what differs from the defaults, and all settings folded."""
    plain, default = asdict(config), asdict(Config())
    changed = [(key, str(value)) for key, value in plain.items() if value != default[key]]
    return (
        f"<p>This repeats it:</p><pre>{escape(command)}</pre>"
        + (f"<p>Other than the defaults:</p>{table(changed)}" if changed else "")
        + f"<details><summary>All settings</summary>{table([(k, str(v)) for k, v in plain.items()])}</details>"
    )


def about_time(config: Config, rows: list[dict[str, float]], progress: float) -> str:
    """How far the run is, when it ends, and whether it goes as fast as it began."""
    if not rows:
        return "<p>The first numbers come after half a per cent of the run.</p>"
    last, seconds = rows[-1], rows[-1]["seconds"]
    text = f"{last['step']:,.0f} steps and {last['images']:,.0f} images in {seconds:,.0f} s"
    if progress < 1:
        text += f"; about {seconds / max(progress, 1e-9) - seconds:,.0f} s to go"
    early = rows[: max(1, len(rows) // 20)]
    planned = config.seconds or early[-1]["seconds"] / early[-1]["step"] * config.steps
    text += f". Expected at the beginning: {planned:,.0f} s in all."
    return (
        f'<progress value="{progress:.4f}" aria-label="share of the run">{progress:.0%}</progress><p>{escape(text)}</p>'
    )


def about_learning(rows: list[dict[str, float]], levels: Sequence[ErrorCurve]) -> str:
    """Loss, held-out loss, learning rate and speed over the run, and the loss of late by noise level in its bounds."""

    def over(name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in rows if name in row]

    drawn = [
        curves({"loss": over("loss"), "held out": over("held_out_loss")}, "loss", "step", log_y=True),
        curves({"": over("learning_rate")}, "learning rate", "step"),
        curves({"": over("images_per_second")}, "images a second", "step"),
        curves_by_level(levels, "loss by noise level, of late"),
    ]
    return f'<div class="curves">{"".join(drawn)}</div>'


def curves_by_level(curves_: Sequence[ErrorCurve], title: str, *, log_y: bool = False) -> str:
    """Errors by noise level, bounds as dashed lines."""
    lines, dashed = {}, []
    for curve in curves_:
        name = curve.name if curve.kind == "model" else f"{curve.name} ({curve.kind})"
        lines[name] = curve.points
        dashed += [] if curve.kind == "model" else [name]
    return curves(lines, title, "noise level σ/α", log_x=True, log_y=log_y, dashed=dashed)


def about_levels(content: dict[str, Any]) -> str:
    """The model's error at each noise level, between its bounds: the `curves` of levels.json."""
    found = [ErrorCurve(**curve) for curve in content["curves"]]
    return f'<div class="curves">{curves_by_level(found, "squared error a pixel", log_y=True)}</div>'


def about_scores(folder: Path) -> str:
    """Scores with their intervals and floors, and the nearest training images, as `evaluate` left them."""
    scores = read_json(folder / "evaluation" / "scores.json")
    if scores is None:
        return f"<p>None yet: <code>simple-diffusion evaluate {escape(str(folder))}</code> measures them.</p>"
    parts = []
    for of_extractor in scores["extractors"]:
        rows = []
        for score in of_extractor["scores"]:
            value = score["note"] if score["value"] is None else f"{score['value']:.4g}"
            error = "" if score["error"] is None else f"± {1.96 * score['error']:.2g}"
            floor = "" if score["floor"] is None else f"{score['floor']:.4g}"
            rows.append((score["name"], value, error, floor, f"{score['n']:,}", score["extractor"]))
        parts.append(table(rows, ("score", "value", "95 %", "real images", "n", "extractor")))
        by_class = [
            (name, *(f"{score['name']} {score['value']:.4g}" for score in found if score["value"] is not None))
            for name, found in of_extractor["by_class"].items()
        ]
        if by_class:
            parts.append(f"<details><summary>Class by class</summary>{table(by_class)}</details>")
    for space in ("pixels", "features"):
        picture = folder / "evaluation" / f"closest-in-{space}.png"
        if picture.is_file():
            caption = f"Samples that are nearest to a training image in {space}, each above that image."
            parts.append(figure(embedded(picture.read_bytes(), caption), caption))
    return "".join(parts)


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
    """Write report.html, whole or not at all. Raises ResourceError.

    folder     of the run
    command    that repeats it
    images     that it is trained on, where they are at hand
    levels     training loss by noise level and its bounds
    progress   share of the run that is over, in [0, 1]
    live       whether it goes on: then a browser asks for the page again and again
    """
    config, info, rows = spec.config, spec.info, rows_of_log(folder)
    pictures = sorted((folder / "samples").glob("step-*.png"))
    parts = [f"<h1>{escape(folder.name)}</h1>", f'<p class="soft">{escape(info.name)}, {config.network}</p>']
    parts += [about_time(config, rows, progress)]
    drawn = []
    if pictures:
        caption = f"After {step_of(pictures[-1]):,} steps, from the same noise as in every picture below"
        caption += f"; one class a row: {', '.join(info.class_names[:10])}." if info.classes else "."
        drawn.append(figure(embedded(pictures[-1].read_bytes(), caption), caption))
    if (folder / FILM).is_file():
        caption = "Out of noise: x_t above, and below it x̂₀, the network's guess of the clean image."
        drawn.append(figure(embedded((folder / FILM).read_bytes(), caption), caption))
    if drawn:
        parts += ["<h2>What it draws</h2>", f'<div class="pair">{"".join(drawn)}</div>']
    if len(pictures) > 1:
        strip = "".join(
            figure(
                embedded(picture.read_bytes(), f"samples after {step_of(picture):,} steps"),
                f"step {step_of(picture):,}",
            )
            for picture in pictures
        )
        parts += ["<h2>How it learned to</h2>", f'<div class="strip" tabindex="0">{strip}</div>']
    parts += ["<h2>Learning</h2>", about_learning(rows, levels)]
    levels_file = read_json(folder / LEVELS_FILE)
    missing = f"Not measured yet by this version: `simple-diffusion report {folder}` measures it."
    parts += ["<h3>By noise level</h3>", sound(lambda: about_levels(levels_file), missing)]
    parts += [
        "<h2>Scores</h2>",
        sound(lambda: about_scores(folder), "evaluation/scores.json is damaged: evaluate again."),
    ]
    parts += ["<h2>Data</h2>", about_data(info, images)]
    parts += ["<h2>Settings</h2>", about_config(config, command)]
    again = f'<meta http-equiv="refresh" content="{REFRESH}">' if live else ""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{again}'
    title = f"<title>{escape(folder.name)}</title><style>{STYLE}</style>"
    html = f'<!doctype html><html lang="en"><head>{head}{title}</head><body>{"".join(parts)}</body></html>\n'
    write_atomic(folder / FILE, html.encode())
