"""Writes the run folder of a run that never was: any number of mini-batches, in seconds.

    paths = write_run(tmp_path / "run", mini_batches=1_000_000, nodes=16, processes=8)

The journal has the real schema, filled in bulk; nodes, processes, monitor files and `run.json` are as a
run leaves them. One mini-batch in `failing` fails, of several kinds, some of which kill their process.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.models import NodeRecord, ProcessRecord
from prefect_parallelrun.output.schema import open_for_writing
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord, keep_definition

BEGAN = datetime(2026, 3, 14, 22, 30, tzinfo=UTC).timestamp()
ITEMS = 10
"""Items of each mini-batch."""
GAP_S = 9 * 3600.0
"""Between two sittings."""
HOSTILE = "<script>alert(1)</script>"
_TRIES = 3
_KINDS = (
    # category, type, message, where, stage, outcome, how the process ends
    ("exception", "ValueError", f"bad header in {HOSTILE}.png", "score.py:41 in run", "run", "failed", None),
    ("exception", "KeyError", "'label'", "score.py:57 in _decode", "run", "failed", None),
    ("timeout", "TimedOut", "run() took longer than 60 s", "score.py:44 in run", "run", "timed_out", "timeout"),
    ("memory", "ProcessDied", "the kernel killed it for memory (peak 7.9 GB)", "", "run", "process_died", "memory"),
    ("signal", "ProcessDied", "it died of signal 11 (SIGSEGV)", "", "run", "process_died", "signal"),
    ("load", "UnreadableFile", "the file is cut off", "", "load", "failed", None),
)  # fmt: skip
_COLUMNS = (
    "mini_batch, attempt, final, outcome, node, process, items_total, items_succeeded, items_failed, rows, "
    "started_at, elapsed_s, cpu_s, load_s, run_s, error, message, items_sample, log_file, offset, length"
)


def items_of(indices: Iterable[int]) -> Iterator[tuple[int, list[str]]]:
    """Return the items of mini-batches, as `gather` wants them."""
    for index in indices:
        yield 0, [f"/data/images/{HOSTILE} {index:07}-{number}.png" for number in range(ITEMS)]


def write_run(
    root: Path,
    *,
    mini_batches: int = 2_000,
    nodes: int = 2,
    processes: int = 4,
    run_s: float = 0.4,
    failing: float = 0.01,
    sittings: int = 1,
    samples: int = 60,
    state: str = "Completed",
    seed: int = 5,
) -> RunPaths:
    """Write a run folder and return its paths.

    Args:
        root: the run folder; made.
        mini_batches: in all.
        nodes: in each sitting.
        processes: worker processes of each node.
        run_s: median of what a `run()` takes.
        failing: share of attempts that fail.
        sittings: the mini-batches are shared out among them, hours apart.
        samples: of the monitor, for each node and sitting.
        state: as in `run.json`; with `Running` there are no ends of nodes and living processes.
        seed: of the randomness.
    """
    paths = RunPaths(root)
    (paths.logs / "user").mkdir(parents=True)
    _write_record(paths, mini_batches, state)
    chance = random.Random(seed)
    journal = open_for_writing(paths.journal)
    journal.execute("PRAGMA synchronous = OFF")
    journal.execute("BEGIN")
    for number, (category, kind, message, where, stage, *_) in enumerate(_KINDS, 1):
        trace = f'Traceback (most recent call last):\n  File "score.py", line 41, in run\n{kind}: {message}\n'
        journal.execute(
            "INSERT INTO errors VALUES (?, ?, ?, ?, ?, ?, ?)",
            (number, category, kind, where, stage, message, trace),
        )
    began, marks = BEGAN, ", ".join("?" * (_COLUMNS.count(",") + 1))
    for sitting in range(sittings):
        ((done,),) = journal.execute("SELECT count(*) FROM attempts")
        journal.execute("INSERT OR REPLACE INTO meta VALUES ('resumed_after', ?)", (done,))
        share = range(mini_batches * sitting // sittings, mini_batches * (sitting + 1) // sittings)
        play = _Sitting(
            chance, paths, began, sitting * nodes, nodes, processes, run_s=run_s, failing=failing
        )
        journal.executemany(
            f"INSERT INTO attempts ({_COLUMNS}) VALUES ({marks})", play.attempts(share)
        )
        play.finish(over=state != "Running")
        _insert(journal, "nodes", play.nodes)
        _insert(journal, "processes", play.processes)
        for node in play.nodes:
            _write_samples(paths, node, play, samples, chance)
        began = play.end + GAP_S
    journal.execute("COMMIT")
    journal.close()
    return paths


class _Sitting:
    """One sitting, simulated: each slot takes the next mini-batch as soon as it is free."""

    def __init__(
        self,
        chance: random.Random,
        paths: RunPaths,
        began: float,
        first_node: int,
        nodes: int,
        processes: int,
        *,
        run_s: float,
        failing: float,
    ) -> None:
        self._chance, self._paths, self._run_s, self._failing = chance, paths, run_s, failing
        self.began = self.end = began
        self.nodes = [
            NodeRecord(
                node=f"node{first_node + number:03}",
                host=f"worker-{number}.example",
                address=f"tcp://10.0.0.{number % 250}:41000",
                processes=processes,
                joined_at=began + 0.3 * number,
            )
            for number in range(nodes)
        ]
        self._living: dict[tuple[int, int], ProcessRecord] = {}
        self._numbers = [0] * nodes
        self.processes: list[ProcessRecord] = []
        self._slots = [(node, slot) for node in range(nodes) for slot in range(processes)]

    def attempts(self, mini_batches: Iterable[int]) -> Iterator[tuple[object, ...]]:
        """Yield the attempts as rows of the journal, in the order in which they end."""
        waiting = iter(mini_batches)
        again: list[tuple[int, int]] = []
        ending: list[tuple[float, int, int, tuple[object, ...], str | None]] = []
        serial = 0

        def begin(place: int, now: float) -> None:
            nonlocal serial
            mini_batch, attempt = again.pop(0) if again else (next(waiting, -1), 1)
            if mini_batch < 0:
                return
            serial += 1
            row, elapsed_s, end = self._attempt(self._slots[place], mini_batch, attempt, now)
            if row[2] == 0:
                again.append((mini_batch, attempt + 1))
            heapq.heappush(ending, (now + elapsed_s, serial, place, row, end))

        for place, (node, slot) in enumerate(self._slots):
            begin(place, self._start((node, slot), self.nodes[node].joined_at + 0.05))
        while ending:
            now, _, place, row, end = heapq.heappop(ending)
            self.end = max(self.end, now)
            yield row
            if end is not None:
                slot = self._slots[place]
                self._stop(slot, now, end)
                now = self._start(slot, now + 0.02)
            begin(place, now)
        self.end += 0.5

    def finish(self, *, over: bool) -> None:
        """Let all processes and nodes end, unless the run still goes on."""
        for place in list(self._living):
            if over:
                self._stop(place, self.end - 0.2, "stopped")
            else:
                self.processes.append(self._living.pop(place))
        if over:
            self.nodes = [
                NodeRecord(**{**_values(node), "left_at": self.end}) for node in self.nodes
            ]

    def _attempt(
        self, place: tuple[int, int], mini_batch: int, attempt: int, now: float
    ) -> tuple[tuple[object, ...], float, str | None]:
        chance, process = self._chance, self._living[place]
        load_s = 0.0 if chance.random() < 0.8 else chance.expovariate(20 / self._run_s)
        run_s = chance.lognormvariate(0, 0.5) * self._run_s
        if chance.random() < 0.002:
            run_s *= 12
        elapsed_s = load_s + run_s + 0.001
        cpu_s = run_s * chance.uniform(0.5, 1.0) if chance.random() < 0.9 else run_s * 0.05
        shared = (process.node, process.process, ITEMS)
        times = (now, elapsed_s, cpu_s, load_s, run_s)
        if chance.random() >= self._failing:
            row = (mini_batch, attempt, 1, "succeeded", *shared, ITEMS, 0, ITEMS, *times)
            return (*row, None, None, None, None, None, None), elapsed_s, None
        number = chance.choices(range(len(_KINDS)), (6, 2, 1, 0.5, 0.5, 1))[0]
        *_, outcome, end = _KINDS[number]
        final = int(attempt == _TRIES)
        sample = json.dumps(next(items_of([mini_batch]))[1][:5])
        log = self._paths.process_error(process.node, process.process)
        row = (mini_batch, attempt, final, outcome, *shared, 0, ITEMS * final, 0, *times)
        return (*row, number + 1, None, sample, log, None, None), elapsed_s, end

    def _start(self, place: tuple[int, int], now: float) -> float:
        node = place[0]
        number, self._numbers[node] = self._numbers[node], self._numbers[node] + 1
        init_s = self._chance.uniform(0.3, 0.6)
        ready_at = now + 0.05 + init_s
        self._living[place] = ProcessRecord(
            node=self.nodes[node].node,
            process=f"process{number:03}",
            pid=20_000 + number,
            started_at=now,
            ready_at=ready_at,
            init_s=init_s,
        )
        return ready_at

    def _stop(self, place: tuple[int, int], now: float, reason: str) -> None:
        values = _values(self._living.pop(place))
        self.processes.append(ProcessRecord(**{**values, "ended_at": now, "reason": reason}))


def _values(record: NodeRecord | ProcessRecord) -> dict[str, object]:
    return {each.name: getattr(record, each.name) for each in fields(record)}


def _insert(journal, table: str, records: Iterable[NodeRecord | ProcessRecord]) -> None:
    for record in records:
        values = list(_values(record).values())
        journal.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)


def _write_samples(
    paths: RunPaths, node: NodeRecord, play: _Sitting, samples: int, chance: random.Random
) -> None:
    """Write what the node's monitor would have."""
    paths.node_performance(node.node).mkdir(parents=True)
    mine = [one for one in play.processes if one.node == node.node]
    total, gb = 64 << 30, 1 << 30
    usage = ["time,cpu_percent,load_1m,memory_total_bytes,memory_used_bytes,memory_available_bytes,swap_used_bytes,network_sent_bytes,network_received_bytes"]  # fmt: skip
    each = ["time,process,pid,name,cpu_percent,cpu_seconds,memory_bytes,threads,read_bytes,written_bytes,status"]  # fmt: skip
    for number in range(samples):
        at = node.joined_at + (play.end - node.joined_at) * number / max(samples - 1, 1)
        stamp = f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
        used = int((8 + 20 * number / samples + chance.random()) * gb)
        usage.append(
            f"{stamp},{chance.uniform(60, 99):.1f},{chance.uniform(2, 9):.2f},{total},{used},{total - used},0,"
            f"{number * 100_000},{number * 9_000_000}"
        )
        each.append(
            f"{stamp},supervisor,19000,python3,0.5,{number * 0.01:.2f},{12 << 20},2,0,4096,sleeping"
        )
        each += [
            f"{stamp},{one.process},{one.pid},python3,{chance.uniform(20, 100):.1f},{number}.5,"
            f"{int(chance.uniform(0.3, 2.5) * gb)},4,123456,4567,running"
            for one in mine
            if one.started_at <= at <= (one.ended_at or play.end)
        ]
    paths.node_usage(node.node).write_text("\n".join(usage) + "\n")
    paths.process_usage(node.node).write_text("\n".join(each) + "\n")
    paths.disk_usage(node.node).write_text(
        "time,path,total_bytes,used_bytes,free_bytes,read_bytes,written_bytes\n"
        f"{stamp},/tmp,{100 * gb},{40 * gb},{60 * gb},1234567,7654321\n"
    )


def _write_record(paths: RunPaths, mini_batches: int, state: str) -> None:
    record = RunRecord(
        step="score-images",
        run_id=paths.root.name,
        fingerprint="",
        started_at=datetime.fromtimestamp(BEGAN, UTC),
        state=state,
        kind="file",
        mini_batches=mini_batches,
        items=mini_batches * ITEMS,
        output=str(paths.output),
        append_row_file_name="parallel_run_step.txt",
    )
    record.write(paths)
    definition = StepDefinition(
        name="score-images",
        config=ParallelRunConfig(
            "score.py",
            source_directory=str(paths.root),
            mini_batch_size=ITEMS,
            environment_variables={"API_KEY": "very-secret-value"},
        ),
        inputs=(FileDataset.from_files("/data/images").as_named_input("images"),),
        arguments=("--model", "resnet50", "--token", "very-secret-token"),
    )
    keep_definition(paths, definition)
