"""The commands that look, called as the program, against a real run with one failed mini-batch (R242)."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from prefect_parallelrun import cli, settings
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import run_step
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.lock import RunLock
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RUNNING, RunRecord
from prefect_parallelrun.step_file import load_step
from prefect_parallelrun.work import Work

SCRIPT = """
import os

def run(mini_batch):
    print("the script speaks")
    if mini_batch[0].endswith("b.txt"):
        raise ValueError("bad file")
    return [os.path.basename(path) for path in mini_batch]
"""
STEP = """
name: score-files
config:
  entry_script: score.py
  source_directory: scripts
  mini_batch_size: 1
  error_threshold: 5
  process_count_per_node: 2
inputs:
  - name: images
    files: data
"""


def run_once(step: Path, script: str, name: str = "score-files") -> RunPaths:
    """Run a step over three files of 10, 20 and 3,000 bytes."""
    (step / "scripts").mkdir(exist_ok=True)
    (step / "data").mkdir(exist_ok=True)
    (step / "scripts" / "score.py").write_text(script)
    for letter, size in (("a", 10), ("b", 20), ("c", 3_000)):
        (step / "data" / f"{letter}.txt").write_text("x" * size)
    config = ParallelRunConfig(
        str(step / "scripts" / "score.py"),
        mini_batch_size=1,
        process_count_per_node=1,
        run_max_try=1,
        error_threshold=5,
    )
    data = FileDataset.from_files(str(step / "data")).as_named_input("images")
    work = Work.of_step(StepDefinition(name=name, config=config, inputs=(data,)))
    run_id = settings.new_run_id(work.fingerprint)
    paths = RunPaths(settings.step_folder(name) / run_id)
    run_step(
        work.definition,
        run_folder=paths.root,
        run_id=run_id,
        fingerprint=work.fingerprint,
        log=logging.getLogger("test"),
        reuse_notes=("nothing reused: a test",),
    )
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a step that has run; `runs` in it is the run root."""
    folder = tmp_path_factory.mktemp("looking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(folder / "runs"))
        run_once(folder, SCRIPT)
    (folder / "step.yaml").write_text(STEP)
    return folder


@pytest.fixture(autouse=True)
def run_root(folder, monkeypatch):
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(folder / "runs"))
    return folder / "runs"


@pytest.fixture
def ran(run_root):
    """The one run."""
    (found,) = (run_root / "score-files").iterdir()
    return RunPaths(found)


@pytest.fixture
def a_copy(ran, tmp_path, monkeypatch):
    """A copy of it, in a run root of its own, to be changed."""
    root = tmp_path / "runs"
    shutil.copytree(ran.root, root / "score-files" / ran.root.name, copy_function=shutil.copy2)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(root))
    return RunPaths(root / "score-files" / ran.root.name)


class Call(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def call(capsys, monkeypatch):
    """Return a function that calls the program as its entry point does."""

    def program(*arguments: str) -> Call:
        monkeypatch.setattr(sys, "argv", ["parallelrun", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Call(ended.value.code, *capsys.readouterr())

    return program


# -- which run is meant --------------------------------------------------------------------


def test_names_of_a_run(ran, monkeypatch, folder):
    """A run is named by folder, id, beginning of one, step with id, or its step for the newest (R242)."""
    monkeypatch.chdir(ran.root.parent)
    names = ["score-files", ran.root.name, ran.root.name[:15], f"score-files/{ran.root.name}"]
    for name in [*names, str(ran.root), f"./{ran.root.name}"]:
        assert settings.run_paths(name).root == ran.root, name


def test_names_that_mean_no_run_or_several(a_copy, call):
    """Nobody has to guess: what comes near is listed, and so are all that a beginning may mean."""
    other = a_copy.root.with_name(a_copy.root.name[:-4] + "zzzz")
    shutil.copytree(a_copy.root, other)

    near = call("status", "score-fils")
    several = call("status", a_copy.root.name[:-4])
    far = call("status", "x")

    assert (near.code, near.stdout) == (2, "")
    assert near.stderr.endswith("Did you mean score-files?\n")
    assert "may be any of 2 runs: " in several.stderr
    assert f"score-files/{other.name}" in several.stderr
    assert f"The newest runs: score-files/{other.name}" in far.stderr
    assert settings.run_paths("score-files").root == other


@pytest.mark.parametrize("name", ["~nobody-of-that-name", "x" * 300, "a/" + "x" * 300, "", "."])
def test_what_can_be_no_name(name, call):
    """A home of nobody, or a name that is too long for a file: it is a sentence, not a stack trace."""
    refused = call("status", name)

    assert (refused.code, refused.stdout) == (2, "")
    assert "is no run folder" in refused.stderr


# -- status --------------------------------------------------------------------------------


def test_status(ran, call):
    """It says what became of everything, what went wrong, and where to look (R208, R242)."""
    told = call("status", "score-files")

    assert told.code == 3
    for line in (
        f"run           {ran.root.name}",
        "state         Completed with 1 failed item",
        "items         in 3 = out 2 + failed 1 (items)",
        "reuse         nothing reused: a test",
        "newest error  ValueError: bad file (score.py:7 in run)",
        f"output        {ran.output / 'parallel_run_step.txt'}",
        f"failed items  {ran.failed_items}",
        f"logs          {ran.logs}",
    ):
        assert line in told.stdout, line


def test_status_for_machines(ran, call):
    """One JSON document, whose counts are those of the run."""
    told = call("status", "score-files", "--json")
    found = json.loads(told.stdout)

    assert told.code == 3
    assert (found["state"], found["going_on"]) == ("Completed with 1 failed item", False)
    assert (found["items"]["succeeded"], found["items"]["failed"]) == (2, 1)
    assert [node["node"] for node in found["nodes"]] == ["node000"]
    assert found["newest_error"]["type"] == "ValueError"
    assert found["run_folder"] == str(ran.root)
    assert found["ended_at"] > found["started_at"]


def test_status_writes_nothing(a_copy, call, monkeypatch):
    """A run folder that cannot be written is looked at all the same, and stays as it is."""
    monkeypatch.setattr(schema.os, "access", lambda *_: False)
    before = {path: path.stat().st_mtime_ns for path in a_copy.root.rglob("*")}

    assert call("status", "score-files").code == 3

    assert {path: path.stat().st_mtime_ns for path in a_copy.root.rglob("*")} == before


def test_states_as_they_are(a_copy, call):
    """A run whose record says Running goes on only if its driver lives; else it was interrupted."""
    record = RunRecord.read(a_copy)
    record.model_copy(update={"state": RUNNING}).write(a_copy)
    gone = call("status", "score-files", "--json")
    with RunLock(a_copy):
        lives = call("status", "score-files", "--json")
        a_copy.record.unlink()
        starting = call("status", "score-files", "--json")
    record.model_copy(update={"state": "Failed"}).write(a_copy)
    failed = call("status", "score-files", "--json")

    assert (gone.code, json.loads(gone.stdout)["state"]) == (1, "Interrupted")
    assert "the next run of the step goes on with it" in json.loads(gone.stdout)["again"]
    assert json.loads(failed.stdout)["again"] is None
    assert (lives.code, json.loads(lives.stdout)["state"]) == (4, "Running")
    assert f"process {os.getpid()} on" in json.loads(lives.stdout)["driver"]
    assert (starting.code, json.loads(starting.stdout)["state"]) == (4, "Starting")
    assert (failed.code, json.loads(failed.stdout)["state"]) == (1, "Failed")


def test_how_to_go_on_with_an_interrupted_run(a_copy, call):
    """What no step takes for its own, only `resume` goes on with; where nothing was planned, nothing can."""
    record = RunRecord.read(a_copy)
    changes = {"state": RUNNING, "fingerprint": ""}
    record.model_copy(update=changes).write(a_copy)
    of_two_scripts = call("status", "score-files")
    record.model_copy(update={**changes, "grouping": ""}).write(a_copy)
    unplanned = call("status", "score-files")

    again = f"`parallelrun resume {a_copy.root.name} --with-current-script` goes on with it"
    assert again in of_two_scripts.stdout
    assert "before anything ran: run the step again" in unplanned.stdout


@pytest.mark.parametrize("content", ["", "[]", '{"standing": {"planned": 3}}', "\\xff"])
def test_progress_that_cannot_be_read(a_copy, call, content):
    """What is only shown does not hide the rest."""
    a_copy.progress.write_text(content)

    found = json.loads(call("status", "score-files", "--json").stdout)

    assert found["standing"] is None
    assert found["items"]["succeeded"] == 2


# -- errors --------------------------------------------------------------------------------


def test_errors(ran, call):
    """Each distinct error once: how often, where first, the stack trace, what to open (R209)."""
    told = call("errors", "score-files")

    assert told.code == 1
    assert (
        "1 distinct error: ValueError × 1 (first at score.py:7 in run, mini-batch 1)" in told.stdout
    )
    assert 'raise ValueError("bad file")' in told.stdout
    assert "b.txt" in told.stdout
    assert f"stack trace in: {ran.logs / 'user' / 'error' / 'node000'}" in told.stdout
    assert f"1 item failed: {ran.failed_items}" in told.stdout

    found = json.loads(call("errors", "score-files", "--json").stdout)
    (error,) = found["errors"]
    assert (error["type"], error["count"], error["first_mini_batch"]) == ("ValueError", 1, 1)
    assert Path(error["log_file"]).exists()
    assert (found["failed_items"], found["failed_items_file"]) == (1, str(ran.failed_items))


def test_errors_of_init(tmp_path, monkeypatch, call):
    """What fails before any mini-batch is known after the run, though no attempt had it (R89, R209)."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))
    script = "def init():\n    raise KeyError('no model')\n\ndef run(mini_batch):\n    return []\n"
    with pytest.raises(ParallelRunError):
        run_once(tmp_path, script)

    told = call("errors", "score-files")

    assert told.code == 1
    assert "KeyError" in told.stdout
    assert "outside of any mini-batch" in told.stdout
    assert "raise KeyError('no model')" in told.stdout
    # The report that is made anew shows them as the one at the end of the run does (R241).
    told = call("report", "score-files")
    page = Path(told.stdout.strip()).read_text(encoding="utf-8")
    assert "Distinct errors" in page
    assert "outside of any mini-batch" in page


def test_an_error_without_a_place(tmp_path, monkeypatch, call):
    """Nobody knows where in the script a process died, so nothing is said of it (R209)."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))
    # One of them only: which of several fails first, is up to the processes.
    deadly = "import os\n\ndef run(mini_batch):\n    'a.txt' in mini_batch[0] and os._exit(3)\n"
    run_once(tmp_path, deadly + "    return mini_batch\n")

    told = call("status", "score-files").stdout
    (line,) = [line for line in told.splitlines() if line.startswith("newest error")]
    assert "ProcessDied: " in line
    assert not line.endswith("()")
    assert "(first in mini-batch 0)" in call("errors", "score-files").stdout


def test_no_errors(tmp_path, monkeypatch, call):
    """It says so, and exits with 0."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))
    paths = run_once(tmp_path, "def run(mini_batch):\n    return mini_batch\n")

    told = call("errors", "score-files")

    assert (told.code, told.stdout) == (0, f"no errors in run {paths.root.name} (Completed)\n")
    assert call("status", "score-files").code == 0


# -- plan and explain ----------------------------------------------------------------------


def test_plan(folder, call):
    """How many mini-batches, items, bytes and processes; the largest; what is reused (R210)."""
    told = call("plan", folder / "step.yaml", "--list", "2")

    assert told.code == 0, told.stderr
    for line in (
        "mini-batches  3",
        "files         3",
        "to read       3.0 KB",
        "processes     2 on 1 node",
        f"  2: 2.9 KB, 1 item: {folder / 'data' / 'c.txt'}",
        f"  1: 20 bytes, 1 item: {folder / 'data' / 'b.txt'}",
    ):
        assert line in told.stdout, line
    assert "a.txt" not in told.stdout
    assert "8 bytes to 16 bytes  1" in told.stdout


def test_plan_with_an_odd_file_name(tmp_path, call, monkeypatch):
    """A line of the plan stays one, whatever a file is called."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))
    (tmp_path / "scripts").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "scripts" / "score.py").write_text("def run(mini_batch):\n    return mini_batch\n")
    (tmp_path / "data" / "two\nlines\t.txt").write_text("x")
    (tmp_path / "step.yaml").write_text(STEP)

    told = call("plan", tmp_path / "step.yaml")

    assert f"  0: 1 byte, 1 item: {tmp_path}/data/two\\nlines\\t.txt\n" in told.stdout
    none = call("plan", tmp_path / "step.yaml", "--list", "0")
    assert "mini-batches  1\n" in none.stdout
    assert "to read       1 byte\n" in none.stdout


def test_plan_for_machines(folder, call):
    """Also of a run; `--time` runs mini-batches here, and what the script prints is no part of it."""
    told = call("plan", "score-files", "--json", "--list", "1")
    found = json.loads(told.stdout)

    assert (found["mini_batches"], found["items"], found["bytes"]) == (3, 3, 3_030)
    assert sum(one["mini_batches"] for one in found["sizes"]) == 3
    assert [one["mini_batch"] for one in found["largest"]] == [2]
    assert found["reuse"]["mini_batches"] == 2
    assert found["projection"] is None


def test_plan_with_time(tmp_path, call, monkeypatch):
    """So many mini-batches are run in this process, and the time of the others is projected (R242)."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))
    (tmp_path / "scripts").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "scripts" / "score.py").write_text(
        "import time\n\ndef init():\n    print('init')\n\n"
        "def run(mini_batch):\n    time.sleep(0.05)\n    print(mini_batch[0])\n    return mini_batch\n"
    )
    for number in range(12):
        (tmp_path / "data" / f"{number:02}.txt").write_text("x")
    (tmp_path / "step.yaml").write_text(STEP)

    told = call("plan", tmp_path / "step.yaml", "--time", "3", "--json")
    found = json.loads(told.stdout)["projection"]

    assert [Path(line).stem for line in told.stderr.split()] == ["init", "00", "04", "08"]
    assert (found["timed"], found["processes"], found["mini_batches"]) == (3, 2, 12)
    assert 0.05 <= found["least_s"] <= found["mean_s"] <= found["most_s"] < 5
    assert found["total_s"] == pytest.approx(found["start_s"] + found["mean_s"] * 6)
    assert "about " in call("plan", tmp_path / "step.yaml", "--time", "1").stdout


def test_plan_with_time_of_a_script_that_fails(folder, call):
    """What it raised is shown as in `debug`, without our own frames, and there is no projection (R206)."""
    told = call("plan", folder / "step.yaml", "--time", "3")

    assert (told.code, told.stdout) == (1, "")
    assert "ValueError: bad file" in told.stderr
    assert "inline.py" not in told.stderr


def test_explain(folder, ran, call):
    """By a run, and by a step file: which run is gone on with, and what of it runs again (R210)."""
    by_run = call("explain", "score-files")
    by_file = call("explain", folder / "step.yaml", "--json")

    assert f"run {ran.root.name} (Completed with 1 failed item) is gone on with" in by_run.stdout
    assert "1 failed last time and run again (1): ValueError: bad file" in by_run.stdout
    found = json.loads(by_file.stdout)
    assert (found["run_id"], found["whole"], found["mini_batches"]) == (ran.root.name, False, 2)


def test_the_same_in_python(folder, ran):
    """`step.plan()` has counts, sizes, mini-batches and what is reused; `step.explain()` the last alone."""
    step = load_step(folder / "step.yaml")

    plan = step.plan()

    assert (len(plan), plan.items, plan.size) == (3, 3, 3_030)
    assert [one.size for one in plan] == [10, 20, 3_000]
    assert [one.index for one in plan.outline(largest=1).largest] == [2]
    assert plan.reuse == step.explain()
    assert (plan.reuse.run_id, plan.reuse.mini_batches) == (ran.root.name, 2)


def test_explain_of_a_step_without_reuse(folder, call):
    """`allow_reuse: false` in the step file is a reason."""
    (folder / "afresh.yaml").write_text(f"{STEP}allow_reuse: false\n")

    told = call("explain", folder / "afresh.yaml")

    assert (told.code, told.stdout) == (0, "nothing reused: allow_reuse=False\n")


# -- verify, report, clean -----------------------------------------------------------------


def test_verify_for_machines(a_copy, call):
    """Findings and the closing line as data (R208)."""
    record = RunRecord.read(a_copy)
    good = call("verify", a_copy.root, "--json")
    Path(record.output, "parallel_run_step.txt").write_text("other")
    bad = call("verify", a_copy.root, "--json")

    closing = "in 3 = out 2 + failed 1 (items)"
    assert (good.code, json.loads(good.stdout)) == (0, {"findings": [], "closing": closing})
    assert bad.code == 1
    assert "differs from the rows of the run" in json.loads(bad.stdout)["findings"][0]


def test_report(a_copy, call, monkeypatch):
    """It is made anew, and opened where that is asked for (R241)."""
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    a_copy.report.unlink(missing_ok=True)

    told = call("report", "score-files", "--open")

    assert (told.code, told.stdout) == (0, f"{a_copy.report}\n")
    assert "<html" in a_copy.report.read_text()
    assert opened == [a_copy.report.as_uri()]
    found = json.loads(call("report", "score-files", "--json").stdout)
    assert found == {"run": a_copy.root.name, "report": str(a_copy.report)}


def test_a_report_that_cannot_be_written(a_copy, call, monkeypatch):
    """Why is said in a sentence."""
    monkeypatch.setattr("prefect_parallelrun.report.report_again.write_report", _read_only)

    refused = call("report", "score-files")

    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"the report {a_copy.report} cannot be written: ")


def _read_only(paths, data):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(paths.report))


def test_clean(a_copy, call):
    """It says what is removed and why the rest stays; a dry run removes nothing."""
    old = a_copy.root.with_name("20200101T000000000-aaaaaaaa-0000")
    shutil.copytree(a_copy.root, old)

    dry = call("clean", "--keep", "0", "--dry-run")
    assert f"score-files/{a_copy.root.name}" in dry.stdout
    assert "kept, the newest completed run of its step" in dry.stdout
    assert "1 of 2 run folders would be removed" in dry.stdout
    assert old.exists()

    told = call("clean", "score-files", "--keep", "0", "--json")
    found = json.loads(told.stdout)
    assert told.code == 0
    assert [one["folder"] for one in found["removed"]] == [str(old)]
    assert found["bytes"] > 0
    assert not old.exists()
    assert a_copy.root.exists()


@pytest.mark.parametrize("text", ["3", "3x", "-3d", "d"])
def test_an_age_that_cannot_be_read(call, text):
    """What would be right is said."""
    refused = call("clean", f"--older-than={text}")

    assert refused.code == 2
    assert "give minutes, hours, days or weeks: 90m, 36h, 30d, 8w" in refused.stderr


@pytest.mark.parametrize("text", ["99999999999999d", "9" * 5_000 + "w"])
def test_an_age_beyond_all_bounds(call, text):
    """It is refused like every other that cannot be used."""
    refused = call("clean", "--older-than", text)

    assert refused.code == 2
    assert "no run is that old" in refused.stderr


@pytest.mark.parametrize(
    "command", ["plan", "status", "errors", "report", "verify", "explain", "clean"]
)
def test_help_teaches(call, command):
    """Each command's help has an example that begins as one types it."""
    told = call(command, "--help")

    assert told.code == 0
    assert f"parallelrun {command} " in told.stdout
