"""What becomes of a mini-batch whose attempt fails, and of its neighbours."""

from __future__ import annotations

import os
import signal
import time

import pytest

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun_runtime import channel

# What a script does with mini-batch "bad", and what must be said of it: outcome, category, a word of
# the message, and whether the process survives.
BAD_JOBS = {
    "raises": ("raise ValueError('no such label')", "failed", "exception", "no such label", True),
    "exits hard": ("os._exit(7)", "process_died", "exit", "exit code 7", False),
    "is killed": ("os.kill(os.getpid(), 9)", "process_died", "signal", "SIGKILL", False),
    "crashes": ("ctypes.string_at(0)", "process_died", "signal", "SIGSEGV", False),
    "calls sys.exit": ("sys.exit(3)", "failed", "exit", "3", False),
    "returns None": ("return None", "failed", "bad_return", "None", True),
    "returns a generator": ("return (x for x in [])", "failed", "bad_return", "a generator", True),
    "returns a str": ("return 'abc'", "failed", "bad_return", "a str", True),
    "returns a dict": ("return {}", "failed", "bad_return", "a dict", True),
    "is out of memory": ("raise MemoryError('too big')", "failed", "memory", "too big", True),
    "closes its output, then dies": ("os.close(1); os.close(2); os._exit(1)", "process_died", "exit", "code 1", False),
    "closes all, channel included": ("os.closerange(3, 200)", "process_died", "exit", "code", False),
    "recurses": ("return run(mini_batch)", "failed", "exception", "recursion", True),
    "raises what cannot be shown": ("raise Unshowable()", "failed", "exception", "cannot be shown", True),
    "is cancelled inside": ("raise GeneratorExit('odd')", "failed", "exception", "odd", True),
}  # fmt: skip

SCRIPT = """
import ctypes, os, sys
class Unshowable(Exception):
    def __str__(self):
        raise RuntimeError("no")
def run(mini_batch):
    if mini_batch.task_id == 11:
        {job}
    return [mini_batch.task_id]
"""


@pytest.mark.parametrize("name", BAD_JOBS)
def test_a_bad_job_costs_its_own_mini_batch_only(node, name):
    """What finished stays finished, the rest is handed back at once, and the next bundle works (R38, R207)."""
    job, outcome, category, word, survives = BAD_JOBS[name]
    node.script(SCRIPT.format(job=job))
    node.start()

    answer = node.run(*({"rank": place} for place in range(3)), index=10)

    assert answer.outcomes == ["succeeded", outcome]
    assert answer.finished == 2
    error = answer.results[1]["error"]
    assert error["category"] == category
    assert error["stage"] in ("run", "result")
    assert word in error["message"]
    assert answer.rows[0] == b"10\n"
    assert answer.rows[1] == b""
    if not survives:
        assert node.event("process_ended")["process"] == "process000"
    after = node.run({"rank": 0}, index=20)
    assert after.outcomes == ["succeeded"]
    assert after.results[0]["process"] == ("process000" if survives else "process001")
    if not survives:
        assert node.event("process_started", process="process001")["pid"]


def test_an_exception_is_told_whole_without_our_frames(node):
    """The error names type, message, place in the user's source and stack; the log has it, too (R60, R206)."""
    node.script("def check(x):\n    raise KeyError(x)\n", "deep/helper.py")
    node.script("""
        from deep import helper
        def run(mini_batch):
            try:
                1 / 0
            except ZeroDivisionError:
                helper.check("price")
    """)
    node.start()

    answer = node.run({"files": [str(node.source / "score.py")] * 5}, attempt=2, index=17)

    error = answer.results[0]["error"]
    assert error["type"] == "KeyError"
    assert error["where"] == "deep/helper.py:2 in check"
    assert error["traceback"].startswith("Traceback (most recent call last):\n")
    assert "ZeroDivisionError" in error["traceback"]
    assert "prefect_parallelrun" not in error["traceback"]
    log = node.log("error")
    assert "mini-batch 17, attempt 2, run" in log
    assert "… and 2 more" in log
    assert "raise KeyError(x)" in log


def test_a_vanished_file_fails_its_mini_batch_alone(node):
    """A file that is gone is a failed load that names it; run() is not called (R38)."""
    node.script("def run(mini_batch): return [len(mini_batch)]")
    node.start()

    answer = node.run({"files": ["/nowhere/gone.png"]}, {"rank": 0})

    assert (answer.outcomes, answer.finished) == (["failed"], 1)
    assert node.run({"rank": 0}).outcomes == ["succeeded"]
    error = answer.results[0]["error"]
    assert (error["category"], error["stage"]) == ("load", "load")
    assert "/nowhere/gone.png" in error["message"]
    assert "/nowhere/gone.png" in node.log("error")


TRACES = {
    "raises": "raise ValueError('no such label')",
    "crashes": "ctypes.string_at(0)",
    "is stuck": "time.sleep(600)",
}


@pytest.mark.parametrize("name", TRACES)
def test_stack_traces_name_the_users_own_file(node, name):
    """The snapshot is gone when somebody reads a stack trace; the file it was taken of is not (R60)."""
    node.script(f"import ctypes, time\ndef run(mini_batch):\n    {TRACES[name]}")
    node.start(
        source_directory="/home/ann/step",
        run_timeout_s=0.3,
        environment={"PATH": "/usr/bin", "PYTHONFAULTHANDLER": "1"},
    )

    error = node.run({"rank": 0}).results[0]["error"]

    assert 'File "/home/ann/step/score.py", line 3' in error["traceback"]
    assert str(node.source) not in error["traceback"]
    assert error["where"] in ("score.py:3 in run", "")
    assert "/home/ann/step/score.py" in node.log("error")


def test_an_exit_tells_what_was_said_on_stderr(node):
    """sys.exit() in run(), of argparse for one, is told with what it wrote before (R206)."""
    node.script("""
        import argparse
        def run(mini_batch):
            parser = argparse.ArgumentParser()
            parser.add_argument("--model", required=True)
            parser.parse_args([])
    """)
    node.start()

    error = node.run({"rank": 0}).results[0]["error"]

    assert (error["type"], error["stage"]) == ("SystemExit", "run")
    assert error["message"].startswith("2\n")
    assert "the following arguments are required: --model" in error["message"]


def test_a_process_that_is_leaving_gets_no_other_bundle(node):
    """What lay with a process that left by sys.exit() is run by the next one, though it takes its time."""
    node.script("""
        import atexit, os, pathlib, sys, time
        GO = pathlib.Path(os.environ["AZUREML_BI_OUTPUT_PATH"]) / "go"
        def wait():
            while not GO.exists():
                time.sleep(0.005)
        def run(mini_batch):
            if mini_batch.task_id == 0:
                (GO.parent / "began").write_text("\\n")
                wait()
                GO.unlink()
                atexit.register(wait)
                sys.exit(1)
            return [1]
    """)
    node.start()
    tags = [node.ranks(2, index=0), node.ranks(1, index=5)]
    node.read_when_there("began")
    (node.output / "go").write_text("")

    first = node.answer(tags[0])  # before the process has ended
    assert (first.outcomes, first.finished) == (["failed"], 1)
    assert not node.named("process_ended")
    (node.output / "go").write_text("")

    second = node.answer(tags[1])
    assert [result["process"] for result in second.results] == ["process001"]
    assert second.finished == 1
    assert len([entry for entry in node.order if entry == ("bundle_started", tags[1])]) == 1


SLEEPERS = {
    "in Python": "time.sleep(600)",
    "in a loop": "while True: pass",
    "in C code that keeps the interpreter lock and ignores SIGTERM": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); ctypes.PyDLL(None).pause()"
    ),
}


@pytest.mark.parametrize("name", SLEEPERS)
def test_a_stuck_run_is_killed_in_time_with_its_stack(node, name):
    """run_timeout_s ends it from outside, wherever it is; the error says where it was (R37, R205)."""
    node.script(f"""
        import ctypes, signal, time
        def run(mini_batch):
            if mini_batch.task_id == 1:
                {SLEEPERS[name]}
            return ["fine"]
    """)
    node.start(run_timeout_s=0.5)
    node.event("process_ready")

    began = time.monotonic()
    answer = node.run({"rank": 0}, {"rank": 1}, {"rank": 2})
    took = time.monotonic() - began

    assert answer.outcomes == ["succeeded", "timed_out"]
    assert answer.finished == 2
    assert 0.5 <= took < 5
    result = answer.results[1]
    assert result["items"] == 1
    assert 0.5 <= result["run_s"] < 5
    error = result["error"]
    assert error["category"] == "timeout"
    assert "run_invocation_timeout=0.5" in error["message"]
    assert error["where"] == "score.py:5 in run"
    assert "in run" in error["traceback"]
    assert "took longer" in node.log("error")
    assert node.run({"rank": 5}, index=5).results[0]["process"] == "process001"


def test_a_late_result_of_a_killed_run_does_not_count(node):
    """What a script says while it is being killed is no result, even if SIGTERM lets it return."""
    node.script("""
        import signal, time
        class Enough(Exception): pass
        def stop(*_): raise Enough
        signal.signal(signal.SIGTERM, stop)
        def run(mini_batch):
            try:
                time.sleep(600)
            except Enough:
                pass
            return ["late"]
    """)
    node.start(run_timeout_s=0.3, kill_grace_s=1.0)

    answer = node.run({"rank": 0}, {"rank": 1})

    assert answer.outcomes == ["timed_out"]
    assert answer.finished == 1


def test_a_stuck_load_has_a_limit_of_its_own(node):
    """Loading is timed by task_overhead_timeout, not by the limit of run() (R105)."""
    # A file system that hangs, as the loader would meet it.
    node.script("""
        import time
        from prefect_parallelrun_runtime import load
        def init():
            load.load = lambda work, reader: time.sleep(600)
        def run(mini_batch): return [1]
    """)
    node.start(load_timeout_s=0.5)

    answer = node.run({"rank": 0})

    assert answer.outcomes == ["timed_out"]
    error = answer.results[0]["error"]
    assert (error["category"], error["stage"]) == ("timeout", "load")
    assert "task_overhead_timeout=0.5 " in error["message"]


GRANDCHILD = """
import os, subprocess, sys, time
def run(mini_batch):
    out = os.environ["AZUREML_BI_OUTPUT_PATH"]
    started = []
    for marked in (True, False):
        environment = None if marked else {}
        started.append(subprocess.Popen(
            ["/bin/sh", "-c", "trap '' TERM; setsid sleep 600 & echo $!; sleep 600"],
            stdout=subprocess.PIPE, text=True, start_new_session=marked, env=environment))
    pids = [os.getpid()]
    for process in started:
        pids += [process.pid, int(process.stdout.readline())]
    with open(out + "/pids", "w") as file:
        file.write(" ".join(map(str, pids)) + "\\n")
    HOW
"""


@pytest.mark.parametrize("how", ["time.sleep(600)", "os._exit(1)"])
def test_nothing_that_a_script_started_outlives_its_process(node, how):
    """Children and grandchildren go with the process, setsid and deaf to SIGTERM or not (R205)."""
    node.script(GRANDCHILD.replace("HOW", how))
    node.start(run_timeout_s=1.0)

    answer = node.run({"rank": 0})

    assert answer.outcomes[0] in ("timed_out", "process_died")
    pids = [int(pid) for pid in node.read_when_there("pids").split()]
    if how == "os._exit(1)":
        # One that changed both session and environment cannot be told from others: it goes at the end.
        pids = pids[:-1]
    node.wait_for(lambda: not any(map(node.is_alive, pids)))
    assert node.run({"rank": 0}).finished == 1


@pytest.mark.timed
@pytest.mark.parametrize("death", ["close", "kill"])
def test_nothing_outlives_the_agent_or_the_supervisor(node, death):
    """When the agent's socket closes, or the supervisor is told to end, every descendant is gone at once (R205)."""
    node.script(GRANDCHILD.replace("HOW", "time.sleep(600)"))
    node.start(process_count=2)
    node.ranks()
    pids = [int(pid) for pid in node.read_when_there("pids").split()]
    assert all(map(node.is_alive, pids))

    began = time.monotonic()
    if death == "close":
        node.close()
    else:
        os.kill(node.pid, signal.SIGTERM)
        node.wait()

    assert not any(map(node.is_alive, pids))
    assert time.monotonic() - began < 2, "took longer"


@pytest.mark.parametrize("how", ["stop", "agent is gone", "signal", "failure of its own"])
def test_the_node_folder_goes_with_the_supervisor(node, how):
    """However the supervisor ends, nothing of the run is left on the node: its agent may be gone."""
    node.script("def run(mini_batch): return [1]")
    node.start()
    node.run({"rank": 0})
    assert (node.work / "process000" / "score.py").exists()

    if how == "stop":
        node.stop()
    elif how == "agent is gone":
        node.close()
    elif how == "signal":
        os.kill(node.pid, signal.SIGTERM)
        node.wait()
    else:
        node.send(channel.pack(channel.BUNDLE, 99, {"no": "such thing"}))
        node.wait()

    assert not node.work.exists()
    assert (node.source / "score.py").exists()  # what the process folder only points to


@pytest.mark.parametrize("died", [True, False])
def test_what_is_to_be_taken_home_goes_only_with_the_agent(node, died):
    """R230: the agent removes it when all is at home; where its process was killed, the supervisor does."""
    node.script("def run(mini_batch): return [1]")
    private = node.root / "private"
    (private / "run").mkdir(parents=True)
    # A process that is the supervisor's parent, as a Dask worker is.
    node.start(
        launcher=["sh", "-c", '"$@" & wait', "sh"],
        private_folder=str(private),
        work_folder=str(private / "work"),
    )
    node.run({"rank": 0})
    assert (private / "work" / "process000").exists()

    if died:
        os.kill(node.pid, signal.SIGKILL)
    node.close()

    node.wait_for(lambda: not (private / "work").exists())
    if died:
        node.wait_for(lambda: not private.exists())
    assert (private / "run").exists() is not died


def test_worker_processes_die_with_a_supervisor_that_is_killed(node):
    """Even SIGKILL of the supervisor leaves no worker process behind."""
    node.script("import os\ndef run(mini_batch): return [os.getpid()]")
    node.start()
    pid = int(node.run({"rank": 0}).rows[0])

    os.kill(node.pid, signal.SIGKILL)

    node.wait_for(lambda: not node.is_alive(pid))


def test_an_exception_of_our_own_is_written_down_and_ends_everything(node):
    """A supervisor that fails says so in its own file and leaves no process behind (R80)."""
    node.script("import os\ndef run(mini_batch): return [os.getpid()]")
    node.start()
    pid = int(node.run({"rank": 0}).rows[0])

    node.send(channel.pack(channel.BUNDLE, 99, {"no": "such thing"}))

    assert node.wait() == 1
    assert not node.is_alive(pid)
    assert "KeyError: 'avoid'" in node.log("system_error")


def test_an_interrupt_of_the_terminal_reaches_nobody(node):
    """SIGINT to the supervisor changes nothing: the driver decides what a Ctrl-C means."""
    node.script("def run(mini_batch): return [1]")
    node.start()
    node.event("process_ready")

    os.kill(node.pid, signal.SIGINT)

    assert node.run({"rank": 0}).outcomes == ["succeeded"]
    assert os.getsid(node.pid) == node.pid


def test_a_neighbour_is_not_disturbed(node):
    """While one process is killed and replaced, the other goes on with its mini-batch (R207)."""
    node.script("""
        import os, time, pathlib
        OUT = pathlib.Path(os.environ["AZUREML_BI_OUTPUT_PATH"])
        def run(mini_batch):
            (OUT / f"began{mini_batch.task_id}").write_text("\\n")
            while not (OUT / "go").exists():
                time.sleep(0.005)
            return [os.getpid()]
    """)
    node.start(process_count=2)
    node.event("process_ready", process="process000")
    node.event("process_ready", process="process001")
    slow, stuck = node.ranks(index=1), node.ranks(index=0)
    node.event("bundle_started", bundle=slow)
    started = node.event("bundle_started", bundle=stuck)
    node.read_when_there("began0")

    os.kill(started["pid"], signal.SIGKILL)
    died = node.answer(stuck)
    (node.output / "go").write_text("")

    assert died.outcomes == ["process_died"]
    assert node.answer(slow).outcomes == ["succeeded"]
    assert node.event("process_started", process="process002")["process"] == "process002"
    assert len(node.named("process_ended")) == 1


def test_a_fork_that_comes_back_does_not_answer(node):
    """A child that the script forks and that returns from run() ends there: one result per mini-batch (R200)."""
    node.script("""
        import os
        def run(mini_batch):
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
            return [pid > 0]
    """)
    node.start()

    answer = node.run({"rank": 0}, {"rank": 1})

    assert answer.outcomes == ["succeeded", "succeeded"]
    assert answer.rows == [b"True\n", b"True\n"]


@pytest.mark.parametrize("comes_back", ["pass", "raise ValueError('of the child')", "sys.exit(5)"])
@pytest.mark.parametrize("place", ["import", "init", "shutdown"])
def test_a_fork_at_the_start_or_end_does_not_answer(node, place, comes_back):
    """A child that comes back out of the import, init() or shutdown() neither reads nor answers (R200)."""
    node.script(f"""
        import os, sys
        def fork():
            pid = os.fork()
            if not pid:
                {comes_back}
            elif os.waitpid(pid, 0):
                open(os.environ["AZUREML_BI_OUTPUT_PATH"] + "/child_is_gone", "w").write("yes\\n")
        def init():
            if "{place}" == "init": fork()
        def shutdown():
            if "{place}" == "shutdown": fork()
        if "{place}" == "import": fork()
        def run(mini_batch):
            return [os.getpid()]
    """)
    node.start()

    answer = node.run({"rank": 0}, {"rank": 1})
    assert node.stop() == 0

    assert answer.outcomes == ["succeeded", "succeeded"]
    assert node.read_when_there("child_is_gone") == "yes"
    assert not node.named("start_failed")
    assert not node.named("shutdown_failed")
    (ready,) = node.named("process_ready")
    assert answer.rows == [f"{ready['pid']}\n".encode()] * 2
    assert node.event("process_ended")["reason"] == "stopped"


def test_a_script_that_interrupts_itself_has_one_error(node):
    """KeyboardInterrupt in run() ends the process; that it then ends, stop or not, is no error more (R59)."""
    node.script("""
        import os, time
        def run(mini_batch):
            while not os.path.exists(os.environ["AZUREML_BI_OUTPUT_PATH"] + "/go"):
                time.sleep(0.01)
            raise KeyboardInterrupt("enough")
    """)
    node.start()
    tag = node.ranks()
    node.event("bundle_started")
    node.send(channel.pack(channel.STOP))
    (node.output / "go").touch()

    assert node.answer(tag).outcomes == ["failed"]
    assert node.wait() == 0

    assert not node.named("shutdown_failed")
    assert node.named("process_ended")[0]["reason"] == "stopped"
    assert node.log("error").count(" | mini-batch 0, attempt 1, run | ") == 1
    assert node.log("error").count("KeyboardInterrupt: enough\n") <= 2  # heading and stack trace


def test_large_results_pass_whole(node):
    """Rows of many megabytes come as they were, from two processes at once."""
    node.script("""
        def run(mini_batch):
            return [str(mini_batch.task_id) * 1_000_000 for _ in range(8)]
    """)
    node.start(process_count=2)

    answers = [node.answer(tag) for tag in [node.ranks(2, index=1), node.ranks(2, index=3)]]

    rows = [row for answer in answers for row in answer.rows]
    assert rows == [(digit * 1_000_000 + b"\n") * 8 for digit in (b"1", b"2", b"3", b"4")]
