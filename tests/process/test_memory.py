"""Deaths and failures for want of memory: they are recognised, and cost their own attempt only."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun_runtime import deaths

LIMIT_MB = 120
"""Of the control group; a worker process has some 15 MB without anything."""


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of the kernel's with little memory; skipped where none can be made."""
    name = f"parallelrun-test-{uuid.uuid4().hex[:8]}"
    places = {
        Path("/sys/fs/cgroup/memory"): ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        Path("/sys/fs/cgroup"): ("memory.max", "memory.swap.max"),
    }
    for root, (limit, swap) in places.items():
        group = root / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(LIMIT_MB << 20))
            if (group / swap).exists():
                (group / swap).write_text("0" if root.name == "cgroup" else str(LIMIT_MB << 20))
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("no control group with a memory limit can be made here (that needs root)")


def joining(group: Path) -> list[str]:
    """Return the beginning of a command line: what follows runs within the group."""
    return ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]


def peak_mb(message: str) -> int:
    (found,) = re.findall(r"the process had ([\d,]+) MB at its peak", message)
    return int(found.replace(",", ""))


SCRIPT = """
import os, resource
def init():
    INIT
class OutOfMemoryError(RuntimeError): pass
class OfSomeLibrary(OutOfMemoryError): pass
def run(mini_batch):
    if mini_batch.task_id == 11:
        JOB
    if mini_batch.task_id == 21:
        os.kill(os.getpid(), 9)
    return [os.getpid()]
"""


def script(job: str, init: str = "pass") -> str:
    return SCRIPT.replace("JOB", job).replace("INIT", init)


def test_the_kernel_kills_the_worker_process_and_not_its_supervisor(memory_group, node):
    """The kernel's kill for memory is told as such, with the peak, and all else goes on (R91, R211)."""
    node.script(script("hoard = [b'x' * 1_000_000 for _ in range(1000)]"))
    node.start(launcher=joining(memory_group), process_count=2)
    ready = node.event("process_ready", process="process000")
    node.event("process_ready", process="process001")
    scores = [
        int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (node.pid, ready["pid"])
    ]
    assert scores[0] < scores[1] == 1000

    for _ in range(2):
        answer = node.run(*({"rank": place} for place in range(3)), index=10)

        assert answer.outcomes == ["succeeded", "process_died"]
        error = answer.results[1]["error"]
        assert (error["category"], error["type"], error["stage"]) == (
            "memory",
            "ProcessDied",
            "run",
        )
        assert "was killed for memory while run() was running" in error["message"]
        assert LIMIT_MB / 2 <= peak_mb(error["message"]) <= LIMIT_MB
        assert "was killed for memory" in node.log("error", answer.results[1]["process"])
    killed = node.run(*({"rank": place} for place in range(3)), index=20)

    # What nobody explains with memory is a signal like any other.
    assert killed.outcomes == ["succeeded", "process_died"]
    assert killed.results[1]["error"]["category"] == "signal"
    reasons = [event["reason"] for event in node.named("process_ended")]
    assert reasons == ["memory", "memory", "signal"]
    assert node.run({"rank": 0}).outcomes == ["succeeded"]
    assert node.stop() == 0


# What a script raises that says it is out of memory, and a word of its message.
RAISED = {
    "by Python": ("raise MemoryError", "MemoryError", "out of memory (the process had"),
    "with a text": ("raise MemoryError('no room for it')", "MemoryError", "no room for it (the"),
    "by name": ("raise OutOfMemoryError('of a GPU')", "OutOfMemoryError", "of a GPU (the"),
    "by its parent's name": ("raise OfSomeLibrary('of a GPU')", "OfSomeLibrary", "of a GPU (the"),
    "by CUDA": (
        "raise RuntimeError('CUDA out of memory. Tried to allocate 20.00 MiB')",
        "RuntimeError",
        "Tried to allocate 20.00 MiB (the",
    ),
    "after a while": (
        "x = [b'x' * 1_000_000 for _ in range(1000)]",
        "MemoryError",
        "out of memory",
    ),
}


@pytest.mark.parametrize("name", RAISED)
def test_a_script_that_says_so_is_out_of_memory_and_its_process_lives(node, name):
    """The failure is of memory, says how much there was at most, and the process goes on (R211)."""
    job, type_, word = RAISED[name]
    limited = "resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))"
    node.script(script(job, limited))
    node.start()

    answer = node.run(*({"rank": place} for place in range(3)), index=10)

    assert answer.outcomes == ["succeeded", "failed"]
    error = answer.results[1]["error"]
    assert (error["category"], error["type"], error["stage"]) == ("memory", type_, "run")
    assert word in error["message"]
    assert 5 <= peak_mb(error["message"]) <= 300
    assert node.run({"rank": 0}).rows == [answer.rows[0]]


@pytest.mark.parametrize(
    "job", ["raise ValueError('out of memory cards')", "raise OSError(12, 'x')"]
)
def test_what_only_sounds_like_it_is_no_want_of_memory(node, job):
    """A retry alone on its node is for what needs it (R211)."""
    node.script(script(job))
    node.start()

    assert node.run({"rank": 0}, index=11).results[0]["error"]["category"] == "exception"


def test_data_that_do_not_fit_are_a_want_of_memory(node):
    """Where loading a mini-batch needs more memory than there is, that is the reason, and not the file (R211)."""
    node.script("""
        from prefect_parallelrun_runtime import load
        def too_much(work, reader):
            return [b"x" * 1_000_000 for _ in range(10_000)]
        def init():
            import resource
            resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))
            load.load = too_much
        def run(mini_batch): return [1]
    """)
    node.start()

    error = node.run({"rank": 0}).results[0]["error"]

    assert (error["category"], error["stage"]) == ("memory", "load")
    assert 100 <= peak_mb(error["message"]) <= 300


def test_a_kill_for_memory_is_counted_once_only(monkeypatch):
    """One kill that the kernel counted explains one death, and no later one (R91)."""
    counts = iter([7, 8, 8])
    monkeypatch.setattr(deaths, "oom_kills", lambda: next(counts))
    register = deaths.Register()
    reasons = []
    for _ in range(2):
        with subprocess.Popen(["/bin/sh", "-c", "kill -9 $$"]) as process:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            register.reap({process.pid})
        reasons.append(register.take(process.pid).reason)

    assert reasons == ["memory", "signal"]
