"""The HTML report of a run: one file that needs nothing but a browser (R241)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import wording
from prefect_parallelrun.report.page_data import ReportData

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE = Path(__file__).with_name("page.html")
_TEXT = 20_000
"""Characters of one text (a stack trace, a message) that the page has; the rest is in the logs."""
_STATES = (
    ("Completed with", "partly", "!"),
    ("Completed", "good", "✓"),
    ("Failed", "bad", "✕"),
    ("Interrupted", "bad", "✕"),
    ("Cancelled", "stopped", "■"),
)
"""How the beginning of a state is shown: a class of the style sheet and a sign."""


def write_report(paths: RunPaths, data: ReportData) -> Path:
    """Write the report of a run into its run folder, in one step, and return where it is."""
    page = render(paths, data)
    unfinished = paths.report.with_name(f".{paths.report.name}.{os.getpid()}")
    try:
        unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
        unfinished.replace(paths.report)
    finally:
        with suppress(OSError):  # it must not hide what went wrong first
            unfinished.unlink(missing_ok=True)
    return paths.report


def render(paths: RunPaths, data: ReportData) -> str:
    """Return the report as HTML; links in it are relative to the run folder."""
    # Bokeh's import takes most of a second: whoever writes no report does not pay for it.
    from markupsafe import Markup

    from prefect_parallelrun.report import charts

    drawn, undrawn = charts.draw(data)
    page: str = _template().render(
        data=data,
        summary=data.summary,
        state=_state(data.state),
        charts=drawn,
        unmade={**data.unmade, **undrawn},
        # A text in a script element ends at "</script", whatever it is part of.
        charts_json=Markup(charts.as_json(drawn).replace("<", "\\u003c")),
        bokeh_js=Markup(charts.bokeh_js()),
        # Only our own scripts run, and nothing is ever fetched, even if something escaped the escaping.
        nonce=secrets.token_urlsafe(16),
        links=_links(paths, data.state),
        link=lambda file: _link(paths, file),
    )
    return page


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def finish(value: Any) -> Any:
        # All that the page says goes through here, and is escaped after it.
        if isinstance(value, str) and not isinstance(value, Markup):
            return wording.visible(value)
        return value

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finish,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "counted": wording.counted,
        "grouped": lambda number: f"{number:,}",
        "duration": wording.duration,
        "moment": wording.moment,
        "shortened": _shortened,
        "first_line": _first_line,
    }
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _state(state: str) -> Mapping[str, str]:
    for beginning, kind, sign in _STATES:
        if state.startswith(beginning):
            return {"kind": kind, "sign": sign}
    return {"kind": "stopped", "sign": "…"}


def _shortened(text: str) -> str:
    if len(text) <= _TEXT:
        return text
    half = _TEXT // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n… {left_out:,} characters are left out here …\n{text[-half:]}"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines() or [""]
    return lines[0][:300] + ("…" if len(lines[0]) > 300 else "")


def _links(paths: RunPaths, state: str) -> list[tuple[str, str]]:
    """Return names and addresses of the files to open next, of those that are there."""
    # The result names the report, and so is written right after it.
    soon = paths.job_result if any(state.startswith(one) for one, *_ in _STATES) else None
    files = (
        ("result", paths.job_result),
        ("errors of the script", paths.error_summary),
        ("failed items", paths.failed_items),
        ("log of the driver", paths.driver_log),
        ("every attempt (CSV)", paths.processed_mini_batches),
        ("every process (CSV)", paths.process_summary),
        ("every node (CSV)", paths.node_summary),
        ("what else is in the logs", paths.readme),
    )
    found = [
        (name, _link(paths, str(path))) for name, path in files if path.is_file() or path == soon
    ]
    return [(name, address) for name, address in found if address is not None]


def _link(paths: RunPaths, file: str) -> str | None:
    """Return the address of a file of the run folder, relative to the report; None for others."""
    root = paths.report.parent
    if not file or not Path(file).is_relative_to(root):
        return None
    # A colon in the first part would make it a protocol.
    return "./" + quote(os.fsencode(Path(file).relative_to(root)))
