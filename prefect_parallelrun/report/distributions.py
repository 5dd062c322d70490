"""The charts of how long attempts took, and how much of that their processes computed."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from bokeh.models import (
    ColorBar,
    FixedTicker,
    LegendItem,
    Line,
    LogColorMapper,
    NumeralTickFormatter,
    Plot,
    Quad,
    Range1d,
    VSpan,
)
from bokeh.palettes import cividis

from prefect_parallelrun.report.drawing import (
    BLACK,
    SKY,
    Canvas,
    add_hover,
    add_legend,
)
from prefect_parallelrun.report.page_data import Cell, ReportData
from prefect_parallelrun.report.wording import duration

_DASHES = ("solid", "dashed", "dotdash", "dotted")
_MINUTES, _HOURS = (1, 2, 5, 10, 20, 30), (1, 2, 5, 10, 24, 48, 120, 240, 480, 1200)
_LONG_S = (*(60 * number for number in _MINUTES), *(3600 * number for number in _HOURS))
"""Round durations above a minute, in seconds."""
_TICKS = 8
"""More labels than so many stand too close."""


def durations(canvas: Canvas, data: ReportData) -> Plot | None:
    """Draw how many attempts took how long, with quantiles; None where none ended."""
    counts = np.array(data.duration_counts)
    if not counts.any():
        return None
    used = np.flatnonzero(counts)
    edges = np.array(data.duration_edges)
    low, high = float(edges[used[0]]), float(edges[used[-1] + 1])
    margin = (high / low) ** 0.03
    plot = canvas.still(
        Range1d(low / margin, high * margin),
        Range1d(0, float(counts.max()) * 1.08),
        height=300,
        name="durations",
        log_x=True,
    )
    label = "time from picking a mini-batch up to its result (logarithmic)"
    canvas.add_axis(plot, canvas.fixed_axis(label, duration_ticks(low, high)), "below")
    canvas.add_axis(plot, canvas.linear_axis("attempts"), "left")
    shown = slice(used[0], used[-1] + 1)
    left, right = edges[:-1][shown], edges[1:][shown]
    bars = canvas.add_glyph(
        plot,
        Quad(
            left="left",
            right="right",
            top="top",
            bottom=0,
            fill_color=SKY,
            line_color="white",
            line_width=0.5,
        ),
        left=left,
        right=right,
        top=counts[shown].astype(float),
        span=_spans(left, right),
    )
    told = [("took", "@span"), ("attempts", "@top{0,0}")]
    add_hover(plot, [bars], told, point_policy="follow_mouse")
    _add_quantiles(canvas, plot, data)
    return plot


def _add_quantiles(canvas: Canvas, plot: Plot, data: ReportData) -> None:
    quantiles = data.duration_quantiles
    lines = canvas.add_glyph(
        plot,
        VSpan(x="x", line_color=BLACK, line_width=1.5, line_dash="dash"),
        x=np.array([value for _, value in quantiles]),
        dash=[_DASHES[i % len(_DASHES)] for i in range(len(quantiles))],
    )
    items = [
        LegendItem(label={"value": f"{name}: {duration(value)}"}, renderers=[lines], index=i)
        for i, (name, value) in enumerate(quantiles)
    ]
    add_legend(plot, items)


def cpu_against_elapsed(canvas: Canvas, data: ReportData) -> Plot | None:
    """Draw CPU time against elapsed time, with the line of one busy core; None where none ended."""
    cells = data.cpu_cells
    if not cells:
        return None
    low_x, low_y = _floor(cells, "elapsed"), _floor(cells, "cpu")
    high_x, high_y = (max(getattr(c, f"{of}_to") for c in cells) for of in ("elapsed", "cpu"))
    # The line of one busy core is what all else is compared with.
    low_y, high_y = min(low_y, high_x / 2), max(high_y, high_x)
    margin = 1.1
    plot = canvas.still(
        Range1d(low_x / margin, high_x * margin),
        Range1d(low_y / margin, high_y * margin),
        height=420,
        name="cpu",
        log_x=True,
        log_y=True,
    )
    canvas.add_axis(
        plot,
        canvas.fixed_axis("elapsed time (logarithmic)", duration_ticks(low_x, high_x)),
        "below",
    )
    canvas.add_axis(
        plot, canvas.fixed_axis("CPU time (logarithmic)", duration_ticks(low_y, high_y)), "left"
    )
    most = max(cell.count for cell in cells)
    colors = LogColorMapper(palette=cividis(64)[::-1], low=1, high=max(most, 2))
    drawn = canvas.add_glyph(
        plot,
        Quad(
            left="left",
            right="right",
            top="top",
            bottom="bottom",
            fill_color={"field": "count", "transform": colors},
            line_color="#777777",
            line_width=0.5,
        ),
        left=np.array([max(cell.elapsed_from, low_x) for cell in cells]),
        right=np.array([cell.elapsed_to for cell in cells]),
        bottom=np.array([max(cell.cpu_from, low_y) for cell in cells]),
        top=np.array([cell.cpu_to for cell in cells]),
        count=np.array([cell.count for cell in cells]),
        elapsed=_spans(*zip(*((c.elapsed_from, c.elapsed_to) for c in cells), strict=True)),
        cpu=_spans(*zip(*((c.cpu_from, c.cpu_to) for c in cells), strict=True)),
    )
    told = [("elapsed", "@elapsed"), ("CPU", "@cpu"), ("attempts", "@count{0,0}")]
    add_hover(plot, [drawn], told, point_policy="follow_mouse")
    ends = np.array([min(low_x, low_y) / 10, max(high_x, high_y) * 10])
    line = canvas.add_glyph(
        plot, Line(x="x", y="y", line_color=BLACK, line_width=2, line_dash="dashed"), x=ends, y=ends
    )
    label = "one core busy: above it several threads computed, below it the process waited"
    add_legend(plot, [LegendItem(label=label, renderers=[line])])
    plot.add_layout(
        ColorBar(
            color_mapper=colors,
            ticker=FixedTicker(ticks=_count_ticks(most)),
            formatter=NumeralTickFormatter(format="0,0"),
            width=14,
            padding=8,
        ),
        "right",
    )
    return plot


def _floor(cells: Iterable[Cell], of: str) -> float:
    """Return where a logarithmic axis begins: it has no place for 0, in which the first cells may begin."""
    starts = [getattr(cell, f"{of}_from") for cell in cells]
    above = [start for start in starts if start > 0]
    if len(above) == len(starts):
        return float(min(above))
    ends = [getattr(cell, f"{of}_to") for cell in cells]
    return float(min(above + ends)) / 2


def _spans(lows: Iterable[float], highs: Iterable[float]) -> list[str]:
    return [f"{duration(low)} to {duration(high)}" for low, high in zip(lows, highs, strict=True)]


def _count_ticks(most: int) -> list[int]:
    """Return round numbers up to one, for a logarithmic scale."""
    powers = range(len(str(most)))
    ticks = [factor * 10**power for power in powers for factor in (1, 2, 5)]
    ticks = [tick for tick in ticks if tick <= most]
    return ticks if len(ticks) <= _TICKS else [10**power for power in powers]


def duration_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return round durations between two, for a logarithmic axis, and how they are written."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors, longer in (
        ((1, 1.5, 2, 3, 4, 5, 6, 8), _LONG_S),
        ((1, 2, 5), _LONG_S),
        ((1, 2, 5), _LONG_S[::2]),
        ((1,), _LONG_S[::2]),
        ((1,), _LONG_S[::4]),
    ):
        ticks = [
            factor * 10.0**power
            for power in range(first, last + 1)
            for factor in factors
            if factor * 10.0**power < 45
        ]
        ticks = [tick for tick in (*ticks, *longer) if low <= tick <= high]
        if len(ticks) <= _TICKS:
            break
    # `2 min 0 s` is two minutes.
    return [(tick, duration(tick).removesuffix(" 0 s").removesuffix(" 0 min")) for tick in ticks]
