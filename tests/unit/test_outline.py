"""How a plan looks from afar."""

from __future__ import annotations

import subprocess
import sys

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.planning.file_cuts import cut_files
from prefect_parallelrun.planning.outline import outline
from prefect_parallelrun.planning.plan import Plan


def test_counts_sizes_and_the_largest():
    """Sizes are counted by powers of two; of equal ones the earlier is the larger."""
    sizes = [0, 1, 3, 3, 8, 15, 8]
    plan = Plan(
        [cut_files([FileItem(f"/{n}", size, 1) for n, size in enumerate(sizes)], 1)], "file"
    )

    found = plan.outline(largest=3)

    assert (found.mini_batches, found.items, found.bytes) == (7, 7, sum(sizes))
    assert [(one.least, one.below, one.mini_batches) for one in found.sizes] == [
        (0, 1, 1),
        (1, 2, 1),
        (2, 4, 2),
        (4, 8, 0),
        (8, 16, 3),
    ]
    assert [one.index for one in found.largest] == [5, 4, 6]
    for largest in (0, 1, 9):
        other = plan.outline(largest=largest)
        assert (other.mini_batches, other.bytes, other.sizes) == (7, sum(sizes), found.sizes)


def test_nothing():
    """A plan without mini-batches has none of anything."""
    found = outline([], items=0, largest=3)

    assert (found.mini_batches, found.bytes, found.sizes, found.largest) == (0, 0, (), ())


PEAKS = """
import tracemalloc
from prefect_parallelrun.models import MiniBatch
from prefect_parallelrun.planning.outline import outline

def peak(count):
    made = (MiniBatch(n, 0, 1, n % 1000, {"files": [f"/{n}"]}) for n in range(count))
    tracemalloc.start()
    outline(made, items=count, largest=10)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found

print(peak(3_000), peak(300_000))
"""


def test_memory_does_not_grow_with_the_plan():
    """Of 300,000 mini-batches no more is held than of 3,000."""
    # In a process of its own: what other threads of this one allocate would count as well.
    ended = subprocess.run(
        [sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True
    )
    few, many = map(int, ended.stdout.split())

    assert many < few + 20_000
