"""The fate of every mini-batch: events in, instructions out; no clock, no cluster, no files.

Only what is in flight or waiting to run again is held in memory; what is settled is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.bundle import Bundle, Ended, Pending, Settled, sample
from prefect_parallelrun.models import AttemptError, AttemptRecord, MiniBatch, Outcome

LOST = "the node was lost while the mini-batch ran on it"


@dataclass(slots=True)
class _Node:
    processes: int
    bundles: int = 0
    """In flight."""


class Tracker:
    """Owns every mini-batch from the plan to its end."""

    def __init__(
        self,
        plan: Iterable[MiniBatch],
        limits: policy.Limits,
        log_file: Callable[[str, str], str] = lambda node, process: "",
    ) -> None:
        """Begin; `log_file` says where a node and process write their stack traces."""
        self._log_file = log_file
        self._plan: Iterator[MiniBatch] = iter(plan)
        self._limits = limits
        self._ahead: deque[MiniBatch] = deque()
        self._again: deque[Pending] = deque()
        self._bundles: dict[int, Bundle] = {}
        self._nodes: dict[str, _Node] = {}
        self._number = 0
        self._mean_s: float | None = None
        self._mean_bytes = 0.0
        self._grown = 1
        self.planned_all = False
        """Whether the plan has given all it has."""
        self.planned = 0
        """Mini-batches taken from the plan so far."""
        self.mini_batches_succeeded = 0
        self.mini_batches_failed = 0
        self.items_succeeded = 0
        self.items_failed = 0
        self.attempts = 0
        self.retries = 0
        self.overlong: MiniBatch | None = None
        """The first mini-batch for which `run()` returned more elements than it has items (R16)."""

    # -- where it stands ---------------------------------------------------------------------

    @property
    def tally(self) -> policy.Tally:
        """What is settled so far."""
        return policy.Tally(
            mini_batches_succeeded=self.mini_batches_succeeded,
            mini_batches_failed=self.mini_batches_failed,
            items_succeeded=self.items_succeeded,
            items_failed=self.items_failed,
        )

    @property
    def done(self) -> bool:
        """Whether every mini-batch of the plan is settled."""
        if self._bundles or self._again or self._ahead:
            return False
        return self._left(1) == 0

    @property
    def running(self) -> int:
        """Mini-batches in flight."""
        return sum(len(bundle.members) for bundle in self._bundles.values())

    def exceeded(self) -> str | None:
        """Return which threshold is exceeded, in words, or None."""
        scheduled_all = self.planned_all and not self._ahead
        return policy.exceeded(self._limits, self.tally, self.planned if scheduled_all else None)

    # -- nodes -------------------------------------------------------------------------------

    def node_joined(self, node: str, processes: int) -> None:
        """Count a node with so many worker processes in."""
        self._nodes[node] = _Node(processes)

    def node_left(self, node: str) -> list[Settled]:
        """Take a node out; what it had runs elsewhere, which is no attempt of theirs (R86).

        What a process had taken up runs alone from now on; on the third loss it has failed.
        """
        if self._nodes.pop(node, None) is None:
            return []
        settled: list[Settled] = []
        for bundle in [b for b in self._bundles.values() if b.node == node]:
            del self._bundles[bundle.number]
            for member in bundle.members:
                member.lost += bundle.started
                if member.lost >= policy.MAX_LOST:
                    settled.append(self._lost_for_good(member, node))
                else:
                    self._again.append(member)
        return settled

    # -- work --------------------------------------------------------------------------------

    def next_bundles(self) -> list[Bundle]:
        """Return what is to be submitted now, so that every node's window is full."""
        bundles: list[Bundle] = []
        without: set[str] = set()
        while (node := self._hungriest(without)) is not None:
            members = self._take(node)
            if not members:
                without.add(node)
                continue
            self._number += 1
            bundle = Bundle(number=self._number, node=node, members=members)
            self._bundles[bundle.number] = bundle
            self._nodes[node].bundles += 1
            bundles.append(bundle)
        return bundles

    def bundle_started(self, number: int) -> None:
        """Note that a process has taken the bundle up."""
        if bundle := self._bundles.get(number):
            bundle.started = True

    def bundle_returned(self, number: int) -> None:
        """Take back a bundle that never reached a process."""
        if bundle := self._close(number):
            self._not_run(bundle.members)

    def bundle_ended(self, number: int, results: Iterable[Ended]) -> list[Settled]:
        """Settle the attempts of a bundle; what has no result was not started and runs again.

        A bundle that is not known (its node was thought lost, and its mini-batches run elsewhere)
        changes nothing: a result counts once.
        """
        bundle = self._close(number)
        if bundle is None:
            return []
        settled: list[Settled] = []
        spent, volume = 0.0, 0
        ended: set[int] = set()
        for result, data in results:
            ended.add(result["position"])
            spent += result.get("elapsed_s", 0.0)
            volume += len(data)
            member = bundle.members[result["position"]]
            if result["outcome"] == Outcome.SUCCEEDED:
                settled.append(self._succeeded(member, bundle.node, result, data))
            else:
                settled.append(self._failed(member, bundle.node, result))
        if ended:
            self._learn(spent / len(ended), volume / len(ended), len(ended))
        self._not_run([m for place, m in enumerate(bundle.members) if place not in ended])
        return settled

    # -- inside ------------------------------------------------------------------------------

    def _close(self, number: int) -> Bundle | None:
        bundle = self._bundles.pop(number, None)
        if bundle is not None:
            self._nodes[bundle.node].bundles -= 1
        return bundle

    def _not_run(self, members: list[Pending]) -> None:
        """Put back, to the front, what no process began."""
        for member in reversed(members):
            if member.attempt == 1 and not member.lost:
                self._ahead.appendleft(member.mini_batch)
            else:
                self._again.appendleft(member)

    def _learn(self, seconds: float, volume: float, size: int) -> None:
        self._grown = max(self._grown, size)
        if self._mean_s is None:
            self._mean_s, self._mean_bytes = seconds, volume
        else:
            self._mean_s += 0.25 * (seconds - self._mean_s)
            self._mean_bytes += 0.25 * (volume - self._mean_bytes)

    def _hungriest(self, without: set[str]) -> str | None:
        """Return the node with the most room in its window, or None; `without`: nothing is for them."""
        size = policy.window(self._mean_s)
        best, most = None, 0.0
        for name, node in self._nodes.items():
            room = size - node.bundles / node.processes
            if room > most and name not in without:
                best, most = name, room
        return best

    def _take(self, node: str) -> list[Pending]:
        """Take the next bundle's mini-batches for `node`; those that run again go alone, first."""
        again = self._next_again(node)
        if again is not None:
            return [again]
        processes = sum(n.processes for n in self._nodes.values())
        wanted = policy.bundle_size(
            self._mean_s, self._mean_bytes, self._grown, self._left(processes), processes
        )
        members: list[Pending] = []
        items = 0
        while self._ahead and len(members) < wanted and items < policy.BUNDLE_ITEMS:
            mini_batch = self._ahead.popleft()
            items += mini_batch.items or 0
            members.append(Pending(mini_batch))
        return members

    def _next_again(self, node: str) -> Pending | None:
        """Return one that runs again, on another node than before where there is one."""
        for place, member in enumerate(self._again):
            tried = {name for name, _ in member.avoid}
            if node not in tried or not self._nodes.keys() - tried:
                del self._again[place]
                return member
        return None

    def _left(self, processes: int) -> int | None:
        """Look ahead in the plan; return how many are left once its end is in sight."""
        wanted = 2 * processes * policy.BUNDLE_MOST if self._mean_s else 2 * processes
        if not self.planned_all and len(self._ahead) < wanted:
            fresh = list(islice(self._plan, wanted - len(self._ahead)))
            self.planned += len(fresh)
            self.planned_all = len(fresh) < wanted - len(self._ahead)
            self._ahead.extend(fresh)
        return len(self._ahead) if self.planned_all else None

    def _succeeded(
        self, member: Pending, node: str, result: dict[str, Any], data: bytes
    ) -> Settled:
        total, rows = result["items"], result["rows"]
        done = min(rows, total)
        if rows > total and self.overlong is None:
            self.overlong = member.mini_batch
        self.attempts += 1
        self.mini_batches_succeeded += 1
        self.items_succeeded += done
        self.items_failed += total - done
        record = AttemptRecord(
            mini_batch=member.mini_batch.index,
            attempt=member.attempt,
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
            run_s=result.get("run_s", 0.0),  # absent for a range in which no row begins
            items_sample=sample(member.mini_batch) if done < total else (),
        )
        return Settled(record, data, result.get("columns"))

    def _failed(self, member: Pending, node: str, result: dict[str, Any]) -> Settled:
        self.attempts += 1
        final = member.attempt >= self._limits.max_attempts
        record = self._failure(
            member,
            node,
            final=final,
            outcome=Outcome(result["outcome"]),
            items=result.get("items", -1),
            error=AttemptError(**result["error"]),
            result=result,
        )
        if not final:
            member.attempt += 1
            member.avoid.append((node, result["process"]))
            self.retries += 1
            self._again.append(member)
        return Settled(record)

    def _lost_for_good(self, member: Pending, node: str) -> Settled:
        self.attempts += 1
        error = AttemptError(
            category="node_lost",
            type="NodeLost",
            message=f"{LOST}, {member.lost} times",
            where="",
        )
        record = self._failure(
            member, node, final=True, outcome=Outcome.NODE_LOST, items=-1, error=error, result={}
        )
        return Settled(record)

    def _failure(
        self,
        member: Pending,
        node: str,
        *,
        final: bool,
        outcome: Outcome,
        items: int,
        error: AttemptError,
        result: dict[str, Any],
    ) -> AttemptRecord:
        # Rows that were never read cannot be counted: such a mini-batch stands as one item.
        total = items if items >= 0 else member.mini_batch.items or 1
        if final:
            self.mini_batches_failed += 1
            self.items_failed += total
        return AttemptRecord(
            mini_batch=member.mini_batch.index,
            attempt=member.attempt,
            final=final,
            outcome=outcome,
            node=node,
            process=result.get("process", ""),
            items_total=total,
            items_succeeded=0,
            items_failed=total if final else 0,
            started_at=result.get("started_at", 0.0),
            elapsed_s=result.get("elapsed_s", 0.0),
            cpu_s=result.get("cpu_s", 0.0),
            run_s=result.get("run_s", 0.0),
            error=error,
            items_sample=sample(member.mini_batch),
            log_file=self._log_file(node, result["process"]) if result.get("process") else "",
        )
