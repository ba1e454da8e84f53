"""Line plots for SVG: positions of axes, ticks and lines; the template plot.svg.jinja draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat

from .plots import Points

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, WIDTH - 16, 22, HEIGHT - 34
"""Edges of the plotting area, in SVG user units."""

SMALLEST = 1e-6
"""On a logarithmic y axis, values below this fraction of the largest are left out."""


@dataclass(frozen=True)
class Line:
    """A line of a plot: its name in the legend, its points, and whether it is a bound, drawn dashed."""

    name: str
    points: Points
    bound: bool = False


@dataclass(frozen=True)
class Tick:
    """A number on an axis, at a position in user units."""

    position: float
    label: str


@dataclass(frozen=True)
class Polyline:
    """A line in user units. `style` is its CSS class: "first", "second" or "bound"."""

    name: str
    style: str
    points: str


@dataclass(frozen=True)
class Plot:
    """All that the template needs to draw a plot."""

    title: str
    x_name: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Polyline]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    bottom: int = BOTTOM


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to user units from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def position(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        fraction = (value - low) / (high - low) if high > low else 0.5
        return self.start + fraction * (self.end - self.start)

    def ticks(self, digits: int) -> list[Tick]:
        """Ticks at round numbers, with labels of so many significant digits."""
        values = round_numbers(self.low, self.high, self.log)
        return [Tick(self.position(value), f"{value:,.{digits}g}") for value in values]


def round_numbers(low: float, high: float, log: bool) -> list[float]:
    """A few round numbers in [low, high]."""
    if log:
        powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        chosen = [p * m for p in powers for m in (1, 2, 5) if low <= p * m <= high]
        return [p for p in powers if low <= p <= high] if len(chosen) > 6 else chosen
    step = 10.0 ** math.floor(math.log10((high - low) or 1))
    step = next(step * m for m in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (step * m) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def plot(lines: Sequence[Line], title: str, x_name: str, *, log_x: bool = False, log_y: bool = False) -> Plot | None:
    """Lines on common axes; None if no line has a finite value."""
    largest = max((y for line in lines for _, y in line.points if math.isfinite(y)), default=0.0)
    smallest = SMALLEST * largest if log_y else -math.inf
    shown = [
        replace(line, points=[(x, y) for x, y in line.points if math.isfinite(y) and y > smallest]) for line in lines
    ]
    shown = [line for line in shown if line.points]
    if not shown:
        return None
    xs, ys = zip(*(point for line in shown for point in line.points), strict=True)
    x_axis = Axis(min(xs), max(xs), LEFT, RIGHT, log_x)
    y_axis = Axis(min(ys), max(ys), BOTTOM, TOP, log_y)
    styles = chain(["first"], repeat("second"))
    polylines = [
        Polyline(
            line.name,
            "bound" if line.bound else next(styles),
            " ".join(f"{x_axis.position(x):.1f},{y_axis.position(y):.1f}" for x, y in line.points),
        )
        for line in shown
    ]
    return Plot(title, x_name, x_axis.ticks(6), y_axis.ticks(4), polylines)
