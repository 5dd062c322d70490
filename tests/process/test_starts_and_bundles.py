"""Starting and stopping worker processes, and who gets which bundle."""

from __future__ import annotations

import os
import time

import pytest

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun_runtime import channel

WAITING = """
import os, time, pathlib
OUT = pathlib.Path(os.environ["AZUREML_BI_OUTPUT_PATH"])
def run(mini_batch):
    (OUT / f"began{mini_batch.task_id}").write_text("\\n")
    while not (OUT / f"go{mini_batch.task_id}").exists():
        time.sleep(0.002)
    return [mini_batch.task_id]
"""


def go(node, *indices):
    for index in indices:
        (node.output / f"go{index}").write_text("")


@pytest.mark.parametrize(
    ("text", "stage", "type_", "word"),
    [
        ("import no_such_module", "import", "ModuleNotFoundError", "no_such_module"),
        ("def run(x:", "import", "SyntaxError", "never closed"),
        ("def init(): raise OSError('no model')\ndef run(x): pass", "init", "OSError", "no model"),
        ("def init(): raise SystemExit(4)\ndef run(x): pass", "init", "SystemExit", "4"),
        ("def ran(x): pass", "import", "UnusableScript", "run(mini_batch)"),
        ("run = 5", "import", "UnusableScript", "int"),
        ("import os\nos._exit(3)", "import", "ProcessDied", "exit code 3"),
        ("import os\ndef init(): os.kill(os.getpid(), 11)\ndef run(x): pass", "init", "ProcessDied", "SIGSEGV"),
    ],
)  # fmt: skip
def test_a_node_gives_up_after_failed_starts_in_a_row(node, text, stage, type_, word):
    """Each failed start is told with its error, and after the allowed number nothing is tried any more (R87)."""
    node.script(text)
    node.start(init_failures_allowed=3)

    answer = node.answer(node.ranks(2))

    assert (answer.finished, answer.results) == (0, [])
    node.event("gave_up")
    failures = node.named("start_failed")
    assert [failure["process"] for failure in failures] == [
        "process000",
        "process001",
        "process002",
    ]
    error = failures[0]["error"]
    assert (error["stage"], error["type"]) == (stage, type_)
    assert word in error["message"]
    assert word in node.log("error")
    assert node.run({"rank": 0}).finished == 0  # what comes later is answered as well
    assert node.stop() == 0


def test_an_init_that_is_stuck_is_killed_and_told_with_its_stack(node):
    """Import and init() have one limit (R205)."""
    node.script("import time\ndef init():\n    time.sleep(600)\ndef run(x): pass")
    node.start(init_timeout_s=0.5, init_failures_allowed=1)

    error = node.event("start_failed")["error"]

    assert (error["category"], error["stage"]) == ("timeout", "init")
    assert error["where"] == "score.py:3 in init"
    node.event("gave_up")


def test_a_start_that_failed_once_is_tried_again(node):
    """One failed init() costs no mini-batch: the next process works (R87)."""
    node.script("""
        import os, pathlib
        def init():
            flag = pathlib.Path(os.environ["AZUREML_BI_OUTPUT_PATH"]) / "once"
            if not flag.exists():
                flag.write_text("")
                raise OSError("busy")
        def run(mini_batch): return [1]
    """)
    node.start(init_failures_allowed=2)

    answer = node.run({"rank": 0})

    assert answer.outcomes == ["succeeded"]
    assert answer.results[0]["process"] == "process001"
    assert not node.named("gave_up")


def test_a_process_that_dies_idle_without_having_worked_is_a_failed_start(node):
    """Processes that die right after init() are not replaced for ever; it was not run() (R87)."""
    node.script("""
        import os, threading
        def init(): threading.Timer(0.05, os._exit, [9]).start()
        def run(mini_batch): return [1]
    """)
    node.start(init_failures_allowed=2)

    node.event("gave_up")

    errors = [event["error"] for event in node.named("start_failed")]
    assert [(error["type"], error["stage"]) for error in errors] == [("ProcessDied", "idle")] * 2


@pytest.mark.parametrize("stage", ["import", "init"])
def test_an_exit_at_the_start_tells_what_was_said_on_stderr(node, stage):
    """ "SystemExit: 2" says nothing; the line that argparse wrote does (R206)."""
    node.script(
        """
        import argparse
        def parse():
            parser = argparse.ArgumentParser()
            parser.add_argument("--model", required=True)
            parser.parse_args([])
        def run(mini_batch): pass
    """
        + ("    parse()" if stage == "import" else "    init = parse")
    )
    node.start(init_failures_allowed=1)

    error = node.event("start_failed")["error"]

    assert (error["type"], error["stage"]) == ("SystemExit", stage)
    assert "the following arguments are required: --model" in error["message"]


def test_an_interpreter_that_does_not_exist_is_a_failed_start_that_names_it(node):
    """The error of a start that never came to Python shows what the system said."""
    node.script("def run(mini_batch): return [1]")
    node.start(python="/no/such/python", init_failures_allowed=1)

    assert "/no/such/python" in node.event("start_failed")["error"]["traceback"]


def test_a_stop_ends_busy_idle_and_starting_processes(node):
    """After a stop the running bundle is finished, what was not begun is handed back, and the exit is clean."""
    node.script(WAITING)
    node.start()
    running, queued, last = node.ranks(index=0), node.ranks(index=1), node.ranks(index=2)
    node.read_when_there("began0")

    node.send(channel.pack(channel.STOP))
    assert [node.answer(tag).finished for tag in (queued, last)] == [0, 0]
    go(node, 0)  # only now: else the queued one may have begun before the stop
    assert node.wait() == 0

    assert node.answers[running].outcomes == ["succeeded"]


def test_a_shutdown_that_is_stuck_is_killed(node):
    """shutdown() has a limit, too; the log says so (R205)."""
    node.script("import time\ndef run(x): return [1]\ndef shutdown(): time.sleep(600)")
    node.start(shutdown_timeout_s=0.3)
    node.run({"rank": 0})

    assert node.stop() == 0

    assert node.event("process_ended")["reason"] == "timeout"
    assert "shutdown() took longer than 0.3" in node.log("error")
    error = node.event("shutdown_failed")["error"]
    assert (error["type"], error["stage"]) == ("TimedOut", "shutdown")
    assert error["where"] == "score.py:3 in shutdown"


@pytest.mark.parametrize("works_before", [True, False])
@pytest.mark.parametrize(
    ("text", "type_", "word"),
    [
        ("raise ValueError('late')", "ValueError", "late"),
        ("sys.exit('too late')", "SystemExit", "too late"),
        ("os.kill(os.getpid(), 9)", "ProcessDied", "SIGKILL"),
    ],
)
def test_a_shutdown_that_fails_is_told(node, text, type_, word, works_before):
    """A failure of shutdown() changes no result; it is an event and in the error log, and no failed start (R60)."""
    node.script(f"import os, sys\ndef run(x): return [1]\ndef shutdown(): {text}")
    node.start()
    node.event("process_ready")
    if works_before:
        assert node.run({"rank": 0}).outcomes == ["succeeded"]

    assert node.stop() == 0

    (event,) = node.named("shutdown_failed")
    assert event["process"] == "process000"
    error = event["error"]
    assert (error["type"], error["stage"]) == (type_, "shutdown")
    assert word in error["message"]
    assert word in node.log("error")
    assert not node.named("start_failed")


@pytest.mark.timed
def test_a_bundle_that_lasts_too_long_ends_early(node):
    """Past its limit a bundle ends with what is finished, so that it is told soon (R201); the process goes on."""
    node.script("""
        import os, time
        def run(mini_batch):
            if mini_batch.task_id == 1:
                time.sleep(1.1)
            return [os.getpid()]
    """)
    node.start(bundle_limit_s=1.0)
    node.event("process_ready")
    long, after = node.ranks(4), node.ranks(3, index=4)

    began = time.monotonic()
    answer = node.answer(long)
    assert time.monotonic() - began < 5, "took longer"

    assert (answer.outcomes, answer.finished) == (["succeeded"] * 2, 2)
    following = node.answer(after)
    assert (following.outcomes, following.finished) == (["succeeded"] * 3, 3)
    assert {*answer.rows, *following.rows} == {answer.rows[0]}
    assert not node.named("process_ended")
    assert [entry for entry in node.order if entry[1] in (long, after)] == [
        ("bundle_started", long),
        *[("result", long, position) for position in range(2)],
        ("end", long),
        ("bundle_started", after),
        *[("result", after, position) for position in range(3)],
        ("end", after),
    ]


def test_the_next_bundle_goes_back_to_the_front_when_its_process_dies(node):
    """A bundle that was handed over but not begun is run by the next process, before later ones (R207)."""
    node.script(WAITING)
    node.start()
    tags = [node.ranks(index=index) for index in range(3)]
    started = node.event("bundle_started", bundle=tags[0])
    node.read_when_there("began0")

    os.kill(started["pid"], 9)
    go(node, 1, 2)

    assert node.answer(tags[0]).outcomes == ["process_died"]
    assert node.answer(tags[1]).outcomes == node.answer(tags[2]).outcomes == ["succeeded"]
    ends = [entry for entry in node.order if entry[0] == "end"]
    assert ends == [("end", tag) for tag in tags]


def test_an_idle_process_takes_over_what_waits_behind_a_busy_one(node):
    """No bundle waits behind a long one while another process has nothing to do."""
    node.script(WAITING)
    node.start(process_count=2)
    node.event("process_ready", process="process000")
    node.event("process_ready", process="process001")
    long, short = node.ranks(index=0), node.ranks(index=1)
    ahead = [node.ranks(index=2), node.ranks(index=3)]  # one behind each of them
    node.read_when_there("began0")
    node.read_when_there("began1")

    go(node, 1, 2, 3)

    for tag in (short, *ahead):
        assert node.answer(tag).outcomes == ["succeeded"]
    assert node.answers.get(long) is None
    go(node, 0)
    assert node.answer(long).outcomes == ["succeeded"]
    assert len({node.answers[tag].results[0]["process"] for tag in (short, *ahead)}) == 1


def test_a_retry_avoids_the_process_that_had_it(node):
    """A bundle is not given to a process that it avoids, as long as there is another (R38)."""
    node.script("def run(mini_batch): return [1]")
    node.start(process_count=2)
    node.event("process_ready", process="process000")
    node.event("process_ready", process="process001")

    answers = [node.run({"rank": 0}, avoid=["process000"]) for _ in range(5)]

    assert {answer.results[0]["process"] for answer in answers} == {"process001"}


def test_with_one_process_nothing_is_avoided(node):
    """Where there is no other process, the one there is gets the retry."""
    node.script("def run(mini_batch): return [1]")
    node.start()

    assert node.run({"rank": 0}, avoid=["process000"]).outcomes == ["succeeded"]


def test_cancelling_drops_what_waits_and_kills_what_runs(node):
    """A cancelled bundle ends at once, whatever its state, with no attempt counted."""
    node.script(WAITING)
    node.start()
    running, ahead, waiting = (node.ranks(2, index=10 * place) for place in range(3))
    node.read_when_there("began0")

    for tag in (waiting, ahead, running):
        node.cancel(tag)

    assert [node.answer(tag).finished for tag in (waiting, ahead, running)] == [0, 0, 0]
    assert not any(node.answers[tag].results for tag in (waiting, ahead, running))
    assert node.event("process_ended")["reason"] == "cancelled"
    go(node, 30)
    assert node.run({"rank": 0}, index=30).results[0]["process"] == "process001"


def test_the_start_of_each_bundle_is_told_before_its_results(node):
    """bundle_started comes once per bundle, before its first result and after the end of the one before."""
    node.script("def run(mini_batch): return [1]")
    node.start()
    tags = [node.ranks(3) for _ in range(20)]
    for tag in tags:
        node.answer(tag)

    told = [entry for entry in node.order if entry[0] in ("bundle_started", "result", "end")]

    expected = []
    for tag in tags:
        expected.append(("bundle_started", tag))
        expected += [("result", tag, position) for position in range(3)]
        expected.append(("end", tag))
    assert told == expected
