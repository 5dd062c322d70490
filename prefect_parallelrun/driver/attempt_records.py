"""One attempt that ended, from what the worker process said of it to the record that the journal keeps."""

from __future__ import annotations

from typing import Any

from prefect_parallelrun.driver.bundle import Pending, sample
from prefect_parallelrun.models import UNKNOWN_S, AttemptError, AttemptRecord, Outcome

MISFIT = "Misfit"
"""The type of the error that the driver itself finds, when it sees the rows (R221)."""


def success(member: Pending, node: str, result: dict[str, Any]) -> AttemptRecord:
    """Return the record of an attempt that succeeded: items without a row have failed (R16)."""
    rows = result["rows"]
    # A part has the items that it was cut to, whatever became of the file meanwhile.
    total = result["items"] if member.part is None else member.part[1] - member.part[0]
    done = min(rows, total)
    return AttemptRecord(
        mini_batch=member.mini_batch.index,
        attempt=member.attempt,
        part=member.part,
        final=True,
        outcome=Outcome.SUCCEEDED,
        node=node,
        process=result["process"],
        items_total=total,
        items_succeeded=done,
        items_failed=total - done,
        rows=rows,
        started_at=result.get("started_at", 0.0),
        elapsed_s=result.get("elapsed_s", 0.0),
        cpu_s=result.get("cpu_s", 0.0),
        load_s=result.get("load_s", 0.0),
        run_s=result.get("run_s", 0.0),  # absent for a range in which no row begins
        items_sample=sample(member.mini_batch, member.part) if done < total else (),
    )


def failure(
    member: Pending, node: str, result: dict[str, Any], *, final: bool, log_file: str
) -> AttemptRecord:
    """Return the record of an attempt that failed; `final`: its items have failed with it.

    Rows that were never read cannot be counted: a mini-batch of such stands as one item.
    """
    total = 1 if member.items is None else member.items
    return AttemptRecord(
        mini_batch=member.mini_batch.index,
        attempt=member.attempt,
        part=member.part,
        final=final,
        outcome=Outcome(result["outcome"]),
        node=node,
        process=result["process"],
        items_total=total,
        items_succeeded=0,
        items_failed=total if final else 0,
        started_at=result.get("started_at", 0.0),
        elapsed_s=result.get("elapsed_s", 0.0),
        cpu_s=result.get("cpu_s", UNKNOWN_S),
        load_s=result.get("load_s", 0.0),
        run_s=result.get("run_s", 0.0),
        error=AttemptError(**result["error"]),
        items_sample=sample(member.mini_batch, member.part),
        log_file=log_file,
    )


def misfit(why: Exception) -> dict[str, Any]:
    """Return what a result becomes of which the rows cannot stand in the output with those before."""
    error = {
        "category": "bad_return",
        "type": MISFIT,
        "message": str(why),
        "stage": "result",
    }
    return {"outcome": Outcome.FAILED, "error": error}


def node_loss(member: Pending) -> dict[str, Any]:
    """Return the result that a mini-batch gets which was on too many nodes when they were lost."""
    ran = f"{member.lost} nodes were lost while the mini-batch ran on them"
    near = f"and {member.near_lost} while it was in flight there"
    return {
        "outcome": Outcome.NODE_LOST,
        "process": "",
        "error": {
            "category": "node_lost",
            "type": "NodeLost",
            "message": f"{ran}, {near}",
        },
    }
