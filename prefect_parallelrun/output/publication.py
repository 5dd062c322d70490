"""From segments of the partial file to the output file: in order, and in one step."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from prefect_parallelrun.errors import OutputError, refuse
from prefect_parallelrun.output.descriptors import sync_folder, write_all
from prefect_parallelrun.output.journal import Journal, Order
from prefect_parallelrun.output.segments import pieces
from prefect_parallelrun.output.trouble import damaged_partial
from prefect_parallelrun.paths import RunPaths

_NOT_NAMELESS = (
    errno.EOPNOTSUPP,
    errno.EISDIR,
    errno.EINVAL,
    errno.ENOENT,
    errno.EXDEV,
    errno.EPERM,
)
"""What file systems and kernels say that have no files without a name, or cannot name them later."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def check_destination(folder: Path, file_name: str | None = None) -> None:
    """Make the output folder and prove that it can be written, before any worker starts.

    Raises:
        ConfigError: it cannot, or the output file's name is taken by a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits say nothing to root, nor of a read-only mount: so really try.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\n")
            probe.flush()
    except OSError as error:
        raise refuse(
            "output",
            str(folder),
            f"a folder is needed that can be made and written ({_reason(error)})",
        ) from None
    if file_name is not None and (folder / file_name).is_dir():
        raise refuse(
            "append_row_file_name",
            file_name,
            f"{folder / file_name} is a folder; name another file, or another output",
        )


def publish(
    journal: Journal,
    paths: RunPaths,
    target: Path,
    *,
    order: Order,
    log: Log,
    output_format: str = "text",
) -> Path:
    """Write the rows into a new file and give it the name of `target`, in one step.

    A reader sees the earlier file or the whole new one, never anything between. Where the file
    system can do that, the new file has no name before it is whole, so that a driver that is killed
    meanwhile leaves nothing.

    Raises:
        OutputError: it could not be written; an earlier file is as it was.
    """
    ((end,),) = journal.select("SELECT coalesce(max(offset + length), 0) FROM attempts")
    size = paths.partial.stat().st_size if paths.partial.exists() else 0
    if size < end:
        raise damaged_partial(paths, size, end)

    def fill(descriptor: int) -> None:
        with paths.partial.open("rb") as partial:
            rows = journal.segments(order)
            if output_format == "parquet":
                _fill_parquet(descriptor, journal, partial.fileno(), rows)
            else:
                write_all(descriptor, header(journal, log))
                for piece in pieces(partial.fileno(), rows):
                    write_all(descriptor, piece)
        os.fsync(descriptor)

    # Named after the run: where a driver was killed before the last step, the one that goes on
    # finds it.
    temporary = target.parent / f".parallelrun-{paths.root.name}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            if not _write_nameless(temporary, fill):
                with temporary.open("wb", buffering=0) as file:
                    fill(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
    except OSError as error:
        raise OutputError(
            f"the output file {target} could not be written: {_reason(error)}. What was there "
            f"before is as it was, and all rows are kept in {paths.root}: run the step again "
            "once the cause is gone"
        ) from error
    return target


def _fill_parquet(
    descriptor: int, journal: Journal, source: int, rows: Iterable[tuple[int, int]]
) -> None:
    # Arrow is imported where it is wanted only: a run that writes text does without.
    from prefect_parallelrun.output import parquet_file, parquet_schema

    schema = parquet_schema.run_schema(journal.columns())
    parquet_file.write(descriptor, schema, parquet_file.row_groups(source, rows, schema))


def _write_nameless(path: Path, fill: Callable[[int], None]) -> bool:
    """Fill a file that gets its name when it is whole; return False where that cannot be done."""
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        try:
            fill(descriptor)
            # Only with a folder given, be the path absolute or not, is the link followed.
            source = f"/proc/self/fd/{descriptor}"
            os.link(source, path, src_dir_fd=descriptor, follow_symlinks=True)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NOT_NAMELESS:
            return False
        raise
    return True


def header(journal: Journal, log: Log) -> bytes:
    """Return what comes before all rows: the header line, where one is wanted (R103)."""
    lines = journal.headers()
    if len(lines) > 1:
        log.warning(
            "mini-batches returned DataFrames with %d different headers; the output file has that "
            "of the first, %r, but there is also %r",
            len(lines),
            lines[0],
            lines[1],
        )
    return lines[0].encode() if lines else b""


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
