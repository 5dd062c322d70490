"""What a new run takes over of an earlier one, although some of its input is another now (R202)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from prefect_parallelrun import manifest, reuse
from prefect_parallelrun.changes import changes
from prefect_parallelrun.datasets import FileItem, sizes
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import OutputError, ParallelRunError
from prefect_parallelrun.output import earlier, schema, taking_over
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.trouble import as_base
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import Plan, identities, plan_step
from prefect_parallelrun.planning.regroup import Kept, Regrouped, regroup
from prefect_parallelrun.run_record import RUNNING, Cuts, RunRecord, kept_cuts, kept_listing

_FAILED = f"""
SELECT DISTINCT mini_batch FROM attempts WHERE {schema.FAILED} AND outcome <> 'succeeded'
"""

_CAUSES = 3
"""So many causes are told for which runs are passed over; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The earlier run of which mini-batches are taken over."""

    paths: RunPaths
    run_id: str
    runs: Sequence[Kept]
    """The mini-batches that are as they were, whether they were done or not."""
    done: int
    """How many of them have nothing left to do."""
    oldest_rows_at: datetime
    """See `RunRecord.oldest_rows_at`."""

    @property
    def kept(self) -> Iterator[tuple[int, int]]:
        """Index there and index here of each mini-batch that is as it was; both ascend."""
        return _pairs(self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The plan of a new run, and what it takes over."""

    plan: Plan
    cuts: Cuts
    """To be kept with the run; see `run_record.kept_cuts`."""
    base: Base | None
    """None: nothing is taken over."""
    reasons: tuple[str, ...]
    """What is taken over, and why not more: one sentence each."""


def plan_new_run(
    definition: StepDefinition,
    listings: Sequence[Sequence[FileItem]],
    seen: Sequence[reuse.Seen],
    bases: Sequence[RunPaths],
    *,
    scratch: Path,
    retry_missing: bool,
) -> Planned:
    """Return the plan of a step of which no earlier run can be gone on with.

    Taken over is the first base of which anything that was done still holds.

    Args:
        definition: of the step.
        listings: the files of each input.
        seen: see `reuse.data`.
        bases: earlier runs with the same settings, newest first.
        scratch: see `plan_step`.
        retry_missing: whether mini-batches of which rows are missing run again (R16).

    Raises:
        DatasetError: an input cannot be read.
    """
    plan = plan_step(definition, scratch=scratch, listings=listings)
    comparison = _Comparison(definition, plan, [one.files for one in seen if one.is_input])
    unused: list[tuple[str, list[str]]] = []
    for paths in bases:
        try:
            with as_base(paths):
                found = comparison.with_run(paths)
                base, told = _judged(definition, found, retry_missing=retry_missing)
                clauses = _changes(definition, found, plan, seen)
        # Whatever an older or damaged folder may hold: without it the run takes longer, and no more.
        except (ParallelRunError, ValueError, TypeError, LookupError) as error:
            unused.append((f"run {paths.root.name}", [str(error)]))
            continue
        named = _named(found.record)
        if base is None:
            unused.append((named, [told, *clauses]))
            continue
        reasons = _why_unused(unused)
        if found.cuts is not None:
            plan = plan_step(definition, scratch=scratch, listings=listings, cuts=found.cuts)
        since = f", since then {'; '.join(clauses)}" if clauses else ""
        run = f"{len(plan) - base.done:,} of {len(plan):,} mini-batches run"
        reasons.append(f"{named} is taken over{since}: {run}")
        reasons += [told] if told else []
        return Planned(plan=plan, cuts=found.cuts, base=base, reasons=tuple(reasons))
    return Planned(plan=plan, cuts=None, base=None, reasons=tuple(_why_unused(unused)))


def cut_by_size(definition: StepDefinition, plan: Plan) -> bool:
    """Return whether mini-batches are so many files each, of which an earlier grouping can be kept."""
    return plan.kind == "file" and definition.config.partition_keys is None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What an earlier run and a new one have in common."""

    paths: RunPaths
    record: RunRecord
    runs: list[Kept]
    before: int
    """How many mini-batches the earlier one has."""
    cuts: Cuts
    """How the new one is cut, if it follows the earlier one."""


class _Comparison:
    """Compares a new run with earlier ones.

    Args:
        definition: of the step.
        plan: of the new run, if it followed none.
        now: the files of each input.
    """

    def __init__(
        self, definition: StepDefinition, plan: Plan, now: Sequence[Sequence[FileItem]]
    ) -> None:
        self._definition = definition
        self._plan = plan
        self._now = now

    def with_run(self, paths: RunPaths) -> _Found:
        """Return what holds of an earlier run; what it may raise is nobody's business but its own."""
        record = RunRecord.read(paths)
        try:
            if not cut_by_size(self._definition, self._plan):
                runs = identities.matches(identities.read(paths.identities), self._identities)
                before = record.mini_batches or 0
                return _Found(paths=paths, record=record, runs=runs, before=before, cuts=None)
            grouped = _regrouped(self._definition, paths, self._now)
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise OutputError(
                f"what its mini-batches consist of cannot be read: {error}"
            ) from error
        return _Found(
            paths=paths,
            record=record,
            runs=_joined(grouped),
            before=sum(one.there for one in grouped),
            cuts=[one.sizes if one.kept else None for one in grouped],
        )

    @cached_property
    def _identities(self) -> identities.Digests:
        return identities.all_of(self._plan, identities.Identities(self._plan, self._now))


def _judged(
    definition: StepDefinition, found: _Found, *, retry_missing: bool
) -> tuple[Base | None, str]:
    """Return what can be taken over, and which of the mini-batches that hold run all the same, and why."""
    paths, record, runs = found.paths, found.record, found.runs
    if not runs:
        return None, "none of its mini-batches has the same items, unchanged"
    if definition.config.output_action != "append_row":
        # Nobody knows which files are whose, and scripts name them by the index of the mini-batch.
        if runs != [Kept(0, 0, found.before)]:
            return None, "its script writes by itself, and more than new items at the end changed"
        if definition.output_folder is None:
            return None, "its script writes by itself, into a folder of that run alone"
        if not manifest.is_intact(paths.root):
            return None, f"its output {record.output} was deleted or changed"
    taking_over.check(paths, keep_rows=record.append_row_file_name is not None)
    held = sum(one.length for one in runs)
    with Journal(paths.journal) as journal:
        left = earlier.read_earlier(journal, retry_missing=retry_missing)
        done = _common(runs, earlier.done(journal, left))
        failed_there = {index for (index,) in journal.select(_FAILED)}
    in_part = _common(runs, sorted(left.parts))
    failed = _common(runs, sorted(failed_there - left.parts.keys()))
    counts = (
        (failed, "failed there"),
        (in_part, "done in part (the rest runs)"),
        (held - done - in_part - failed, "not run there, or not to their end"),
    )
    again = ", ".join(f"{count:,} {what}" for count, what in counts if count > 0)
    told = f"mini-batches that did not change and run all the same: {again}" if again else ""
    if not done and not in_part:
        return None, told
    oldest = record.oldest_rows_at
    base = Base(paths=paths, run_id=record.run_id, runs=runs, done=done, oldest_rows_at=oldest)
    return base, told


def _changes(
    definition: StepDefinition, found: _Found, plan: Plan, seen: Sequence[reuse.Seen]
) -> list[str]:
    """Return what changed since; not the source, which the settings say is the same."""
    source = found.record.source_sha256
    parts = reuse.fingerprint_parts(definition, source_sha256=source, seen=seen)
    readers = zip(found.record.readers, identities.of_readers(plan), seen, strict=False)
    return [
        *(
            f"the columns of {one.title} have other names or types, so that all of it is read otherwise"
            for before, now, one in readers
            if before != now
        ),
        *changes(found.paths, found.record, definition, seen=seen, parts=parts),
    ]


def _regrouped(
    definition: StepDefinition, paths: RunPaths, now: Sequence[Sequence[FileItem]]
) -> list[Regrouped]:
    """Return how each input is cut, following an earlier run.

    Raises:
        OSError, ValueError, OutputError: it was not written down how that was cut.
    """
    per_mini_batch = sizes.files_per_mini_batch(definition.config.mini_batch_size)
    cuts = kept_cuts(paths)
    return [
        regroup(
            kept_listing(paths, f"input {place}"),
            None if cuts is None else cuts[place],
            files,
            per_mini_batch,
        )
        for place, files in enumerate(now)
    ]


def _joined(grouped: Sequence[Regrouped]) -> list[Kept]:
    """Return what is kept of all inputs, by the indices of the whole plan."""
    there = here = 0
    runs: list[Kept] = []
    for one in grouped:
        for run in one.kept:
            moved = Kept(run.there + there, run.here + here, run.length)
            if runs and runs[-1].is_followed_by(moved):
                runs[-1] = runs[-1]._replace(length=runs[-1].length + moved.length)
            else:
                runs.append(moved)
        there += one.there
        here += one.here
    return runs


def _why_unused(unused: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Say of which runs nothing is taken over: of the first one all that changed, of the others little.

    Args:
        unused: of each run its name, why it is not used, and what changed since.
    """
    if not unused:
        return []
    (first, why), *others = unused
    told = [f"nothing reused of {first}: {'; '.join(why)}"]
    causes = list(dict.fromkeys(why[0] for _, why in others))
    if causes:
        more = f"; and {len(causes) - _CAUSES} more causes" if len(causes) > _CAUSES else ""
        runs = f"{len(others):,} other runs" if len(others) > 1 else others[0][0]
        told.append(f"nothing reused of {runs}: {'; '.join(causes[:_CAUSES])}{more}")
    return told


def _named(record: RunRecord) -> str:
    return f"run {record.run_id} ({'Interrupted' if record.state == RUNNING else record.state})"


def _pairs(runs: Sequence[Kept]) -> Iterator[tuple[int, int]]:
    for there, here, length in runs:
        yield from zip(range(there, there + length), range(here, here + length), strict=True)


def _common(runs: Sequence[Kept], indices: Iterable[int]) -> int:
    """Return how many of some indices, ascending, are those of mini-batches that are kept."""
    rest = iter(runs)
    run, found = next(rest, None), 0
    for index in indices:
        while run is not None and run.there + run.length <= index:
            run = next(rest, None)
        if run is None:
            break
        found += run.there <= index
    return found
