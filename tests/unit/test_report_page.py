from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prefect_parallelrun.models import Counts, ErrorGroup, NodeRecord, RunSummary
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import page, wording
from prefect_parallelrun.report.page_data import Cell, Slow
from tests.report import samples


class Outline(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    return RunPaths(tmp_path)


def test_what_users_wrote_is_text_and_nothing_else(paths):
    """File names, messages, node names and settings make no element and no attribute (R241)."""
    hostile, harmless = (Outline(page.render(paths, data)) for data in (samples.hostile(), _tame()))

    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in harmless.elements]
    assert not [
        name for _, attributes in hostile.elements for name in attributes if name.startswith("on")
    ]
    for text in samples.HOSTILE:
        assert wording.visible(text).split()[0] in hostile.text


def test_no_text_of_users_ends_a_script(paths):
    """The data of the charts holds no `<`, so that no `</script>` in it ends the element (R241)."""
    (block,) = re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>',
        page.render(paths, samples.hostile()),
        flags=re.DOTALL,
    )

    assert "<" not in block
    assert samples.HOSTILE[0] in json.dumps(json.loads(block))


def test_nothing_is_fetched_and_only_own_scripts_run(paths):
    """The page names no other file to load, and forbids the browser to load any (R241)."""
    outline = Outline(page.render(paths, samples.hostile()))
    policy = next(a["content"] for tag, a in outline.elements if a.get("http-equiv"))
    scripts = [attributes for tag, attributes in outline.elements if tag == "script"]

    assert not {"img", "link", "iframe", "object"} & {tag for tag, _ in outline.elements}
    assert not [attributes for _, attributes in outline.elements if "src" in attributes]
    assert "default-src 'none'" in policy
    assert scripts
    assert all(f"'nonce-{script['nonce']}'" in policy for script in scripts)
    assert "unsafe" not in policy.split("script-src")[1].split(";")[0]


def test_each_page_has_a_nonce_of_its_own(paths):
    """Who reads one report cannot write a script that another lets run."""
    nonces = [re.search("nonce-([^']+)", page.render(paths, samples.empty()))[1] for _ in range(2)]

    assert nonces[0] != nonces[1]


def test_the_page_is_utf8_and_replaces_the_earlier_one(paths):
    """The report is written beside and renamed, in UTF-8, even where a name is not (R241)."""
    paths.report.write_text("earlier")

    written = page.write_report(paths, samples.hostile())

    assert written == paths.report
    assert "\\udcff" in paths.report.read_text(encoding="utf-8")
    assert [path.name for path in paths.root.iterdir()] == [paths.report.name]


def test_a_report_that_cannot_be_written_leaves_nothing_behind(paths, monkeypatch):
    """A full disk leaves the earlier report, and no half of a new one."""
    paths.report.write_text("earlier")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        page.write_report(paths, samples.empty())

    assert [path.read_text() for path in paths.root.iterdir()] == ["earlier"]


def test_a_run_without_anything_says_so_in_words(paths):
    """Where there is nothing to draw there is a sentence, and no script at all (R241)."""
    outline = Outline(page.render(paths, samples.empty()))

    for said in (
        "no node joined within 60 s",
        "No worker process was started.",
        "No attempt has ended.",
        "There are no samples",
        "Nothing was reused.",
        "No node joined the run.",
    ):
        assert said in outline.text
    assert "script" not in [tag for tag, _ in outline.elements]


def test_logs_are_linked_relative_to_the_report(paths):
    """A run folder may be moved or sent: its report links to the logs in it, by relative addresses."""
    log = paths.process_error("node000", "process001")
    group = _group(log_file=log, type="ValueError", message="no")
    paths.logs.mkdir()
    paths.job_result.write_text("result")
    data = samples.empty(logs=str(paths.logs), summary=_summary(group))

    links = {
        attributes["href"]
        for tag, attributes in Outline(page.render(paths, data)).elements
        if tag == "a" and not attributes["href"].startswith("#")
    }

    assert links == {
        "./logs",
        "./logs/job_result.txt",
        "./logs/user/error/node000/process001.txt",
    }


def test_a_file_outside_of_the_run_folder_is_no_link(paths):
    """What an error names as its log file is a link only where it is one of the run's files."""
    data = samples.empty(summary=_summary(_group(log_file="javascript:alert(1)")))
    outline = Outline(page.render(paths, data))

    assert "javascript:alert(1)" in outline.text
    assert not [a for tag, a in outline.elements if "javascript" in (a.get("href") or "")]


def test_a_very_long_text_is_shortened_in_the_middle(paths):
    """A stack trace of megabytes does not make a page of megabytes; its two ends stay."""
    trace = f"begin {'x' * 3_000_000} end"
    text = page.render(paths, samples.empty(summary=_summary(_group(traceback=trace))))

    assert len(text) < 100_000
    assert "begin xxx" in text
    assert "xxx end" in text
    assert "characters are left out here" in text


def test_a_large_report_is_a_small_file(paths):
    """A timeline of 20,000 blocks and 24 processes of 300 samples stays below 6 MB (R241)."""
    assert page.write_report(paths, samples.large()).stat().st_size < 6_000_000
    assert page.write_report(paths, samples.hostile()).stat().st_size < 2_500_000


def test_importing_the_report_does_not_import_bokeh():
    """A command that writes no report does not wait for Bokeh."""
    code = "import sys, prefect_parallelrun.report.page; sys.exit('bokeh' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.0000042, "4.2 µs"),
        (0.00712, "7.12 ms"),
        (0.0994, "99.4 ms"),
        (0.1, "0.1 s"),
        (9.999, "10 s"),
        (12.34, "12.3 s"),
        (100.0, "1 min 40 s"),
        (3599.6, "1 h 0 min"),
        (7500.0, "2 h 5 min"),
        (360_000.0, "100 h 0 min"),
    ],
)
def test_durations_are_written_for_people(seconds, text):
    """A duration has about three digits, in the unit in which people say it."""
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.02, 0.6, ["20 ms", "50 ms", "0.1 s", "0.2 s", "0.5 s"]),
        (8, 400, ["10 s", "20 s", "60 s", "2 min", "5 min"]),
        (100, 2000, ["2 min", "5 min", "10 min", "20 min", "30 min"]),
        (1000, 40_000, ["20 min", "30 min", "1 h", "2 h", "5 h", "10 h"]),
        (1e-3, 1e6, None),
    ],
)
def test_axes_of_durations_have_round_figures(low, high, texts):
    """Above a minute that is round minutes and hours; there are never so many that they touch."""
    from prefect_parallelrun.report.distributions import duration_ticks

    ticks = duration_ticks(low, high)
    assert texts is None or [text for _, text in ticks] == texts
    assert 4 <= len(ticks) <= 10
    assert all(low <= at <= high for at, _ in ticks)


def test_charts_say_what_they_show():
    """Rates in a unit in which they are numbers, counts in whole ones, and the line of one busy core."""
    from bokeh.models import ColorBar, LinearAxis

    from prefect_parallelrun.report import charts

    data = dataclasses.replace(
        samples.empty(),
        duration_s=3 * 86400.0,
        bin_s=3600.0,
        succeeded=[2] * 72,
        failed=[0] * 71 + [1],
        items=[120] * 72,
        cpu_cells=[
            Cell(elapsed_from=100, elapsed_to=110, cpu_from=0.1, cpu_to=0.11, count=number)
            for number in (1, 2)
        ],
    )
    drawn, undrawn = charts.draw(data)
    assert not undrawn
    labels = {name: _labels(chart, LinearAxis) for name, chart in drawn.items()}
    assert "attempts per hour" in labels["throughput"]
    assert "items per minute" in labels["items"]
    (counts,) = drawn["throughput"].renderers[0].data_source.data["count"][:1]
    assert counts == 2
    (bar,) = drawn["cpu"].select({"type": ColorBar})
    assert list(bar.ticker.ticks) == [1, 2]
    low, high = drawn["cpu"].y_range.start, drawn["cpu"].y_range.end
    assert low < 0.1
    assert high >= drawn["cpu"].x_range.end
    formats = [
        text
        for hover in drawn["throughput"].tools
        if getattr(hover, "tooltips", None)
        for _, text in hover.tooltips
    ]
    assert "@left{%e %b %H:%M:%S}" in formats


def _labels(chart, kind) -> list[str | None]:
    return [axis.axis_label for axis in chart.select({"type": kind})]


def test_tables_of_very_many_nodes_end(paths):
    """50 nodes are named, and how many more there are (R241)."""
    nodes = [NodeRecord(node=f"node{n:03}", host="h", address="a", processes=1) for n in range(64)]
    text = Outline(page.render(paths, samples.empty(nodes=nodes))).text
    assert "node049" in text
    assert "node050" not in text
    assert "And 14 more nodes" in text


def test_of_what_was_split_the_part_is_named(paths):
    """One of the slowest that was only some items of its mini-batch says which (R241)."""
    slow = Slow(
        mini_batch=1234, attempt=1, node="node000", process="process000", elapsed_s=3.0, run_s=3.0,
        cpu_s=None, outcome="succeeded", part=(4, 8),
    )  # fmt: skip
    text = Outline(page.render(paths, samples.empty(slowest=[slow]))).text
    assert "1,234, items 4 to 7" in text
    assert "unknown" in text


def test_what_cannot_be_seen_is_spelt_out():
    """Control characters, direction marks and lone surrogates are shown as escapes; lines stay lines."""
    assert wording.visible("a\x1bb\u202ec\udcffd\u2028e\tf\ng") == (
        "a\\x1bb\\u202ec\\udcffd\\u2028e\tf\ng"
    )
    assert wording.visible("naïve 漢字 🙂") == "naïve 漢字 🙂"


def _tame():
    """Return the hostile data without the characters that mean something in HTML."""

    def tamed(value):
        if isinstance(value, str):
            return re.sub("[<>&'\"]", "_", value)
        if dataclasses.is_dataclass(value):
            fields = {f.name: tamed(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return type(value)(**fields)
        return type(value)(map(tamed, value)) if isinstance(value, list | tuple) else value

    return tamed(samples.hostile())


def _group(**changes) -> ErrorGroup:
    fields = {
        "type": "ValueError",
        "where": "score.py:1 in run",
        "message": "no",
        "count": 1,
        "first_mini_batch": 0,
        "first_items": (),
        "node": "node000",
        "process": "process001",
        "log_file": "",
        "traceback": "",
    }
    return ErrorGroup(**{**fields, **changes})


def _summary(*groups) -> RunSummary:
    return RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0, errors=groups)
