"""Input edited again and again, each run taking over of one before it: grouping and output side together (R202)."""

from __future__ import annotations

import tempfile
from itertools import chain, islice, starmap
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output.taking_over import take_over
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning.regroup import plain, regroup

Files = dict[str, int]
"""Of each file, when it was last changed."""


def listing(files: Files) -> list[FileItem]:
    return list(starmap(FileItem, ((name, 1, files[name]) for name in sorted(files))))


def mini_batches(files: Files, sizes: list[tuple[int, int]]) -> list[list[str]]:
    names = iter(sorted(files))
    return [list(islice(names, size)) for size, times in sizes for _ in range(times)]


def rows(files: Files, names: list[str]) -> bytes:
    return b"".join(f"{name}{files[name]}\n".encode() for name in names)


def settle(output: OutputWriter, index: int, items: int, data: bytes) -> None:
    output.add(
        AttemptRecord(
            mini_batch=index,
            attempt=1,
            final=True,
            outcome=Outcome.SUCCEEDED,
            node="node000",
            process="process000",
            items_total=items,
            items_succeeded=items,
            items_failed=0,
            rows=items,
        ),
        data,
    )


file_sets = st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(1, 2))


@settings(max_examples=15, deadline=None)
@given(
    inputs=st.lists(file_sets, min_size=2, max_size=5),
    size=st.integers(1, 4),
    bases=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    runs=st.randoms(use_true_random=False),
)
def test_the_rows_are_those_of_a_whole_run(inputs, size, bases, runs):
    """Whatever came, changed and went, whichever run is the base and however far that came: each file has
    its row, as it is now, in the order of the input; nothing that was done and still holds runs again."""
    with tempfile.TemporaryDirectory() as name:
        cuts: list[list[tuple[int, int]]] = []
        done: list[set[int]] = []
        for number, files in enumerate(inputs):
            paths = RunPaths(Path(name, f"run{number}"))
            paths.root.mkdir()
            held: set[int] = set()
            sizes = plain(len(files), size)
            if number:
                base = bases[number - 1] % number
                found = regroup(listing(inputs[base]), cuts[base], listing(files), size)
                sizes = found.sizes
                kept = list(
                    chain.from_iterable(
                        ((there + n, here + n) for n in range(length))
                        for there, here, length in found.kept
                    )
                )
                held = {here for there, here in kept if there in done[base]}
                take_over(RunPaths(Path(name, f"run{base}")), paths, kept, keep_rows=True)
            plan = mini_batches(files, sizes)
            with OutputWriter(paths, keep_rows=True) as output:
                assert set(output.done()) == held
                rest = [index for index in range(len(plan)) if index not in held]
                # Some runs end on the way.
                ran = runs.sample(rest, runs.choice([len(rest), len(rest) // 2]))
                for index in ran:
                    settle(output, index, len(plan[index]), rows(files, plan[index]))
                published = output.publish(Path(name), "out", order="input").read_bytes()
            cuts.append(sizes)
            done.append(held | set(ran))

            assert published == b"".join(rows(files, plan[index]) for index in sorted(done[-1]))
            if len(done[-1]) == len(plan):
                assert published == rows(files, sorted(files))
