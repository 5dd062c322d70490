"""The fate of every mini-batch: events in, instructions out; no clock, no cluster, no files.

Only what is in flight or waiting to run again is held in memory; what is settled is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from prefect_parallelrun.driver import attempt_records, policy, splitting
from prefect_parallelrun.driver.bundle import Bundle, Ended, Pending, Settled
from prefect_parallelrun.driver.dispatch import Dispatch
from prefect_parallelrun.models import AttemptError, AttemptRecord, Earlier, MiniBatch, Outcome
from prefect_parallelrun.output.columns import Admit, Misfit
from prefect_parallelrun.output.journal import place

_NOTHING = Earlier()


class Tracker:
    """Owns every mini-batch from the plan to its end."""

    def __init__(
        self,
        plan: Iterable[MiniBatch],
        limits: policy.Limits,
        log_file: Callable[[str, str], str] = lambda node, process: "",
        earlier: Earlier = _NOTHING,
        admit: Admit | None = None,
    ) -> None:
        """Begin.

        Args:
            plan: the mini-batches that are to run, those in `earlier.parts` and `earlier.missing`
                included.
            limits: of the step.
            log_file: says where a node and process write their stack traces.
            earlier: what earlier sittings of the run have done.
            admit: says whether rows can stand in one file with those before, and raises a Misfit.
        """
        self._dispatch = Dispatch(plan, earlier)
        self._limits = limits
        self._log_file = log_file
        self._earlier = earlier
        self._admit = admit
        self._promising = earlier != _NOTHING
        """Whether anything has succeeded: then not all fail alike."""
        self._alike: dict[tuple[str, str, str], tuple[int, AttemptError]] = {}
        """As long as nothing has: how many failed for good in one way, and the first such error."""
        self.mini_batches_succeeded = earlier.mini_batches
        self.mini_batches_failed = 0
        self.items_succeeded = earlier.items
        self.items_failed = earlier.items_failed
        self.rows = earlier.rows
        self.attempts = 0
        self.retries = 0
        """Attempts after a first one, each of a part included."""
        self.overlong: MiniBatch | None = None
        """The first mini-batch for which `run()` returned more elements than it has items (R16)."""

    # -- where it stands ---------------------------------------------------------------------

    @property
    def planned(self) -> int:
        """Mini-batches taken from the plan so far, and those that need not run again."""
        return self._earlier.mini_batches + self._dispatch.planned

    @property
    def planned_all(self) -> bool:
        """Whether the plan has given all it has."""
        return self._dispatch.planned_all

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
        return self._dispatch.done

    @property
    def work_waits(self) -> bool:
        """Whether there is something that is not in flight: more nodes would have work."""
        return self._dispatch.work_waits

    def exceeded(self) -> str | None:
        """Return which threshold is exceeded, in words, or None."""
        planned = self.planned if self._dispatch.scheduled_all else None
        return policy.exceeded(self._limits, self.tally, planned)

    def hopeless(self) -> str | None:
        """Return in words why it is not worth going on: all fail alike, and nothing has succeeded."""
        if not self._alike:
            return None
        alike, error = max(self._alike.values(), key=lambda one: one[0])
        return policy.hopeless(
            self._limits, alike=alike, processes=self._dispatch.processes, error=error
        )

    # -- nodes -------------------------------------------------------------------------------

    def node_joined(self, node: str, processes: int) -> None:
        """Count a node with so many worker processes in."""
        self._dispatch.node_joined(node, processes)

    def node_left(self, node: str, *, expected: bool = False) -> list[Settled]:
        """Take a node out; what it had runs elsewhere, which is no attempt of theirs (R86).

        What was in flight there goes one to a bundle from now on, what was running on two lost nodes
        runs alone, and on the third loss it has failed. A node that was `expected` to leave (retired,
        preempted: R214) casts no suspicion on anything.
        """
        settled: list[Settled] = []
        for bundle in self._dispatch.node_left(node):
            if expected:
                self._dispatch.put_back(bundle.members)
                continue
            for member in bundle.members:
                member.lost += bundle.started
                member.near_lost += 1
                if policy.takes_nodes_down(member.lost, member.near_lost):
                    loss = attempt_records.node_loss(member)
                    settled.append(self._failed_for_good(member, node, loss))
                else:
                    member.alone |= policy.takes_nodes_down(member.lost + 1, member.near_lost + 1)
                    self._dispatch.put(member)
        return settled

    # -- work --------------------------------------------------------------------------------

    def next_bundles(self) -> list[Bundle]:
        """Return what is to be submitted now, so that every node's window is full."""
        return self._dispatch.next_bundles()

    def bundle_started(self, number: int) -> None:
        """Note that a process has taken the bundle up."""
        self._dispatch.started(number)

    def bundle_fetched(self, number: int, seconds: float) -> None:
        """Note how long a node took to fetch the data of a bundle."""
        self._dispatch.fetched(number, seconds)

    def bundle_returned(self, number: int) -> None:
        """Take back a bundle that never reached a process."""
        if bundle := self._dispatch.back(number):
            self._dispatch.put_back(bundle.members)

    def bundle_ended(self, number: int, results: Iterable[Ended]) -> list[Settled]:
        """Settle the attempts of a bundle; what has no result was not started and runs again.

        A bundle that is not known (its node was thought lost, and its mini-batches run elsewhere)
        changes nothing: a result counts once.
        """
        bundle = self._dispatch.back(number)
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
        if ended and bundle.members[0].part is None:  # what a part takes says little of the others
            # What takes longer decides: with larger bundles, their data would come in too late.
            seconds = max(spent / len(ended), bundle.fetched_s / len(bundle.members))
            self._dispatch.learn(seconds, volume / len(ended), len(ended))
        self._dispatch.put_back([m for at, m in enumerate(bundle.members) if at not in ended])
        return settled

    # -- inside ------------------------------------------------------------------------------

    def _succeeded(
        self, member: Pending, node: str, result: dict[str, Any], data: bytes
    ) -> Settled:
        record = attempt_records.success(member, node, result)
        held = self._held(member)
        if held is not None and record.items_succeeded < held[0]:
            record = replace(record, final=False, items_failed=0)  # what it had is better
        columns = result.get("columns")
        if self._admit is not None and record.final and columns is not None:
            first = place(record.mini_batch, member.part[0] if member.part else 0)
            try:
                columns = self._admit(columns, first, data)
            except Misfit as misfit:
                unfit = attempt_records.misfit(misfit)
                return self._failed(member, node, {**result, **unfit})
        if record.rows > record.items_total and self.overlong is None:
            self.overlong = member.mini_batch
        if record.items_total and not self._promising:
            self._promising = True
            self._alike.clear()
        self.attempts += 1
        self._count(member, record)
        return Settled(record, data, columns)

    def _failed(self, member: Pending, node: str, result: dict[str, Any]) -> Settled:
        told = result.get("items", -1)
        if member.items is None and told >= 0:
            member.items = told
        memory = result["error"]["category"] == "memory"
        used_up = member.attempt >= self._limits.max_attempts and not self._spared(member, result)
        splits = (used_up or memory) and self._may_split(member)
        if used_up and not splits:
            return self._failed_for_good(member, node, result)
        record = self._failure(member, node, result, final=False)
        member.avoid.append((node, result["process"]))
        if splits:
            self._split(member)
        else:
            member.attempt += 1
            member.alone |= memory
            self.retries += 1
            self._dispatch.put(member)
        return Settled(record)

    def _spared(self, member: Pending, result: dict[str, Any]) -> bool:
        """Whether an item gets one attempt more: it was cut off alone, and a signal ended its only one.

        That signal may have come from outside, and then the item is innocent (R207). What was not yet
        cut to single items needs no such mercy, since its parts are tried; nor does what had more than
        one attempt, and as long as nothing has succeeded it would only put off the end (R209).
        """
        once = member.attempt > self._limits.max_attempts and member.items == 1
        if not once or member.spared or not self._promising:
            return False
        if result["error"]["category"] != "signal":
            return False
        member.spared = True
        return True

    def _may_split(self, member: Pending) -> bool:
        """Whether its items can be tried apart; not where rows of all together hold."""
        if not self._limits.isolate or self._held(member) is not None:
            return False
        return member.items is not None and member.items > 1

    def _split(self, member: Pending) -> None:
        """Queue the parts of what failed: each gets the attempts that were left, at least one (R203).

        An item that stands alone may get one more; see `_spared`.
        """
        assert member.items is not None
        split = member.split or splitting.Split(open=1)
        split.open -= 1
        for part in splitting.cut(*(member.part or (0, member.items)), single=not self._promising):
            split.open += 1
            self.retries += 1
            one = Pending(
                member.mini_batch,
                attempt=member.attempt + 1,
                part=part,
                split=split,
                items=part[1] - part[0],
                avoid=member.avoid[:],
            )
            self._dispatch.put(one)

    def _failed_for_good(self, member: Pending, node: str, result: dict[str, Any]) -> Settled:
        record = self._failure(member, node, result, final=self._held(member) is None)
        self._count(member, record)
        if record.final:
            self._count_alike(AttemptError(**result["error"]))
        return Settled(record)

    def _failure(
        self, member: Pending, node: str, result: dict[str, Any], *, final: bool
    ) -> AttemptRecord:
        self.attempts += 1
        process = result["process"]
        log_file = self._log_file(node, process) if process else ""
        return attempt_records.failure(member, node, result, final=final, log_file=log_file)

    def _held(self, member: Pending) -> tuple[int, int] | None:
        """Return how many of its items succeeded and failed in an earlier sitting, if that still holds."""
        return self._earlier.missing.get((member.mini_batch.index, member.part))

    def _count(self, member: Pending, record: AttemptRecord) -> None:
        """Add what holds after the last attempt; a mini-batch in parts is settled with the last of them.

        That is what the attempt came to if it is final, else what held before.
        """
        items, failed, rows = record.items_succeeded, record.items_failed, record.rows
        succeeded = record.outcome == Outcome.SUCCEEDED
        if not record.final:
            (items, failed), succeeded = self._earlier.missing[record.mini_batch, record.part], True
            rows = items
        self.items_succeeded += items
        self.items_failed += failed
        self.rows += rows
        if (split := member.split) is not None:
            split.open -= 1
            split.succeeded |= items > 0
            if split.open:
                return
            succeeded = split.succeeded
        if succeeded:
            self.mini_batches_succeeded += 1
        else:
            self.mini_batches_failed += 1

    def _count_alike(self, error: AttemptError) -> None:
        if not self._promising:
            kind = (error.category, error.type, error.where)
            alike, first = self._alike.get(kind, (0, error))
            self._alike[kind] = (alike + 1, first)
