"""What Prefect's pages show of a run: live, at its end, and when Prefect's API is not there for a while."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from markdown_it import MarkdownIt
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunError, ParallelRunStep
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.ui import page
from tests.server.proxy import Proxy

pytestmark = pytest.mark.timeout(120)
"""The first test waits for the server to start."""
NASTY = ["a|`b`.txt", "c <script>alert(1)<*script>.txt", "d\ne.txt", "[f](http:g).txt"]
MESSAGE = "**bold** | `tick` <img src=x onerror=alert(1)>"
SECRET = "correct horse battery staple"


def name_of(number):
    """Return the name of a file that a page could take for something else than a text."""
    return f"{number:03d}{NASTY[number % 4]}"


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a step over files of these names."""

    def call(name, script, names, **config):
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts" / "score.py").write_text(textwrap.dedent(script))
        (tmp_path / "data").mkdir()
        for each in names:
            (tmp_path / "data" / each).write_text("")
        settings = {"process_count_per_node": 1, "run_max_try": 1, "error_threshold": -1, **config}
        return ParallelRunStep(
            name,
            ParallelRunConfig("score.py", source_directory=tmp_path / "scripts", **settings),
            [FileDataset.from_files(tmp_path / "data")],
            output=tmp_path / "out",
        )

    return call


@pytest.fixture
def artifacts(server):
    """Return a function that returns the artifacts of a step by the end of their keys, the newest first."""

    def call(step, *kinds):
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_=f"{step}-%")),
            sort=ArtifactSort.CREATED_DESC,
        )
        by_kind = {}
        for each in found:
            by_kind.setdefault(each.key.removeprefix(f"{step}-"), []).append(each)
        assert not kinds or set(by_kind) == set(kinds)
        return by_kind

    with SyncPrefectClient(server.api) as client:
        yield call


def wait_for(condition, limit_s=40.0):
    """Return what the condition says once that is something."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return found


def test_a_run_from_its_start_to_its_end(here, artifacts, make, tmp_path, monkeypatch):
    """While it runs there are progress and dashboard, at the end a summary and what failed (R206, R208, R209, R240)."""
    monkeypatch.setattr(page, "OFTEN_S", 0.2)
    step = make(
        "score-live",
        f"""
        import time
        from pathlib import Path

        def run(mini_batch):
            if "last" in mini_batch[-1]:
                deadline = time.monotonic() + 40
                while not Path({str(tmp_path / "go")!r}).exists() and time.monotonic() < deadline:
                    time.sleep(0.02)
                return mini_batch
            if "fine" in mini_batch[0]:
                return mini_batch
            raise ValueError({MESSAGE!r})
        """,
        [
            *map(name_of, range(120)),
            *(f"{what}{at}" for what in ("fine", "last") for at in range(10, 22)),
        ],
        mini_batch_size=12,
        environment_variables={"TOKEN": SECRET},
    )

    @flow
    def score():
        return step()

    def watch():
        def live():
            found = artifacts("score-live").get("progress", [])
            return [one for one in found if one.data > 0]

        try:
            (progress,) = wait_for(live)
            (link,) = artifacts("score-live", "progress", "dask-dashboard")["dask-dashboard"]
            url = link.data.removeprefix("[Dask dashboard](<").removesuffix(">)")
            with urllib.request.urlopen(url, timeout=10) as answer:
                return progress, answer.status
        finally:
            (tmp_path / "go").touch()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        result = score()
        live, status = watching.result(60)

    settled = int(live.description.partition(" ")[0])
    assert 0 < settled < 12
    assert live.data == round(100 * settled / 12, 1)
    assert live.description.startswith(f"{settled} of 12 mini-batches, ")
    assert status == 200
    last = artifacts("score-live", "progress", "dask-dashboard", "summary", "failed-items")
    ((progress,), (summary,), (table,)) = (
        last[kind] for kind in ("progress", "summary", "failed-items")
    )
    assert progress.id == live.id
    assert progress.data == 100
    assert progress.description.startswith(f"{result.state}: 12 of 12 mini-batches, 10 failed, in ")
    assert {one.task_run_id for ones in last.values() for one in ones} == {progress.task_run_id}
    assert all(one.flow_run_id is not None for ones in last.values() for one in ones)
    check_summary(summary, result)
    check_table(table, result)
    assert SECRET not in repr(last)


def check_summary(summary, result):
    """It has what a person asks first, and nothing that others wrote is Markdown."""
    text = summary.data
    assert "**in 144 = out 24 + failed 120 (items)**" in text
    assert "| mini-batches | 12 | 2 | 0 | 10 | 0 |" in text
    found = re.search(r"× 10  \n  first in mini-batch (\d) on node000 process000: ", text)
    paths = RunPaths(Path(result.run_directory))
    codes = [
        inside.content
        for one in MarkdownIt("commonmark").enable("table").parse(text)
        if one.type == "inline"
        for inside in one.children
        if inside.type == "code_inline"
    ]
    data = Path(result.run_directory).parents[2] / "data"
    first = int(found[1])
    wanted = [
        "score-live",
        result.run_id,
        f"ValueError: {MESSAGE} (score.py:13 in run)",
        *(str(data / name_of(at)).replace("\n", "\\n") for at in range(12 * first, 12 * first + 3)),
        paths.process_error("node000", "process000"),
        result.append_row_file,
        result.report,
        str(paths.logs),
        str(paths.failed_items),
        f"parallelrun errors {result.run_id}",
    ]
    assert codes == wanted
    kinds = {
        inside.type
        for one in MarkdownIt("commonmark").parse(text)
        for inside in [one, *(one.children or ())]
    }
    assert not kinds & {"html_inline", "html_block", "link_open", "image"}


def check_table(table, result):
    """It has the first hundred items, and says how many more there are, and where."""
    rows = json.loads(table.data)
    assert len(rows) == page.wording.ROWS == 100
    assert rows[2]["Item"].endswith("002d\\ne.txt")
    assert rows[12]["Mini-batch"] == 1
    assert rows[2]["Reason"] == "exception"
    assert rows[2]["Error"] == f"ValueError: {MESSAGE}"
    where = f"`{RunPaths(Path(result.run_directory)).failed_items}`"
    assert table.description == f"120 items failed; of these 100 are here, 20 more in {where}"


def test_runs_that_fail_and_go_on(here, artifacts, make, tmp_path):
    """A failed run says why, one that goes on what it reused; without a flow too, each its own (R206, R210)."""
    step = make(
        "score-fails",
        f"""
        from pathlib import Path

        def run(mini_batch):
            if "bad" in mini_batch[0] and not Path({str(tmp_path / "mended")!r}).exists():
                raise ValueError("unlucky")
            return mini_batch
        """,
        ["a.txt", "b-bad.txt", "c.txt"],
        mini_batch_size=1,
        error_threshold=0,
    )
    with pytest.raises(ParallelRunError):
        step()
    failed = artifacts("score-fails")
    assert failed["progress"][0].description.startswith("Failed: ")
    assert failed["progress"][0].data in (33.3, 66.7)
    assert failed["progress"][0].flow_run_id is None
    summary = failed["summary"][0].data
    assert summary.startswith("## Failed\n")
    assert "### Why it did not complete\n\n```text\n1 item failed; error_threshold=0\n" in summary
    assert json.loads(failed["failed-items"][0].data)[0]["Item"].endswith("b-bad.txt")

    (tmp_path / "mended").touch()
    result = step()
    again = artifacts("score-fails")
    assert {kind: len(ones) for kind, ones in again.items()} == {
        "progress": 2,
        "summary": 2,
        "failed-items": 1,
        "dask-dashboard": 2,
    }
    summary = again["summary"][0].data
    assert summary.startswith("## Completed\n")
    assert f"run `{result.run_id}`" in summary
    assert "### Reuse\n\n- run " in summary


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_an_api_that_hesitates_loses_answers_and_goes_away(server, artifacts, tmp_path):
    """The run goes on meanwhile; the pages catch up, with one artifact of each kind."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    (tmp_path / "score.py").write_text(SCRIPT)
    (tmp_path / "data").mkdir()
    for number in range(24):
        (tmp_path / "data" / f"{number:02d}.txt").write_text("")
    port = int(server.pages.rpartition(":")[2])
    with Proxy(port, delay_s=1.0, deaf_to=b"POST /api/artifacts/ ") as proxy:
        environment = server.environment(tmp_path / "runs")
        environment["PREFECT_API_URL"] = f"http://127.0.0.1:{proxy.port}/api"
        with (tmp_path / "program.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, str(program), str(tmp_path)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:

            def wait_until(condition):
                wait_for(lambda: condition() or process.poll() is not None)

            wait_until((tmp_path / "nodes").exists)
            proxy.mode("deaf")
            (tmp_path / "go").touch()
            wait_until(lambda: artifacts("score-outage").get("progress"))
            proxy.mode("slow")
            done = tmp_path / "done"
            wait_until(done.exists)
            wait_until(lambda: done.stat().st_size > 8)
            proxy.mode("gone")
            before = artifacts("score-outage")["progress"][0]
            wait_until(lambda: done.stat().st_size > 18)
            proxy.mode("open")
            process.wait(60)
        finally:
            process.kill()
            process.wait()
        said = (tmp_path / "program.log").read_text()
        assert process.returncode == 0, said
        assert said.count("is late: no answer: ") == 1, said
        found = artifacts("score-outage", "progress", "dask-dashboard", "summary")
    assert {kind: len(ones) for kind, ones in found.items()} == {
        "progress": 1,
        "dask-dashboard": 1,
        "summary": 1,
    }
    assert found["progress"][0].id == before.id
    assert before.data < found["progress"][0].data == 100
    (run_folder,) = (tmp_path / "runs" / "score-outage").iterdir()
    with Journal(RunPaths(run_folder).journal) as journal:
        started = [at for (at,) in journal.select("SELECT started_at FROM attempts ORDER BY id")]
    assert len(started) == 24
    assert max(b - a for a, b in pairwise(started)) < 5


SCRIPT = """
import sys, time
from pathlib import Path

def run(mini_batch):
    folder = Path(sys.argv[2])
    time.sleep(0.25)
    with (folder / "done").open("a") as file:
        file.write("x")
    return mini_batch
"""
PROGRAM = """
import sys, time
from pathlib import Path
from prefect import flow
from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunStep
from prefect_parallelrun.ui import page

folder = Path(sys.argv[1])
page.OFTEN_S = 0.5
take_note = page.Page.cluster

def first_wait(watching, url):
    (folder / "nodes").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    take_note(watching, url)

page.Page.cluster = first_wait

@flow
def score():
    config = ParallelRunConfig(folder / "score.py", mini_batch_size=1, process_count_per_node=1)
    data = FileDataset.from_files(folder / "data")
    return ParallelRunStep("score-outage", config, [data], arguments=["--folder", str(folder)], output=folder / "out")()

print(score().state)
"""


def test_what_prefect_does_not_take_keeps_nothing_else_from_being_shown(
    here, artifacts, make, tmp_path, monkeypatch, caplog
):
    """An error for one artifact, a web page for an answer, one that a person removes: the rest is there (R210)."""
    monkeypatch.setattr(page, "OFTEN_S", 0.2)
    sent = httpx.HTTPTransport.handle_request
    pages = [b"<html>Log in</html>"]

    def send(self, request):
        answer = partial(httpx.Response, request=request)
        if request.url.path.endswith("/artifacts/") and request.method == "POST":
            if b"score-odd-summary" in request.content:
                return answer(422, stream=httpx.ByteStream(b"oops"))
            if b"score-odd-dask-dashboard" in request.content and pages:
                html = {"Content-Type": "text/html; charset=utf-8"}
                return answer(200, headers=html, stream=httpx.ByteStream(pages.pop()))
        return sent(self, request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", send)
    step = make(
        "score-odd",
        f"""
        import time
        from pathlib import Path

        def run(mini_batch):
            deadline = time.monotonic() + 40
            while not Path({str(tmp_path / "go")!r}).exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            return mini_batch
        """,
        ["a.txt", "b.txt"],
        mini_batch_size=1,
    )

    def remove():
        try:
            (first,) = wait_for(lambda: artifacts("score-odd").get("progress"))
            with SyncPrefectClient(here.api) as client:  # which asks a busy server again
                client.delete_artifact(first.id)
            return first
        finally:
            (tmp_path / "go").touch()

    with ThreadPoolExecutor(1) as pool:
        removing = pool.submit(remove)
        step()
        removed = removing.result(60)

    last = artifacts("score-odd", "progress", "dask-dashboard")
    assert [len(ones) for ones in last.values()] == [1, 1]
    assert last["progress"][0].id != removed.id
    assert last["progress"][0].data == 100
    said = [one for one in caplog.records if "refect's pages" in one.getMessage()]
    late, lost = [one.getMessage() for one in said]
    assert re.fullmatch("On Prefect's pages score-odd-.* is late: .*", late)
    assert lost == (
        "Prefect's pages do not show how the run ended: no score-odd-summary "
        "(the answer is 422 Unprocessable Entity)"
    )
    assert not any(one.exc_info for one in said)


def test_an_api_that_is_gone_at_the_end(here, tmp_path, monkeypatch, caplog):
    """The end of a run waits for it a bounded time, a shorter one where the run was stopped (R201)."""
    monkeypatch.setattr(page.api, "url_of_this_task_run", lambda: "http://127.0.0.1:9/api")
    monkeypatch.setattr(page, "END_S", 1.0)
    monkeypatch.setattr(page, "STOPPED_S", 0.2)
    monkeypatch.setattr(page, "LAST_S", 2.0)

    @task
    def end(error):
        log = logging.getLogger("test")
        watching = page.Page(RunPaths(tmp_path / "run"), "score-gone", log=log)
        watching.progress("running", standing())
        watching.__enter__()
        began = time.monotonic()
        watching.__exit__(type(error), error, None)
        return time.monotonic() - began

    @flow
    def end_twice():
        return end(None), end(KeyboardInterrupt())

    by_itself, stopped = end_twice()
    assert 1.0 <= by_itself < 1.5
    assert 0.2 <= stopped < 0.7
    assert caplog.text.count("do not show yet how the run ended") == 2
    wait_for(lambda: not [t for t in threading.enumerate() if t.name == "parallelrun-page"])
    assert caplog.text.count("do not show how the run ended") == 2


def standing():
    from prefect_parallelrun.report.progress import Standing

    return Standing(
        planned=4,
        created=4,
        succeeded=1,
        failed=0,
        retried=0,
        running=1,
        items_succeeded=1,
        items_failed=0,
        rows=1,
        rate=1.0,
        left_s=3.0,
        elapsed_s=1.0,
    )
