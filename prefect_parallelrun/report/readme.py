"""`logs/readme.txt`: what each file of the log tree is, and which to open for which question."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from prefect_parallelrun.paths import RunPaths

_WIDTH = 100
_MOMENT = datetime(2001, 2, 3, 4, 56, tzinfo=UTC)
"""Stands for any time in the names of files."""


class Entry(NamedTuple):
    """A file of the log tree."""

    name: str
    """Its path below the run folder; `<node>`, `<process>`, `<yyyymmddhh>` and `<mm>` stand for what
    differs."""
    about: str


def entries(paths: RunPaths) -> Iterator[Entry]:
    """Yield every file of the log tree, those that only some runs have too."""
    files = paths.node_files("<node>")

    def entry(path: Path | str, about: str) -> Entry:
        return Entry(_name(paths, path), about)

    yield entry(paths.job_result, "How the run ended, and on failure why and which file to open.")
    yield entry(paths.readme, "This file.")
    yield entry(
        paths.progress_overview(_MOMENT),
        "Where the run stands, at least every 10 seconds, and how it ended. A new file each day (UTC); "
        "the largest name is the newest.",
    )
    yield entry(paths.driver_log, "The log of the driver: all that the flow's log has of this run.")
    yield entry(
        paths.error_summary,
        "Each distinct error of the entry script once: how often, first mini-batch and items, stack "
        "trace. Only if there was an error; written at the end.",
    )
    yield entry(
        files["error"],
        "Every error of one worker process with its stack trace: import, init(), run(), shutdown(), "
        "time-outs with the stacks of all threads. Only if there was an error.",
    )
    yield entry(
        files["stdout"],
        "What one worker process wrote to standard output: print(), Python's logging, C libraries and "
        "child processes.",
    )
    yield entry(
        files["stderr"],
        "The same of standard error; with PYTHONFAULTHANDLER the trace of a native crash.",
    )
    yield entry(
        files["entry_script_log"],
        "What the script wrote with EntryScript().logger. What it put into EntryScript().log_dir is in "
        "the same folder.",
    )
    yield entry(
        files["process_log"],
        "Every mini-batch of one worker process as it was picked up and as it ended, with items and "
        "times.",
    )
    yield entry(
        files["profile"],
        "Profile of one worker process, with --profiling_module in the arguments: python -m pstats FILE.",
    )
    yield entry(
        paths.master_log,
        "What the driver did: mini-batches created, nodes that joined or left, progress, result.",
    )
    yield entry(
        paths.processed_mini_batches,
        "A table of all attempts of all sittings: node, process, items, times, outcome, error; and of "
        "what was taken over of another run. Written at the end of each sitting.",
    )
    yield entry(
        paths.process_summary, "The same, added up by worker process; how each started and ended."
    )
    yield entry(paths.node_summary, "The same, added up by node; when each joined and why it left.")
    yield entry(
        paths.driver_error,
        "Exceptions of prefect-parallelrun's own code in the driver. Only if there was one.",
    )
    yield entry(files["system_error"], "The same on one node; and why log files cannot be written.")
    yield entry(
        paths.environment_log("<node>"),
        "What venv and pip said while the node built the Python environment of the step. Only if it did.",
    )
    yield entry(
        paths.node_usage("<node>"),
        "CPU, memory, swap, network and GPUs of the node's host, by whomever they are used.",
    )
    yield entry(
        paths.disk_usage("<node>"), "Space and traffic of the file systems that the node needs."
    )
    yield entry(
        paths.process_usage("<node>"),
        "CPU, memory, threads and traffic of each process of the run on that node.",
    )
    yield entry(
        paths.process_list("<node>", _MOMENT),
        "All processes of the node's host (the output of ps) in minute <mm> of that hour, UTC.",
    )


def _questions(paths: RunPaths) -> Iterator[tuple[str, str]]:
    """Yield each question with where its answer is."""
    files = paths.node_files("<node>")

    def at(path: Path | str) -> str:
        return _name(paths, path)

    yield "How did it end, and why?", at(paths.job_result)
    yield (
        "Is it getting on? Why is nothing produced?",
        f"the last lines of {at(paths.progress_overview(_MOMENT))}: they say what the nodes are doing. "
        f"Import or init() that fails: {at(files['error'])}; that hangs: {at(files['stdout'])}. "
        f"No node: {at(paths.driver_log)}",
    )
    yield (
        "What is wrong with my script?",
        f"{at(paths.error_summary)}, and while it runs {at(files['error'])}",
    )
    yield "Which items failed?", f"{at(paths.failed_items)}: one record each"
    yield (
        "Where is what I print?",
        f"{at(files['stdout'])}; EntryScript().logger: {at(files['entry_script_log'])}",
    )
    yield (
        "One process hangs: at what?",
        f"the last line of {at(files['process_log'])} is the mini-batch that it picked up; once it is "
        f"killed for the time-out, {at(files['error'])} has the stacks of its threads",
    )
    yield (
        "Who used the memory?",
        f"{at(paths.process_usage('<node>'))} for the run's processes, "
        f"{at(paths.process_list('<node>', _MOMENT))} for everybody's. Sampled every 600 seconds, unless "
        "--resource_monitor_interval in the arguments says otherwise",
    )
    yield (
        "What was slow?",
        f"{at(paths.processed_mini_batches)}, sorted by Elapsed Seconds. Long Load Seconds: reading the "
        "input. Process Seconds far below Run Method Seconds: run() waits for something. Within run(): "
        "--profiling_module cProfile in the arguments",
    )
    yield (
        "Why did a node or a process go?",
        f"{at(paths.node_summary)} and {at(paths.process_summary)}, columns Leave Reason and End Reason; "
        f"while it runs {at(paths.driver_log)}",
    )
    yield (
        "Is this a fault of prefect-parallelrun?",
        f"{at(paths.driver_error)} and {at(files['system_error'])}",
    )


def _name(paths: RunPaths, path: Path | str) -> str:
    """Return a path below the run folder, with placeholders for what differs."""
    name = Path(path).relative_to(paths.root).as_posix().replace("{process}", "<process>")
    name = name.replace(f"{_MOMENT:%Y%m%d%H}", "<yyyymmddhh>")
    return name.replace(f"_{_MOMENT:%M}", "_<mm>")


def write_readme(paths: RunPaths) -> None:
    """Write it, in the place of what an earlier sitting may have left."""
    parts = [
        "The logs of one run. Paths are below the run folder, in which this folder logs lies.\n"
        "<node> is node000, node001, ... in the order of joining; a node that comes back, or comes in a\n"
        "later sitting (the run was resumed), has the next number. <process> is process000, ... on its\n"
        "node; a replacement has the next number. All times are UTC.",
        "WHERE TO LOOK FIRST",
        *(f"{question}\n{_filled(answer)}" for question, answer in _questions(paths)),
        "WHAT EACH FILE IS",
        *(f"{entry.name}\n{_filled(entry.about)}" for entry in entries(paths)),
    ]
    paths.readme.parent.mkdir(parents=True, exist_ok=True)
    paths.readme.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _filled(text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
