"""The progress bar on a terminal of the test's own: what is on its screen when all is over."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
import warnings

import pytest
from prefect.logging.handlers import PrefectConsoleHandler
from rich.progress import Progress

from prefect_parallelrun.report.progress import RUNNING, Standing
from prefect_parallelrun.report.terminal import TerminalBar


class Terminal:
    """A terminal that takes in what is written, and can say what it would show."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        self.file = os.fdopen(slave, "w", encoding="utf-8", buffering=1)
        self._taken = bytearray()
        self._reader = threading.Thread(target=self._take, daemon=True)
        self._reader.start()

    def _take(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self._taken += data
        except OSError:  # nobody has the other end any more
            pass

    def end(self) -> str:
        """Return all that was written."""
        if not self.file.closed:
            self.file.close()
            self._reader.join(10)
            os.close(self._master)
        return self._taken.decode()


def screen(written: str, width: int) -> list[str]:
    """Return the lines that a terminal shows after it has taken in all that was written."""
    lines: list[list[str]] = [[]]
    x = y = 0
    for control, letter in re.findall(r"\x1b\[([?0-9;]*[A-Za-z])|([\s\S])", written):
        if control.endswith("A"):
            y -= int(control[:-1] or 1)
        elif control == "2K":
            lines[y] = []
        elif control:
            assert control[-1] in "mhl", f"not known to this test: {control}"
        elif letter == "\r":
            x = 0
        elif letter == "\n" or x == width:
            x, y = 0 if x == width else x, y + 1
            lines += [[]] if y == len(lines) else []
        if letter and letter not in "\r\n":
            lines[y] += [" "] * (x + 1 - len(lines[y]))
            lines[y][x] = letter
            x += 1
    return ["".join(line).rstrip() for line in lines if line]


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that makes this process's standard streams a terminal of so many columns."""
    made = []

    def make(width=100, **environment):
        for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(width), **environment}.items():
            monkeypatch.setenv(name, value)
        one = Terminal(width)
        made.append(one)
        monkeypatch.setattr(sys, "stdout", one.file)
        monkeypatch.setattr(sys, "stderr", one.file)
        return one

    yield make
    for one in made:
        one.end()


@pytest.fixture
def log():
    """A logger of its own, without handlers."""
    logger = logging.getLogger("test-terminal")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    logger.handlers.clear()


def standing(done, planned=40, **changes):
    values = {
        "planned": planned,
        "created": done,
        "succeeded": done - 1,
        "failed": 1,
        "retried": 2,
        "running": 4,
        "items_succeeded": 10 * done,
        "items_failed": 10,
        "rows": 10 * done,
        "rate": 12.34,
        "left_s": 65.0,
        "elapsed_s": 3.0,
    }
    return Standing(**{**values, **changes})


def test_a_bar_says_how_far_the_step_is(terminal):
    """R241: bar, done of planned, items, rate, failures, retries, time elapsed and left."""
    shown = terminal(120)
    with TerminalBar("predict-digits", level=logging.INFO) as bar:
        bar.progress(RUNNING, standing(20))
    written = shown.end()
    (row,) = screen(written, 120)
    assert row.startswith("predict-digits ━━━━")
    assert row.endswith(" 20/40 200 items 12.3/s 1 failed, 2 retried 0:00:00 0:01:05 left")
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is there again


def test_what_is_not_known_is_not_said(terminal):
    """R241: before the plan is known there is a sign of life, and the stage; no bar of nothing."""
    shown = terminal()
    with TerminalBar("predict-digits", level=logging.INFO) as bar:
        bar.progress("planning", None)
        bar.progress(RUNNING, standing(3, planned=None, left_s=None))
    written = shown.end()
    assert "━" not in written
    assert screen(written, 100) == ["predict-digits running 3 12.3/s 1 failed, 2 retried 0:00:00"]


@pytest.mark.parametrize("width", [30, 50, 80])
def test_a_row_fits_its_terminal(terminal, width):
    """What matters most stays: the step, the bar, how many of how many."""
    shown = terminal(width)
    with TerminalBar("score", level=logging.INFO) as bar:
        bar.progress(RUNNING, standing(20))
    (row,) = screen(shown.end(), width)
    assert re.match(r"score [━╸╺]+ +20/40", row)
    assert len(row) <= width
    assert "…" not in row


def test_lines_of_the_log_stand_above_the_bar(terminal, log):
    """R241: of Prefect's handler, of one of the standard library, and what the flow prints."""
    shown = terminal()
    handlers = [PrefectConsoleHandler(stream=sys.stderr), logging.StreamHandler()]
    for handler in handlers:
        log.addHandler(handler)
    with TerminalBar("score", level=logging.INFO) as bar:
        for number in range(5):
            bar.progress(RUNNING, standing(10 + number))
            log.info("line %d %s", number, "x" * 150)
            print("printed", number)
    assert [handler.stream for handler in handlers] == [shown.file, shown.file]
    assert handlers[0].console.file is shown.file
    assert sys.stdout is shown.file
    log.info("after")
    lines = screen(shown.end(), 100)
    expected = []
    for number in range(5):
        text = f"line {number} {'x' * 150}"
        expected += [text[:100], text[100:]] * 2 + [f"printed {number}"]
    assert lines[: len(expected)] == expected
    assert lines[len(expected)].startswith("score ━")
    assert lines[len(expected) + 1 :] == ["after", "after"]


def test_an_unfinished_line_waits_for_its_end(terminal):
    """Dots and percentages that a flow prints one by one are one line, as they are without a bar."""
    shown = terminal()
    with TerminalBar("score", level=logging.INFO) as bar:
        bar.progress(RUNNING, standing(20))
        for _ in range(5):
            print(".", end="", flush=True)
        print(" done")
        for percent in range(0, 101, 10):
            print(f"\r{percent}%", end="", flush=True)
        print()
        for percent in range(0, 101, 10):
            print(f"{percent} of 100", end="\r")
        print("\nunfinished", end="")
    lines = screen(shown.end(), 100)
    assert lines[:3] == ["..... done", "100%", "100 of 100"]
    assert sorted(line.split()[0] for line in lines[3:]) == ["score", "unfinished"]


def test_a_stream_below_a_bar_is_what_it_was(terminal):
    """Who asks `sys.stdout` for its encoding, as many libraries do, gets that of the terminal."""
    terminal()
    with TerminalBar("score", level=logging.INFO):
        assert (sys.stdout.encoding, sys.stdout.errors) == ("utf-8", "strict")
        assert sys.stdout.writable()
        assert sys.stdout.isatty()
        sys.stdout.writelines(["a\n", "b\n"])


def test_a_chatty_flow_is_not_slowed_down(terminal):
    """The rows are drawn ten times a second, however many lines come to stand above them."""
    shown = terminal()
    with TerminalBar("score", level=logging.INFO):
        for number in range(5_000):
            print("line", number, flush=True)
    written = shown.end()
    lines = screen(written, 100)
    assert [line for line in lines if line.startswith("line")] == [
        f"line {number}" for number in range(5_000)
    ]
    assert len(re.findall("score", written)) < 500


def test_what_a_forked_process_prints_is_not_lost(terminal):
    """It has no thread that draws the rows, and so writes by itself."""
    shown = terminal()
    with TerminalBar("score", level=logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads are there
        child = os.fork()
        if not child:
            print("from the child", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    assert "from the child" in shown.end()


def test_a_row_that_is_not_kept_leaves_nothing(terminal):
    """What was at work for a while before the step itself leaves the terminal as it was."""
    shown = terminal()
    with TerminalBar("score", level=logging.INFO, kept=False) as bar:
        bar.progress("listing the inputs", None)
        print("a line")
    assert screen(shown.end(), 100) == ["a line"]


def test_several_steps_have_a_row_each(terminal, log):
    """Two steps that a flow submits run in two threads, and a terminal has one last line."""
    shown = terminal()
    log.addHandler(PrefectConsoleHandler(stream=sys.stderr))
    both = threading.Barrier(2)

    def run(name, rounds):
        with TerminalBar(name, level=logging.INFO) as bar:
            both.wait(10)
            for done in range(1, rounds):
                bar.progress(RUNNING, standing(done, planned=rounds))
                log.info("%s at %d", name, done)

    threads = [threading.Thread(target=run, args=one) for one in (("first", 40), ("second", 60))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = screen(shown.end(), 100)
    logged = [line for line in lines if re.fullmatch(r"(first|second) at \d+", line)]
    assert len(logged) == 39 + 59
    rows = sorted(line for line in lines if line not in logged)
    assert [row.split()[0] for row in rows] == ["first", "second"]
    assert "39/40" in rows[0]
    assert "59/60" in rows[1]


@pytest.mark.parametrize("stream", ["the one that is there", "one that it kept"])
def test_what_comes_as_the_last_row_goes_stands_below_it(terminal, monkeypatch, stream):
    """Another step's last line of the log tears no row, and is not lost with the rows (R241)."""
    shown = terminal()
    threads = []
    stop = Progress.stop

    def late(self):
        kept = sys.stdout if stream == "one that it kept" else None
        threads.append(threading.Thread(target=lambda: print("late", file=kept, flush=True)))
        threads[0].start()
        threads[0].join(0.3)  # it waits for the rows to go
        stop(self)

    monkeypatch.setattr(Progress, "stop", late)
    with TerminalBar("first", level=logging.INFO), TerminalBar("second", level=logging.INFO):
        print("a line")
    threads[0].join(10)
    lines = screen(shown.end(), 100)
    assert lines[0] == "a line"
    assert sorted(line.split()[0] for line in lines[1:]) == ["first", "late", "second"]
    assert lines[-1] == "late"


def test_a_handler_that_was_made_below_a_bar_writes_above_the_next_one(terminal, log):
    """It keeps the stream that it found, in the time between two steps too (R241)."""
    shown = terminal()
    with TerminalBar("first", level=logging.INFO):
        log.addHandler(logging.StreamHandler())
        log.info("in the first")
    log.info("between")
    with TerminalBar("second", level=logging.INFO) as bar:
        bar.progress(RUNNING, standing(5))
        log.info("in the second")
    log.info("after")
    lines = screen(shown.end(), 100)
    assert [line.split(" ━")[0].split(" starting")[0] for line in lines] == [
        "in the first",
        "first",
        "between",
        "in the second",
        "second",
        "after",
    ]


def test_lines_that_come_while_rows_come_and_go_are_all_there(terminal, log):
    """Whichever stream their threads have got hold of, none is lost and none stands twice (R241)."""
    shown = terminal()
    log.addHandler(logging.StreamHandler())
    over = threading.Event()
    said = [0, 0]

    def talk(number):
        while not over.is_set():
            line = f"line {number} {said[number]}"
            log.info(line) if number else print(line, flush=True)
            said[number] += 1

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for number in range(20):
        with TerminalBar(f"step-{number}", level=logging.INFO) as bar:
            bar.progress(RUNNING, standing(5))
    over.set()
    for thread in threads:
        thread.join(10)
    written = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown.end())
    wanted = [f"line {number} {n}" for number in range(2) for n in range(said[number])]
    assert sorted(re.findall(r"line \d \d+", written)) == sorted(wanted)


def test_the_end_of_a_line_that_comes_after_the_last_row_makes_no_empty_line(terminal):
    """`print()` writes it apart, and the rows may have gone in between."""
    shown = terminal()
    with TerminalBar("score", level=logging.INFO):
        stream = sys.stdout
        stream.write("half")
    stream.write("\n")
    stream.write("\n")
    print("after")
    assert screen(shown.end(), 100)[-2:] == ["half", "after"]
    assert shown.end().endswith("half\r\n\r\nafter\r\n")


def test_colours_are_left_out_where_nobody_wants_them(terminal):
    """NO_COLOR: the bar is still drawn."""
    shown = terminal(NO_COLOR="1")
    with TerminalBar("score", level=logging.INFO) as bar:
        bar.progress(RUNNING, standing(20))
    written = shown.end()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", written)
    assert "20/40" in written


@pytest.mark.parametrize(
    ("level", "environment"),
    [
        (logging.ERROR, {}),
        (logging.WARNING, {}),
        (logging.INFO, {"TERM": "dumb"}),
        (logging.INFO, {"TTY_INTERACTIVE": "0"}),
    ],
)
def test_no_bar_where_it_is_not_wanted_or_cannot_be_drawn(terminal, level, environment):
    """R241: a bar is information, and needs a terminal that can redraw a line."""
    shown = terminal(**environment)
    with TerminalBar("score", level=level) as bar:
        bar.progress(RUNNING, standing(20))
    assert shown.end() == ""


def test_no_bar_where_standard_error_is_no_terminal(capsys, monkeypatch):
    """R241: also where colours are asked for, as in many builds, and where there are no streams."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    for stream in (sys.stderr, None):
        monkeypatch.setattr(sys, "stderr", stream)
        with TerminalBar("score", level=logging.INFO) as bar:
            bar.progress(RUNNING, standing(20))
    assert capsys.readouterr() == ("", "")


def test_what_a_program_writes_into_a_file_stays_out_of_the_terminal(
    terminal, monkeypatch, tmp_path
):
    """`python flow.py > rows.txt`: the bar is on the terminal, the rows are in the file."""
    shown = terminal()
    with (tmp_path / "rows.txt").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with TerminalBar("score", level=logging.INFO) as bar:
            bar.progress(RUNNING, standing(20))
            print("a row")
    assert (tmp_path / "rows.txt").read_text() == "a row\n"
    assert "a row" not in shown.end()


def test_a_terminal_that_is_gone_costs_the_run_nothing(terminal):
    """What is only watched never fails a run: the connection to a terminal may break at any time."""
    shown = terminal()
    with TerminalBar("score", level=logging.INFO) as bar:
        bar.progress(RUNNING, standing(20))
        become(shown.file, "/dev/full")
        bar.progress(RUNNING, standing(30))
    assert sys.stderr is shown.file
    become(shown.file, os.devnull)  # where what it holds can go
    shown.end()


def become(file, path):
    """Let what is written to a file go elsewhere."""
    other = os.open(path, os.O_WRONLY)
    os.dup2(other, file.fileno())
    os.close(other)
