"""Where a node writes down exceptions of the product's own code (R80)."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun_runtime import failures, messages


def note(settings: messages.Settings, doing: str) -> None:
    """Write down the exception that is being handled, with what the agent was doing, and the time (UTC).

    It goes into the file that the node's supervisor writes too; a disk that refuses fails nothing.
    """
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    text = f"{stamp}Z | agent of {settings['node']}, {doing}\n{traceback.format_exc()}\n"
    failures.append(settings["files"]["system_error"], text)


@contextmanager
def noted(
    settings: messages.Settings, doing: str, *, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Write down an exception that comes out of the context, and let it go on.

    Args:
        settings: of the node.
        doing: what the agent is doing.
        but: these are no trouble of our code, and are told to the user by who catches them.
    """
    try:
        yield
    except but:
        raise
    except Exception:
        note(settings, doing)
        raise
