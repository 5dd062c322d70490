"""Starts of worker processes over all nodes: which are ready, and when to give up on `init()`."""

from __future__ import annotations

from prefect_parallelrun.driver import policy
from prefect_parallelrun.errors import InitFailed, NoProgress, ParallelRunError
from prefect_parallelrun_runtime import messages

STAGES = {
    "import": "its import failed",
    "init": "init() failed",
    "idle": "processes died before their first mini-batch",
}


class Starts:
    """Counts what the nodes tell of the starts of their worker processes.

    No clock of its own: times are arguments, in seconds of a monotonic clock.

    Args:
        entry_script: as the user wrote it.
        node_count: nodes that are wanted.
        limit_s: how long a process may be in import and `init()`; its supervisor kills it then.
    """

    def __init__(self, entry_script: str, *, node_count: int, limit_s: float) -> None:
        self._script = entry_script
        self._node_count = node_count
        self._limit_s = limit_s
        self._nodes: dict[str, int] = {}
        """By node: its worker processes."""
        self._starting: dict[str, dict[str, float]] = {}
        """By node: those that are in import or `init()`, and since when."""
        self._ready: dict[str, set[str]] = {}
        """By node: those that came through it and live."""
        self._ever_ready = self._gave_up = False
        self._stuck: list[messages.Event] = []
        """Starts that took too long since a process got ready."""
        self.failures: list[messages.Event] = []
        """Starts that failed."""

    def node_joined(self, node: str, processes: int) -> None:
        """Count a node in."""
        self._nodes[node] = processes

    def node_left(self, node: str) -> None:
        """Take a node out, with the processes that it had."""
        self._nodes.pop(node, None)
        self._starting.pop(node, None)
        self._ready.pop(node, None)

    @property
    def nodes(self) -> list[str]:
        """The nodes that are there."""
        return list(self._nodes)

    @property
    def processes(self) -> int:
        """How many worker processes all nodes are to have."""
        return sum(self._nodes.values())

    def heard(self, news: messages.Event, now: float) -> None:
        """Count what a node tells of one of its processes."""
        name, node, process = news["name"], news["node"], news.get("process", "")
        starting = self._starting.setdefault(node, {})
        ready = self._ready.setdefault(node, set())
        if name == "process_started":
            starting[process] = now
        elif name == "process_ready":
            starting.pop(process, None)
            ready.add(process)
            self._ever_ready = True
            self._stuck.clear()
        elif name == "process_ended":
            starting.pop(process, None)
            ready.discard(process)
        elif name == "gave_up":
            self._gave_up = True
        elif name == "start_failed":
            self.failures.append(news)
            if news["error"]["category"] == "timeout":
                self._stuck.append(news)

    def verdict(self, age_s: float) -> ParallelRunError | None:
        """Return why a run of this age cannot go on, or None (R89, R90)."""
        if not any(self._ready.values()) and (
            why := policy.init_stuck(
                stuck=len(self._stuck), processes=self.processes, limit_s=self._limit_s
            )
        ):
            where = self._stuck[-1]["error"]["where"]
            return NoProgress(
                f"{self._script}: {why}" + (f". One of them hung at {where}" if where else "")
            )
        why = policy.init_failed(
            age_s=age_s,
            ever_ready=self._ever_ready,
            failures=len(self.failures),
            node_count=self._node_count,
            processes_per_node=max(self._nodes.values(), default=1),
        )
        return InitFailed(f"{self._script}: {why}: {self._stages()}") if why else None

    def given_up(self) -> InitFailed | None:
        """Return why no node is left, where one gave up to start worker processes; else None."""
        if not self._gave_up:
            return None
        return InitFailed(
            f"{self._script}: no worker process is left on any node, and none can be started: "
            f"{self._stages()}, {len(self.failures)} times"
        )

    def at(self, node: str) -> tuple[int, int, float]:
        """Return how many processes of a node start, how many are ready, and since when the first starts."""
        starting = self._starting.get(node, {})
        return len(starting), len(self._ready.get(node, ())), min(starting.values(), default=0.0)

    def _stages(self) -> str:
        stages = {news["error"]["stage"] for news in self.failures}
        return " and ".join(said for stage, said in STAGES.items() if stage in stages)
