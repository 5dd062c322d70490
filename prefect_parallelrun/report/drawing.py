"""What all charts of the report have in common: a blank plot, its axes, colours and legend."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from bokeh.models import (
    AllIndices,
    Axis,
    BasicTicker,
    CDSView,
    ColumnDataSource,
    DatetimeAxis,
    DatetimeTickFormatter,
    FixedTicker,
    Grid,
    HoverTool,
    Legend,
    LegendItem,
    LinearAxis,
    LinearScale,
    LogScale,
    NumeralTickFormatter,
    PanTool,
    Plot,
    Range1d,
    ResetTool,
    Tool,
    Toolbar,
    UnionRenderers,
    VSpan,
    ZoomInTool,
    ZoomOutTool,
)
from bokeh.models.glyph import Glyph
from bokeh.models.labeling import AllLabels
from bokeh.models.renderers import GlyphRenderer
from bokeh.themes import Theme

from prefect_parallelrun.report.page_data import ReportData

# Okabe and Ito's colours, which people who see few colours tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#DDDDDD"

HATCH = {"hatch_color": "white", "hatch_alpha": 0.8, "hatch_scale": 7, "hatch_weight": 1.2}
"""How a hatch is drawn over a colour; which one is the chart's."""

_SHORT_S = 180.0
"""Runs up to so long are shown in seconds since their start, others by the clock."""
_UNITS = (("h", "hours", 3600.0), ("min", "minutes", 60.0), ("s", "seconds", 1.0))
_UNITS_AT_LEAST = 3
_LEFT = 92
"""Pixels left of the frame: the same for all charts, so that times lie below each other."""
_TEXT = "#333333"

THEME = Theme(
    json={
        "attrs": {
            "Plot": {"outline_line_color": None},
            "Axis": {
                "axis_label_text_font_style": "normal",
                "axis_label_text_font_size": "13px",
                "axis_label_text_color": _TEXT,
                "major_label_text_font_size": "12px",
                "major_label_text_color": _TEXT,
                "minor_tick_line_color": None,
                "axis_line_color": "#888888",
                "major_tick_line_color": "#888888",
            },
            "Grid": {"grid_line_color": "#E6E6E6"},
            "Legend": {
                "border_line_color": None,
                "label_text_font_size": "13px",
                "label_text_color": _TEXT,
                "label_standoff": 6,
                "spacing": 14,
                "padding": 0,
                "margin": 6,
                "glyph_height": 17,
                "glyph_width": 24,
            },
        }
    }
)


class Canvas:
    """Makes the plots of one page; the parts that do not differ are the same objects in all of them.

    That is for speed: what Bokeh takes grows with the number of its objects.
    """

    def __init__(self, data: ReportData) -> None:
        self._origin = data.origin
        self._gaps = [place for place, _ in data.gaps]
        # Places after a gap are no times of day.
        self._by_clock = data.duration_s > _SHORT_S and not data.gaps
        last = datetime.fromtimestamp(data.origin + data.duration_s, UTC).date()
        same_day = datetime.fromtimestamp(data.origin, UTC).date() == last
        self._clock = "%H:%M:%S" if same_day else "%e %b %H:%M:%S"
        self._unit, self._words, self._unit_s = next(
            unit for unit in _UNITS if data.duration_s > _UNITS_AT_LEAST * unit[2] or unit[2] == 1
        )
        self._linear, self._log = LinearScale(), LogScale()
        self._all_labels, self._all_rows, self._union = AllLabels(), AllIndices(), UnionRenderers()
        self._plain = NumeralTickFormatter(format="0,0.[0000]")
        end = max(data.duration_s, 0.001)
        low, high = self.x(-0.01 * end), self.x(1.01 * end)
        self._times = Range1d(low, high, bounds=(low, high))
        # Who zooms into one chart over time zooms into all, as they have this range in common.
        self._time_axis = self._axis_of_time()
        self._time_grid = Grid(axis=self._time_axis, dimension=0)

    def x(self, seconds: float) -> float:
        """Return where a time, in seconds since the origin, is on the time axis."""
        return (self._origin + seconds) * 1000 if self._by_clock else seconds / self._unit_s

    def time_text(self, column: str) -> tuple[str, dict[str, str]]:
        """Return how a tooltip shows a column of times, and the formatter it needs."""
        if self._by_clock:
            return f"@{column}{{{self._clock}}}", {f"@{column}": "datetime"}
        return f"@{column}{{0,0.00[0]}} {self._unit}", {}

    def over_time(
        self, y_range: Range1d, *, height: int, name: str, tools: Sequence[Tool] = ()
    ) -> Plot:
        """Return an empty plot over the common time axis, which can be dragged and zoomed."""
        moves = [PanTool(dimensions="width"), *tools]
        moves += [ZoomInTool(dimensions="width"), ZoomOutTool(dimensions="width"), ResetTool()]
        toolbar = Toolbar(logo=None, tools=moves, active_drag=moves[0])
        scales = {"x_scale": self._linear, "y_scale": self._linear}
        plot = _plot(self._times, y_range, height=height, name=name, toolbar=toolbar, **scales)
        plot.add_layout(self._time_axis, "below")
        plot.add_layout(self._time_grid)
        if self._gaps:
            look = VSpan(x="x", line_color=BLACK, line_width=1.5, line_dash="dashed")
            self.add_glyph(plot, look, x=np.array([self.x(place) for place in self._gaps]))
        return plot

    def _axis_of_time(self) -> LinearAxis:
        start = datetime.fromtimestamp(self._origin, UTC)
        if not self._by_clock:
            left_out = ", without the time between sittings (dashed lines)" if self._gaps else ""
            return self.linear_axis(f"{self._words} since {start:%Y-%m-%d %H:%M:%S} UTC{left_out}")
        minutes, days = "%H:%M", "%e %b"
        formatter = DatetimeTickFormatter(
            milliseconds="%H:%M:%S.%3N",
            seconds="%H:%M:%S",
            minsec="%H:%M:%S",
            minutes=minutes,
            hourmin=minutes,
            hours=minutes,
            days=days,
            months=days,
            years=days,
        )
        return DatetimeAxis(axis_label=f"time (UTC), from {start:%Y-%m-%d}", formatter=formatter)

    def still(
        self,
        x_range: Range1d,
        y_range: Range1d,
        *,
        height: int,
        name: str,
        log_x: bool = False,
        log_y: bool = False,
    ) -> Plot:
        """Return an empty plot without tools and axes."""
        return _plot(
            x_range,
            y_range,
            height=height,
            name=name,
            toolbar_location=None,
            x_scale=self._log if log_x else self._linear,
            y_scale=self._log if log_y else self._linear,
        )

    def linear_axis(self, label: str) -> LinearAxis:
        """Return an axis with plain numbers."""
        return LinearAxis(
            axis_label=label,
            ticker=BasicTicker(desired_num_ticks=6),
            formatter=self._plain,
            major_label_policy=self._all_labels,
        )

    def fixed_axis(self, label: str | None, ticks: Sequence[tuple[float, str]]) -> LinearAxis:
        """Return an axis with these ticks and no others."""
        return LinearAxis(
            axis_label=label,
            ticker=FixedTicker(ticks=[at for at, _ in ticks]),
            formatter=self._plain,
            major_label_policy=self._all_labels,
            major_label_overrides=dict(ticks),
        )

    def add_axis(self, plot: Plot, axis: Axis, place: str, *, grid: bool = True) -> None:
        """Put an axis below or left of a plot, with the lines of a grid."""
        plot.add_layout(axis, place)
        if grid:
            plot.add_layout(Grid(axis=axis, dimension=0 if place == "below" else 1))

    def add_glyph(self, plot: Plot, glyph: Glyph, **columns: object) -> GlyphRenderer:
        """Draw a glyph once per row of the columns."""
        source = ColumnDataSource(data=columns, selection_policy=self._union)
        return plot.add_glyph(source, glyph, view=CDSView(filter=self._all_rows))


def _plot(x_range: Range1d, y_range: Range1d, **more: object) -> Plot:
    return Plot(
        x_range=x_range,
        y_range=y_range,
        title=None,
        sizing_mode="stretch_width",
        min_border_left=_LEFT,
        min_border_right=24,
        **more,
    )


def add_hover(
    plot: Plot,
    renderers: Sequence[GlyphRenderer],
    rows: Sequence[tuple[str, str]],
    **more: object,
) -> None:
    """Let a tooltip tell about what is below the pointer; Bokeh escapes what the columns hold."""
    # The tooltip says it all: a button to switch it off would only be one more.
    plot.add_tools(HoverTool(renderers=list(renderers), tooltips=list(rows), visible=False, **more))


def add_legend(plot: Plot, items: Sequence[LegendItem], *, columns: int | None = None) -> None:
    """Put a legend above the plot, outside of the data."""
    legend = Legend(items=list(items), orientation="horizontal", location="top_left")
    if columns is not None:
        legend.ncols = columns
    plot.add_layout(legend, "above")
