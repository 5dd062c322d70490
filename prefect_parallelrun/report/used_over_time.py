"""The charts of what nodes and processes used over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from bokeh.models import LegendItem, MultiLine, Plot, Range1d, Scatter

from prefect_parallelrun.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Canvas,
    add_hover,
    add_legend,
)
from prefect_parallelrun.report.page_data import Series
from prefect_parallelrun.report.wording import visible

Floats = npt.NDArray[np.float64]

_LINES = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK)
_DASHES = ("solid", "dashed", "dotted", "dotdash")
_MARKS = ("circle", "square", "triangle", "diamond")
_NAMED = 24
"""Series that a legend names; of more, the pointer tells which is which."""
_LEGEND_PX = 900
"""Width that a legend takes at most."""
_POINTS = 300
"""Of more points in a chart, each is small."""


def cpu(canvas: Canvas, series: Sequence[Series], name: str, *, label: str) -> Plot | None:
    """Draw the CPU in per cent of each node, or process; None where nothing was sampled."""
    lines = [(one.name, one.times, np.array(one.cpu_percent)) for one in series if one.times]
    return _lines(canvas, lines, name, label, "0,0")


def memory(canvas: Canvas, series: Sequence[Series], name: str) -> Plot | None:
    """Draw the memory of each node, or process; None where nothing was sampled."""
    largest = max((max(one.memory_bytes) for one in series if one.times), default=0)
    unit, size = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    lines = [
        (one.name, one.times, np.array(one.memory_bytes) / size) for one in series if one.times
    ]
    return _lines(canvas, lines, name, f"memory ({unit})", "0,0.0")


def _lines(
    canvas: Canvas,
    lines: Sequence[tuple[str, Sequence[float], Floats]],
    name: str,
    label: str,
    form: str,
) -> Plot | None:
    if not lines:
        return None
    looks = [_look(number) for number in range(len(lines))]
    named = lines[:_NAMED]
    columns = max(1, _LEGEND_PX // (50 + 7 * max(len(visible(who)) for who, _, _ in named)))
    legend_rows = math.ceil(len(named) / columns)
    highest = max(float(values.max()) for _, _, values in lines)
    plot = canvas.over_time(
        Range1d(0, highest * 1.08 or 1), height=220 + 24 * legend_rows, name=name
    )
    canvas.add_axis(plot, canvas.linear_axis(label), "left")
    times = [np.array([canvas.x(at) for at in at_s]) for _, at_s, _ in lines]
    drawn = canvas.add_glyph(
        plot,
        MultiLine(xs="xs", ys="ys", line_color="color", line_dash="dash", line_width=2),
        xs=times,
        ys=[values for _, _, values in lines],
        color=[color for color, _, _ in looks],
        dash=[dash for _, dash, _ in looks],
    )
    # A process that was sampled once has no line; and points are easier to point at.
    lengths = [len(values) for _, _, values in lines]
    points = canvas.add_glyph(
        plot,
        Scatter(
            x="x",
            y="y",
            marker="mark",
            size=5 if sum(lengths) <= _POINTS else 3,
            fill_color="color",
            line_color="color",
        ),
        x=np.concatenate(times),
        y=np.concatenate([values for _, _, values in lines]),
        name=_repeated([visible(who) for who, _, _ in lines], lengths),
        color=_repeated([color for color, _, _ in looks], lengths),
        mark=_repeated([mark for _, _, mark in looks], lengths),
    )
    at, formatters = canvas.time_text("x")
    told = [("", "@name"), ("at", at), (label, f"@y{{{form}}}")]
    add_hover(plot, [points], told, formatters=formatters)
    items = [
        LegendItem(label={"value": visible(who)}, renderers=[drawn], index=number)
        for number, (who, _, _) in enumerate(named)
    ]
    add_legend(plot, items, columns=columns)
    return plot


def _look(number: int) -> tuple[str, str, str]:
    """Return colour, dashes and mark of a series; of two neighbours all three differ."""
    kind = number % len(_DASHES)
    return _LINES[number % len(_LINES)], _DASHES[kind], _MARKS[kind]


def _repeated(values: Sequence[str], times: Sequence[int]) -> list[str]:
    return [value for value, count in zip(values, times, strict=True) for _ in range(count)]
