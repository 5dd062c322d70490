"""What a supervisor says of its own, where the worker process no longer can."""

from __future__ import annotations

import json
import time
from typing import Any

from prefect_parallelrun_runtime import bundles, channel, page
from prefect_parallelrun_runtime.messages import BundleEnd, Error, Result


def event(name: str, node: str, **more: Any) -> bytes:
    """Return the frame of a `messages.Event`."""
    header = {"name": name, "node": node, "at": time.time(), **more}
    return channel.pack(channel.EVENT, more.get("bundle", 0), header)


def is_event(frame: bytes) -> bool:
    """Return whether a frame of that kind holds what a worker process can have to say."""
    try:
        (opened,) = channel.frames(frame)
        header = opened.json()
    except ValueError:
        return False
    return isinstance(header, dict) and isinstance(header.get("name"), str)


def bundle_end(bundle: bundles.Bundle, finished: int, process: str) -> bytes:
    """Return the frame that ends a bundle."""
    header: BundleEnd = {"finished": finished, "process": process}
    return channel.pack(channel.BUNDLE_END, bundle.tag, header)


def lost_attempt(
    status: page.Status, process: str, reason: str, error: Error | None, cpu_s: float
) -> Result:
    """Return the result of the mini-batch that was running when its process was lost.

    Args:
        reason: Why the process ended; where there is no error, that is the outcome, and a word for the
            process's log alone.
        cpu_s: CPU time of the process in all; `nan` where it is not known.
    """
    now = time.monotonic()
    began = status.picked_up or status.since
    elapsed = round(now - began, 6)
    if error is None:
        outcome = reason
    else:
        outcome = "timed_out" if error["category"] == "timeout" else "process_died"
    result: Result = {
        "position": status.position,
        "process": process,
        "outcome": outcome,
        "items": status.items,
        "rows": 0,
        "started_at": time.time() - elapsed,
        "elapsed_s": elapsed,
    }
    used_s = round(cpu_s - status.cpu_s, 6)
    if used_s >= 0:  # not where it is `nan`
        result["cpu_s"] = used_s
    if status.phase == page.LOADING:
        result["load_s"] = elapsed
    elif status.phase == page.RUNNING:
        result["load_s"] = round(status.since - began, 6)
        result["run_s"] = round(now - status.since, 6)
    if error is not None:
        result["error"] = error
    return result


def task(bundle: bundles.Bundle, position: int) -> list[Any]:
    """Return one mini-batch of a bundle: see `messages.Task`."""
    (frame,) = channel.frames(bundle.frame)
    tasks: list[list[Any]] = json.loads(frame.payload)
    return tasks[position]
