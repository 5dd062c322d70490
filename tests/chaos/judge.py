"""After a round: does the output hold every row once, and is each thing that happened explained?"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.data import Data
from tests.chaos.faults import OBEYED, ORDERS, SENDING_S, WORK_S, Fault, Kind
from tests.chaos.job import Report
from tests.chaos.trace import Execution, Item

HANGING_S = 4.0
"""From the moment at which the script hangs until its time-out is over and its process is dead."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was found; nothing but zeros and no complaint is good."""

    lost: int = 0
    """Rows that are not in the output."""
    doubled: int = 0
    innocent: int = 0
    """Calls of `run()` that came to nothing and that no fault explains."""
    leaked: int = 0
    hung: int = 0
    reruns: int = 0
    """Calls of `run()` that came to nothing, and why is known."""
    repeated_s: float = 0.0
    """Finished work of one worker process that was repeated, in seconds, at most (R201)."""
    complaints: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the product kept its promise."""
        return not (
            self.lost
            or self.doubled
            or self.innocent
            or self.leaked
            or self.hung
            or self.complaints
        )


def check_output(verdict: Verdict, report: Report, data: Data) -> None:
    """Compare the output byte for byte, and the counts of the result."""
    output = Path(report.output).read_bytes()
    expected, found = Counter(data.expected.splitlines()), Counter(output.splitlines())
    verdict.lost += (expected - found).total()
    verdict.doubled += (found - expected).total()
    if output != data.expected and expected == found:
        verdict.complaints.append("the output has all rows, but in another order")
    total, bad = len(data.items), len(data.bad)
    counts = {name: report.items[name] for name in ("total", "succeeded", "failed")}
    right = {"total": total, "succeeded": total - bad, "failed": bad}
    if counts != right:
        verdict.complaints.append(f"the result counts {counts} items; it was {right}")
    left = [path.name for path in Path(report.output).parent.iterdir()]
    if left != [Path(report.output).name]:
        verdict.complaints.append(f"the output folder has {sorted(left)}")


class Explanations:
    """Which calls of `run()` may have come to nothing, and by which fault."""

    def __init__(self, executions: Sequence[Execution], faults: Sequence[Fault]) -> None:
        self._faults = faults
        self._of_process: dict[str, list[Execution]] = defaultdict(list)
        for execution in executions:
            self._of_process[execution.token].append(execution)

    def has(self, execution: Execution, *kinds: Kind) -> bool:
        """Whether a fault (of these kinds) took it away."""
        return any(
            self._took(fault, execution) for fault in self._faults if fault.kind in (kinds or Kind)
        )

    def _took(self, fault: Fault, execution: Execution) -> bool:
        if not fault.concerns(execution):
            return False
        if execution.ended is None or execution.ended >= fault.at:
            return True
        if fault.kind == Kind.CHILD_KILL:
            return fault.at - execution.ended <= SENDING_S
        # Results travel by the bundle, and wait in the driver for the next commit: together a second
        # of work. While the process is at one that takes long, or hangs, they wait with it.
        since = [
            e for e in self._of_process[execution.token] if execution.began <= e.began <= fault.at
        ]
        last = since[-1]
        busy_s = HANGING_S if last.how in ORDERS[Kind.CHILD_HANG] else WORK_S
        if last.ended is not None and last.ended < fault.at - busy_s:
            return False
        return sum(e.ended - e.began for e in since if e.ended and e.succeeded) <= WORK_S


def check_executions(
    verdict: Verdict, executions: Sequence[Execution], faults: Sequence[Fault], data: Data
) -> None:
    """Explain each call of `run()` that came to nothing, by the script's own trace."""
    explanations = Explanations(executions, faults)
    of_items: dict[Item, list[Execution]] = defaultdict(list)
    for execution in executions:
        if execution.succeeded:
            for item in execution.items:
                of_items[item].append(execution)
        elif _failed_by_itself(execution, data) or explanations.has(execution):
            verdict.reruns += 1
        else:
            verdict.innocent += 1
            verdict.complaints.append(f"cut off, and by nothing that we did: {execution}")
    repeated: dict[int, Execution] = {}
    innocent: dict[int, Execution] = {}
    for several in of_items.values():
        # One of them counts: the one that no fault took away, else the last.
        taken = [e for e in several if explanations.has(e)]
        unexplained = [e for e in several if e not in taken]
        repeated.update((id(e), e) for e in (taken if unexplained else taken[:-1]))
        innocent.update((id(e), e) for e in unexplained[:-1])
    verdict.reruns += len(repeated)
    verdict.innocent += len(innocent)
    verdict.complaints += [
        f"run again, and for nothing that we did: {execution}" for execution in innocent.values()
    ]
    work: Counter[str] = Counter()
    for execution in repeated.values():
        work[execution.token] += (execution.ended or 0.0) - execution.began
    verdict.repeated_s = max(work.values(), default=0.0)
    if missing := [item for item in data.items if item not in of_items and item not in data.bad]:
        verdict.complaints.append(f"never run to its end: {missing[:5]}")


def check_attempts(
    verdict: Verdict,
    journal: Path,
    executions: Sequence[Execution],
    faults: Sequence[Fault],
    data: Data,
) -> None:
    """Compare the attempts that the product counted with the faults: a node's loss costs none."""
    bad = {e.index for e in executions if data.bad.intersection(e.items)}
    explanations = Explanations(executions, faults)
    deserved = Counter(
        e.index for e in executions if e.how in OBEYED or explanations.has(e, Kind.CHILD_KILL)
    )
    charged: Counter[int] = Counter()
    with sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT mini_batch, outcome FROM attempts").fetchall()
    for index, outcome in rows:
        if outcome == "node_lost":
            verdict.complaints.append(f"mini-batch {index} was charged with the loss of a node")
        elif outcome not in ("succeeded", "cancelled") and index not in bad:
            charged[index] += 1
    unseen = sum(_hit_between_calls(fault, executions) for fault in faults)
    for index, count in (charged - deserved).items():
        if count <= unseen:
            unseen -= count
            continue
        verdict.complaints.append(
            f"mini-batch {index} was charged {count} attempts too many ({deserved[index]} deserved)"
        )


def check_failed_items(verdict: Verdict, run_folder: Path, data: Data) -> None:
    """Compare the failed items that the product names with the bad ones."""
    path = run_folder / "failed_items.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if isinstance(next(iter(data.items)), str):
        named = sorted(Path(str(record["item"])).name for record in records)
        if named != sorted(map(str, data.bad)):
            verdict.complaints.append(f"failed items {named}; bad were {sorted(data.bad, key=str)}")
        return
    named_rows = sum(record["rows"][1] - record["rows"][0] for record in records)
    if named_rows != len(data.bad):
        verdict.complaints.append(f"{named_rows} failed rows are named; {len(data.bad)} were bad")


def disturbed(fault: Fault) -> str:
    """Return a fault in a few words, for the round's line."""
    held = f" for {fault.until - fault.at:.1f} s" if fault.kind == Kind.WORKER_STOP else ""
    return f"{fault.kind}{held}"


# -- inside ----------------------------------------------------------------------------------


def _hit_between_calls(fault: Fault, executions: Sequence[Execution]) -> bool:
    """Whether a worker process was killed while the trace has it at nothing.

    It may just have entered the next `run()`, whose first act is to write into the trace.
    """
    calls = [e for e in executions if e.pid == fault.pid and e.began <= fault.at]
    if fault.kind != Kind.CHILD_KILL or not calls:
        return False
    return calls[-1].ended is not None and calls[-1].ended <= fault.at


def _failed_by_itself(execution: Execution, data: Data) -> bool:
    if execution.how in ("raise", "bad_exit"):
        return bool(data.bad.intersection(execution.items))
    return execution.how in OBEYED
