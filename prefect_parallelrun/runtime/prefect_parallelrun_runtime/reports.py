"""What a supervisor says of its own, where the worker process no longer can."""

from __future__ import annotations

import json
import time
from typing import Any

from prefect_parallelrun_runtime import bundles, channel, page
from prefect_parallelrun_runtime.messages import BundleEnd, Error, Result


def event(name: str, node: str, **more: Any) -> bytes:
    """Return the frame of a `messages.Event`."""
    return channel.pack(channel.EVENT, more.get("bundle", 0), {"name": name, "node": node, **more})


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


def failed_attempt(
    bundle: bundles.Bundle, status: page.Status, process: str, outcome: str, error: Error
) -> bytes:
    """Return the result of the mini-batch that was running when its process was lost."""
    elapsed = time.monotonic() - status.since
    header: Result = {
        "position": status.position,
        "process": process,
        "outcome": outcome,
        "items": status.items,
        "rows": 0,
        "started_at": time.time() - elapsed,
        "elapsed_s": elapsed,
        "error": error,
    }
    if status.phase == page.RUNNING:
        header["run_s"] = elapsed
    return channel.pack(channel.RESULT, bundle.tag, header)


def task(bundle: bundles.Bundle, position: int) -> list[Any]:
    """Return one mini-batch of a bundle: see `messages.Task`."""
    (frame,) = channel.frames(bundle.frame)
    tasks: list[list[Any]] = json.loads(frame.payload)
    return tasks[position]
