"""The logs of the worker processes, of a whole run."""

from __future__ import annotations

import pstats
import re
from pathlib import Path


def test_a_run_leaves_a_log_and_a_profile_of_each_process(run, tmp_path):
    """`--profiling_module` in `arguments` profiles each worker process, and each has its log (R61, R81, R105)."""
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    for number in range(20):
        (numbers / f"{number:02d}.txt").write_text(str(number))

    result = run(
        "def score(path): return open(path).read()\n"
        "def run(mini_batch): return [score(path) for path in mini_batch]\n",
        numbers,
        mini_batch_size="2",
        arguments=["--profiling_module", "cProfile"],
    )

    logs_folder = Path(result.logs_directory)
    folder = logs_folder / "sys" / "node" / "node000"
    logs = sorted(folder.glob("*.txt"))
    assert [log.stem for log in logs] == ["process000", "process001"]
    text = "".join(log.read_text() for log in logs)
    picked_up = re.findall(r"mini-batch (\d+), attempt 1 \| picked up", text)
    ended = re.findall(r"mini-batch (\d+), attempt 1 \| succeeded \| items 2, succeeded 2", text)
    assert sorted(map(int, picked_up)) == sorted(map(int, ended)) == list(range(10))
    # One that was not ready yet when all was done, was ended and has none.
    ready = [log for log in logs if " | ready | " in log.read_text()]
    profiles = [pstats.Stats(str(folder / f"{log.stem}.profile")).stats for log in ready]
    calls = [
        figures[1]
        for stats in profiles
        for (_file, _line, name), figures in stats.items()
        if name == "score"
    ]
    assert sum(calls) == 20
    assert not list((logs_folder / "sys" / "error").glob("*"))
