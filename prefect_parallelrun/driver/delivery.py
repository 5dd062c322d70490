"""The last steps of the output: into its place, and from there into another storage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefect_parallelrun import manifest, reuse
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.output.claim import OutputClaim
from prefect_parallelrun.output.publication import check_destination
from prefect_parallelrun.output.upload import RemoteFolder, State
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord


class Delivery:
    """Where the output of a run goes, and how it gets there.

    Args:
        definition: of the step.
        paths: of the run.
    """

    def __init__(self, definition: StepDefinition, paths: RunPaths) -> None:
        self._config = definition.config
        self._paths = paths
        self.destination = definition.output_folder or paths.output
        self.remote = RemoteFolder.of(definition.output)
        self._claim: OutputClaim | None = None

    @property
    def place(self) -> str:
        """Where people find the output: its folder, or its URL."""
        return str(self.destination) if self.remote is None else self.remote.url

    @contextmanager
    def claimed(self, log: logging.Logger) -> Iterator[None]:
        """Keep other runs from writing to the same place.

        Raises:
            OutputError: another run writes to it.
        """
        place = self._shared_place
        with ExitStack() as held:
            if place is not None:
                try:
                    self._claim = held.enter_context(OutputClaim(self._paths, place))
                except OSError as error:
                    log.warning("Other runs are not kept from writing to %s: %s", place, error)
            yield

    def confirm(self) -> None:
        """Raise if another run writes to the same place by now: before what cannot be taken back.

        Raises:
            OutputError: one does.
        """
        if self._claim is not None:
            self._claim.confirm()

    @property
    def _shared_place(self) -> str | None:
        """What other runs may write to as well: the output file, or the folder that the script itself fills.

        None where the output is a folder of the run.
        """
        if self.remote is None and self.destination == self._paths.output:
            return None
        if self._config.output_action != "append_row":
            return self.place
        name = self._config.append_row_file_name
        return self.remote.url_of(name) if self.remote else str(self.destination / name)

    def place_of(self, file: Path | None) -> str | None:
        """Return where people find the output file: its path, or its URL."""
        if file is None or self.remote is None:
            return str(file) if file else None
        return self.remote.url_of(file.name)

    def check(self, record: RunRecord) -> None:
        """Refuse a place that cannot take the output, before anything is run.

        Raises:
            OutputError: nothing can be written there.
        """
        check_destination(self.destination, record.append_row_file_name)
        if self.remote is not None:
            self.remote.check(f".parallelrun-{record.run_id}.probe")

    def publish(
        self, writer: OutputWriter, record: RunRecord, *, earlier: RunRecord | None, changed: bool
    ) -> Path | None:
        """Put the output file in its place, unless it is there as an earlier sitting left it.

        Args:
            writer: has the rows.
            record: of the run.
            earlier: the record as the last sitting left it; None in the first.
            changed: whether this sitting has run anything.
        """
        name = record.append_row_file_name
        if name is None:
            return None
        if self._holds(earlier, changed=changed):
            return self.destination / name
        return writer.publish(
            self.destination,
            name,
            order=self._config.output_order,
            output_format=self._config.output_format,
        )

    def upload(
        self,
        file: Path | None,
        *,
        earlier: RunRecord | None,
        changed: bool,
        log: logging.Logger,
        look: Callable[[], None],
    ) -> dict[str, State] | None:
        """Take a remote output to its place, unless an earlier sitting has; return how it is there.

        Args:
            file: the output file; None: all files of the output folder.
            earlier: see `publish`.
            changed: see `publish`.
            log: of the run.
            look: called now and then; ends the upload by raising.

        Raises:
            OutputError: it cannot be written there; everything is kept.
        """
        if self.remote is None:
            return None
        if self._holds(earlier, changed=changed):
            there = reuse.uploaded(self._paths.root, self.remote)
            if there is not None:
                return there
        found = [file] if file else [one for one in self.destination.rglob("*") if one.is_file()]
        names = [one.relative_to(self.destination).as_posix() for one in found]
        log.info("Uploading %s files to %s", f"{len(names):,}", self.remote.url)
        return self.remote.upload(self.destination, names, look)

    def _holds(self, earlier: RunRecord | None, *, changed: bool) -> bool:
        """Whether the output is there as an earlier sitting left it, and this one adds nothing."""
        completed = earlier is not None and earlier.completed
        return completed and not changed and manifest.is_intact(self._paths.root)
