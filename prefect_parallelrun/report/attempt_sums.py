"""Sums over all attempts of a run, in memory that does not depend on their number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prefect_parallelrun.report.attempt_arrays import Attempts, Numbers
from prefect_parallelrun.report.axis import Axis
from prefect_parallelrun.report.page_data import Cell

_BINS = 300
"""Of time, at most."""
_DURATIONS = 40
"""Bars of the histogram, at most."""
_CELLS = 60
"""Of CPU against elapsed time, at most so many each way."""
_CPU_SPAN = 4
"""Powers of ten of CPU time that are told apart, from the most down."""
_FINE = 200
"""Steps by which durations are counted, to a power of ten."""
_COARSE = 20
_LEAST_POWER, _MOST_POWER = -6, 8
"""A microsecond, three years."""
_ROUND_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


class Throughput:
    """What ended when, in bins of a round number of seconds."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self.bin_s = _round(axis.length / _BINS)
        bins = max(1, math.ceil(axis.length / self.bin_s))
        self.succeeded, self.failed, self.items = (np.zeros(bins) for _ in range(3))
        self._last = 0.0

    def add(self, attempts: Attempts) -> None:
        """Take in some attempts, in the order in which they ended."""
        ended = np.where(attempts.timed, attempts.start + attempts.elapsed_s, 0.0)
        if not attempts.timed.all():
            # It ended after what was told of before it.
            known = np.maximum.accumulate(np.concatenate([[self._last], ended]))[1:]
            ended = np.where(attempts.timed, ended, known)
        self._last = max(self._last, float(ended.max()))
        places = self._axis.of(ended + self._axis.origin)
        at = np.minimum(places / self.bin_s, len(self.succeeded) - 1).astype(int)
        bins = len(self.succeeded)
        self.succeeded += np.bincount(at[attempts.succeeded], minlength=bins)
        self.failed += np.bincount(at[attempts.failed], minlength=bins)
        self.items += np.bincount(at, attempts.items, bins)


class Durations:
    """How long attempts took, and how much CPU time."""

    def __init__(self) -> None:
        self._fine = np.zeros((_MOST_POWER - _LEAST_POWER) * _FINE)
        side = (_MOST_POWER - _LEAST_POWER) * _COARSE
        self._cells = np.zeros((side, side))
        self._longest, self._most_cpu = 0.0, 0.0
        self.cpu_total_s = self.elapsed_total_s = 0.0

    def add(self, attempts: Attempts) -> None:
        """Take in some attempts; of those that were lost with their node nothing is known."""
        elapsed, cpu = attempts.elapsed_s[attempts.timed], attempts.cpu_s[attempts.timed]
        self._fine += np.bincount(_step(elapsed, _FINE), minlength=len(self._fine))
        self._longest = max(self._longest, float(elapsed.max(initial=0.0)))
        elapsed, cpu = elapsed[cpu >= 0], cpu[cpu >= 0]
        side = len(self._cells)
        at = _step(elapsed, _COARSE) * side + _step(cpu, _COARSE)
        self._cells += np.bincount(at, minlength=side * side).reshape(side, side)
        self.cpu_total_s += float(cpu.sum())
        self.elapsed_total_s += float(elapsed.sum())

    def histogram(self) -> tuple[list[float], list[int]]:
        """Return edges, growing by equal factors, and how many attempts took so long."""
        used = np.flatnonzero(self._fine)
        if not len(used):
            return [], []
        first, stop = int(used[0]), int(used[-1]) + 1
        wide = max(_FINE // 20, math.ceil((stop - first) / _DURATIONS))
        bars = math.ceil((stop - first) / wide)
        counts = [
            int(self._fine[first + bar * wide : first + (bar + 1) * wide].sum())
            for bar in range(bars)
        ]
        return [_power(first + bar * wide, _FINE) for bar in range(bars + 1)], counts

    def quantiles(self) -> list[tuple[str, float]]:
        """Return how long attempts took, to within about 1 %; the longest is exact."""
        total = self._fine.sum()
        if not total:
            return []
        so_far = np.cumsum(self._fine)
        found = [
            (
                name,
                min(
                    _power(float(np.searchsorted(so_far, share * total)) + 0.5, _FINE),
                    self._longest,
                ),
            )
            for name, share in (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99))
        ]
        return [*found, ("longest", self._longest)]

    def cells(self) -> list[Cell]:
        """Return the cells in which there are attempts; the lowest of CPU time has all below it too."""
        rows, columns = np.nonzero(self._cells)
        if not len(rows):
            return []
        # The clock of CPU time may stand still meanwhile: no reason for a scale from the least there is.
        least = int(min(columns[columns > 0], default=0))
        lowest = max(least, int(columns.max()) - _CPU_SPAN * _COARSE)
        columns = np.maximum(columns, lowest)
        wide = math.ceil(max(np.ptp(rows) + 1, np.ptp(columns) + 1) / _CELLS)
        counted: dict[tuple[int, int], int] = {}
        for row, column, count in zip(rows, columns, self._cells[self._cells > 0], strict=True):
            at = int(row - rows.min()) // wide, int(column - lowest) // wide
            counted[at] = counted.get(at, 0) + int(count)
        left = int(rows.min())
        return [
            Cell(
                elapsed_from=_power(left + row * wide, _COARSE),
                elapsed_to=_power(left + (row + 1) * wide, _COARSE),
                cpu_from=_power(lowest + column * wide, _COARSE),
                cpu_to=_power(lowest + (column + 1) * wide, _COARSE),
                count=count,
            )
            for (row, column), count in sorted(counted.items())
        ]


def counts(numbers: Numbers) -> Sequence[int]:
    """Return whole numbers."""
    return [int(number) for number in numbers]


def _step(seconds: Numbers, steps: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return which step, on a scale of powers, a duration is in."""
    powers = np.log10(np.maximum(seconds, 10.0**_LEAST_POWER)) - _LEAST_POWER
    most = (_MOST_POWER - _LEAST_POWER) * steps - 1
    found: np.ndarray[tuple[int], np.dtype[np.int64]] = np.clip(powers * steps, 0, most).astype(
        np.int64
    )
    return found


def _power(step: float, steps: int) -> float:
    return float(10 ** (_LEAST_POWER + step / steps))


def _round(seconds: float) -> float:
    """Return the next round number of seconds."""
    if seconds <= 0:
        return 1.0
    if seconds <= _ROUND_S[0]:
        power = 10.0 ** math.floor(math.log10(seconds))
        return next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= seconds)
    days = float(math.ceil(seconds / _ROUND_S[-1]) * _ROUND_S[-1])
    return next((float(one) for one in _ROUND_S if one >= seconds), days)
