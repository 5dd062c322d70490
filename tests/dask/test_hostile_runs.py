"""Scripts that misbehave in every way at once, in whole runs: the others' rows are all there, once."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest

from tests.dask.conftest import lines

# By item: what the script does with it, and the category of the failure; None: it succeeds.
WAYS = {
    3: ("raise ValueError('bad')", "exception"),
    9: ("os._exit(7)", "exit"),
    15: ("sys.exit(3)", "exit"),
    21: ("os.kill(os.getpid(), signal.SIGKILL)", "signal"),
    27: ("os.abort()", "signal"),
    33: ("ctypes.string_at(0)", "signal"),
    39: ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); ctypes.PyDLL(None).pause()", "timeout"),
    45: ("raise MemoryError", "memory"),
    51: ("os.closerange(0, 1024)", "exit"),
    57: ("raise ValueError('\\udcff')", "exception"),
    60: ("os.closerange(0, 3)", None),
    63: ("os.chdir('/'); os.environ.clear()", None),
    66: ("threading.Thread(target=time.sleep, args=(600,), daemon=True).start()", None),
    69: ("subprocess.Popen(['/bin/sh', '-c', 'setsid sleep 600 & sleep 600'])", None),
    72: ("os.fork() or (os.setsid(), os.fork() or time.sleep(600), os._exit(0))", None),
    75: ("print('x' * 10_000_000); print('y' * 10_000_000, file=sys.stderr)", None),
    78: ("sys.stdout = sys.stderr = None", None),
    81: ("assert list(concurrent.futures.ProcessPoolExecutor(1).map(abs, [-1])) == [1]", None),
    84: ("time.sleep(0.1) if os.fork() else None", None),
}  # fmt: skip

HOSTILE = """
import concurrent.futures, ctypes, os, signal, subprocess, sys, threading, time
from pathlib import Path

SEEN, WAYS = os.environ["SEEN"], {ways!r}

def run(mini_batch):
    with open(SEEN, "a") as seen:
        seen.write(Path(mini_batch[0]).stem + "\\n")
    exec(WAYS.get(int(Path(mini_batch[0]).stem), ""))
    return [Path(path).stem for path in mini_batch]
"""


def left_running(marker: str) -> list[str]:
    """Return the command lines of all processes with that in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and marker.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_whatever_a_script_does_costs_its_own_mini_batch_only(run, numbers):
    """Good items run once and are in the output, bad ones are told with their reason, nothing lives on (R200, R205, R207)."""
    seen = numbers.parent / "seen"
    result = run(
        HOSTILE.format(ways={item: way for item, (way, _) in WAYS.items()}),
        numbers,
        mini_batch_size=1,
        process_count_per_node=3,
        run_invocation_timeout=2,
        run_max_try=1,
        error_threshold=50,
        environment_variables={"SEEN": str(seen)},
    )

    bad = {item: category for item, (_, category) in WAYS.items() if category}
    assert lines(result) == [f"{n:02d}" for n in range(100) if n not in bad]
    assert sorted(seen.read_text().split()) == [f"{n:02d}" for n in range(100)]
    assert result.attempts == 100
    records = Path(result.run_directory, "failed_items.jsonl").read_text().splitlines()
    found = {int(Path(one["item"]).stem): one for one in map(json.loads, records)}
    assert found.keys() == bad.keys()
    assert left_running(str(seen)) == []


@pytest.mark.timed
@pytest.mark.slow
def test_a_result_of_500_mb_comes_through_whole(run, numbers):
    """A mini-batch that returns 500 MB is in the output, to the byte, beside small ones (R200, R250)."""
    size = 500_000_000
    began = time.monotonic()
    result = run(
        f"""
        def run(mini_batch):
            if mini_batch[0].endswith("/50.txt"):
                return ["x" * 999_999] * {size // 1_000_000} + ["last"] * (len(mini_batch) - 1)
            return [mini_batch[0][-6:-4]]
        """,
        numbers,
        mini_batch_size=1,
    )
    took = time.monotonic() - began

    with open(result.append_row_file, "rb") as file:
        head = file.read(150)
        assert head == "".join(f"{n:02d}\n" for n in range(50)).encode()
        for _ in range(size // 1_000_000):
            assert file.read(1_000_000) == b"x" * 999_999 + b"\n"
        assert file.read() == "".join(f"{n:02d}\n" for n in range(51, 100)).encode()
    # Measured: 2 GB, most of it Dask's and the agent's copies of one message.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 6 * size / 1024
    assert took < 60, "took longer"
