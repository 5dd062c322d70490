"""`logs/sys/job_report/`: every attempt, worker process and node as a table (R120).

All of it comes from the journal, so it covers every sitting of the run, whatever became of its driver.
In all three, one row is one line, and nothing that somebody else wrote is a formula to a spreadsheet.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from operator import add
from pathlib import Path
from typing import Any

from prefect_parallelrun.cells import in_one_cell
from prefect_parallelrun.models import NodeRecord, ProcessRecord
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.replaced import replaced
from prefect_parallelrun.report.wording import visible

ATTEMPT_COLUMNS = (
    "Mini-batch Id",
    "Picked Count",
    "Node",
    "Process",
    "Process Start Time",
    "Total",
    "Succeeded",
    "Failed",
    "Elapsed Seconds",
    "Process Seconds",
    "Run Method Seconds",
    "Load Seconds",
    "Status",
    "Error Category",
    "Error Message",
    "Mini-batch Detail",
)
SUMS = (
    "Attempts",
    "Failed Attempts",
    "Mini-batches Succeeded",
    "Total",
    "Succeeded",
    "Failed",
    "Elapsed Seconds",
    "Process Seconds",
    "Run Method Seconds",
    "Load Seconds",
)
PROCESS_COLUMNS = (
    "Node",
    "Process",
    "Process Id",
    "Start Time",
    "Ready Time",
    "Init Seconds",
    "End Time",
    "End Reason",
    *SUMS,
)
NODE_COLUMNS = (
    "Node",
    "Host",
    "Address",
    "Processes At Once",
    "GPUs",
    "Join Time",
    "Leave Time",
    "Leave Reason",
    "Processes Started",
    *SUMS,
)


_Sums = tuple[float, ...]
_NOTHING: _Sums = (0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)

# SQLite makes the lines, but for the message: `csv` would take twice as long for a million of them,
# most of it for the decimals. What stands here between quotes holds no comma, quote or end of a line.
_ATTEMPTS = f"""
SELECT printf('%d,%d,%s,%s,%s,%d,%d,%d,%.6f,%s,%.6f,%.6f,%s,%s,',
        a.mini_batch, a.attempt, a.node, a.process,
        CASE WHEN a.started_at > 0 THEN strftime('%Y-%m-%dT%H:%M:%fZ', a.started_at, 'unixepoch') END,
        a.items_total, a.final * a.items_succeeded, a.final * a.items_failed, a.elapsed_s,
        CASE WHEN a.cpu_s >= 0 THEN printf('%.6f', a.cpu_s) END, a.run_s, a.load_s,
        a.outcome, e.category),
    e.type || ': ' || coalesce(a.message, e.message),
    CASE WHEN a.final THEN ',"{{""final"": true, ""rows"": ' ELSE ',"{{""final"": false, ""rows"": ' END
        || a.rows
        || CASE WHEN a.stop IS NULL THEN ''
            ELSE ', ""part"": [' || a.first || ', ' || a.stop || ']' END
        || CASE WHEN a.items_sample IS NULL THEN ''
            ELSE ', ""items"": ' || replace(a.items_sample, '"', '""') END
        || CASE WHEN a.log_file IS NULL THEN ''
            ELSE ', ""log_file"": ' || replace(json_quote(a.log_file), '"', '""') END
        || CASE WHEN {schema.OWN} THEN ''
            ELSE ', ""taken_over_of"": ' || replace(json_quote(:base), '"', '""') END
        || '}}"' || char(10)
FROM attempts AS a LEFT JOIN errors AS e ON e.id = a.error WHERE {schema.OWN} OR a.final ORDER BY a.id
"""
_SUMS = f"""
SELECT node, process, count(*), sum(outcome <> 'succeeded'),
    sum(final AND outcome = 'succeeded' AND stop IS NULL),
    sum(items_total), sum(final * items_succeeded), sum(final * items_failed),
    total(elapsed_s), total(max(cpu_s, 0)), total(run_s), total(load_s)
FROM attempts WHERE {schema.OWN} GROUP BY node, process
"""


def write_job_report(paths: RunPaths, journal: Journal, *, base: str | None = None) -> None:
    """Write one table of the attempts, one of the worker processes and one of the nodes.

    The figures of processes and nodes are sums over the rows of their attempts. What was taken over of
    another run is in the first table only, without node and process, which that run's own has. Each
    file is replaced in one step; memory does not grow with the number of attempts.

    Args:
        paths: of the run.
        journal: of the run.
        base: the run of which mini-batches were taken over.
    """
    with replaced(paths.processed_mini_batches) as file:
        file.write(",".join(ATTEMPT_COLUMNS) + "\n")
        file.writelines(_attempts(journal, base))
    sums: dict[tuple[str, str], _Sums] = {
        (node, process): tuple(figures) for node, process, *figures in journal.select(_SUMS)
    }
    processes = journal.processes()
    _write(paths.process_summary, PROCESS_COLUMNS, _process_rows(processes, sums))
    _write(paths.node_summary, NODE_COLUMNS, _node_rows(journal.nodes(), processes, sums))


def _attempts(journal: Journal, base: str | None) -> Iterator[str]:
    """Yield one line per attempt, in the order in which they ended."""
    for head, message, detail in journal.select(_ATTEMPTS, {"base": base}):
        if message is None:
            yield head + detail
        else:
            quoted = visible(in_one_cell(message)).replace('"', '""')
            yield f'{head}"{quoted}"{detail}'


def _process_rows(
    processes: list[ProcessRecord], sums: dict[tuple[str, str], _Sums]
) -> Iterator[list[Any]]:
    known = {(each.node, each.process): each for each in processes}
    # What a driver that was killed could not note of a process any more, attempts may still tell.
    for node, process in sorted({*known, *(key for key in sums if key[1])}, key=_in_order):
        record = known.get((node, process), ProcessRecord(node=node, process=process))
        yield [
            node,
            process,
            record.pid or None,
            _time(record.started_at),
            _time(record.ready_at),
            None if record.ready_at is None else _figure(record.init_s),
            _time(record.ended_at),
            record.reason,
            *map(_figure, sums.get((node, process), _NOTHING)),
        ]


def _node_rows(
    nodes: list[NodeRecord], processes: list[ProcessRecord], sums: dict[tuple[str, str], _Sums]
) -> Iterator[list[Any]]:
    known = {each.node: each for each in nodes}
    started: dict[str, int] = {}
    for each in processes:
        started[each.node] = started.get(each.node, 0) + 1
    added: dict[str, _Sums] = {}
    for (node, _), figures in sums.items():
        added[node] = tuple(map(add, added.get(node, _NOTHING), figures))
    for node in sorted({*known, *started, *added}, key=_in_order):
        record = known.get(node, NodeRecord(node=node))
        yield [
            node,
            record.host,
            record.address,
            record.processes or None,
            record.gpus,
            _time(record.joined_at),
            _time(record.left_at),
            visible(in_one_cell(record.reason)),
            started.get(node, 0),
            *map(_figure, added.get(node, _NOTHING)),
        ]


def _in_order(key: str | tuple[str, str]) -> list[tuple[int, str]]:
    """Return what sorts names by their numbers: node1000 comes after node999."""
    return [(len(name), name) for name in ([key] if isinstance(key, str) else key)]


def _figure(number: float) -> str:
    """Return a count, or seconds in microseconds."""
    return str(number) if isinstance(number, int) else f"{number:.6f}"


def _time(moment: float | None) -> str | None:
    """Return a moment as people read it; None where it is not known."""
    if not moment:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _write(path: Path, columns: Iterable[str], rows: Iterable[list[Any]]) -> None:
    with replaced(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)
