from __future__ import annotations

import csv
import errno
import re
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from prefect_parallelrun.errors import (
    DatasetError,
    ErrorThresholdExceeded,
    InitFailed,
    OutputError,
    ParallelRunError,
)
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import job_report, readme
from prefect_parallelrun.run_record import RunRecord

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
QUIET = """
    def run(mini_batch):
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
ONLY_OF_SOME_RUNS = {
    "logs/sys/error/driver.txt",
    "logs/sys/error/<node>.txt",
    "logs/sys/environment/<node>.txt",
}


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
    assert left_out == ONLY_OF_SOME_RUNS
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


def test_a_run_that_init_ended_quotes_the_error_of_init(run, files):
    """However the mini-batches before it failed, the reason is shown by its own error (R206)."""
    folder = files.parent / "run"
    marks = files.parent / "marks"
    marks.mkdir()
    script = f"""
        import os, pathlib

        def first(name):
            try:
                pathlib.Path({str(marks)!r}, name).touch(exist_ok=False)
                return True
            except FileExistsError:
                return False

        def init():
            if not (first("init0") or first("init1")):
                raise OSError("licence server gone")

        def run(mini_batch):
            if first("run"):
                raise ValueError("no")
            os._exit(3)
    """

    with pytest.raises(InitFailed) as caught:
        run(script, files, mini_batch_size=1, run_max_try=1, error_threshold=-1, run_folder=folder)

    cause, quoted, *_ = str(caught.value).split("\n\n")
    assert "init() failed" in cause
    assert quoted.startswith("OSError: licence server gone")
    counts = [int(line.rpartition(" × ")[2]) for line in caught.value.first_errors]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 3
    assert quoted in RunPaths(folder).job_result.read_text()


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        (KeyboardInterrupt(), "Ctrl-C or SIGINT"),
        (SystemExit(143), "SIGTERM"),
        (SystemExit("enough"), "SystemExit"),
    ],
)
def test_job_result_of_a_run_that_was_stopped(run, files, ending, cause):
    """Whoever stops it is the cause; there is no error of ours (R80, R85)."""
    folder = files.parent / "run"

    def watch() -> None:
        if folder.joinpath("logs", "user").exists():
            raise ending

    with pytest.raises(type(ending)):
        run("def run(mini_batch): return mini_batch", files, run_folder=folder, watch=watch)

    paths = RunPaths(folder)
    text = paths.job_result.read_text()
    assert text.startswith("result: Cancelled\n")
    assert f"the run was stopped from outside ({cause})" in text
    assert re.search(
        rf"Cancelled \({re.escape(cause)}\)\.( \d.*)?$", paths.driver_log.read_text(), re.MULTILINE
    )
    assert "Traceback" not in text
    assert not paths.driver_error.exists()


def test_processes_of_a_run_that_was_stopped_did_not_stop_by_themselves(run, files):
    """What was killed in the middle of run() is `cancelled`, in the job report and in its log (R61, R120)."""
    folder = files.parent / "run"
    started = files.parent / "started"

    def watch() -> None:
        if started.exists():
            raise KeyboardInterrupt

    script = f"""
        import time
        def run(mini_batch):
            open({str(started)!r}, "w").close()
            time.sleep(60)
    """
    with pytest.raises(KeyboardInterrupt):
        run(script, files, run_folder=folder, watch=watch, process_count_per_node=1)

    paths = RunPaths(folder)
    (process,) = rows(paths.process_summary)
    assert process["End Reason"] == "cancelled"
    log = Path(paths.node_files("node000")["process_log"].format(process="process000")).read_text()
    assert re.search(r"mini-batch 0, attempt 1 \| cancelled \|.*\n.* \| ended \| cancelled\n$", log)


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


@pytest.mark.parametrize("lost", ["error_summary", "failed_items", "process_errors", "job_result"])
def test_a_fault_in_the_reports_does_not_hide_why_a_run_failed(run, files, caplog, lost):
    """The reason is raised, and the other reports and the state are written (R80, R85, R206)."""
    folder = files.parent / "run"
    paths = RunPaths(folder)
    obstacle = getattr(paths, lost)
    (obstacle / "x").mkdir(parents=True)

    with pytest.raises(ErrorThresholdExceeded, match="error_threshold=0"):
        run(QUIET, files, mini_batch_size=1, run_max_try=1, error_threshold=0, run_folder=folder)

    assert RunRecord.read(paths).state == "Failed"
    assert "IsADirectoryError" in paths.driver_error.read_text()
    told = [text for text in caplog.messages if " could not be written: " in text]
    assert len(told) == 1
    assert paths.report.is_file()
    assert paths.processed_mini_batches.is_file()
    if obstacle != paths.job_result:
        text = paths.job_result.read_text()
        assert text.startswith("result: Failed\n")
        assert f"not written: {told[0].partition(' could not be written')[0]}: [Errno 21]" in text
        assert "ValueError: no three" in text
        assert f": {obstacle}\n" not in text.partition("\n\n")[0]


@pytest.mark.parametrize("lost", ["error_summary", "failed_items", "process_errors", "job_result"])
def test_a_file_for_people_that_cannot_be_written_fails_no_run(run, files, caplog, lost):
    """What is published is published: the run completes, and the log says what it lacks (R85)."""
    folder = files.parent / "run"
    paths = RunPaths(folder)
    (getattr(paths, lost) / "x").mkdir(parents=True)

    result = run(
        "def run(mini_batch): return mini_batch", files, mini_batch_size=1, run_folder=folder
    )

    assert result.state == RunRecord.read(paths).state == "Completed"
    assert result.report == str(paths.report)
    assert len([text for text in caplog.messages if " could not be written: " in text]) == 1


def test_a_run_whose_end_cannot_be_written_down_says_how_to_go_on(run, files, monkeypatch):
    """Without its state the next run would not know of it; what is published stays (R206)."""
    write = RunRecord.write

    def full(record, paths):
        if record.state != "Running":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(record, paths)

    monkeypatch.setattr(RunRecord, "write", full)
    folder = files.parent / "run"

    with pytest.raises(OutputError, match="Free some space and run the step again"):
        run("def run(mini_batch): return mini_batch", files, run_folder=folder)

    assert len((RunPaths(folder).output / "parallel_run_step.txt").read_text().splitlines()) == 6
    assert RunPaths(folder).job_result.read_text().startswith("result: Failed\n")


def test_a_full_disk_after_publication_costs_files_for_people_only(run, files, capfd):
    """Each file is given up on its own, and nothing is left half written (R85, R206)."""
    folder = files.parent / "run"
    paths = RunPaths(folder)
    files_for_people = paths.error_summary, paths.failed_items, paths.job_result
    for path in files_for_people:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").symlink_to("/dev/full")

    result = run(
        QUIET, files, mini_batch_size=1, run_max_try=1, error_threshold=-1, run_folder=folder
    )

    assert result.state == RunRecord.read(paths).state == "Completed with 1 failed item"
    for path in files_for_people:
        assert not path.exists()
        assert not path.with_suffix(".tmp").is_symlink()
    with pytest.raises(DatasetError, match="could not be written"):
        result.failed_items()
    assert "Logging error" not in capfd.readouterr().err


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


@pytest.mark.parametrize("lost", ["user", "user/error", "sys"])
def test_a_log_folder_that_cannot_be_written_fails_no_run(run, files, tmp_path, caplog, lost):
    """What was to be in it is lost; the log says so, once for each node, and the run goes on (R207)."""
    folder = tmp_path / "run"
    obstacle = folder / "logs" / lost
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("no folder")

    result = run(
        QUIET, files, run_folder=folder, mini_batch_size=1, run_max_try=1, error_threshold=-1
    )

    assert (result.items.succeeded, result.items.failed) == (5, 1)
    said = [record for record in caplog.records if "log files are lost" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING"]
    assert f"{obstacle}" in said[0].getMessage()
