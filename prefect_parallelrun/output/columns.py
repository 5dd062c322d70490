"""Whether the columns of a mini-batch are those of the run, for the formats that have columns (R221)."""

from __future__ import annotations

import csv
from collections.abc import Callable

from prefect_parallelrun.output.journal import Journal

Admit = Callable[[str, int, bytes], str | None]
"""(columns as text, place in the input order, rows) -> what the journal is to keep of the columns."""


class Misfit(Exception):
    """The rows of a mini-batch cannot stand in one file with those of the run."""


def admission(output_format: str, journal: Journal) -> Admit | None:
    """Return what admits the rows of mini-batches to the output; None where all rows fit.

    Args:
        output_format: of the step.
        journal: of the run, with the columns of earlier sittings.
    """
    if output_format == "csv":
        return CsvColumns(journal).admit
    if output_format == "parquet":
        from prefect_parallelrun.output.parquet_schema import ParquetColumns

        return ParquetColumns(journal.columns()).admit
    return None


class CsvColumns:
    """The columns of a run in CSV: those of the first mini-batch that was done."""

    def __init__(self, journal: Journal) -> None:
        self._header = next(iter(journal.headers()), None)

    def admit(self, text: str, _place: int, _data: bytes) -> str | None:
        """Return the header line.

        Raises:
            Misfit: it is another one than the run's.
        """
        if self._header is None:
            self._header = text
        if text != self._header:
            (ours,), (theirs,) = csv.reader([self._header]), csv.reader([text])
            raise Misfit(_differences(ours, theirs))
        return text


def _differences(ours: list[str], theirs: list[str]) -> str:
    lacking = [name for name in ours if name not in theirs]
    added = [name for name in theirs if name not in ours]
    parts = [
        f"{word} {', '.join(map(repr, names[:10]))}{' …' if names[10:] else ''}"
        for word, names in (("lacks", lacking), ("adds", added))
        if names
    ]
    if not parts:
        place = next(
            n for n, pair in enumerate(zip(ours, theirs, strict=False)) if len(set(pair)) > 1
        )
        parts = [f"has {theirs[place]!r} where {ours[place]!r} should be"]
    return (
        "run() returned other columns than the first mini-batch of the run: it "
        f"{' and '.join(parts)}. output_format='csv' has one header for all: return the same "
        "columns in the same order each time (output_format='jsonl' and 'parquet' need not)"
    )
