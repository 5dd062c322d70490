"""Laws of the tracker that hold in whatever order things happen; what it says is kept account of here."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import groupby
from operator import itemgetter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.models import Earlier, MiniBatch, Outcome

CATEGORIES = ("exception", "timeout", "memory", "exit", "signal", "load")
OUTCOMES = {
    "timeout": "timed_out",
    "memory": "process_died",
    "exit": "process_died",
    "signal": "process_died",
}


class Kind:
    """One mini-batch of the test's world: what it is, and what earlier sittings did of it."""

    def __init__(self, index, kind, size, bad, done):
        self.index = index
        self.size = 1 if kind == "rank" else size
        self.table = kind == "table"
        self.bad = bad
        done = (done + ["left"] * 9)[: self.size]
        fresh = kind == "rank" or set(done) in ({"left"}, {"done"})
        self.done = [] if fresh else done
        """What earlier sittings did of each item, where something is left over: it is "done", "left", or
        of those of which rows are "missing"."""

    @property
    def left(self):
        """What is to run of it, as ranges, and whether rows are missing there; none: the whole."""
        if not self.done or set(self.done) == {"missing"}:
            return {}
        runs = [
            (state, [k for k, _ in items])
            for state, items in groupby(enumerate(self.done), itemgetter(1))
        ]
        return {(r[0], r[-1] + 1): state == "missing" for state, r in runs if state != "done"}

    @property
    def held(self):
        """The parts of which rows are missing, None for the whole: what succeeded there, and failed."""
        if self.done and not self.left:
            return {None: (self.size - 1, 1)}
        return {(a, b): (b - a - 1, 1) for (a, b), missing in self.left.items() if missing}

    def mini_batch(self):
        if self.table:
            work, items = {"path": f"/in/{self.index}.csv", "start": 0, "end": 9}, None
        else:
            work = {"files": [f"/in/{self.index}-{k}" for k in range(self.size)]}
            items = self.size
        return MiniBatch(self.index, 0, items, 10, work)


kinds = st.tuples(
    st.sampled_from(["files", "files", "table", "rank"]),
    st.integers(1, 9),
    st.sets(st.integers(0, 8)),
    st.lists(st.sampled_from(["done", "left", "missing"]), max_size=9)
    | st.just([])
    | st.just(["missing"] * 9),
)


class AnyOrder(RuleBasedStateMachine):
    """Everything that can happen to a tracker; at the end the world turns kind, and it must end."""

    @initialize(
        world=st.lists(kinds, min_size=1, max_size=8),
        isolate=st.booleans(),
        max_attempts=st.integers(1, 3),
        reused=st.sampled_from([(0, 0, 0), (3, 12, 2)]),
        resumed=st.booleans(),
        near=st.sampled_from([4, policy.MAX_NEAR_LOST]),
    )
    def begin(self, world, isolate, max_attempts, reused, resumed, near):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(policy, "MAX_NEAR_LOST", near)
        self.world = [
            Kind(index, *(one if resumed else (*one[:3], []))) for index, one in enumerate(world)
        ]
        parts = {k.index: tuple(k.left) for k in self.world if k.left}
        self.held = {(k.index, part): held for k in self.world for part, held in k.held.items()}
        self.isolate, self.max_attempts = isolate, max_attempts
        done_items = sum(k.size for k in self.world if k.index in parts)
        done_items -= sum(b - a for left in parts.values() for a, b in left)
        self.reused = (reused[0], reused[1] + done_items, reused[2])
        limits = policy.Limits(
            max_attempts=max_attempts,
            error_threshold=None,
            allowed_failed_count=None,
            allowed_failed_percent=None,
            rows_wanted=True,
            isolate=isolate,
        )
        earlier = Earlier(
            mini_batches=reused[0],
            items=self.reused[1],
            items_failed=reused[2],
            parts=parts,
            missing=self.held,
        )
        self.parts = parts
        self.tracker = Tracker(
            (k.mini_batch() for k in self.world), limits, lambda node, process: "log", earlier
        )
        self.nodes, self.named, self.kind = [], 0, False
        self.flying, self.gone = {}, []
        """Bundles in flight by number, and those that no longer are."""
        self.open = {
            (k.index, item)
            for k in self.world
            for item in range(k.size)
            if k.done[item : item + 1] != ["done"]
        }
        """Items that nothing has settled."""
        self.tries, self.losses = defaultdict(list), Counter()
        self.items = Counter()
        self.memory, self.outcomes = set(), defaultdict(set)

    # -- what happens ------------------------------------------------------------------------

    @rule(processes=st.integers(1, 3))
    @precondition(lambda self: len(self.nodes) < 4)
    def a_node_joins(self, processes):
        self.nodes.append(f"node{self.named:03d}")
        self.named += 1
        self.tracker.node_joined(self.nodes[-1], processes)
        self.work_goes_out()

    @rule(which=st.integers(0, 3), expected=st.booleans())
    @precondition(lambda self: self.nodes)
    def a_node_leaves(self, which, expected):
        node = self.nodes.pop(which % len(self.nodes))
        lost = [bundle for bundle in self.flying.values() if bundle.node == node]
        for bundle in lost:
            self.gone.append(self.flying.pop(bundle.number))
            for unit in map(unit_of, bundle.members):
                self.losses[unit, "ran"] += bundle.started and not expected
                self.losses[unit, "near"] += not expected
        settled = self.tracker.node_left(node, expected=expected)
        assert not (expected and settled)
        self.record(settled, lost)
        self.tracker.node_left(node)  # told twice
        self.work_goes_out()

    def work_goes_out(self):
        for bundle in self.tracker.next_bundles():
            self.flying[bundle.number] = bundle
            assert bundle.node in self.nodes
            assert bundle.members
            for member in bundle.members:
                unit = unit_of(member)
                assert self.items_of(unit)
                assert {(unit[0], k) for k in self.items_of(unit)} <= self.open  # R200
                losses = self.losses[unit, "ran"], self.losses[unit, "near"]
                assert (member.lost, member.near_lost) == losses  # R86, R214
                if member.part or unit in self.tries or self.losses[unit, "near"]:
                    assert len(bundle.members) == 1
                assert not policy.takes_nodes_down(*losses)
                suspect = policy.takes_nodes_down(losses[0] + 1, losses[1] + 1)
                assert bundle.alone == (suspect or unit in self.memory)  # R211

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.flying)
    def a_process_takes_a_bundle_up(self, which):
        self.tracker.bundle_started(self.pick(which).number)

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.flying)
    def a_bundle_returns_unrun(self, which):
        bundle = self.flying.pop(self.pick(which).number)
        self.gone.append(bundle)
        self.tracker.bundle_returned(bundle.number)
        self.work_goes_out()

    @rule(which=st.integers(0, 99), ends=st.lists(st.none() | st.sampled_from(CATEGORIES)))
    @precondition(lambda self: self.flying)
    def a_bundle_ends(self, which, ends):
        bundle = self.flying.pop(self.pick(which).number)
        self.gone.append(bundle)
        ended = list(zip(bundle.members, ends, strict=False))
        results = [self.result(at, *one, at % 2) for at, one in enumerate(ended)]
        settled = self.tracker.bundle_ended(bundle.number, results)
        assert len(settled) == len(results)
        self.record(settled, [bundle])
        self.counts_are_the_sum_of_the_records()
        self.work_goes_out()

    @rule(which=st.integers(0, 99), back=st.booleans())
    @precondition(lambda self: self.gone)
    def old_news_arrives(self, which, back):
        """R200: of a bundle that ended, or of which the node was lost."""
        bundle = self.gone[which % len(self.gone)]
        before = self.counts()
        self.tracker.bundle_started(bundle.number)
        if back:
            self.tracker.bundle_returned(bundle.number)
        else:
            results = [self.result(at, m, None, False) for at, m in enumerate(bundle.members)]
            assert self.tracker.bundle_ended(bundle.number, results) == []
        assert self.counts() == before

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def counts_are_the_sum_of_the_records(self):
        t = self.tracker
        assert t.items_succeeded == self.reused[1] + self.items["succeeded"]
        assert t.items_failed == self.reused[2] + self.items["failed"]
        assert t.attempts == sum(len(ended) for ended in self.tries.values())
        finished = {k.index for k in self.world} - {index for index, _ in self.open}
        succeeded = {
            index for index in finished if True in self.outcomes[index] or index in self.parts
        }
        assert t.mini_batches_succeeded == self.reused[0] + len(succeeded)
        assert t.mini_batches_failed == len(finished - succeeded)
        assert t.done == (not self.open)

    @invariant()
    def what_runs_alone_has_its_node_for_itself(self):
        """R211; and no item is in flight twice (R200)."""
        on = Counter(bundle.node for bundle in self.flying.values())
        assert all(on[b.node] == 1 for b in self.flying.values() if b.alone)
        flying = [
            (unit[0], item)
            for bundle in self.flying.values()
            for unit in map(unit_of, bundle.members)
            for item in self.items_of(unit)
        ]
        assert len(flying) == len(set(flying))

    def teardown(self):
        """From now on nodes stay and bundles end as the items deserve: then it must end soon."""
        if not hasattr(self, "tracker"):
            return
        try:
            self.come_to_an_end()
        finally:
            self.patch.undo()

    def come_to_an_end(self):
        self.kind = True
        if not self.nodes:
            self.a_node_joins(1)
        # Each part is tried as often as a whole, and once more if a signal ended it, at most; a
        # mini-batch has twice as many as items.
        for _ in range(sum(2 * k.size for k in self.world) * (self.max_attempts + 2) + 20):
            self.work_goes_out()
            self.what_runs_alone_has_its_node_for_itself()
            if self.tracker.done:
                break
            assert self.flying, "nothing is in flight, nothing goes out, and it is not done"
            bundle = self.flying.pop(next(iter(self.flying)))
            self.gone.append(bundle)
            results = [
                self.result(at, m, "exception" if self.bad_in(m) else None, True)
                for at, m in enumerate(bundle.members)
            ]
            self.record(self.tracker.bundle_ended(bundle.number, results), [bundle])
            self.counts_are_the_sum_of_the_records()
        assert self.tracker.done
        assert not self.open
        assert self.tracker.planned == self.reused[0] + len(self.world)
        tally = self.tracker.tally
        assert (
            tally.mini_batches_succeeded + tally.mini_batches_failed == self.tracker.planned
        )  # R208
        assert self.tracker.next_bundles() == []

    # -- the account -------------------------------------------------------------------------

    def pick(self, which):
        return list(self.flying.values())[which % len(self.flying)]

    def counts(self):
        return (self.tracker.tally, self.tracker.attempts, self.tracker.done)

    def items_of(self, unit):
        index, part = unit
        return range(*(part or (0, self.world[index].size)))

    def bad_in(self, member):
        return self.world[member.mini_batch.index].bad & set(self.items_of(unit_of(member)))

    def result(self, position, member, category, tells):
        size = len(self.items_of(unit_of(member)))
        result = {"position": position, "process": f"process{position:03d}", "elapsed_s": 0.001}
        if category is None:
            # Sometimes one or two rows are missing, or one too many there (R16).
            rows = size if self.kind else max(size + (position + member.attempt) % 4 - 2, 0)
            return {**result, "outcome": "succeeded", "items": size, "rows": rows}, b"."
        error = {"category": category, "type": "E", "message": "m", "where": "score.py:1 in run"}
        items = size if tells or not self.world[member.mini_batch.index].table else -1
        outcome = OUTCOMES.get(category, "failed")
        return {**result, "outcome": outcome, "items": items, "error": error}, b""

    def record(self, settled, bundles):
        members = {unit_of(m): m for b in bundles for m in b.members}
        for record in (one.record for one in settled):
            unit = (record.mini_batch, record.part)
            assert unit in members
            self.tries[unit].append(record)
            self.note_suspicions(record, unit)
            self.check_attempts(record, unit)
            assert record.final or record.items_failed == 0
            succeeded = record.outcome == Outcome.SUCCEEDED
            if unit in self.held:  # R204: nothing but what is as good takes its place
                as_good = succeeded and record.items_succeeded >= self.held[unit][0]
                assert record.final == as_good
            if record.final:
                self.close(record, unit)
            elif unit in self.held:  # and it is never split
                last = record.attempt == self.max_attempts or record.outcome == Outcome.NODE_LOST
                if succeeded or last:
                    self.give_back(unit)
            else:
                assert not succeeded

    def note_suspicions(self, record, unit):
        if record.outcome == Outcome.NODE_LOST:
            ran, near = self.losses[unit, "ran"], self.losses[unit, "near"]
            assert ran == policy.MAX_LOST or near == policy.MAX_NEAR_LOST
        if record.error is not None and record.error.category == "memory":
            self.memory.add(unit)

    def check_attempts(self, record, unit):
        """R38: never more than allowed; R203: a part that was cut off once at least, else what was left.

        R207: an item alone once more if a signal ended one of its attempts.
        """
        tries = [one for one in self.tries[unit] if one.outcome != Outcome.NODE_LOST]
        cut_off = unit[1] is not None and unit[1] not in self.parts.get(unit[0], ())
        killed = any(one.error and one.error.category == "signal" for one in tries)
        spared = killed and cut_off and len(self.items_of(unit)) == 1
        assert len(tries) <= max(self.max_attempts, 1 + spared)
        if not cut_off:
            assert record.attempt <= self.max_attempts
        elif record.attempt > self.max_attempts:
            assert len(tries) <= 1 + spared
        assert len({one.attempt for one in tries}) == len(tries)

    def close(self, record, unit):
        """One final record settles its items, which no other has settled."""
        items = {(unit[0], item) for item in self.items_of(unit)}
        assert items <= self.open
        self.open -= items
        self.items["succeeded"] += record.items_succeeded
        self.items["failed"] += record.items_failed
        size = record.items_total
        assert record.items_succeeded + record.items_failed == size
        assert size == len(items) or (size == 1 and self.world[unit[0]].table)
        # Of a mini-batch in parts an item must have succeeded, else a call without an error.
        good = record.items_succeeded if unit[1] else record.outcome == Outcome.SUCCEEDED
        self.outcomes[unit[0]].add(bool(good))
        if self.isolate and record.outcome not in (Outcome.SUCCEEDED, Outcome.NODE_LOST):
            assert size == 1  # R203: nothing but single items, or what nobody could count

    def give_back(self, unit):
        """What a mini-batch or part had before holds, since it did not succeed as well again."""
        self.open -= {(unit[0], item) for item in self.items_of(unit)}
        succeeded, failed = self.held[unit]
        self.items["succeeded"] += succeeded
        self.items["failed"] += failed
        self.outcomes[unit[0]].add(True)


def unit_of(member):
    return member.mini_batch.index, member.part


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
