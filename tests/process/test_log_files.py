"""What scripts write, in the log tree; and what they write too much of."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import psutil
import pytest

MB = 1_000_000

CHATTY = """
import os, subprocess
LINE = "x" * 999
def run(mini_batch):
    if not mini_batch.task_id:
        for _ in range({megabytes}):
            print("\\n".join([LINE] * 1000))
        written = 0
        while written < {megabytes} * 1_000_000:
            written += os.write(1, b"y" * 100_000)
        command = "head -c {megabytes}000000 /dev/zero; head -c {megabytes}000000 /dev/zero >&2"
        subprocess.run(["sh", "-c", command], check=True)
    return [os.getpid()]
"""


def path_of(node, kind: str, process: str) -> Path:
    return Path(node.paths.node_files("node000")[kind].replace("{process}", process))


@pytest.mark.parametrize(
    "megabytes", [15, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(120)])]
)
def test_a_chatty_script_costs_nobody_anything(node, megabytes):
    """Masses of output, of print, of os.write and of a child, do not pass through the supervisor (R57, R58, R71)."""
    node.script(CHATTY.format(megabytes=megabytes))
    node.start(process_count=2, run_timeout_s=60.0)
    node.until(lambda: len(node.named("process_ready")) == 2)
    supervisor = psutil.Process(node.pid)
    memory, cpu = supervisor.memory_info().rss, sum(supervisor.cpu_times()[:2])

    chatty = node.bundle({"rank": 0}, index=0, avoid=["process001"])
    node.event("bundle_started", bundle=chatty)
    neighbours = 0
    slowest = 0.0
    while node.answers.get(chatty) is None:
        began = time.monotonic()
        node.run({"rank": 0}, index=1, avoid=["process000"])
        slowest = max(slowest, time.monotonic() - began)
        neighbours += 1

    assert node.answer(chatty).outcomes == ["succeeded"]
    assert neighbours >= 5
    assert slowest < 2
    assert supervisor.memory_info().rss - memory < 2 * MB
    # The neighbour's mini-batches cost something; a copy of the flood would cost far more.
    assert sum(supervisor.cpu_times()[:2]) - cpu < 0.5 + 0.001 * neighbours
    for kind, times in (("stdout", 3), ("stderr", 1)):
        file = path_of(node, kind, "process000")
        assert os.path.getsize(file) == times * megabytes * MB
        file.unlink()


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("WARNING", ["warning"]),
        ("INFO", ["info", "warning"]),
        ("DEBUG", ["debug", "info", "warning"]),
    ],
)
def test_the_logging_level_is_that_of_the_entry_scripts_logger(node, level, expected):
    """The step's logging_level decides what EntryScript().logger writes, and nothing of Python's own logging (R56, R70)."""
    node.script("""
        import logging
        from azureml_user.parallel_run import EntryScript
        def run(mini_batch):
            for name in ("debug", "info", "warning"):
                getattr(EntryScript().logger, name)(name)
                getattr(logging.getLogger("library"), name)(name)
            return [1]
    """)
    node.start(logging_level=level)

    node.run({"rank": 0})

    pid = node.event("process_ready")["pid"]
    written = [line.split("|") for line in node.log("entry_script_log").splitlines()]
    assert [line[-1] for line in written] == expected
    for time_, name, process, logger, text in written:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", time_)
        assert (name, process, logger) == (text.upper(), str(pid), "EntryScript")
    assert [line.split("|")[-1] for line in node.log("stdout").splitlines()] == ["warning"]


def test_a_script_may_lower_the_level_of_its_logging(node):
    """Python's logging goes to stdout from WARNING up, or from where the script says (R69, R70)."""
    node.script("""
        import logging
        logging.getLogger().setLevel(logging.DEBUG)
        def run(mini_batch):
            logging.debug("fine")
            return [1]
    """)
    node.start()

    node.run({"rank": 0})

    (line,) = node.log("stdout").splitlines()
    assert line.endswith("|root|fine")


def test_each_process_has_files_of_its_own_and_a_replacement_new_ones(node):
    """The names of processes count on; what one has written stays its own (R92)."""
    node.script("""
        import os, sys
        from azureml_user.parallel_run import EntryScript
        def run(mini_batch):
            name = EntryScript().agent_name
            print("out of", name)
            print("err of", name, file=sys.stderr)
            EntryScript().logger.info("log of %s", name)
            if mini_batch.task_id == 1:
                raise ValueError(name)
            if mini_batch.task_id == 2:
                os._exit(1)
            return [name]
    """)
    node.start()

    assert node.run({"rank": 0}, index=2).outcomes == ["process_died"]
    assert node.run({"rank": 0}, index=1).outcomes == ["failed"]
    assert node.stop() == 0

    for process in ("process000", "process001"):
        assert node.log("stdout", process) == f"out of {process}\n"
        assert node.log("stderr", process) == f"err of {process}\n"
        assert node.log("entry_script_log", process).endswith(f"|log of {process}\n")
    assert "mini-batch 2, attempt 1, run | ProcessDied: " in node.log("error", "process000")
    assert "mini-batch 1, attempt 1, run | ValueError: process001" in node.log(
        "error", "process001"
    )
    assert "score.py" in node.log("error", "process001")
    folders = {path.parent.name for path in node.paths.logs.rglob("process*")}
    assert folders == {"node000"}


@pytest.mark.parametrize("stage", ["import", "init"])
def test_the_stack_trace_of_a_start_that_failed_is_in_the_error_log(node, stage):
    """Import and init() have their stack traces in the process's error file (R60)."""
    node.script(f"""
        def fail(): raise OSError("no model")
        {"fail()" if stage == "import" else "def init(): fail()"}
        def run(x): return [1]
    """)
    node.start(init_failures_allowed=1)

    node.event("gave_up")

    log = node.log("error")
    assert re.match(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ \| {stage} \| OSError: no model\n", log)
    assert 'score.py", line 2, in fail' in log


def test_an_exception_of_our_own_has_its_time_and_its_stack(node):
    """What goes wrong in the product's own code is written down with time and stack trace (R80)."""
    node.script("def run(x): return [1]")
    node.start()
    node.event("process_ready")

    node.send(b"hello, is anybody there?")

    assert node.wait() == 1
    log = node.log("system_error")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \| supervisor\nTraceback ", log)
    assert log.rstrip().endswith("ValueError: what came from the agent is no frame")


def test_an_exception_before_the_first_process_is_written_down_too(node):
    """A supervisor that cannot even begin says why in the node's file, not on some terminal (R80)."""
    node.script("def run(x): return [1]")

    node.start(protocol=0)

    assert node.wait() == 1
    assert "ValueError: the agent speaks protocol 0" in node.log("system_error")


def test_an_exception_of_ours_in_a_worker_process_is_written_down(node):
    """The product's code in a worker process has its exceptions in the same file, by name (R80)."""
    node.script("""
        def run(mini_batch):
            from prefect_parallelrun_runtime import result_header
            result_header.encode = None
            return [1]
    """)
    node.start()

    assert node.run({"rank": 0}).outcomes == ["process_died"]

    log = node.log("system_error")
    assert re.match(r"\S+Z \| process000\nTraceback ", log)
    assert "TypeError: 'NoneType' object is not callable" in log
