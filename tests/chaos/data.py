"""Input files, and the output that a run over them must have: computed here, not by the product."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.trace import Item

ROWS_PER_TABLE = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is in a folder of input files."""

    folder: Path
    items: tuple[Item, ...]
    """In input order."""
    bad: frozenset[Item]
    """Items on which the script fails, always."""
    expected: bytes
    """The output file of a run without faults."""


def make_files(folder: Path, count: int, bad: int, rng: random.Random) -> Data:
    """Write so many files, of which some are bad."""
    folder.mkdir(parents=True)
    texts: dict[Item, str] = {f"item-{n:05d}.txt": _text(rng) for n in range(count)}
    _spoil(texts, bad, rng)
    for name, text in texts.items():
        (folder / str(name)).write_text(text)
    return _data(folder, texts)


def make_tables(folder: Path, rows: int, bad: int, rng: random.Random) -> Data:
    """Write CSV files with so many rows in all, of which some are bad."""
    folder.mkdir(parents=True)
    texts: dict[Item, str] = {key: _text(rng) for key in range(1_000_000, 1_000_000 + rows)}
    _spoil(texts, bad, rng)
    lines = [f"{key},{text}\n" for key, text in texts.items()]
    for first in range(0, rows, ROWS_PER_TABLE):
        table = "key,text\n" + "".join(lines[first : first + ROWS_PER_TABLE])
        (folder / f"table-{first:07d}.csv").write_text(table)
    return _data(folder, texts)


def _text(rng: random.Random) -> str:
    return f"text {rng.randbytes(rng.randint(4, 24)).hex()}"


def _spoil(texts: dict[Item, str], bad: int, rng: random.Random) -> None:
    for item in rng.sample(sorted(texts, key=str), bad):
        texts[item] = rng.choice(["bad raise", "bad raise", "bad exit"])


def _data(folder: Path, texts: dict[Item, str]) -> Data:
    bad = frozenset(item for item, text in texts.items() if text.startswith("bad"))
    rows = [
        f"{item} {hashlib.sha256(text.encode()).hexdigest()[:16]}\n"
        for item, text in texts.items()
        if item not in bad
    ]
    return Data(folder=folder, items=tuple(texts), bad=bad, expected="".join(rows).encode())
