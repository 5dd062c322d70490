"""flows/chained.py, run twice as a user runs it, and what Prefect's pages show of it in Chromium."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
)
from prefect.client.schemas.sorting import FlowRunSort
from sklearn.datasets import load_sample_image

from tests.storage.servers import lacking

ROOT = Path(__file__).resolve().parents[2]
SHOWN_S = 30.0
"""How long a page may take, on a busy machine."""
GREEN = (33, 157, 75)
"""How the graph draws a task run that completed."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@dataclass(frozen=True)
class Chained:
    """Two runs of the flow over the same folder."""

    folder: Path
    printed: list[str]
    flow_runs: list[str]


@pytest.fixture(scope="module")
def chained(server, tmp_path_factory):
    """The flow, run twice."""
    folder = tmp_path_factory.mktemp("chained")
    command = [sys.executable, str(ROOT / "flows" / "chained.py"), "--data", str(folder)]
    printed = []
    for _ in range(2):
        ended = subprocess.run(
            command,
            env=server.environment(folder / "runs"),
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=100,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        printed.append(ended.stdout)
    wanted = FlowFilter(name=FlowFilterName(any_=["chained"]))
    with SyncPrefectClient(server.api) as client:  # which asks a busy server again
        found = client.read_flow_runs(flow_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    return Chained(folder, printed, [str(run.id) for run in found])


@dataclass
class Window:
    """A page of Prefect in the browser."""

    page: object

    def says(self, *texts: str) -> None:
        """Wait until the page shows all of these."""
        for text in texts:
            self.page.get_by_text(text).first.wait_for(timeout=1000 * SHOWN_S)

    def graph(self) -> int:
        """Return how many task runs the graph shows in green, as soon as it does not change any more."""
        deadline, before = time.monotonic() + SHOWN_S, -1
        while time.monotonic() < deadline:
            self.page.wait_for_timeout(500)
            canvas = self.page.locator("canvas").first
            drawn = Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")
            now = boxes(np.asarray(drawn).astype(int))
            if now and now == before:
                return now
            before = now
        return before


def boxes(pixels: np.ndarray) -> int:
    """Return how many green boxes there are above the line of the flow run's own state."""
    green = (abs(pixels - GREEN) < 12).all(axis=2)[:-40]
    return sum(
        len(stretches(green[top:bottom].any(axis=0)))
        for top, bottom in stretches(green.any(axis=1))
    )


def stretches(marks: np.ndarray) -> list[tuple[int, int]]:
    """Return where each stretch of marks begins and ends."""
    ends = np.flatnonzero(np.diff(marks, prepend=False, append=False))
    return list(zip(ends[::2], ends[1::2], strict=True))


@pytest.fixture(scope="module")
def browse(server):
    """Return a function that opens a page of the server in a real Chromium; it may raise no error there."""
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

        @contextmanager
        def call(path: str) -> Iterator[Window]:
            page = browser.new_page(viewport={"width": 1280, "height": 700})
            # Nothing leaves this machine.
            page.route(lambda url: not url.startswith(server.pages), lambda route: route.abort())
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(server.pages + path)
            yield Window(page)
            page.close()
            assert errors == []

        yield call
        browser.close()


def test_tiles_of_one_photograph_draw_the_other(chained):
    """What the second step makes of the first one's output gives the photograph again, coarsely; run
    again, both steps have nothing to do (R28, R52, R75)."""
    rows = (chained.folder / "matched" / "matches.csv").read_text().splitlines()
    tiles = [f"{top:03d}-{left:03d}.png" for top in range(0, 416, 16) for left in range(0, 640, 16)]
    assert [row.partition(",")[0] for row in rows] == ["tile", *tiles]
    with Image.open(chained.folder / "mosaic.png") as drawn:
        mosaic = np.asarray(drawn).astype(float)
    flower = load_sample_image("flower.jpg")[: mosaic.shape[0], : mosaic.shape[1]].astype(float)
    other = load_sample_image("china.jpg")[: mosaic.shape[0], : mosaic.shape[1]].astype(float)
    assert abs(mosaic - flower).mean() < abs(other - flower).mean() / 3
    for printed, reused in zip(chained.printed, ("no", "yes"), strict=True):
        assert printed.count(f"1,040 of 1,040 tiles, reused: {reused}") == 2


def test_the_page_of_a_flow_run_has_its_graph_and_cached_steps(chained, browse):
    """The graph of each run is drawn with all five task runs, and the steps of the second one are
    shown as Cached (R52, R240)."""
    first, second = chained.flow_runs

    with browse(f"/v2/runs/flow-run/{first}?tab=TaskRuns") as window:
        window.says("5 Task runs", "(5 Completed)", "describe-tiles", "match-tiles", "draw-mosaic")
        assert window.graph() == 5
    with browse(f"/v2/runs/flow-run/{second}?tab=TaskRuns") as window:
        window.says("5 Task runs", "(3 Completed, 2 Cached)")
        assert window.graph() == 5


def test_the_pages_of_artifacts_tell_how_a_step_got_on(chained, browse, server):
    """Progress and summary of a step are among the artifacts of its flow run, and read as they are
    meant to: counts in a table, the closing line, where to look (R208)."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=chained.flow_runs[:1]))
    with SyncPrefectClient(server.api) as client:
        found = client.read_artifacts(artifact_filter=wanted)
    ids = {artifact.key: str(artifact.id) for artifact in found}

    with browse(f"/v2/artifacts/artifact/{ids['match-tiles-progress']}") as progress:
        progress.says("Completed: 26 of 26 mini-batches", "Progress: 100%")
    with browse(f"/v2/artifacts/artifact/{ids['match-tiles-summary']}") as summary:
        summary.says("in 1,040 = out 1,040 + failed 0 (items)", str(chained.folder / "matched"))
        cells = summary.page.locator("td").all_inner_texts()
    assert cells[:3] == ["mini-batches", "26", "26"]
    assert "|" not in "".join(cells)
