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
            page.IDLE: load,
            page.LOADING: load,
            page.RUNNING: run,
            page.ENCODING: load,
            page.SENDING: load,
            page.ENDING: shutdown,
            page.LEAVING: shutdown,
        }
        overhead = f"task_overhead_timeout={load:g} seconds"
        self.words = {
            page.STARTING: f"importing the script and init() took longer than {start:g} seconds",
            page.INIT: f"importing the script and init() took longer than {start:g} seconds",
            page.IDLE: f"a mini-batch that it was given was not taken up within {overhead}",
            page.LOADING: f"loading the mini-batch took longer than {overhead}",
            page.RUNNING: f"run() took longer than run_invocation_timeout={run:g} seconds",
            page.ENCODING: f"encoding the rows that run() returned took longer than {overhead}",
            page.SENDING: f"handing the result over took longer than {overhead}",
            page.ENDING: f"shutdown() took longer than {shutdown:g} seconds",
            page.LEAVING: f"the process did not end within {shutdown:g} seconds: a thread that is no "
            "daemon, or a function that is registered with atexit, goes on",
        }
        """What to tell the user of a phase that took too long."""
        self._shortest = min(run, load, shutdown)

    def of_phase(self, phase: int, since: float) -> float | None:
        """Return when what has gone on since then has taken too long (monotonic seconds); None: never."""
        limit = self._limits.get(phase)
        return None if limit is None else since + limit

    def of_stop(self, stopping_at: float) -> float:
        """Return when a process that was told to stop has taken too long."""
        return stopping_at + self._limits[page.ENDING]

    def look_again_at(self, now: float) -> float:
        """Return when a process that begins something now can have taken too long for it."""
        return now + self._shortest
