"""Plots of schedules, errors and scores as PNG files."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..denoising_error import ErrorCurve
from ..schedules import Schedule
from .grids import make_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Points = Sequence[tuple[float, float]]
"""(x, y) of each point of a curve."""


def _png_of(figure: "Figure") -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def uniform_density(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(log SNR at times t `[N]`, density of the log SNR there for uniform times on (0, 1): 1 / |d log SNR / dt|)."""
    level = 2 * (schedule.alpha(t) / schedule.sigma(t)).log()
    (slope,) = torch.gradient(level, spacing=(t,))
    return level, 1 / slope.abs()


def plot_schedules(
    schedules: Mapping[str, Schedule], noised: Mapping[str, Tensor], lognormal: tuple[float, float]
) -> bytes:
    """Noise schedules on common axes: the content of a PNG file.

    The upper row shows alpha, sigma and the log SNR over time, and the density of the log SNR in training for uniform
    times (as in DDPM) beside the log-normal noise levels of EDM, which do not depend on the schedule. The lower rows
    show an image at rising noise levels.

    noised      name of the schedule -> uint8 `[P, C, H, W]` from t = 0 to 1
    lognormal   mean and standard deviation of ln(sigma/alpha)
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.6 + 0.8 * len(noised)), layout="constrained")
    upper, lower = figure.add_gridspec(2, 1, height_ratios=[3.6, 0.8 * len(noised)])
    _plot_coefficients(figure.add_subfigure(upper), schedules, lognormal)
    rows = np.atleast_1d(figure.add_subfigure(lower).subplots(len(noised), 1))
    for axes, (name, images) in zip(rows, noised.items(), strict=True):
        axes.imshow(np.asarray(make_grid(images, len(images))), aspect="equal")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
    return _png_of(figure)


def _plot_coefficients(figure: "SubFigure", schedules: Mapping[str, Schedule], lognormal: tuple[float, float]) -> None:
    """The upper row of `plot_schedules`."""
    t = torch.linspace(1e-3, 1, 2000, dtype=torch.float64)
    signal, noise, log_snr, density = figure.subplots(1, 4)
    for name, schedule in schedules.items():
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        scale = (alpha**2 + sigma**2).sqrt()  # the network's input has unit variance
        level, uniform = uniform_density(schedule, t)
        signal.plot(t, alpha / scale, label=name)
        noise.plot(t, sigma / scale, label=name)
        log_snr.plot(t, level, label=name)
        density.plot(level, uniform)
    mean, std = -2 * lognormal[0], 2 * lognormal[1]
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
    density.set(title="training density", xlabel="log SNR  (left noise, right clean)", xlim=(-15, 15))
    density.grid(alpha=0.3)
    signal.legend(frameon=False, loc="lower left", fontsize="small")
    density.legend(frameon=False, loc="upper left", fontsize="small")


def plot_denoising_error(curves: Sequence[ErrorCurve]) -> bytes:
    """Mean squared errors by noise level on logarithmic axes: the content of a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    styles = {"model": (None, "-"), "upper bound": ("0.6", "--"), "lower bound": ("0.3", ":")}
    for curve in curves:
        color, line = styles[curve.kind]
        label = curve.name if curve.kind == "model" else f"{curve.name} ({curve.kind})"
        levels, errors = zip(*curve.points, strict=True)
        axes.plot(levels, np.maximum(errors, 1e-7), line, color=color, label=label)
    axes.set(xscale="log", yscale="log", xlabel=r"noise level  $\sigma/\alpha$", ylabel="mean squared error per pixel")
    axes.set(title="Denoising error by noise level", ylim=(1e-5, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _png_of(figure)


def plot_sampler_sweep(
    quality: Mapping[str, Points], distance: Mapping[str, Points], front: Points, title: str
) -> bytes:
    """Quality and distance of samplers by NFE, on logarithmic axes: the content of a PNG file.

    quality, distance   name of the sampler -> (NFE, value) ...; a name without points is left out
    front               the Pareto front: points that no setting of smaller NFE improves on
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    quality_axes, distance_axes = figure.subplots(1, 2)
    colors = {name: f"C{i}" for i, name in enumerate(quality)}
    for axes, curves in ((quality_axes, quality), (distance_axes, distance)):
        for name, points in curves.items():
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colors[name], label=name, markersize=4)
        _label_nfe(axes, sorted({nfe for points in curves.values() for nfe, _ in points}))
    quality_axes.plot(*zip(*front, strict=True), "--", color="0.4", label="Pareto front", zorder=0)
    quality_axes.set_title(title, fontsize="medium")
    distance_axes.set_title("RMS distance to the reference solution, per pixel", fontsize="medium")
    quality_axes.legend(frameon=False, fontsize="small")
    return _png_of(figure)


def _label_nfe(axes: "Axes", nfe: Sequence[float]) -> None:
    """Logarithmic axes with one tick at each NFE."""
    from matplotlib.ticker import NullLocator

    axes.set(xscale="log", yscale="log", xlabel="NFE per image")
    axes.set_xticks(nfe, [f"{n:g}" for n in nfe])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def plot_scores(panels: Mapping[str, Mapping[str, Points]], axis: str, legend: str) -> bytes:
    """Scores of samples over a setting that varies, one panel per score: the content of a PNG file.

    panels   title -> name of a curve -> (setting, score) ...
    axis     name of the setting
    legend   title of the legend; "" for a single curve without a name
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.5 * len(panels), 3.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for panel, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, points in curves.items():
            panel.plot(*zip(*points, strict=True), "o-", label=name, markersize=4)
        panel.set(xlabel=axis)
        panel.set_title(title, fontsize="medium")
        panel.grid(alpha=0.3)
    if legend:
        axes[0].legend(frameon=False, fontsize="small", title=legend, title_fontsize="small")
    return _png_of(figure)
