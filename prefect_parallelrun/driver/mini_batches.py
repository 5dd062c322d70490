"""The mini-batches of a run: settled in its first sitting, some taken over of another run, and kept to later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prefect_parallelrun import reuse
from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.incremental import Base, cut_by_size, plan_new_run
from prefect_parallelrun.output import taking_over
from prefect_parallelrun.output.trouble import NotTaken, explained
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import plan_step
from prefect_parallelrun.planning.identities import Identities, Noting
from prefect_parallelrun.run_record import RunRecord, keep_cuts, keep_listings, kept_cuts


class MiniBatches:
    """What a run consists of.

    Args:
        definition: of the step.
        paths: of the run.
        listings: the files of each input.
        seen: see `reuse.data`.
        earlier: the record as the last sitting left it; None in the first.
        bases: earlier runs with the same settings, newest first, of which a new run may take something over.
        retry_missing: whether mini-batches of which rows are missing run again (R16).

    Raises:
        DatasetError: an input cannot be read.
        OutputError: it cannot be known how the inputs were cut.
    """

    def __init__(
        self,
        definition: StepDefinition,
        paths: RunPaths,
        listings: Sequence[Sequence[FileItem]],
        seen: Sequence[reuse.Seen],
        earlier: RunRecord | None,
        bases: Sequence[RunPaths],
        *,
        retry_missing: bool,
    ) -> None:
        self._definition = definition
        self._paths = paths
        self._seen = seen
        # Else a sitting came as far as a plan that must be kept to.
        self._is_new = earlier is None or not earlier.grouping
        self.base: Base | None = None
        """Of which mini-batches are taken over; None where there is none, and in later sittings."""
        self.notes: tuple[str, ...] = ()
        """What is taken over, and why not more."""
        if self._is_new:
            planned = plan_new_run(
                definition,
                listings,
                seen,
                bases,
                scratch=paths.inputs,
                retry_missing=retry_missing,
            )
            self.plan, self._cuts = planned.plan, planned.cuts
            self.base, self.notes = planned.base, planned.reasons
        else:
            self._cuts = kept_cuts(paths)
            self.plan = plan_step(
                definition, scratch=paths.inputs, listings=listings, cuts=self._cuts
            )
        self.grouping = reuse.grouping(definition, listings, self._cuts)
        """See `reuse.grouping`."""

    def forget_base(self, why: str) -> None:
        """Take nothing over."""
        if self.base is not None:
            self.notes = (f"nothing reused of run {self.base.run_id}: {why}",)
            self.base = None

    def take_over(
        self, record: RunRecord, *, look: Callable[[], None], log: logging.Logger
    ) -> None:
        """Copy what still holds of another run into this one, as far as that can be read.

        Args:
            record: of this run.
            look: raises if this driver is to stop.
            log: gets why it cannot be read.
        """
        if self._is_new:
            taking_over.discard(self._paths)
        if self.base is None:
            return
        try:
            taking_over.take_over(
                self.base.paths,
                self._paths,
                self.base.kept,
                keep_rows=record.append_row_file_name is not None,
                output_format=record.output_format,
                look=look,
            )
        except NotTaken as error:
            self.forget_base(str(error))
            log.warning("%s", *self.notes)

    def write_down(self) -> None:
        """Keep how the inputs are and are cut, for later sittings and runs.

        Once, before there is a record that vouches for it. A later sitting goes on with the same files, or
        its rows stand for no step; so what is kept is never that of other rows than the record's.
        """
        if self._is_new:
            keep_listings(self._paths, ((one.name, one.files) for one in self._seen))
            keep_cuts(self._paths, self._cuts)
            self._paths.identities.unlink(missing_ok=True)

    @contextmanager
    def noting(self, record: RunRecord) -> Iterator[None]:
        """Meanwhile, write down what mini-batches are made of, for the next run; sizes tell it of files.

        Args:
            record: of this run.
        """
        if not record.fingerprint or cut_by_size(self._definition, self.plan):
            yield
            return
        identities = Identities(self.plan, [one.files for one in self._seen if one.is_input])
        with explained(self._paths.journal):
            noting = Noting(self._paths.identities, identities)
        self.plan.note = noting.note
        try:
            yield
        finally:
            self.plan.note = None
            noting.close()
