"""Reports as Chromium shows them: drawn, without an error, and deaf to what users wrote."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import wording
from prefect_parallelrun.report.gather import gather
from prefect_parallelrun.report.page import write_report
from prefect_parallelrun.report.summary import summarise
from prefect_parallelrun.run_record import RunRecord
from tests.report import samples, synthetic
from tests.storage.servers import lacking

CHARTS = [
    "timeline",
    "throughput",
    "items",
    "durations",
    "cpu",
    "node-cpu",
    "node-memory",
    "process-cpu",
    "process-memory",
]
DRAWN = """() => Object.fromEntries([...document.querySelectorAll("[id^=chart-]")].map(chart => {
    const found = [];
    const search = root => {
        for (const element of root.querySelectorAll("*")) {
            if (element instanceof HTMLCanvasElement) found.push(element);
            if (element.shadowRoot) search(element.shadowRoot);
        }
    };
    search(chart);
    const colors = new Set();
    for (const canvas of found.filter(canvas => canvas.width && canvas.height)) {
        const pixels = new Uint32Array(canvas.getContext("2d")
            .getImageData(0, 0, canvas.width, canvas.height).data.buffer);
        for (let i = 0; i < pixels.length; i += 7) colors.add(pixels[i]);
    }
    return [chart.id.slice("chart-".length), colors.size];
}))"""
"""How many colours there are on the canvases of each chart."""
PLACE = """row => {
    const view = Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name("timeline").id);
    const box = view.el.getBoundingClientRect();
    return [
        box.x + view.frame.x_scale.compute(0.4), box.y + view.frame.y_scale.compute(row + 0.5)
    ];
}"""
"""Where on the screen the beginning of a row of the timeline is."""
KILLED = """() => Bokeh.documents[0].get_model_by_name("timeline").renderers
    .filter(renderer => renderer.glyph.type == "Scatter")
    .flatMap(renderer => [...renderer.data_source.data.text])"""
"""Why the processes were killed that the timeline marks."""
TOLD = """text => {
    const search = root => [...root.querySelectorAll("*")].some(element =>
        element.shadowRoot && (
            element.classList.contains("bk-Tooltip") && element.shadowRoot.textContent.includes(text)
            || search(element.shadowRoot)));
    return search(document);
}"""
"""Whether a tooltip shows a text."""


@pytest.fixture(scope="module")
def chromium():
    """A real Chromium; without one the tests are skipped, or fail where it is required."""
    if shutil.which("chromium") is None:
        lacking("chromium", "there is no chromium on PATH")
    try:
        from playwright import sync_api
    except ImportError:
        lacking("chromium", "playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@dataclass
class Shown:
    """A report in the browser, and all that it did unasked."""

    page: object
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def drawn(self) -> dict[str, int]:
        """Return the charts that are there, and how many colours each has."""
        return self.page.evaluate(DRAWN)

    def trouble(self) -> list[str]:
        """Return errors, dialogs, requests to other files, and traces of scripts that are not ours."""
        pwned = self.page.evaluate("window.pwned")
        return [
            *self.errors,
            *self.requests[1:],
            *([] if pwned is None else [f"pwned {pwned}"]),
        ]


@pytest.fixture
def show(chromium):
    """Return a function that opens a report and waits until its charts are drawn."""
    pages = []

    def call(paths: RunPaths) -> Shown:
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        pages.append(page)
        shown = Shown(page)
        page.on("pageerror", lambda error: shown.errors.append(f"page: {error}"))
        page.on(
            "console",
            lambda said: (
                shown.errors.append(f"console: {said.text}")
                if said.type in ("error", "warning")
                else None
            ),
        )

        def dialog(asked):
            shown.errors.append(f"dialog: {asked.message}")
            asked.dismiss()

        page.on("dialog", dialog)
        page.on("request", lambda request: shown.requests.append(request.url))
        page.goto(paths.report.as_uri())
        page.wait_for_function(
            "!document.querySelector('[id^=chart-]') || "
            "(Bokeh.documents.length && Bokeh.documents.every(one => one.is_idle))"
        )
        return shown

    yield call
    for page in pages:
        page.close()


def report_of(paths: RunPaths, **more) -> RunPaths:
    """Write the report of a run folder as it is."""
    record = RunRecord.model_validate_json(paths.record.read_text())
    with Journal(paths.journal) as journal:
        summary = summarise(journal)
    write_report(paths, gather(paths, record, summary, **more))
    return paths


def test_what_users_wrote_does_nothing(tmp_path, show):
    """Names and messages that are scripts run nowhere: not in the page, not in a chart (R241)."""
    paths = RunPaths(tmp_path)
    write_report(paths, samples.hostile())

    shown = show(paths)
    for details in shown.page.locator("summary").all():
        details.click()

    assert shown.trouble() == []
    assert shown.page.title() == f"{samples.HOSTILE[0]}: Failed"
    for text in samples.HOSTILE[:4]:
        assert shown.page.get_by_text(text).first.is_visible()
    assert all(colors > 2 for colors in shown.drawn().values())


def test_tooltips_show_text_and_nothing_else(tmp_path, show):
    """What is below the pointer is told in the characters in which users wrote it (R241)."""
    paths = RunPaths(tmp_path)
    write_report(paths, samples.hostile())
    shown = show(paths)
    shown.page.locator("#chart-timeline").scroll_into_view_if_needed()
    tooltip = shown.page.locator(".bk-Tooltip:visible")

    for row, hostile in enumerate(samples.HOSTILE):
        shown.page.mouse.move(*shown.page.evaluate(PLACE, row))
        shown.page.wait_for_function(TOLD, arg=wording.visible(hostile))
        assert tooltip.locator("script, img, svg, b").count() == 0

    assert shown.trouble() == []


def test_a_run_without_anything_is_a_page_without_error(tmp_path, show):
    """A run that failed before anything ran has a report, of words alone (R241)."""
    paths = RunPaths(tmp_path)
    write_report(paths, samples.empty())

    shown = show(paths)

    assert shown.trouble() == []
    assert shown.drawn() == {}
    assert shown.page.get_by_text("no node joined within 60 s").is_visible()


def test_a_run_with_two_sittings_and_all_kinds_of_failure(tmp_path, show):
    """Every chart of a run with failures, killed processes and a night in between is drawn (R241)."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=400, failing=0.1, sittings=2)

    shown = show(report_of(paths, items_of=synthetic.items_of, failure="too many items failed"))

    assert shown.trouble() == []
    assert list(shown.drawn()) == CHARTS
    assert all(colors > 3 for colors in shown.drawn().values())
    assert shown.page.get_by_text("The charts leave out the time between sittings").is_visible()


@pytest.mark.slow
def test_a_real_run_of_2000_mini_batches(tmp_path, run, show):
    """The report that a run leaves behind by itself is drawn, with what its monitor sampled (R241)."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for number in range(2_000):
        (inputs / f"{number:04}.txt").write_text(str(number))
    script = """
        import time

        def run(mini_batch):
            time.sleep(0.002)
            return mini_batch
    """

    result = run(script, inputs, mini_batch_size=1, node_count=2)
    shown = show(RunPaths(Path(result.run_directory)))

    assert Path(result.report) == RunPaths(Path(result.run_directory)).report
    assert shown.trouble() == []
    assert list(shown.drawn()) == CHARTS
    assert all(colors > 2 for colors in shown.drawn().values())
    assert shown.page.get_by_text("in 2,000 = out 2,000 + failed 0 (items)").is_visible()
    assert shown.page.get_by_text("No attempt failed.").is_visible()


@pytest.mark.slow
def test_a_real_run_with_three_kinds_of_failure(tmp_path, run, show):
    """Failures, killed processes and hostile file names of a real run are in its report (R241)."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    name = "<script>window.pwned=1<script>.png"
    for text in ("raise", "hang", "die", *"0123456789"):
        (inputs / f"{text}{name}").write_text(text)
    script = """
        import os, signal, time
        from pathlib import Path

        def run(mini_batch):
            text = Path(mini_batch[0]).read_text()
            if text == "raise":
                raise ValueError(f"<img src=x onerror=window.pwned=2> {mini_batch[0]}")
            if text == "hang":
                time.sleep(1000)
            if text == "die":
                os.kill(os.getpid(), signal.SIGSEGV)
            return mini_batch
    """
    settings = {"error_threshold": -1, "run_invocation_timeout": 1, "run_max_try": 1}

    result = run(script, inputs, mini_batch_size=1, **settings)
    shown = show(RunPaths(Path(result.run_directory)))
    headings = shown.page.locator("summary").all_inner_texts()

    assert shown.trouble() == []
    assert list(shown.drawn()) == CHARTS
    assert {heading.split(" ")[0] for heading in headings} == {
        "ValueError",
        "TimedOut",
        "ProcessDied",
    }
    assert shown.page.get_by_text("Completed with 3 failed items").is_visible()
    assert shown.page.get_by_text(f"raise{name}").first.is_visible()
    killed = shown.page.evaluate(KILLED)
    assert sorted(killed) == ["signal", "timeout"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_mini_batches(tmp_path, show):
    """The report of a million mini-batches is drawn, and below 6 MB (R241)."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=1_000_000, nodes=16, processes=8)

    shown = show(report_of(paths, items_of=synthetic.items_of))

    assert shown.trouble() == []
    assert list(shown.drawn()) == CHARTS
    assert all(colors > 3 for colors in shown.drawn().values())
    assert paths.report.stat().st_size < 6_000_000


def test_charts_over_time_zoom_together(tmp_path, show):
    """Who looks closer at one chart over time sees the same time in all others (R241)."""
    shown = show(report_of(synthetic.write_run(tmp_path / "run", mini_batches=200)))

    def ends():
        return shown.page.evaluate(
            "Bokeh.documents[0].roots().filter(plot => !['durations', 'cpu'].includes(plot.name))"
            ".map(plot => [plot.x_range.start, plot.x_range.end])"
        )

    before = ends()
    shown.page.locator("#chart-throughput .bk-tool-icon-zoom-in").click()
    shown.page.wait_for_function(
        "was => Bokeh.documents[0].get_model_by_name('timeline').x_range.start != was",
        arg=before[0][0],
    )

    assert len(before) == 7
    assert len({tuple(one) for one in before}) == len({tuple(one) for one in ends()}) == 1
    assert ends() != before


def test_details_open_by_the_keyboard(tmp_path, show):
    """A stack trace can be reached and opened without a mouse (R241)."""
    paths = RunPaths(tmp_path)
    write_report(paths, samples.hostile())
    page = show(paths).page

    page.locator("summary").first.focus()
    page.keyboard.press("Enter")

    assert page.locator("details pre").first.is_visible()
