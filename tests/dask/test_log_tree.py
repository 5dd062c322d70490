from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from prefect_parallelrun.errors import ErrorThresholdExceeded, InitFailed, ParallelRunError
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import job_report, readme

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "logs.md"

SCRIPT = """
    import logging, os, pathlib, sys
    from azureml_user.parallel_run import EntryScript

    def init():
        logging.warning("init")
        EntryScript().logger.info("ready")
        pathlib.Path(EntryScript().log_dir, "mine").mkdir(exist_ok=True)

    def run(mini_batch):
        print("x" * 5_000_000)
        os.system("echo child >&2")
        if any(path.endswith("/3.txt") for path in mini_batch):
            raise ValueError("no three")
        return mini_batch
"""
PLACES = {
    "<node>": r"node\d{3}",
    "<process>": r"process\d{3}",
    "<yyyymmddhh>": r"\d{10}",
    "<mm>": r"\d\d",
}
ONLY_OF_TROUBLE = {"logs/sys/error/driver.txt", "logs/sys/error/<node>.txt"}


def pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name)
    for place, meaning in PLACES.items():
        text = text.replace(place, meaning)
    return re.compile(text)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(str(number))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_of_the_log_tree_is_described(run, files):
    """What a run leaves is in its readme.txt and in the reference, and what these name is there (R53-R120)."""
    result = run(
        SCRIPT,
        files,
        mini_batch_size=1,
        run_max_try=1,
        error_threshold=-1,
        arguments=["--resource_monitor_interval", "1", "--profiling_module", "cProfile"],
    )

    paths = RunPaths(Path(result.run_directory))
    names = [entry.name for entry in readme.entries(paths)]
    found = [
        path.relative_to(paths.root).as_posix() for path in paths.logs.rglob("*") if path.is_file()
    ]
    assert [
        name for name in found if not any(pattern(each).fullmatch(name) for each in names)
    ] == []
    left_out = {name for name in names if not any(map(pattern(name).fullmatch, found))}
    assert left_out == ONLY_OF_TROUBLE
    told, reference = paths.readme.read_text(), REFERENCE.read_text()
    assert [name for name in names if f"\n{name}\n" not in told] == []
    assert [name for name in names if f"`{name}`" not in reference] == []


def test_the_columns_of_the_job_report_are_in_the_reference():
    """Whoever reads a table finds each column explained (R120)."""
    reference = REFERENCE.read_text()

    columns = {*job_report.ATTEMPT_COLUMNS, *job_report.PROCESS_COLUMNS, *job_report.NODE_COLUMNS}
    assert sorted(column for column in columns if f"`{column}`" not in reference) == []


def test_a_healthy_run_knows_when_everything_began_and_ended(run, files):
    """Node and processes have a start and an end, told by themselves, and a figure for init() (R120)."""
    result = run(
        """
        import time

        def init():
            time.sleep(0.3)

        def run(mini_batch):
            return mini_batch

        def shutdown():
            time.sleep(0.2)
        """,
        files,
        mini_batch_size=1,
    )

    paths = RunPaths(Path(result.run_directory))
    (node,) = rows(paths.node_summary)
    assert (node["Processes At Once"], node["Attempts"], node["Leave Reason"]) == ("2", "6", "")
    assert node["Host"]
    assert node["Address"]
    joined, left = map(datetime.fromisoformat, (node["Join Time"], node["Leave Time"]))
    processes = rows(paths.process_summary)
    assert sum(int(process["Attempts"]) for process in processes) == 6
    with Journal(paths.journal) as journal:
        heard = journal.processes()
    for process, record in zip(processes, heard, strict=True):
        assert process["End Reason"] == "stopped"
        assert record.ended_at is not None
        assert record.ended_at < left.timestamp(), "the node tells it, not the end of the sitting"
        if record.ready_at is not None:
            assert 0.2 < float(process["Init Seconds"]) < record.ready_at - record.started_at
    assert joined < left
    assert all(process["Process Id"] for process in processes)


def test_a_process_that_died_says_of_what(run, files):
    """process_summary.csv has each process with its end; the replacement has the next name (R92, R120)."""
    result = run(
        """
        import os, signal

        def run(mini_batch):
            if any(path.endswith("/3.txt") for path in mini_batch):
                os.kill(os.getpid(), signal.SIGSEGV)
            return mini_batch
        """,
        files,
        mini_batch_size=1,
        run_max_try=1,
        error_threshold=-1,
        process_count_per_node=1,
    )

    paths = RunPaths(Path(result.run_directory))
    first, second = rows(paths.process_summary)
    assert (first["Process"], first["End Reason"], first["Failed Attempts"]) == (
        "process000",
        "signal",
        "1",
    )
    assert (second["Process"], second["End Reason"]) == ("process001", "stopped")
    assert second["Start Time"] >= first["End Time"]


def test_a_sitting_after_another_reports_on_both(run, files):
    """The tables cover all sittings, and so do the logs: the second has the next node (R92, R120, R201)."""
    with pytest.raises(ParallelRunError):
        run(SCRIPT, files, mini_batch_size=1, run_max_try=1, run_folder=files.parent / "run")
    result = run(
        "def run(mini_batch): return mini_batch",
        files,
        mini_batch_size=1,
        run_folder=files.parent / "run",
    )

    paths = RunPaths(Path(result.run_directory))
    assert [row["Node"] for row in rows(paths.node_summary)] == ["node000", "node001"]
    attempts = rows(paths.processed_mini_batches)
    assert [row["Status"] for row in attempts].count("failed") == 1
    assert {row["Mini-batch Id"] for row in attempts} == {str(number) for number in range(6)}
    assert len(attempts) == 7


@pytest.mark.parametrize(
    ("script", "settings", "error", "state", "causes"),
    [
        pytest.param(
            "def run(mini_batch): return mini_batch", {}, None, "Completed", [], id="completed"
        ),
        pytest.param(
            SCRIPT,
            {"error_threshold": -1},
            None,
            "Completed with 1 failed item",
            ["errors of the script, each once: {error_summary}", "failed items: {failed_items}"],
            id="with failed items",
        ),
        pytest.param(
            SCRIPT,
            {"error_threshold": 0},
            ErrorThresholdExceeded,
            "Failed",
            ["error_threshold=0", "ValueError: no three", "errors of the script, each once:"],
            id="failed by a threshold",
        ),
        pytest.param(
            "def init(): raise OSError('no model')\ndef run(mini_batch): return mini_batch",
            {},
            InitFailed,
            "Failed",
            ["init() failed", "OSError: no model", "stack trace in:"],
            id="init failed",
        ),
    ],
)
def test_job_result_names_the_cause_and_what_to_open(
    run, files, script, settings, error, state, causes
):
    """However a run ends, job_result.txt says how, why, and which files tell more (R85)."""
    folder = files.parent / "run"
    keywords = {"mini_batch_size": 1, "run_max_try": 1, "run_folder": folder, **settings}
    if error is None:
        run(script, files, **keywords)
    else:
        with pytest.raises(error):
            run(script, files, **keywords)

    paths = RunPaths(folder)
    text = paths.job_result.read_text()
    assert text.startswith(f"result: {state}\n")
    for cause in causes:
        assert (
            cause.format(error_summary=paths.error_summary, failed_items=paths.failed_items) in text
        )
    for named in re.findall(r"^[^\n:]+: (/\S+)$", text, re.MULTILINE):
        assert Path(named).exists()
    for path in (paths.driver_log, paths.report, paths.readme, *paths.progress_overviews()):
        assert f": {path}\n" in text
    assert str(paths.driver_error) not in text


def test_job_result_of_a_run_that_was_stopped(run, files):
    """Whoever stops it is the cause; there is no error of ours (R80, R85)."""
    folder = files.parent / "run"

    def watch() -> None:
        if folder.joinpath("logs", "user").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("def run(mini_batch): return mini_batch", files, run_folder=folder, watch=watch)

    paths = RunPaths(folder)
    text = paths.job_result.read_text()
    assert text.startswith("result: Cancelled\n")
    assert "the run was stopped from outside (KeyboardInterrupt)" in text
    assert "Traceback" not in text
    assert not paths.driver_error.exists()


def test_an_exception_of_the_driver_is_written_down(run, files):
    """Its stack trace is in sys/error/driver.txt, and job_result.txt names that file (R80, R85)."""
    folder = files.parent / "run"

    def watch() -> None:
        if folder.joinpath("logs", "user").exists():
            raise ZeroDivisionError("a fault of ours")

    with pytest.raises(ZeroDivisionError):
        run("def run(mini_batch): return mini_batch", files, run_folder=folder, watch=watch)

    paths = RunPaths(folder)
    written = paths.driver_error.read_text()
    assert "ERROR The driver failed: ZeroDivisionError: a fault of ours\nTraceback" in written
    text = paths.job_result.read_text()
    assert text.startswith("result: Failed\n")
    assert f"errors of prefect-parallelrun itself: {paths.driver_error}\n" in text
    assert f"ZeroDivisionError: a fault of ours\nits stack trace: {paths.driver_error}\n" in text


def test_a_report_that_cannot_be_written_fails_no_run(run, files, caplog):
    """It is a warning; the stack trace is in sys/error, and job_result.txt names that (R80, R85)."""
    folder = files.parent / "run"
    paths = RunPaths(folder)
    paths.process_summary.mkdir(parents=True)  # so that no file can take its place
    paths.readme.mkdir()

    result = run("def run(mini_batch): return mini_batch", files, run_folder=folder)

    assert result.state == "Completed"
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition(" could not be written: ")[0] for text in told] == [
        str(paths.readme),
        "The job report",
    ]
    assert told[1].endswith(f"\nstack trace: {paths.driver_error}")
    assert "Traceback (most recent call last)" in paths.driver_error.read_text()
    text = paths.job_result.read_text()
    assert f"errors of prefect-parallelrun itself: {paths.driver_error}\n" in text
    assert not list(paths.process_summary.parent.glob("*.tmp"))


def test_a_fault_in_the_reports_does_not_hide_why_a_run_failed(run, files, caplog):
    """The reason is raised all the same; the fault has its stack trace in sys/error (R80, R206)."""
    folder = files.parent / "run"
    paths = RunPaths(folder)
    paths.error_summary.mkdir(parents=True)

    with pytest.raises(ErrorThresholdExceeded, match="error_threshold=0"):
        run(SCRIPT, files, mini_batch_size=1, run_max_try=1, error_threshold=0, run_folder=folder)

    assert "The reports of the run could not be written: " in caplog.text
    assert "IsADirectoryError" in paths.driver_error.read_text()


KILLED = """
import logging, os, signal, sys
from pathlib import Path
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import run_step
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths

source, data, folder = sys.argv[1:]
paths = RunPaths(Path(folder))

def watch():
    if paths.journal.exists():
        with Journal(paths.journal) as journal:
            if any(record.error for record in journal.attempts()) and journal.processes():
                os.kill(os.getpid(), signal.SIGKILL)

config = ParallelRunConfig(
    "score.py", source_directory=source, process_count_per_node=2, mini_batch_size=1, run_max_try=2
)
run_step(
    StepDefinition(name="test-step", config=config, inputs=(FileDataset.from_files(data),)),
    run_folder=paths.root, run_id=paths.root.name, log=logging.getLogger(), watch=watch,
)
"""


def test_the_next_sitting_writes_the_job_report_of_a_driver_that_was_killed(run, files):
    """What it had journalled of attempts, processes and its node is in the tables (R120, R200, R201)."""
    source, paths = files.parent / "source", RunPaths(files.parent / "run")
    source.mkdir()
    (source / "score.py").write_text(
        "import time\n"
        "def run(mini_batch):\n"
        "    if mini_batch[0].endswith('/0.txt'): raise ValueError('no zero')\n"
        "    time.sleep(600)\n"
    )
    program = [sys.executable, "-c", KILLED, str(source), str(files), str(paths.root)]
    killed = subprocess.run(program, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not paths.processed_mini_batches.exists()
    assert not paths.job_result.exists()

    run(
        "def run(mini_batch): return mini_batch",
        files,
        mini_batch_size=1,
        run_folder=paths.root,
    )

    first, *rest = rows(paths.processed_mini_batches)
    assert (first["Node"], first["Error Message"]) == ("node000", "ValueError: no zero")
    assert {row["Node"] for row in rest[-6:]} == {"node001"}
    before, after = rows(paths.node_summary)
    assert (before["Processes At Once"], before["Leave Time"]) == ("2", "")
    assert after["Leave Time"]
    of_killed = [row for row in rows(paths.process_summary) if row["Node"] == "node000"]
    assert of_killed[0]["Process Id"]
    assert of_killed[0]["End Time"] == ""
