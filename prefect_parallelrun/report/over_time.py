"""The charts of a run over time: what its processes were at, and what they got done."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from bokeh.models import (
    BoxZoomTool,
    GlyphRenderer,
    LegendItem,
    Plot,
    Quad,
    Range1d,
    Scatter,
)

from prefect_parallelrun.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    HATCH,
    ORANGE,
    SKY,
    VERMILION,
    Canvas,
    add_hover,
    add_legend,
)
from prefect_parallelrun.report.page_data import Block, ReportData
from prefect_parallelrun.report.wording import duration, visible

Floats = npt.NDArray[np.float64]

_KINDS = {
    "start": ("starting", SKY, "dot"),
    "init": ("in init()", BLUE, "right_diagonal_line"),
    "load": ("loading", ORANGE, "left_diagonal_line"),
    "run": ("in run()", GREEN, None),
    "idle": ("idle", GREY, None),
}
"""Of each kind of block: its name, colour and hatch, for those who do not see the colour."""
_UNITS = (("second", 1.0), ("minute", 60.0), ("hour", 3600.0))
_APART = 150
"""Up to so many bars there is a white line between them."""
_HATCHED = 300
"""Of one kind, up to so many areas are hatched."""
_TOOLS_PX = 270
"""Height of a plot that has room for all tools beside it."""
_LABEL_PX = 16
"""Height of a lane's name."""


def timeline(canvas: Canvas, data: ReportData) -> Plot | None:
    """Draw what every process was at, one row for each that runs at once; None where none started."""
    if not data.blocks or not data.lanes:
        return None
    lanes = len(data.lanes)
    lane_px = max(2.0, min(24.0, 900 / lanes))
    frame = lanes * lane_px
    plot = canvas.over_time(
        Range1d(lanes, 0),
        height=max(round(frame) + 110, _TOOLS_PX),
        name="timeline",
        tools=[BoxZoomTool(dimensions="width")],
    )
    step = math.ceil(_LABEL_PX / lane_px)
    names = [(i + 0.5, visible(data.lanes[i])) for i in range(0, lanes, step)]
    canvas.add_axis(plot, canvas.fixed_axis(None, names), "left", grid=False)

    gap = 0.1 if lane_px >= 5 else 0.0
    # A white line between blocks tells one from the next, and would leave nothing of narrow ones.
    apart = not data.blocks_are_shares and len(data.blocks) <= _APART * lanes
    seam = 0.0 if apart else 0.0006 * data.duration_s
    drawn = [
        _add_blocks(canvas, plot, [b for b in data.blocks if b.kind == kind], gap=gap, seam=seam)
        for kind in _KINDS
    ]
    rows = [row for row in drawn if row is not None]
    start, formatters = canvas.time_text("left")
    told = [("process", "@process"), ("", "$name, @length from " + start), ("", "@text")]
    add_hover(plot, rows, told, formatters=formatters, point_policy="follow_mouse")
    items = [LegendItem(label={"value": row.name}, renderers=[row]) for row in rows]
    add_legend(plot, [*items, *_add_killed(canvas, plot, data.blocks, size=min(9.0, lane_px))])
    return plot


def _add_blocks(
    canvas: Canvas, plot: Plot, blocks: Sequence[Block], *, gap: float, seam: float
) -> GlyphRenderer | None:
    if not blocks:
        return None
    name, color, hatch = _KINDS[blocks[0].kind]
    # A browser needs a millisecond for each area that it hatches.
    look = {"hatch_pattern": hatch, **HATCH} if len(blocks) <= _HATCHED else {}
    rows = canvas.add_glyph(
        plot,
        Quad(
            left="left",
            right="right",
            top="top",
            bottom="bottom",
            fill_color=color,
            line_color=None if seam else "white",
            line_width=0.5,
            **look,
        ),
        left=np.array([canvas.x(block.start) for block in blocks]),
        # Neighbours that only touch would show a seam.
        right=np.array([canvas.x(block.end + seam) for block in blocks]),
        top=np.array([_height(block.lane, block.top, gap) for block in blocks]),
        bottom=np.array([_height(block.lane, block.bottom, gap) for block in blocks]),
        process=[visible(block.process) for block in blocks],
        text=[visible(block.text) for block in blocks],
        length=[duration(block.end - block.start) for block in blocks],
    )
    rows.name = name
    return rows


def _add_killed(
    canvas: Canvas, plot: Plot, blocks: Sequence[Block], size: float
) -> list[LegendItem]:
    """Mark where processes died or were killed: too short a time to be an area."""
    killed = [block for block in blocks if block.kind == "killed"]
    if not killed:
        return []
    marks = canvas.add_glyph(
        plot,
        Scatter(x="x", y="y", marker="x", size=size, line_color=BLACK, line_width=2),
        x=np.array([canvas.x(block.end) for block in killed]),
        y=np.array([block.lane + 0.5 for block in killed]),
        process=[visible(block.process) for block in killed],
        text=[visible(block.text) for block in killed],
    )
    at, formatters = canvas.time_text("x")
    told = [("process", "@process"), ("ended at", at), ("reason", "@text")]
    add_hover(plot, [marks], told, formatters=formatters)
    return [LegendItem(label={"value": "died or killed (×)"}, renderers=[marks])]


def _height(lane: int, share: float, gap: float) -> float:
    """Return where a share of a lane is, counted from its lower edge; lanes go down."""
    return lane + 1 - gap - share * (1 - 2 * gap)


def throughput(canvas: Canvas, data: ReportData) -> Plot | None:
    """Draw how many attempts ended per second, or longer, those that failed on top; None where none did."""
    succeeded, failed = np.array(data.succeeded, float), np.array(data.failed, float)
    if not (succeeded.any() or failed.any()):
        return None
    unit, per = _unit(float((succeeded + failed).max()) / data.bin_s)
    low, high = succeeded * per / data.bin_s, (succeeded + failed) * per / data.bin_s
    plot = _bars_plot(canvas, high, "throughput", f"attempts per {unit}")
    done = _bars(canvas, plot, data, (np.zeros_like(low), low, succeeded), (GREEN, None))
    items = [LegendItem(label="attempts that succeeded", renderers=[done])]
    if failed.any():
        bad = _bars(canvas, plot, data, (low, high, failed), (VERMILION, "cross"))
        items.append(LegendItem(label="attempts that failed", renderers=[bad]))
    add_legend(plot, items)
    return plot


def item_throughput(canvas: Canvas, data: ReportData) -> Plot | None:
    """Draw how many items were done per second, or longer; None where none was."""
    items = np.array(data.items, float)
    if not items.any():
        return None
    unit, per = _unit(float(items.max()) / data.bin_s)
    heights = items * per / data.bin_s
    plot = _bars_plot(canvas, heights, "items", f"items per {unit}")
    _bars(canvas, plot, data, (np.zeros_like(items), heights, items), (BLUE, None))
    return plot


def _unit(per_second: float) -> tuple[str, float]:
    """Return in which unit of time a rate is a number that people can imagine, and its seconds."""
    return next((unit for unit in _UNITS if per_second * unit[1] >= 1), _UNITS[-1])


def _bars_plot(canvas: Canvas, heights: Floats, name: str, label: str) -> Plot:
    plot = canvas.over_time(Range1d(0, float(heights.max()) * 1.05), height=230, name=name)
    canvas.add_axis(plot, canvas.linear_axis(label), "left")
    return plot


def _bars(
    canvas: Canvas,
    plot: Plot,
    data: ReportData,
    ends: tuple[Floats, Floats, Floats],
    look: tuple[str, str | None],
) -> GlyphRenderer:
    """Draw a bar in each bin: where it begins, where it ends, and how many it stands for."""
    bottom, top, counted = ends
    color, hatch = look
    some = np.flatnonzero(top > bottom)
    x = np.array([canvas.x(i * data.bin_s) for i in range(len(top) + 1)])
    rows = canvas.add_glyph(
        plot,
        Quad(
            left="left",
            right="right",
            top="top",
            bottom="bottom",
            fill_color=color,
            line_color="white" if len(top) <= _APART else color,
            line_width=0.5,
            hatch_pattern=hatch,
            **HATCH,
        ),
        left=x[some],
        right=x[some + 1],
        top=top[some],
        bottom=bottom[some],
        count=counted[some],
    )
    start, formatters = canvas.time_text("left")
    told = [("from", start), ("for", duration(data.bin_s)), ("count", "@count{0,0}")]
    add_hover(plot, [rows], told, formatters=formatters, point_policy="follow_mouse")
    return rows
