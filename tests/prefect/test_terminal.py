"""What a person sees of a step: on a real terminal, and where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

WIDTH = 110
PROGRAM = """
import sys, time
from pathlib import Path
from prefect import flow
from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunStep

mode, script, data = sys.argv[1:]

def step(name):
    config = ParallelRunConfig(
        script, mini_batch_size=1, process_count_per_node=1, run_max_try=2, error_threshold=5
    )
    return ParallelRunStep(
        name, config, [FileDataset.from_files(data)], output=Path(data).parent / name, allow_reuse=False
    )

@flow
def two():
    futures = [step(name).submit() for name in ("first-step", "second-step")]
    for number in range(5):
        print("printed by the flow", number)
        time.sleep(0.2)
    for future in futures:
        future.result()

two() if mode == "two" else step("first-step")()
"""
SCRIPT = """
import sys, time

def run(mini_batch):
    time.sleep(0.02)
    print("the script's own output")
    if mini_batch[0].endswith("13.txt"):
        raise ValueError("unlucky")
    return mini_batch
"""
CONTROL = re.compile(r"\x1b\[([?0-9;]*[A-Za-z])|([\s\S])")


@pytest.fixture
def start(tmp_path):
    """Return a function that begins the program, on a terminal where `slave` is one."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "score.py").write_text(SCRIPT)
    (tmp_path / "data").mkdir()
    for number in range(30):
        (tmp_path / "data" / f"{number:02d}.txt").write_text("")
    (tmp_path / "program.py").write_text(PROGRAM)
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    values = [tmp_path / "scripts" / "score.py", tmp_path / "data"]

    def call(mode, slave=subprocess.DEVNULL, output=subprocess.PIPE, program=None, **environment):
        return subprocess.Popen(
            program or [sys.executable, str(tmp_path / "program.py"), mode, *map(str, values)],
            stdin=slave,
            stdout=output,
            stderr=output if output != subprocess.PIPE else subprocess.STDOUT,
            env={
                **kept,
                "TERM": "xterm-256color",
                "PREFECT_HOME": str(PREFECT_HOME.value()),
                "PREFECT_API_URL": str(PREFECT_API_URL.value()),
                **environment,
            },
            start_new_session=True,
        )

    return call


def on_a_terminal(start, mode, **environment):
    """Run the program on a terminal; return all that it wrote there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
    process = start(mode, slave, slave, **environment)
    os.close(slave)
    written = bytearray()
    try:
        while data := os.read(master, 65536):
            written += data
    except OSError:  # the program has ended, and nobody has the other end
        pass
    os.close(master)
    assert process.wait(30) == 0, written.decode()
    return written.decode()


def screen(written):
    """Return the lines that the terminal shows in the end."""
    lines, x, y = [[]], 0, 0
    for control, letter in CONTROL.findall(written):
        if control.endswith("A"):
            y -= int(control[:-1] or 1)
        elif control == "2K":
            lines[y] = []
        elif control:
            assert control[-1] in "mhl", f"not known to this test: {control}"
        elif letter == "\r":
            x = 0
        elif letter == "\n" or x == WIDTH:
            x, y = (0 if x == WIDTH else x), y + 1
            lines += [[]] if y == len(lines) else []
        if letter and letter not in "\r\n":
            lines[y] += [" "] * (x + 1 - len(lines[y]))
            lines[y][x] = letter
            x += 1
    return ["".join(line).rstrip() for line in lines if line]


@pytest.mark.slow
def test_two_steps_of_a_flow_share_the_terminal_with_its_log(start):
    """R241: a row for each, the lines of Prefect's log and what the flow prints above, none torn."""
    written = on_a_terminal(start, "two")
    lines = screen(written)
    rows = [line for line in lines if re.match(r"(first|second)-step ", line)]
    assert sorted(row.split()[0] for row in rows) == ["first-step", "second-step"]
    for row in rows:
        assert "Completed with 1 failed item" in row
        assert "30/30" in row
        assert "1 failed, 1 retried" in row
    assert "━" in written
    assert "starting 1 node" in written
    assert [line for line in lines if "printed by the flow" in line] == [
        f"printed by the flow {number}" for number in range(5)
    ]
    beginnings = re.compile(r"\d\d:\d\d:\d\d\.\d{3} \| (INFO|WARNING) ")
    assert sum(bool(beginnings.match(line)) for line in lines) == len(
        beginnings.findall("\n".join(lines))
    )
    assert not [line for line in lines if "━" in line]  # what ended is no bar any more
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


@pytest.mark.slow
def test_only_errors_means_nothing_of_a_run_that_completes(start):
    """PREFECT_LOGGING_LEVEL=ERROR: no bar, no line."""
    assert on_a_terminal(start, "plain", PREFECT_LOGGING_LEVEL="ERROR") == ""


@pytest.mark.slow
def test_without_a_terminal_there_are_lines_and_nothing_else(start, tmp_path):
    """R241: in a script outside a flow, and in `parallelrun retry-failed`; also where TERM is set."""
    process = start("plain")
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, said
    assert "Completed with 1 failed item: in 30 = out 29 + failed 1 (items)" in said
    assert "\x1b" not in said
    assert "\r" not in said

    (run,) = (tmp_path / "runs" / "first-step").iterdir()
    (tmp_path / "scripts" / "score.py").write_text(SCRIPT.replace("13.txt", "none"))
    command = [sys.executable, "-m", "prefect_parallelrun", "retry-failed", str(run)]
    process = start("", program=command)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, said
    assert "Completed: in 30 = out 30 + failed 0 (items)" in said
    assert "\x1b" not in said
    assert "\r" not in said
