"""How long a worker process may take for what it is doing: arithmetic only."""

from __future__ import annotations

from prefect_parallelrun_runtime import page
from prefect_parallelrun_runtime.messages import Settings


class Deadlines:
    """The limits of a run, by phase."""

    def __init__(self, settings: Settings) -> None:
        run, load = settings["run_timeout_s"], settings["load_timeout_s"]
        start, shutdown = settings["init_timeout_s"], settings["shutdown_timeout_s"]
        self._limits = {
            page.STARTING: start,
            page.INIT: start,
            page.LOADING: load,
            page.RUNNING: run,
            page.ENCODING: load,
            page.ENDING: shutdown,
        }
        self.words = {
            page.STARTING: f"importing the script and init() took longer than {start:g} seconds",
            page.INIT: f"importing the script and init() took longer than {start:g} seconds",
            page.LOADING: f"loading the mini-batch took longer than task_overhead_timeout={load:g} seconds",
            page.RUNNING: f"run() took longer than run_invocation_timeout={run:g} seconds",
            page.ENCODING: "encoding the rows that run() returned took longer than "
            f"task_overhead_timeout={load:g} seconds",
            page.ENDING: f"shutdown() took longer than {shutdown:g} seconds",
        }
        """What to tell the user of a phase that took too long."""
        self._shortest = min(run, load, shutdown)

    def of_phase(self, status: page.Status, started_at: float) -> float | None:
        """Return when what is going on has taken too long (monotonic seconds); None: never.

        Args:
            status: What the process does.
            started_at: When the process was started; import and `init()` share one limit.
        """
        limit = self._limits.get(status.phase)
        if limit is None:
            return None
        return (started_at if status.phase in (page.STARTING, page.INIT) else status.since) + limit

    def of_stop(self, stopping_at: float) -> float:
        """Return when a process that was told to stop has taken too long."""
        return stopping_at + self._limits[page.ENDING]

    def look_again_at(self, now: float) -> float:
        """Return when a process that begins something now can have taken too long for it."""
        return now + self._shortest
