"""The journal's attempts as arrays of numbers, page by page: a million of them in about two seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prefect_parallelrun.output import schema
from prefect_parallelrun.output.journal import Journal

Numbers = npt.NDArray[np.float64]

PROCESSES = 10**7
"""More than any node has worker processes, one after the other: `node * PROCESSES + process` names one."""

_PAGE = 16_384
_CODE, _NUMBER = 18, 13
"""Digits of the first number of an attempt, and of each other."""
_NUMBERS = 5
_START_S, _TIME_S = 1e-4, 1e-6
"""What a start, and a duration, is counted in."""
# A page comes as one text, in one step of SQLite: see recorder._ROWS_PER_STATEMENT. Each number has a 1
# before it, and so a fixed width: then a page of digits is a matrix, and reading it a product of two.
_LEAST, _MOST = 10**_NUMBER, 10**_NUMBER - 1
_QUERY = f"""
SELECT group_concat(
    ({10**_CODE} + ((substr(node, 5) * {PROCESSES} + substr(process, 8)) * 10
        + final * 2 + (outcome = 'succeeded')) * 10 + (outcome = 'cancelled'))
    || ({_LEAST} + CASE WHEN started_at > 0
        THEN min(max(CAST((started_at - :origin) / {_START_S} AS INTEGER), 0) + 1, {_MOST}) ELSE 0 END)
    || ({_LEAST} + min(CAST(elapsed_s / {_TIME_S} AS INTEGER), {_MOST}))
    || ({_LEAST} + CASE WHEN cpu_s >= 0
        THEN min(CAST(cpu_s / {_TIME_S} AS INTEGER) + 1, {_MOST}) ELSE 0 END)
    || ({_LEAST} + min(CAST(load_s / {_TIME_S} AS INTEGER), {_MOST}))
    || ({_LEAST} + items_succeeded), '')
FROM attempts WHERE id > :after AND id <= :last AND {schema.OWN}
"""


class Attempts(NamedTuple):
    """Some attempts, in the order in which they ended; one number of each array is one of them."""

    process: npt.NDArray[np.int64]
    """`node * PROCESSES + process`, by their numbers."""
    timed: npt.NDArray[np.bool_]
    """Whether it is known when it began; not where it was lost with its node."""
    start: Numbers
    """Seconds since the origin."""
    elapsed_s: Numbers
    cpu_s: Numbers
    """-1 where it is not known."""
    load_s: Numbers
    items: Numbers
    """Items that succeeded, if the attempt settled them."""
    succeeded: npt.NDArray[np.bool_]
    """Whether it settled what it had, and succeeded."""
    failed: npt.NDArray[np.bool_]
    """Whether it neither succeeded nor was cancelled."""


def pages(journal: Journal, origin: float) -> Iterator[Attempts]:
    """Yield all attempts of the run itself; times are seconds since `origin`, itself in seconds since the epoch."""
    matrix, width = _matrix()
    ((last,),) = journal.select("SELECT coalesce(max(id), 0) FROM attempts")
    for after in range(0, last, _PAGE):
        values = {"origin": origin, "after": after, "last": after + _PAGE}
        for (text,) in journal.select(_QUERY, values):
            if text is not None:
                digits = np.frombuffer(text.encode("ascii"), np.uint8).reshape(-1, width)
                yield _attempts((digits - ord("0")).astype(np.float64) @ matrix)


def _matrix() -> tuple[Numbers, int]:
    """Return what the digits of an attempt are worth, by its numbers, and how many digits there are."""
    # The first number is more than a float can hold: its last two digits are a number each.
    fields = [(1, _CODE - 2), (_CODE - 1, 1), (_CODE, 1)]
    fields += [(_CODE + 2 + k * (_NUMBER + 1), _NUMBER) for k in range(_NUMBERS)]
    width = _CODE + 1 + _NUMBERS * (_NUMBER + 1)
    matrix = np.zeros((width, len(fields)))
    for column, (at, digits) in enumerate(fields):
        matrix[at : at + digits, column] = 10.0 ** np.arange(digits - 1, -1, -1)
    return matrix, width


def _attempts(table: Numbers) -> Attempts:
    code, flags, cancelled, start, elapsed, cpu, load, items = table.T
    final, succeeded = flags >= 2, flags % 2 == 1
    return Attempts(
        process=code.astype(np.int64),
        timed=start > 0,
        start=np.maximum(start - 1, 0) * _START_S,
        elapsed_s=elapsed * _TIME_S,
        cpu_s=np.where(cpu > 0, (cpu - 1) * _TIME_S, -1.0),
        load_s=load * _TIME_S,
        items=np.where(final, items, 0),
        succeeded=final & succeeded,
        failed=~succeeded & (cancelled == 0),
    )
