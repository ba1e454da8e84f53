"""Plots for SVG: positions follow the numbers."""

import math

import pytest

from simple_diffusion.viz.svg import BOTTOM, LEFT, RIGHT, TOP, Line, plot, round_numbers


@pytest.mark.parametrize(("log", "middle"), [(False, 50.5), (True, 10.0)])
def test_the_middle_of_an_axis_is_the_mean_or_the_geometric_mean(log, middle):
    found = plot([Line("a", [(0, 1), (1, middle), (2, 100)])], "title", "x", log_y=log)
    points = [[float(v) for v in point.split(",")] for point in found.lines[0].points.split()]
    assert [x for x, _ in points] == pytest.approx([LEFT, (LEFT + RIGHT) / 2, RIGHT])
    assert [y for _, y in points] == pytest.approx([BOTTOM, (BOTTOM + TOP) / 2, TOP], abs=0.06)


def test_values_that_no_axis_can_hold_are_left_out():
    nan, inf = math.nan, math.inf
    assert plot([Line("a", [(0, nan)]), Line("b", [])], "title", "x") is None
    lines = [Line("a", [(0, 1), (1, inf), (2, 1e-7)]), Line("b", [(0, nan)]), Line("c", [(0, 1), (2, 2)], bound=True)]
    found = plot([*lines, Line("d", [(0, 2), (2, 1)])], "title", "x", log_y=True)
    assert [(line.name, line.style) for line in found.lines] == [("a", "first"), ("c", "bound"), ("d", "second")]
    assert len(found.lines[0].points.split()) == 1
    assert len(plot(lines, "title", "x").lines[0].points.split()) == 2  # 1e-7 fits on a linear axis


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.01, 0.07), (3, 3000), (1e-6, 2), (5, 5), (-3, 4)])
def test_ticks_are_few_and_round(low, high):
    for log in (False, True)[: 1 + (low > 0)]:
        found = round_numbers(low, high, log)
        assert len(found) <= 8
        assert all(low * (1 - 1e-9) - 1e-9 <= tick <= high * (1 + 1e-9) for tick in found)
        assert all(len(f"{tick:.3g}".replace("-", "").strip("0.")) <= 5 for tick in found)
