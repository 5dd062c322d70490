"""Values in the paths of files: what a `partition_format` such as `{store}/{date:yyyy/MM/dd}/*.csv` says (R102)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import unquote

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun import errors
from prefect_parallelrun.errors import ConfigError, DatasetError
from prefect_parallelrun_runtime import source_path

_PIECE = re.compile(r"\{([^{}]*)\}|([{}])|(\*+)|([^{}*]+)")
"""A placeholder, a brace that belongs to none, stars, or text."""
_DATE_TOKENS = {"yyyy": "year", "MM": "month", "dd": "day", "HH": "hour", "mm": "minute", "ss": "second"}  # fmt: skip
"""From coarse to fine, and what `datetime` calls them."""
_DATE_PIECE = re.compile(r"yyyy|MM|dd|HH|mm|ss|[^A-Za-z]")


class Partitions(Protocol):
    """What the path of each file says of all its rows, or of the file itself."""

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each value by its name, in the order of the path; for `load.typed` in the worker process."""

    def values(self, path: str) -> dict[str, Any]:
        """Return the value of each name, as JSON.

        Raises:
            DatasetError: the path is another than it should be.
        """


@dataclass(frozen=True, slots=True)
class PartitionFormat:
    """A `partition_format` that was understood; it describes the end of paths."""

    text: str
    """As the user wrote it."""
    pattern: re.Pattern[str]
    """Matches the last segments of a path; each value is a group."""
    segments: int
    """Number of the segments that it matches."""
    dates: dict[str, tuple[str, ...]]
    """The parts of each date, for `datetime`; None of them for a name whose value is text."""

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each value by its name: `string` or `datetime`."""
        return {name: "datetime" if parts else "string" for name, parts in self.dates.items()}

    def values(self, path: str) -> dict[str, Any]:
        """Return the value of each name, as JSON: text, or a time as ISO 8601 has it.

        Raises:
            DatasetError: the path does not end as the format says.
        """
        found = self.pattern.fullmatch("/".join(_names(path)[1:][-self.segments :]))
        if found is None:
            raise DatasetError(
                f"{path} does not end as partition_format={self.text!r} says: leave such files out "
                "of the dataset, with a glob, or write the format from the first placeholder to the "
                "end of the path"
            )
        texts = iter(found.groups())
        values: dict[str, Any] = {}
        for name, parts in self.dates.items():
            taken = [next(texts) for _ in parts or (name,)]
            values[name] = self._date(path, name, parts, taken) if parts else taken[0]
        return values

    def _date(self, path: str, name: str, parts: tuple[str, ...], texts: list[str]) -> str:
        given = dict(zip(parts, map(int, texts), strict=True))
        try:
            moment = datetime(**{"month": 1, "day": 1, **given})  # type: ignore[arg-type]
        except ValueError as error:
            raise DatasetError(
                f"{path}: {name!r} of partition_format={self.text!r} is no date: {error}"
            ) from None
        # What a column of datetime64[ns] can hold.
        if not 1678 <= moment.year <= 2261:
            raise DatasetError(
                f"{path}: {name!r} of partition_format={self.text!r} is the year {moment.year}; "
                "years from 1678 to 2261 can be dates, others only text"
            )
        return moment.isoformat()


def _names(path: str) -> list[str]:
    """Return the folders and the file of a path or URL: of a chain its first URL, as a web server has it."""
    own = source_path.chained(path)[1]
    if own.startswith(("http://", "https://")):
        return [unquote(name) for name in own.partition("?")[0].split("/")]
    return own.split("/")


@lru_cache
def parse_format(text: str) -> PartitionFormat:
    """Return what a `partition_format` says.

    `{name}` stands for some characters of one folder or file name, as few as possible, but one; `*`
    for any; `{name:yyyy/MM/dd}` for a date. A leading `...` or `/` means nothing: the format begins
    with a folder or file name anyway.

    Raises:
        ConfigError: it cannot be a format.
    """
    rest = text.removeprefix("...").removeprefix("/")
    pattern, slashes, dates = "", 0, {}
    before = "text"
    for found in _PIECE.finditer(rest):
        placeholder, brace, stars, plain = found.groups()
        if brace:
            raise _unfit(text, f"{brace!r} at {found.start() + 1} has no counterpart")
        if stars and len(stars) > 1:
            raise _unfit(
                text, "* stands for one folder or file name; what is before the format needs no **"
            )
        if plain is not None:
            pattern += re.escape(plain)
            slashes += plain.count("/")
            before = "text"
            continue
        if before == "open":
            raise _unfit(
                text, f"there must be text before {found[0]!r}, or nobody knows where it begins"
            )
        before = "open"
        if stars:
            pattern += "[^/]*"
            continue
        name, colon, tokens = placeholder.partition(":")
        if not name or name != name.strip() or "/" in name:
            raise _unfit(text, f"{found[0]!r} needs a name, such as {{store}}")
        if name in dates:
            raise _unfit(text, f"{name!r} is there twice")
        date_pattern, dates[name] = _date(text, name, tokens) if colon else ("([^/]+?)", ())
        pattern += date_pattern
        slashes += tokens.count("/")
    if not dates:
        raise _unfit(text, "there is no placeholder in it, such as {store}")
    if "" in rest.split("/"):
        raise _unfit(text, "it has two slashes side by side, or one at its end")
    return PartitionFormat(text, re.compile(pattern), slashes + 1, dates)


def _date(text: str, name: str, tokens: str) -> tuple[str, tuple[str, ...]]:
    """Return the pattern of a date, and what its groups are."""
    pieces = _DATE_PIECE.findall(tokens)
    used = [piece for piece in pieces if piece in _DATE_TOKENS]
    if "".join(pieces) != tokens or not used or max(Counter(used).values()) > 1:
        raise _unfit(
            text,
            f"{tokens!r} of {name!r} is no date: write it with yyyy, MM, dd, HH, mm and ss, each once",
        )
    if set(used) != set(list(_DATE_TOKENS)[: len(used)]):
        raise _unfit(text, f"{tokens!r} of {name!r} has gaps: a month needs its year, and so on")
    pattern = "".join(
        f"([0-9]{{{len(piece)}}})" if piece in _DATE_TOKENS else re.escape(piece)
        for piece in pieces
    )
    return pattern, tuple(_DATE_TOKENS[piece] for piece in used)


def check_keys(keys: Sequence[str], known: Sequence[str], dataset: object) -> None:
    """Refuse `partition_keys` of a step that are none of an input.

    Args:
        known: those of the input.
        dataset: the input, for people.

    Raises:
        ConfigError: one of them is none of the input.
    """
    missing = [key for key in keys if key not in known]
    if missing:
        has = f"has the partition keys {list(known)}" if known else "has no partition keys"
        raise errors.refuse(
            "partition_keys",
            list(keys),
            f"{missing[0]!r} is none of {dataset!r}, which {has}; create the dataset with "
            "partition_format=, to have keys from paths, or make one with "
            "TabularDataset.partition_by(partition_keys, target), from columns",
        )


def checked_format(partition_format: object) -> str | None:
    """Return a `partition_format` that can be one, or None.

    Raises:
        ConfigError: it cannot.
    """
    if partition_format is None:
        return None
    if not isinstance(partition_format, str):
        raise errors.refuse(
            "partition_format",
            partition_format,
            "give a text such as '{user}/{season}/{genre}.wav'",
        )
    parse_format(partition_format)
    return partition_format


def _unfit(text: str, why: str) -> ConfigError:
    return errors.refuse("partition_format", text, why)
