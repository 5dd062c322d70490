"""The timeline of a run: what each worker process was at, and when; of a long run, shares of its time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.report.attempt_arrays import Attempts, Numbers
from prefect_parallelrun.report.axis import Axis
from prefect_parallelrun.report.lanes import Lanes, Stay
from prefect_parallelrun.report.page_data import Block, Kind

SINGLE = 3_000
"""So many attempts and worker processes are drawn one by one; of more there are shares."""
KILLED = ("timeout", "signal", "memory", "exit", "garbage")
"""Reasons for which a worker process ended that nobody had told to."""
_BLOCKS = 18_000
_BINS = 240
_LEAST_IDLE = 0.001
"""Of the whole length; a shorter pause is not drawn."""
_LEAST_SHARE = 0.004
# In one step of SQLite: see recorder._ROWS_PER_STATEMENT.
_ATTEMPTS = """
SELECT json_group_array(json_array(a.node, a.process, a.started_at, a.elapsed_s, a.load_s,
    a.mini_batch, a.first, a.stop, a.attempt, a.outcome, e.type))
FROM attempts AS a LEFT JOIN errors AS e ON e.id = a.error
WHERE a.started_at > 0 AND a.process <> ''
"""


def single_blocks(journal: Journal, lanes: Lanes, axis: Axis) -> list[Block]:
    """Return a block for each start, `init()`, loading, run and pause of each worker process."""
    attempts: dict[tuple[str, str], list[Any]] = {}
    ((found,),) = journal.select(_ATTEMPTS)
    for node, process, *rest in sorted(json.loads(found), key=itemgetter(2)):
        attempts.setdefault((node, process), []).append(rest)
    blocks: list[Block] = []
    for stay in lanes.stays:
        blocks += _of_stay(stay, attempts.get((stay.node, stay.process), []), axis)
    return blocks


def _of_stay(stay: Stay, attempts: Sequence[Any], axis: Axis) -> Iterator[Block]:
    """Yield the blocks of one process in order; none reaches into the next."""
    name = f"{stay.node} {stay.process}"
    least = _LEAST_IDLE * axis.length
    last, stop = axis.at(stay.started_at), axis.at(stay.ended_at)
    for kind, start, end, text in _doings(stay, attempts):
        begin = max(last, min(axis.at(start), stop))
        until = max(begin, min(axis.at(end), stop))
        if begin - last > least:
            yield Block(lane=stay.lane, kind="idle", start=last, end=begin, process=name)
        if until > begin:
            yield Block(lane=stay.lane, kind=kind, start=begin, end=until, process=name, text=text)
        last = until
    if stop - last > least:
        yield Block(lane=stay.lane, kind="idle", start=last, end=stop, process=name)
    if stay.reason in KILLED:
        yield Block(
            lane=stay.lane, kind="killed", start=stop, end=stop, process=name, text=stay.reason
        )


def _doings(stay: Stay, attempts: Sequence[Any]) -> Iterator[tuple[Kind, float, float, str]]:
    ready_at = stay.ready_at
    if ready_at is None:
        first = min((one[0] for one in attempts), default=stay.ended_at)
        yield "start", stay.started_at, first, "it did not get ready"
    else:
        yield "start", stay.started_at, ready_at - stay.init_s, "start and import"
        yield "init", ready_at - stay.init_s, ready_at, f"init(): {stay.init_s:.3g} s"
    for started_at, elapsed_s, load_s, *which in attempts:
        text = _told(*which)
        loaded = started_at + min(load_s, elapsed_s)
        yield "load", started_at, loaded, f"loading {text}"
        yield "run", loaded, started_at + elapsed_s, text


def _told(
    mini_batch: int, first: int, stop: int | None, attempt: int, outcome: str, error: str | None
) -> str:
    part = "" if stop is None else f", items {first:,} to {stop - 1:,}"
    said = outcome.replace("_", " ") + (f", {error}" if error else "")
    return f"mini-batch {mini_batch:,}{part}, attempt {attempt}: {said}"


class Shares:
    """Adds up, for each row and bin of time, how long its worker processes were at what.

    Args:
        lanes: the rows.
        axis: of time.
    """

    def __init__(self, lanes: Lanes, axis: Axis) -> None:
        self._lanes, self._axis = lanes, axis
        self._rows = max(len(lanes.names), 1)
        self._bins = max(10, min(_BINS, _BLOCKS // (2 * self._rows)))
        self._width = (axis.length or 1.0) / self._bins
        shape = (self._rows, self._bins)
        self._attempts, self._failed = np.zeros(shape), np.zeros(shape)
        self._spent: dict[Kind, Numbers] = {}
        self._whole: dict[Kind, Numbers] = {}
        kinds: tuple[Kind, ...] = ("run", "load", "init", "start")
        for kind in kinds:
            self._spent[kind] = np.zeros((self._rows, self._bins + 2))
            self._whole[kind] = np.zeros((self._rows, self._bins + 2))
        self._add_starts()

    def add(self, attempts: Attempts) -> None:
        """Take in some attempts."""
        rows = self._lanes.of_processes(attempts.process)
        shown = (rows >= 0) & attempts.timed
        rows = rows[shown]
        start, elapsed_s = attempts.start[shown], attempts.elapsed_s[shown]
        loaded = start + np.minimum(attempts.load_s[shown], elapsed_s)
        places = [self._place(moment) for moment in (start, loaded, start + elapsed_s)]
        self._add("load", rows, places[0], places[1])
        self._add("run", rows, places[1], places[2])
        at = rows * self._bins + np.minimum(places[2] / self._width, self._bins - 1).astype(int)
        self._attempts += self._counted(at)
        self._failed += self._counted(at[attempts.failed[shown]])

    def blocks(self) -> list[Block]:
        """Return the blocks: `run` at the bottom, above it `load`, `init` and `start`."""
        room = self._width * np.array(self._lanes.capacities or [1], float)[:, None]
        shares = {
            kind: (spent + np.cumsum(self._whole[kind], axis=1) * self._width)[:, : self._bins]
            / room
            for kind, spent in self._spent.items()
        }
        # Times of two clocks may overlap a little.
        crowded = np.maximum(sum(shares.values()), 1.0)
        blocks: list[Block] = []
        bottom = np.zeros_like(crowded)
        for kind, share in shares.items():
            top = np.minimum(bottom + np.maximum(share, 0) / crowded, 1.0)
            for row, at in np.argwhere(top - bottom > _LEAST_SHARE):
                blocks.append(
                    Block(
                        lane=int(row),
                        kind=kind,
                        start=float(at * self._width),
                        end=float((at + 1) * self._width),
                        bottom=float(bottom[row, at]),
                        top=float(top[row, at]),
                        process=self._lanes.names[row],
                        text=self._text(kind, row, at, float((top - bottom)[row, at])),
                    )
                )
            bottom = top
        return [*blocks, *self._killed()]

    def _text(self, kind: Kind, row: int, at: int, share: float) -> str:
        text = f"{kind} {share:.0%} of the time"
        if kind == "run":
            failed = self._failed[row, at]
            text += f"; {self._attempts[row, at]:,.0f} attempts ended"
            text += f", {failed:,.0f} of them failed" if failed else ""
        return text

    def _killed(self) -> Iterator[Block]:
        """Yield one mark for all processes of a row that were killed in a bin, where the last one was."""
        reasons: dict[tuple[int, int], Counter[str]] = {}
        places: dict[tuple[int, int], float] = {}
        for stay in self._lanes.stays:
            if stay.reason in KILLED:
                place = self._axis.at(stay.ended_at)
                key = stay.lane, int(place / self._width)
                reasons.setdefault(key, Counter())[stay.reason] += 1
                places[key] = max(place, places.get(key, 0.0))
        for key, counted in reasons.items():
            yield Block(
                lane=key[0],
                kind="killed",
                start=places[key],
                end=places[key],
                process=self._lanes.names[key[0]],
                text=", ".join(f"{reason} × {count:,}" for reason, count in counted.most_common()),
            )

    def _add_starts(self) -> None:
        stays = self._lanes.stays
        rows = np.array([stay.lane for stay in stays], int)
        started = np.array([stay.started_at for stay in stays])
        ready = np.array(
            [stay.ended_at if stay.ready_at is None else stay.ready_at for stay in stays]
        )
        init = ready - np.array([stay.init_s for stay in stays])
        places = [self._axis.of(moments) for moments in (started, init, ready)]
        self._add("start", rows, places[0], np.maximum(places[0], places[1]))
        self._add("init", rows, np.maximum(places[0], places[1]), np.maximum(places[0], places[2]))

    def _place(self, seconds: Numbers) -> Numbers:
        return self._axis.of(seconds + self._axis.origin)

    def _add(self, kind: Kind, rows: npt.NDArray[np.int64], start: Numbers, end: Numbers) -> None:
        """Add spans of time to the bins that they touch.

        The first bin gets what is left of it, the last what there is of it, and `whole` counts those
        between; where the two are one, that count is -1 there, and takes off what is too much.
        """
        width, columns = self._width, self._bins + 2
        first, last = (start / width).astype(int), (end / width).astype(int)
        spent, whole = self._spent[kind], self._whole[kind]
        for at, amount in ((first, (first + 1) * width - start), (last, end - last * width)):
            spent += np.bincount(rows * columns + at, amount, spent.size).reshape(spent.shape)
        for at, sign in ((first + 1, 1), (last, -1)):
            whole += sign * np.bincount(rows * columns + at, minlength=whole.size).reshape(
                whole.shape
            )

    def _counted(self, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.bincount(at, minlength=self._attempts.size).reshape(self._attempts.shape)
