"""The log of a worker process: what it was at, line by line."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.planning import make_plan

LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) \| (?P<address>[\d.:a-f]+) \| (?P<pid>\d+) \| (?P<what>.+)"
)
ENDED = re.compile(
    r"mini-batch (?P<mini_batch>\d+), attempt (?P<attempt>\d+) \| (?P<outcome>\w+) \| "
    r"items (?P<items>-?\d+), succeeded (?P<succeeded>-?\d+), failed (?P<failed>-?\d+) \| "
    r"started (?P<started>\S+Z) \| elapsed_s=(?P<elapsed_s>\S+) cpu_s=(?P<cpu_s>\S+) "
    r"load_s=(?P<load_s>\S+) run_s=(?P<run_s>\S+)(?P<why>.*)"
)


def lines(node, process: str = "process000") -> list[re.Match]:
    """Return the lines so far; each must be one."""
    found = [LINE.fullmatch(line) for line in node.log("process_log", process).splitlines()]
    assert None not in found, node.log("process_log", process)
    return found


def whats(node, process: str = "process000") -> list[str]:
    return [line["what"] for line in lines(node, process)]


def ends(node, process: str = "process000") -> list[re.Match]:
    found = map(ENDED.fullmatch, whats(node, process))
    return [end for end in found if end is not None]


def epoch(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()


def test_each_mini_batch_is_logged_as_it_is_picked_up_and_as_it_ends(node):
    """The lines tell IP, PID, items, start, duration, CPU time and time in run(), as the results do (R61)."""
    node.script("""
        import time
        def run(mini_batch):
            until = time.process_time() + 0.05
            while time.process_time() < until: pass
            time.sleep(0.1)
            return mini_batch[1:]
    """)
    files = [node.root / name for name in ("a.txt", "b.txt", "c.txt")]
    for file in files:
        file.touch()
    before = time.time()
    node.start()
    pid = node.event("process_ready")["pid"]

    answer = node.run({"files": [str(file) for file in files]}, {"rank": 0}, index=7, attempt=2)
    after = time.time()
    assert node.stop() == 0

    assert [what.partition(" init_s=")[0] for what in whats(node)] == [
        "started",
        "ready |",
        "mini-batch 7, attempt 2 | picked up",
        ends(node)[0].string,
        "mini-batch 8, attempt 2 | picked up",
        ends(node)[1].string,
        "ended | stopped",
    ]
    assert {int(line["pid"]) for line in lines(node)} == {pid}
    assert len({line["address"] for line in lines(node)}) == 1
    times = [epoch(line["time"]) for line in lines(node)]
    assert times == sorted(times)
    assert before - 0.001 <= times[0] <= times[-2] <= after
    for end, result in zip(ends(node), answer.results, strict=True):
        assert end["outcome"] == "succeeded"
        for name in ("elapsed_s", "cpu_s", "load_s", "run_s"):
            assert float(end[name]) == result[name]
        assert abs(epoch(end["started"]) - result["started_at"]) <= 0.001
        assert 0.05 <= float(end["cpu_s"]) < 0.15
        assert 0.15 <= float(end["run_s"]) <= float(end["elapsed_s"])
    first, second = ends(node)
    assert (first["items"], first["succeeded"], first["failed"]) == ("3", "2", "1")
    assert (second["items"], second["succeeded"], second["failed"]) == ("1", "0", "1")


@pytest.mark.parametrize("end_of_line", ["\\r", "\\r\\n", "\\x0b", "\\u2028"])
def test_nothing_in_a_message_ends_a_line_of_the_log(node, end_of_line):
    """Of a message with several lines the first is there, whatever ends it (R61)."""
    node.script(f"def run(x): raise ValueError('bad{end_of_line}label')")
    node.start()

    node.run({"rank": 0})

    (end,) = ends(node)
    assert end["why"] == " | ValueError: bad"
    path = Path(node.paths.node_files("node000")["process_log"].format(process="process000"))
    assert b"label" not in path.read_bytes()


def test_a_failed_mini_batch_is_logged_with_its_error(node):
    """The line of a mini-batch that failed says why, in one line (R61)."""
    node.script("def run(x): raise ValueError('bad\\nlabel \\ud800')")
    node.start()

    node.run({"rank": 0})

    (end,) = ends(node)
    assert (end["outcome"], end["items"], end["failed"]) == ("failed", "1", "1")
    assert end["why"] == " | ValueError: bad"


def test_a_line_is_in_the_file_before_run_is_entered(node):
    """Whatever run() does to its process, it was logged that the mini-batch was picked up (R61)."""
    path = node.paths.node_files("node000")["process_log"].replace("{process}", "process000")
    node.script(f"def run(x): return [open({path!r}).read().splitlines()[-1].split(' | ')[-2:]]")
    node.start()

    answer = node.run({"rank": 0}, {"rank": 1})

    assert answer.rows == [
        b"['mini-batch 0, attempt 1', 'picked up']\n",
        b"['mini-batch 1, attempt 1', 'picked up']\n",
    ]


@pytest.mark.parametrize(
    ("death", "outcome", "why", "reason"),
    [
        (
            "os.kill(os.getpid(), 9)",
            "process_died",
            "ProcessDied: the worker process was killed by signal 9",
            "signal",
        ),
        (
            "os._exit(3)",
            "process_died",
            "ProcessDied: the worker process ended with exit code 3",
            "exit",
        ),
        ("time.sleep(60)", "timed_out", "TimedOut: run() took longer than", "timeout"),
    ],
)
def test_the_supervisor_logs_the_end_that_the_process_cannot(node, death, outcome, why, reason):
    """A process that dies in run() has a line for its mini-batch, and one for itself, with why (R61)."""
    node.script(f"""
        import os, time
        def run(mini_batch):
            began = time.process_time()
            while time.process_time() < began + 0.1:
                pass
            if mini_batch.task_id == 1:
                {death}
            return [1]
    """)
    node.start(run_timeout_s=1.5)

    answer = node.run({"rank": 0}, {"rank": 1})
    node.event("process_ended")

    good, bad = ends(node)
    assert (good["mini_batch"], good["outcome"]) == ("0", "succeeded")
    assert (bad["mini_batch"], bad["outcome"], bad["failed"]) == ("1", outcome, "1")
    assert bad["why"].startswith(f" | {why}")
    assert 0.1 <= float(bad["run_s"]) <= float(bad["elapsed_s"])
    assert 0.1 <= float(bad["cpu_s"]) < 0.2  # the first one's share is not in it
    assert answer.results[1]["cpu_s"] == float(bad["cpu_s"])
    assert answer.results[1]["elapsed_s"] == float(bad["elapsed_s"])
    assert whats(node)[-3:-1] == ["mini-batch 1, attempt 1 | picked up", bad.string]
    assert whats(node)[-1].startswith(f"ended | {reason} | {why}")


def test_a_cancelled_mini_batch_is_logged_as_that(node):
    """One that is killed for no fault of its own is neither succeeded nor failed (R61)."""
    node.script("import time\ndef run(x): time.sleep(60)")
    node.start()
    tag = node.ranks()
    node.event("bundle_started")
    node.wait_for(lambda: "picked up" in node.log("process_log"))

    node.cancel(tag)
    node.event("process_ended", reason="cancelled")

    (end,) = ends(node)
    assert (end["outcome"], end["why"]) == ("cancelled", "")
    assert whats(node)[-1] == "ended | cancelled"


@pytest.mark.timed
def test_when_the_agent_is_gone_every_log_has_its_end(node):
    """All are killed then, in the middle of run() or not, and each log says so (R61)."""
    node.script("import time\ndef run(x): time.sleep(60)")
    node.start(process_count=2)
    node.until(lambda: len(node.named("process_ready")) == 2)
    node.ranks(2, avoid=["process001"])
    node.wait_for(lambda: "picked up" in node.log("process_log"))

    began = time.monotonic()
    node.close()

    assert time.monotonic() - began < 1.0, "took longer"  # measured: 20 ms
    (end,) = ends(node)
    assert (end["mini_batch"], end["outcome"], end["why"]) == ("0", "cancelled", "")
    assert (end["succeeded"], end["failed"], end["cpu_s"]) == ("0", "1", "nan")
    assert whats(node)[-1] == "ended | cancelled"
    assert node.log("process_log", "process001").endswith(" | ended | cancelled\n")
    assert node.log("system_error") == ""


def test_a_start_that_fails_is_logged_with_its_reason(node):
    """The log of a process whose init() raised says so (R61)."""
    node.script("def init(): raise OSError('no model')\ndef run(x): return [1]")
    node.start(init_failures_allowed=1)

    node.event("gave_up")

    assert whats(node) == ["started", "ended | exit | OSError: no model"]


def test_the_log_survives_a_script_that_closes_everything_but_the_channel(node):
    """What the script opens in place of the log is not written into, and the log goes on (R61, R200)."""
    path = node.paths.node_files("node000")["process_log"].replace("{process}", "process000")
    node.script(f"""
        import os
        mine = []
        def run(mini_batch):
            for fd in map(int, os.listdir("/proc/self/fd")):
                try:
                    if os.readlink(f"/proc/self/fd/{{fd}}") == {path!r}:
                        os.close(fd)
                        mine.append(open(os.environ["AZUREML_BI_OUTPUT_PATH"] + "/mine", "a+"))
                        assert mine[-1].fileno() == fd
                except FileNotFoundError:
                    pass
            return [len(mine)]
    """)
    node.start()

    answer = node.run({"rank": 0}, {"rank": 1}, {"rank": 2})

    assert answer.rows == [b"1\n", b"2\n", b"3\n"]
    assert (node.output / "mine").read_text() == ""
    assert [end["mini_batch"] for end in ends(node)] == ["0", "1", "2"]


@pytest.mark.parametrize("place", ["/dev/full", "file/below"])
def test_a_process_log_that_cannot_be_written_fails_nobody(node, place):
    """Where the log cannot be opened, or the disk is full, the mini-batches run (R207)."""
    node.script("def run(x): return [1]")
    (node.root / "file").write_text("")
    node.start(files={**node.settings()["files"], "process_log": str(node.root / place)})

    assert node.run({"rank": 0}, {"rank": 1}).outcomes == ["succeeded"] * 2
    assert node.stop() == 0
    assert not node.named("start_failed")


SLOW_LOAD = """
import threading, time
from prefect_parallelrun_runtime import load
loaded = load.load
def slow(*arguments):
    time.sleep(0.2)
    return loaded(*arguments)
load.load = slow
"""


def test_what_was_loaded_ahead_is_not_waited_for(node):
    """load_s is how long the data was waited for: near 0 where it was read while run() was at the one before (R8)."""
    table = node.root / "table.csv"
    table.write_text("a\n" + f"{'x' * 20}\n" * 3)
    node.script(f"""{SLOW_LOAD}
def run(mini_batch):
    for thread in threading.enumerate():
        if thread.name == "parallelrun-load":
            thread.join()
    return mini_batch
""")
    dataset = TabularDataset.from_delimited_files(str(table))
    plan = make_plan([dataset], [dataset.list_files()], mini_batch_size="21", scratch=node.root)
    works = [mini_batch.work for mini_batch in plan]
    node.start(inputs=plan.readers)

    results = node.run(*works).results

    assert 0.2 <= results[0]["load_s"] <= results[0]["elapsed_s"]
    # A piece in which no row begins does not get to run(), so that nothing hides the loading behind it.
    ahead = [after for before, after in pairwise(results) if before["items"]]
    assert len(ahead) >= 2
    for result in ahead:
        assert 0 <= result["load_s"] < 0.1


@pytest.mark.parametrize(
    ("limits", "stage"), [({"run_timeout_s": 0.3}, "run"), ({"load_timeout_s": 0.1}, "load")]
)
def test_the_times_of_a_killed_attempt_begin_with_its_pick_up(node, limits, stage):
    """A mini-batch that takes too long has begun when it was picked up, whatever it was at then (R120)."""
    node.script(f"{SLOW_LOAD}\ndef run(x): time.sleep(60)\n")
    node.start(**limits)
    node.event("process_ready")
    before = time.time()

    (result,) = node.run({"rank": 0}).results

    assert result["error"]["stage"] == stage
    assert before - 0.05 <= result["started_at"] <= time.time() - result["elapsed_s"] + 0.05
    if stage == "run":
        assert 0.2 <= result["load_s"] < 0.3 <= result["run_s"]
        assert abs(result["elapsed_s"] - result["load_s"] - result["run_s"]) < 0.001
    else:
        assert result["load_s"] == result["elapsed_s"] >= 0.1
        assert "run_s" not in result


def test_every_event_tells_when_it_happened(node):
    """Events of supervisor and worker process have a time, in order; ready tells how long init() took (R120)."""
    node.script("import time\ndef init(): time.sleep(0.2)\ndef run(x): return [1]")
    before = time.time()
    node.start()
    node.run({"rank": 0})
    assert node.stop() == 0

    assert {event["name"] for event in node.events} == {
        "supervisor_ready",
        "process_started",
        "process_ready",
        "bundle_started",
        "process_ended",
    }
    times = [event["at"] for event in node.events]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= time.time()
    assert 0.2 <= node.event("process_ready")["seconds"] < 1
