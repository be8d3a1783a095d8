"""Charts have round axes, break where a value is no number, and draw lines that can be told apart."""

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from edgetune.runs import chart
from edgetune.runs.chart import STYLES, Chart, ChartLine, Mark, Style


@pytest.mark.parametrize(("low", "high", "ticks"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, None), (0, 0, None),
                                                    (0, 3.38, [0, 1, 2, 3, 4]), (0.5, 0.7, [0.5, 0.55, 0.6, 0.65, 0.7]),
                                                    (-2, 7, [-2, 0, 2, 4, 6, 8])])
def test_an_axis_has_round_ticks_that_hold_all_values(low, high, ticks):
    found = chart.scale(low, high, 100, 0)
    assert found.low <= low
    assert found.high >= high
    assert found(found.low) == 100
    assert found(found.high) == 0
    assert len(found.ticks) <= 8
    if ticks:
        assert found.ticks == pytest.approx(ticks)


@pytest.mark.parametrize(("ticks", "said"), [([0, 500, 1000, 1500], ["0", "500", "1,000", "1,500"]),
                                             ([0, 0.05, 0.1], ["0.00", "0.05", "0.10"]), ([0, 2e-4, 4e-4], ["0", "2e-4",
                                                                                                            "4e-4"])])
def test_labels_of_ticks(ticks, said):
    assert chart.labels(ticks) == said


def test_lines_break_at_what_is_no_number():
    line = ChartLine("a", [(0, 1.0), (1, math.nan), (2, 2.0), (3, 1.0)], Style(0))
    drawn = ET.fromstring(chart.figure(Chart("t", "x", "y", [line])))
    group = next(g for g in drawn.iter("g") if g.get("class") == "line c0 d0")
    assert [piece.count("L") for piece in group.find("path").get("d").split("M")[1:]] == [0, 1]
    assert len(list(group.iter("circle"))) == 1  # the first point is alone
    assert chart.figure(Chart("t", "x", "y", [ChartLine("a", [(0, math.nan)], Style(0))])) is None


def test_styles_differ():
    assert len({(style.colour, style.dash) for style in STYLES}) == len(STYLES) == 32
    assert all(a.colour != b.colour and a.dash != b.dash for a, b in pairwise(STYLES))


def test_marks_outside_the_steps_are_not_drawn():
    line = ChartLine("a", [(1, 1.0), (2, 2.0)], Style(0))
    drawn = chart.figure(Chart("t", "x", "y", [line], marks=[Mark(0, "go", "n", "cause")]))
    assert "cause" not in drawn
