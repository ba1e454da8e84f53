"""Plots of schedules, errors and sweeps as PNG files."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from .grids import make_grid


def _png_of(figure: "Figure") -> bytes:
    """A PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def uniform_density(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(the log SNR at times t `[N]`, its density there if times are uniform on (0, 1): 1 / |d log SNR / dt|)."""
    level = 2 * (schedule.alpha(t) / schedule.sigma(t)).log()
    (slope,) = torch.gradient(level, spacing=(t,))
    return level, 1 / slope.abs()


def schedule_curves(
    schedules: Mapping[str, Schedule], films: Mapping[str, Tensor], usual: tuple[float, float]
) -> bytes:
    """Schedules on common axes: a PNG file's content.

    Above: alpha, sigma and the log SNR over time, and where training samples fall on the log SNR if their times are
    uniform, as DDPM's, beside the log-normal noise levels of EDM, which are the same on every schedule. Below: what an
    image looks like on its way.

    films   by name of the schedule, uint8 `[P, C, H, W]` from t = 0 to 1
    usual   mean and deviation of ln(sigma/alpha) of the log-normal density
    """
    from matplotlib.figure import Figure

    t = torch.linspace(1e-3, 1, 2000, dtype=torch.float64)
    figure = Figure(figsize=(14, 3.6 + 0.8 * len(films)), layout="constrained")
    upper, lower = figure.add_gridspec(2, 1, height_ratios=[3.6, 0.8 * len(films)])
    curves, below = figure.add_subfigure(upper), figure.add_subfigure(lower)
    signal, noise, log_snr, density = curves.subplots(1, 4)
    for name, schedule in schedules.items():
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        scale = (alpha**2 + sigma**2).sqrt()  # as the network sees it: at unit variance
        level, share = uniform_density(schedule, t)
        signal.plot(t, alpha / scale, label=name)
        noise.plot(t, sigma / scale, label=name)
        log_snr.plot(t, level, label=name)
        density.plot(level, share)
    mean, std = -2 * usual[0], 2 * usual[1]
    level = torch.linspace(mean - 4 * std, mean + 4 * std, 400, dtype=torch.float64)
    bell = (-(((level - mean) / std) ** 2) / 2).exp() / (std * math.sqrt(2 * math.pi))
    density.plot(level, bell, "k--", label="log-normal")
    for axes, title in (
        (signal, r"signal  $\alpha\,/\sqrt{\alpha^2+\sigma^2}$"),
        (noise, r"noise  $\sigma\,/\sqrt{\alpha^2+\sigma^2}$"),
        (log_snr, r"log SNR  $\ln\,\alpha^2/\sigma^2$"),
    ):
        axes.set(title=title, xlabel="time t  (0 clean, 1 noise)", xlim=(0, 1))
        axes.grid(alpha=0.3)
    density.set(title="where training samples fall", xlabel="log SNR  (noise left, clean right)", xlim=(-15, 15))
    density.grid(alpha=0.3)
    signal.legend(frameon=False, loc="lower left", fontsize="small")
    density.legend(frameon=False, loc="upper left", fontsize="small")
    for axes, (name, film) in zip(np.atleast_1d(below.subplots(len(films), 1)), films.items(), strict=True):
        axes.imshow(np.asarray(make_grid(film, len(film))), aspect="equal")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
    return _png_of(figure)


def level_curves(levels: Tensor, errors: dict[str, Tensor]) -> bytes:
    """Mean squared errors by noise level, `[L]` each, on logarithmic axes: a PNG file's content."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    styles = {"mean and covariance only": ("0.6", "--"), "training set by heart": ("0.3", ":")}
    for name, error in errors.items():
        colour, line = styles.get(name, (None, "-"))
        axes.plot(levels, error.clamp(min=1e-7), line, color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel=r"noise level  $\sigma/\alpha$", ylabel="squared error a pixel")
    axes.set(title="Denoising error by noise level", ylim=(1e-5, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _png_of(figure)


Points = Sequence[tuple[float, float]]


def race_curves(quality: Mapping[str, Points], distance: Mapping[str, Points], front: Points, title: str) -> bytes:
    """Quality and distance of samplers against evaluations, on logarithmic axes: a PNG file's content.

    quality, distance   name -> (evaluations, value) ...; a name without points is left out
    front               the points that nothing cheaper beats
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    of_quality, of_distance = figure.subplots(1, 2)
    colours = {name: f"C{i}" for i, name in enumerate(quality)}
    for axes, lines in ((of_quality, quality), (of_distance, distance)):
        for name, points in lines.items():
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colours[name], label=name, markersize=4)
        costs = sorted({cost for points in lines.values() for cost, _ in points})
        axes.set(xscale="log", yscale="log", xlabel="evaluations of the network an image")
        axes.set_xticks(costs, [f"{cost:g}" for cost in costs])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    of_quality.plot(*zip(*front, strict=True), "--", color="0.4", label="nothing cheaper is better", zorder=0)
    of_quality.set_title(title, fontsize="medium")
    of_distance.set_title("distance to the fine solution, a pixel", fontsize="medium")
    of_quality.legend(frameon=False, fontsize="small")
    return _png_of(figure)


def sweep_curves(panels: Mapping[str, Mapping[str, Points]], axis: str, legend: str) -> bytes:
    """Scores of samples against what was swept, a panel each: a PNG file's content.

    panels   title -> name of a curve -> (what was swept, score) ...
    axis     what was swept
    legend   what the names of the curves are, "" for a single curve without a name
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.5 * len(panels), 3.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, points in lines.items():
            panel.plot(*zip(*points, strict=True), "o-", label=name, markersize=4)
        panel.set(xlabel=axis)
        panel.set_title(title, fontsize="medium")
        panel.grid(alpha=0.3)
    if legend:
        axes[0].legend(frameon=False, fontsize="small", title=legend, title_fontsize="small")
    return _png_of(figure)
