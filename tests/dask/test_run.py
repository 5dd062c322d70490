"""The main job through the real path: planning, driver, Dask, agent, supervisor, worker processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pandas as pd
import psutil
import pytest

from prefect_parallelrun.datasets import FileDataset, TabularDataset
from prefect_parallelrun.errors import (
    EntryScriptError,
    ErrorThresholdExceeded,
    InitFailed,
    NoProgress,
    ParallelRunError,
)
from tests.dask.conftest import lines

DOUBLE = """
    from pathlib import Path

    def run(mini_batch):
        return [f"{Path(p).stem} {2 * int(Path(p).read_text())}" for p in mini_batch]
"""
EXPECTED = [f"{n:02d} {2 * n}" for n in range(100)]


def test_every_item_is_in_the_output_once_and_in_input_order(run, numbers):
    """R11, R21, R28, R208, R220: 100 files in mini-batches of 7: one row each, in order."""
    result = run(DOUBLE, numbers, mini_batch_size=7, node_count=2)

    assert lines(result) == EXPECTED
    assert (result.mini_batches.total, result.mini_batches.succeeded) == (15, 15)
    assert (result.items.total, result.items.succeeded, result.items.failed) == (100, 100, 0)
    assert result.attempts == 15
    assert (
        "in 100 = out 100 + failed 0" in Path(result.logs_directory, "job_result.txt").read_text()
    )


def test_the_same_input_gives_the_same_bytes_whatever_the_number_of_processes(run, numbers):
    """R220: 1 process, 2 nodes of 1, and 4 processes: identical bytes."""
    outputs = {
        Path(run(DOUBLE, numbers, mini_batch_size=1, **many).append_row_file).read_bytes()
        for many in (
            {"process_count_per_node": 1},
            {"process_count_per_node": 1, "node_count": 2},
            {"process_count_per_node": 4},
        )
    }

    assert outputs == {"".join(f"{row}\n" for row in EXPECTED).encode()}


def test_an_output_of_an_earlier_run_is_replaced_and_nothing_else_is_left_there(
    run, numbers, tmp_path
):
    """R28, R29, R50: one file of the name asked for, whole."""
    folder = tmp_path / "out"
    for _ in range(2):
        run(DOUBLE, numbers, output=folder, append_row_file_name="doubled.txt")

    assert [p.name for p in folder.iterdir()] == ["doubled.txt"]
    assert (folder / "doubled.txt").read_text().splitlines() == EXPECTED


def test_summary_only_leaves_the_output_to_the_script(run, numbers):
    """R12, R13, R107: nothing that run() returns is written; its elements count."""
    result = run(
        """
        import os
        from pathlib import Path

        def run(mini_batch):
            for p in mini_batch:
                Path(os.environ["AZUREML_BI_OUTPUT_PATH"], Path(p).name).write_text("seen")
            return mini_batch
        """,
        numbers,
        output_action="summary_only",
    )

    assert result.append_row_file is None
    assert result.items.succeeded == 100
    assert len(list(Path(result.output).iterdir())) == 100


def test_a_bad_item_is_retried_then_tolerated_and_named(run, numbers):
    """R26, R38, R59, R60: three attempts; the others' rows are kept; error.txt says where to look."""
    result = run(
        """
        from pathlib import Path

        def run(mini_batch):
            for p in mini_batch:
                if p.endswith("42.txt"):
                    raise ValueError("unreadable image")
            return [Path(p).stem for p in mini_batch]
        """,
        numbers,
        mini_batch_size=5,
        error_threshold=10,
    )

    assert lines(result) == [f"{n:02d}" for n in range(100) if not 40 <= n < 45]
    assert result.attempts == 22
    assert (result.items.failed, result.mini_batches.failed) == (5, 1)
    text = Path(result.logs_directory, "user", "error.txt").read_text()
    assert "unreadable image" in text
    assert "score.py" in text
    assert "40.txt" in text
    traces = [
        p
        for p in Path(result.logs_directory, "user", "error").rglob("*.txt")
        if 'raise ValueError("unreadable image")' in p.read_text()
    ]
    assert traces
    assert str(traces[0]) in text or any(str(t) in text for t in traces)


def test_without_a_threshold_everything_is_tried_and_the_run_fails_with_the_scripts_own_error(
    run, numbers
):
    """R26, R206: the exception shows error, mini-batch, item and log file; finished work is kept."""
    with pytest.raises(ErrorThresholdExceeded) as caught:
        run(
            """
            def run(mini_batch):
                if mini_batch[0].endswith("42.txt"):
                    raise ValueError("unreadable image")
                return mini_batch
            """,
            numbers,
            mini_batch_size=1,
        )

    text = str(caught.value)
    for part in (
        "unreadable image",
        "score.py",
        "42.txt",
        "mini-batch 42",
        "process0",
        "Traceback",
    ):
        assert part in text
    assert caught.value.logs_directory
    assert Path(caught.value.logs_directory, "job_result.txt").exists()
    assert caught.value.first_errors == ("ValueError: unreadable image (score.py:4 in run) × 3",)


def test_more_failures_than_tolerated_abort_at_once(run, tmp_path):
    """R26: strictly more than error_threshold aborts, also when many quick mini-batches came before."""
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(3000):
        (folder / f"{n:04d}.txt").touch()

    with pytest.raises(ErrorThresholdExceeded, match="error_threshold=3"):
        run(
            """
            import os, time
            from pathlib import Path

            def run(mini_batch):
                if int(Path(mini_batch[0]).stem) < 1500:
                    return mini_batch
                with open(os.environ["SEEN"], "a") as seen:
                    seen.write("failed\\n")
                time.sleep(0.05)
                raise ValueError("no")
            """,
            folder,
            mini_batch_size=1,
            run_max_try=1,
            error_threshold=3,
            environment_variables={"SEEN": str(tmp_path / "seen")},
        )

    # Four failures are needed; a bundle ends with a failure, and eight were under way.
    assert 4 <= len((tmp_path / "seen").read_text().split()) <= 30


def test_mini_batches_that_become_slow_still_count_as_progress(run, tmp_path):
    """R205: a bundle sized by quick mini-batches ends early: progress is seen, nothing times out."""
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(1000):
        (folder / f"{n:04d}.txt").touch()

    result = run(
        """
        import time
        from pathlib import Path

        def run(mini_batch):
            if int(Path(mini_batch[0]).stem) >= 950:
                time.sleep(0.1)
            return mini_batch
        """,
        folder,
        mini_batch_size=1,
        arguments=("--progress_update_timeout", 3),
    )

    assert result.items.succeeded == 1000


def test_no_progress_for_too_long_ends_the_run(run, numbers):
    """R105, R205: --progress_update_timeout: nothing ends and nothing starts for so long: failed."""
    with pytest.raises(NoProgress, match="No progress update in 1 seconds"):
        run(
            """
            import time

            def run(mini_batch):
                time.sleep(600)
            """,
            numbers,
            arguments=("--progress_update_timeout", 1),
        )


def test_a_failed_mini_batch_count_is_a_threshold_of_its_own(run, numbers):
    """R100: allowed_failed_count counts mini-batches; allowed_failed_percent once all are scheduled."""
    script = """
        def run(mini_batch):
            if mini_batch[0].endswith("0.txt"):
                raise ValueError("no")
            return mini_batch
        """
    settings = {"mini_batch_size": 5, "run_max_try": 1}

    tolerated = run(script, numbers, **settings, allowed_failed_count=10)
    assert (tolerated.mini_batches.failed, tolerated.items.failed) == (10, 50)
    with pytest.raises(ErrorThresholdExceeded, match="allowed_failed_count=9"):
        run(script, numbers, **settings, allowed_failed_count=9)
    with pytest.raises(ErrorThresholdExceeded, match="allowed_failed_percent=49"):
        run(script, numbers, **settings, allowed_failed_percent=49)


def test_more_elements_than_items_count_once_and_are_noted_once(run, numbers):
    """R16: all done, with one warning per run that names script and mini-batch."""
    result = run("def run(mini_batch): return [*mini_batch, 'extra']", numbers, mini_batch_size=10)

    assert (result.items.succeeded, result.items.failed) == (100, 0)
    assert len(lines(result)) == 110
    log = Path(result.logs_directory, "70_driver_log.txt").read_text().splitlines()
    warnings = [line for line in log if "more elements" in line]
    assert len(warnings) == 1
    assert "WARNING score.py" in warnings[0]


def test_a_run_without_one_success_fails_whatever_is_tolerated(run, numbers):
    """R104: nothing succeeded: failed, quoting the script's first error."""
    with pytest.raises(EntryScriptError, match="no such column"):
        run(
            """
            def run(mini_batch):
                raise KeyError("no such column")
            """,
            numbers,
            error_threshold=-1,
            run_max_try=1,
        )


def test_a_script_that_cannot_be_imported_fails_with_its_own_error(run, numbers):
    """R87, R89, R206: the import error is shown as the script raised it."""
    with pytest.raises(InitFailed, match="no_such_module") as caught:
        run(
            """
            import no_such_module

            def run(mini_batch):
                return mini_batch
            """,
            numbers,
        )

    assert "score.py" in str(caught.value)
    assert str(caught.value.logs_directory) in str(caught.value)


def test_a_failing_shutdown_is_told(run, numbers):
    """R60, R206: what shutdown() raises is in the log and in error.txt; the run has its result."""
    result = run(
        """
        def run(mini_batch):
            return mini_batch

        def shutdown():
            raise OSError("cannot flush")
        """,
        numbers,
        process_count_per_node=1,
    )

    assert result.items.succeeded == 100
    logs = Path(result.logs_directory)
    assert "shutdown() failed: OSError: cannot flush" in (logs / "70_driver_log.txt").read_text()
    assert "cannot flush" in (logs / "user" / "error.txt").read_text()


def test_a_required_argument_that_is_missing_is_named(run, numbers):
    """R18, R206: argparse says it on stderr and exits: the exception says it too."""
    with pytest.raises(InitFailed, match="the following arguments are required: --model"):
        run(
            """
            import argparse

            parser = argparse.ArgumentParser()
            parser.add_argument("--model", required=True)
            parser.parse_known_args()

            def run(mini_batch):
                return mini_batch
            """,
            numbers,
        )


def test_a_crash_and_a_time_out_cost_only_their_own_mini_batch(run, numbers):
    """R37, R38, R207: no neighbour is run again: each good item is seen exactly once."""
    result = run(
        """
        import os, signal, time
        from pathlib import Path

        def run(mini_batch):
            name = Path(mini_batch[0]).name
            with open(os.environ["SEEN"], "a") as seen:
                seen.write(name + "\\n")
            if name == "13.txt":
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "57.txt":
                time.sleep(600)
            return [name]
        """,
        numbers,
        mini_batch_size=1,
        run_max_try=2,
        run_invocation_timeout=1,
        error_threshold=2,
        environment_variables={"SEEN": str(numbers.parent / "seen")},
    )

    seen = (numbers.parent / "seen").read_text().split()
    assert lines(result) == [f"{n:02d}.txt" for n in range(100) if n not in (13, 57)]
    assert sorted(seen) == sorted([f"{n:02d}.txt" for n in range(100)] + ["13.txt", "57.txt"])
    text = Path(result.logs_directory, "user", "error.txt").read_text()
    assert "SIGKILL" in text
    assert "run_invocation_timeout" in text


def test_a_file_that_vanishes_fails_its_own_mini_batch_with_that_reason(run, numbers):
    """An input file that is gone when it is its turn: a failed mini-batch, nothing else."""
    listing = FileDataset.from_files(str(numbers))
    result = run(
        """
        import os

        def init():
            path = os.path.join(os.environ["NUMBERS"], "99.txt")
            if os.path.exists(path):
                os.unlink(path)

        def run(mini_batch):
            return mini_batch
        """,
        [listing],
        mini_batch_size=1,
        process_count_per_node=1,
        error_threshold=1,
        environment_variables={"NUMBERS": str(numbers)},
    )

    assert result.items.failed == 1
    assert "99.txt" in Path(result.logs_directory, "user", "error.txt").read_text()


def test_missing_rows_count_as_failed_items(run, numbers):
    """R16: nine of ten returned: the mini-batch succeeded, one item failed; nothing is retried."""
    result = run(
        "def run(mini_batch): return mini_batch[1:]",
        numbers,
        mini_batch_size=10,
        error_threshold=10,
    )

    assert (result.items.succeeded, result.items.failed) == (90, 10)
    assert (result.mini_batches.succeeded, result.attempts) == (10, 10)


def test_a_table_is_scored_row_by_row_with_the_same_types_everywhere(run, tmp_path):
    """R23, R24, R111: CSV by byte range; the column that turns float at the end is float everywhere."""
    table = pd.DataFrame({"key": range(20_000), "value": [*range(19_999), 0.5]})
    table.to_csv(tmp_path / "table.csv", index=False)
    result = run(
        """
        def run(mini_batch):
            mini_batch["kind"] = str(mini_batch["value"].dtype)
            return mini_batch[["key", "kind"]]
        """,
        [TabularDataset.from_delimited_files(str(tmp_path / "table.csv"))],
        mini_batch_size="10KB",
    )

    back = result.to_pandas(names=["key", "kind"])
    assert back["key"].tolist() == list(range(20_000))
    assert set(back["kind"]) == {"float64"}
    assert result.mini_batches.total > 20
    assert result.items.succeeded == 20_000


def test_rank_mini_batches_run_without_any_input(run):
    """R105: --rank_mini_batch_count N runs the script N times, and the script sees the argument."""
    result = run(
        """
        import sys

        def run(mini_batch, context):
            return [f"{context.minibatch_index} {sys.argv[1:]}"]
        """,
        [],
        arguments=("--rank_mini_batch_count", 5),
    )

    assert lines(result) == [f"{n} ['--rank_mini_batch_count', '5']" for n in range(5)]


def test_a_header_line_comes_once_at_the_top(run, numbers):
    """R103: --append_row_dataframe_header, with other to_csv keywords from the settings file."""
    result = run(
        """
        import pandas as pd
        from pathlib import Path

        def run(mini_batch):
            return pd.DataFrame({"file": [Path(p).name for p in mini_batch], "size": 1})
        """,
        numbers,
        mini_batch_size=9,
        arguments=("--append_row_dataframe_header", "True"),
        files={
            "parallel_run_step.settings.json": json.dumps(
                {"append_row": {"pandas.DataFrame.to_csv": {"sep": ";"}}}
            )
        },
    )

    assert lines(result) == ["file;size", *[f"{n:02d}.txt;1" for n in range(100)]]


def test_an_empty_table_completes_with_no_items(run, tmp_path):
    """A header-only table completes: nothing in, nothing out, an empty file."""
    (tmp_path / "empty.csv").write_text("a,b\n")
    result = run(DOUBLE, [TabularDataset.from_delimited_files(str(tmp_path / "empty.csv"))])

    assert lines(result) == []
    assert result.items.total == 0


def test_the_source_is_as_it_was_when_the_run_began(run, numbers, tmp_path):
    """R30: an edit during the run changes nothing."""
    result = run(
        """
        import os
        from pathlib import Path

        def run(mini_batch):
            original = next(Path(os.environ["TMP_PATH"]).glob("source-*/word.txt"))
            original.write_text("edited")
            return [open("word.txt").read()]
        """,
        numbers,
        mini_batch_size=100,
        files={"word.txt": "original"},
        environment_variables={"TMP_PATH": str(tmp_path)},
        error_threshold=-1,
    )

    assert lines(result) == ["original"]


def test_prefect_and_dask_are_in_no_worker_process_and_nothing_is_left_running(run, numbers):
    """R205 and the budget: worker processes import neither; after the run none of ours is there."""
    result = run(
        """
        import os, sys

        def run(mini_batch):
            return [f"{os.getpid()} {sorted({'prefect', 'dask', 'distributed', 'pandas'} & set(sys.modules))}"]
        """,
        numbers,
        mini_batch_size=50,
        error_threshold=-1,
    )

    rows = [row.split(" ", 1) for row in lines(result)]
    assert {modules for _, modules in rows} == {"[]"}
    assert not any(psutil.pid_exists(int(pid)) for pid, _ in rows)
    assert [
        p
        for p in psutil.Process().children(recursive=True)
        if "supervisor" in " ".join(p.cmdline())
    ] == []


def test_the_embedded_cluster_is_reached_from_this_machine_only(run, numbers):
    """Nothing of a run listens on an address that others can reach."""
    result = run(
        """
        import os
        import psutil

        def run(mini_batch):
            sockets = psutil.Process(int(os.environ["DRIVER"])).net_connections()
            return [s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN]
        """,
        numbers,
        mini_batch_size=100,
        node_count=2,
        error_threshold=-1,
        environment_variables={"DRIVER": str(os.getpid())},
    )

    assert set(lines(result)) == {"127.0.0.1"}


def test_an_interrupt_stops_every_process(run, numbers):
    """R205: Ctrl-C in a plain script: the run ends, no process is left, and job_result.txt says why."""
    pids = numbers.parent / "pids"
    with pytest.raises(KeyboardInterrupt):
        run(
            """
            import os, signal, time

            def run(mini_batch):
                with open(os.environ["PIDS"], "a") as pids:
                    pids.write(f"{os.getpid()}\\n")
                os.kill(int(os.environ["DRIVER"]), signal.SIGINT)
                time.sleep(600)
            """,
            numbers,
            environment_variables={"PIDS": str(pids), "DRIVER": str(os.getpid())},
        )

    assert not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_errors_have_one_base(run, numbers):
    """Whoever catches ParallelRunError catches every failure of a run."""
    with pytest.raises(ParallelRunError):
        run("def run(mini_batch): return None", numbers, run_max_try=1)
