"""The charts of the report, and the JSON from which the browser draws them."""

from __future__ import annotations

from collections.abc import Mapping

from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.models import Plot
from bokeh.resources import Resources

from prefect_parallelrun.report import distributions, over_time, used_over_time
from prefect_parallelrun.report.drawing import THEME, Canvas
from prefect_parallelrun.report.page_data import ReportData


def draw(data: ReportData) -> dict[str, Plot]:
    """Return the charts by name; those that would have nothing to show are left out."""
    canvas = Canvas(data)
    charts = {
        "timeline": over_time.timeline(canvas, data),
        "throughput": over_time.throughput(canvas, data),
        "items": over_time.item_throughput(canvas, data),
        "durations": distributions.durations(canvas, data),
        "cpu": distributions.cpu_against_elapsed(canvas, data),
        "node-cpu": used_over_time.cpu(
            canvas, data.node_usage, "node-cpu", label="CPU (% of all cores)"
        ),
        "node-memory": used_over_time.memory(canvas, data.node_usage, "node-memory"),
        "process-cpu": used_over_time.cpu(
            canvas, data.process_usage, "process-cpu", label="CPU (% of one core)"
        ),
        "process-memory": used_over_time.memory(canvas, data.process_usage, "process-memory"),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


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
