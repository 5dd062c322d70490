"""What a round is: a step over made-up data, and the faults that are to hit it, all from one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.data import Data, make_files, make_tables
from tests.chaos.faults import END_OF_SITTING, Kind

SCRIPTS = Path(__file__).parent / "scripts"
LEAST_S, MOST_S = 0.005, 0.030
"""How long `run()` takes."""
AT_THE_END = 1.0
"""A fault after the last item: while the output is copied and the nodes are let go."""
LIMIT_S = 90.0
"""A round that takes longer hangs; each fault adds to it."""
LIMIT_PER_FAULT_S = 10.0
SILENT_S = 5.0
"""After so many seconds a silent node is lost, in these runs."""
SLOW = (Kind.DISK_FULL, Kind.FILE_LIMIT, Kind.WORKER_STOP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A fault to come, once so large a part of the items is done."""

    kind: Kind
    progress: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a round's step looks."""

    kind: str
    """`file` or `table`."""
    mini_batch_size: int | str
    bad: int
    """Items that always fail; more than one item to a mini-batch, then, with `isolate_failures`."""
    items_per_mini_batch: int

    @property
    def isolates(self) -> bool:
        """Whether a mini-batch that fails is split until the bad items stand alone."""
        return self.bad > 0 and self.items_per_mini_batch > 1

    @property
    def config(self) -> dict[str, Any]:
        """Return what is set for it."""
        return {
            "mini_batch_size": self.mini_batch_size,
            "isolate_failures": self.isolates,
            # Without bad items nothing may fail, which is the default.
            **({"error_threshold": self.bad} if self.bad else {}),
        }


SHAPES = (
    Shape(kind="file", mini_batch_size=1, bad=0, items_per_mini_batch=1),
    Shape(kind="file", mini_batch_size=7, bad=0, items_per_mini_batch=7),
    Shape(kind="file", mini_batch_size=7, bad=4, items_per_mini_batch=7),
    Shape(kind="table", mini_batch_size=300, bad=0, items_per_mini_batch=7),
    Shape(kind="file", mini_batch_size=1, bad=3, items_per_mini_batch=1),
    Shape(kind="table", mini_batch_size=300, bad=4, items_per_mini_batch=7),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A round before it begins."""

    seed: int
    name: str
    shape: Shape
    mini_batches: int
    node_count: int
    process_count: int
    faults: tuple[Planned, ...]
    """By progress, ascending."""
    in_flow: bool
    """Whether through a real Prefect flow."""
    timeout_s: float = 2.0
    """`run_invocation_timeout`."""

    @property
    def limit_s(self) -> float:
        """How long the round may take, in seconds."""
        return LIMIT_S + LIMIT_PER_FAULT_S * len(self.faults)

    @property
    def on_small_disk(self) -> bool:
        """Whether its run folder is on a disk that will be full."""
        return any(fault.kind == Kind.DISK_FULL for fault in self.faults)

    def make_data(self, folder: Path) -> Data:
        """Write the input files."""
        make = make_files if self.shape.kind == "file" else make_tables
        count = self.mini_batches * self.shape.items_per_mini_batch
        return make(folder, count, self.shape.bad, random.Random(self.seed))

    def settings(self, address: str, environment: dict[str, str]) -> dict[str, Any]:
        """Return the step's ParallelRunConfig."""
        return {
            "entry_script": "score.py",
            "source_directory": str(SCRIPTS),
            "compute_target": address,
            "node_count": self.node_count,
            "process_count_per_node": self.process_count,
            "run_invocation_timeout": self.timeout_s,
            "environment_variables": environment,
            **self.shape.config,
        }


def make_plan(
    seed: int,
    *,
    kinds: Sequence[Kind] = tuple(Kind),
    all_of_them: bool = False,
    mini_batches: int | None = None,
    shape: Shape | None = None,
    in_flow: bool = False,
) -> Plan:
    """Plan a round.

    Args:
        seed: of everything that is random.
        kinds: of faults, from which some are chosen.
        all_of_them: each of `kinds` is chosen once.
        mini_batches: how many, about; None: some hundreds.
        shape: of the step; None: one of SHAPES.
        in_flow: whether through a real Prefect flow.
    """
    rng = random.Random(seed)
    if in_flow:  # a flow's run folder is where Prefect's settings say: on no small disk
        kinds = [kind for kind in kinds if kind not in (Kind.DISK_FULL, Kind.FILE_LIMIT)]
    chosen = list(kinds) if all_of_them else _some_of(kinds, rng)
    planned = sorted(
        (Planned(kind=kind, progress=_when(kind, rng)) for kind in chosen), key=lambda p: p.progress
    )
    return Plan(
        seed=seed,
        name=f"chaos-{seed}",
        shape=shape or rng.choice(SHAPES),
        mini_batches=mini_batches or rng.randint(250, 450),
        node_count=rng.choice((2, 3)),
        process_count=rng.choice((1, 2)),
        faults=tuple(planned),
        in_flow=in_flow,
    )


def _some_of(kinds: Sequence[Kind], rng: random.Random) -> list[Kind]:
    """Choose four to eight; what takes seconds only once."""
    chosen: list[Kind] = []
    for _ in range(rng.randint(4, 8)):
        if left := [kind for kind in kinds if kind not in chosen or kind not in SLOW]:
            chosen.append(rng.choice(left))
    return chosen


def _when(kind: Kind, rng: random.Random) -> float:
    if kind == Kind.DRIVER_KILL and rng.random() < 0.3:
        return AT_THE_END
    # Later than that, few mini-batches are left which the driver would have to write down.
    return rng.uniform(0.02, 0.7 if kind in END_OF_SITTING else 0.85)
