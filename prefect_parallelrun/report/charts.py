"""The charts of the report, and the JSON from which the browser draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.models import Plot
from bokeh.resources import Resources

from prefect_parallelrun.report import distributions, over_time, used_over_time
from prefect_parallelrun.report.drawing import THEME, Canvas
from prefect_parallelrun.report.page_data import ReportData


def draw(data: ReportData) -> tuple[dict[str, Plot], dict[str, str]]:
    """Return the charts by name, and why others could not be drawn.

    Those that would have nothing to show are left out.
    """
    canvas = Canvas(data)
    drawers: dict[str, Callable[[], Plot | None]] = {
        "timeline": lambda: over_time.timeline(canvas, data),
        "throughput": lambda: over_time.throughput(canvas, data),
        "items": lambda: over_time.item_throughput(canvas, data),
        "durations": lambda: distributions.durations(canvas, data),
        "cpu": lambda: distributions.cpu_against_elapsed(canvas, data),
        "node-cpu": lambda: used_over_time.cpu(
            canvas, data.node_usage, "node-cpu", label="CPU (% of all cores)"
        ),
        "node-memory": lambda: used_over_time.memory(canvas, data.node_usage, "node-memory"),
        "process-cpu": lambda: used_over_time.cpu(
            canvas, data.process_usage, "process-cpu", label="CPU (% of one core)"
        ),
        "process-memory": lambda: used_over_time.memory(
            canvas, data.process_usage, "process-memory"
        ),
    }
    charts: dict[str, Plot] = {}
    undrawn: dict[str, str] = {}
    for name, drawer in drawers.items():
        try:
            chart = drawer()
        except Exception as error:
            undrawn[name] = f"{type(error).__name__}: {error}"
        else:
            if chart is not None:
                charts[name] = chart
    return charts, undrawn


def as_json(charts: Mapping[str, Plot]) -> str:
    """Return the arguments of BokehJS's `embed_items` that draw each chart in the element `chart-<name>`.

    `bokeh.embed.components` says the same, but walks through all objects several times on its way.
    """
    document = Document(theme=THEME)
    with document.models.freeze():
        for chart in charts.values():
            document.add_root(chart)
    roots = {chart.id: f"chart-{name}" for name, chart in charts.items()}
    items = [{"docid": "run", "roots": roots, "root_ids": list(roots)}]
    text: str = serialize_json([{"run": document.to_json(deferred=False)}, items])
    return text


def bokeh_js() -> str:
    """Return BokehJS, without what only widgets, tables, WebGL and formulas need."""
    (source,) = Resources(mode="inline", components=["bokeh"], minified=True).js_raw[:1]
    return str(source)
