"""Parts of mini-batches in a real worker process (R203)."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.planning import make_plan

ROWS = 40

SCRIPT = """
import threading
from prefect_parallelrun_runtime import ahead
STARTED = []
class Noting(ahead.Ahead):
    def start(self):
        STARTED.append(self)
        super().start()
ahead.Ahead = Noting
def run(mini_batch, context):
    if 13 in mini_batch["n"].values:
        raise ValueError("unlucky")
    same = context.dataset.to_pandas_dataframe().equals(mini_batch)
    return [
        [context.minibatch_index, index, n, same, len(STARTED)]
        for index, n in mini_batch["n"].items()
    ]
"""


def formats(folder):
    csv, lines = folder / "rows.csv", folder / "rows.jsonl"
    csv.write_text("n\n" + "".join(f"{n}\n" for n in range(ROWS)))
    lines.write_text("".join(f'{{"n": {n}}}\n' for n in range(ROWS)))
    parquet = folder / "rows.parquet"
    pd.DataFrame({"n": range(ROWS)}).to_parquet(parquet)
    return {
        "csv": lambda: TabularDataset.from_delimited_files(csv),
        "jsonl": lambda: TabularDataset.from_json_lines_files(lines),
        "parquet": lambda: TabularDataset.from_parquet_files(parquet),
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_part_of_a_table_runs_alone(node, tmp_path, kind):
    """run() gets the part's rows, numbered from 0, in the context as well; the index stays the whole's (R203, R101)."""
    dataset = formats(tmp_path)[kind]()
    plan = make_plan([dataset], [dataset.list_files()], mini_batch_size="1MB", scratch=tmp_path)
    (work,) = [batch.work for batch in plan]
    node.script(SCRIPT)
    node.start(inputs=plan.readers)

    whole = node.run(work, index=7)
    halves = [node.run({**work, "part": part}, index=7) for part in ([0, 20], [20, 40])]
    bundle = node.run(*({**work, "part": part} for part in ([0, 13], [14, 20], [13, 14])), index=7)

    assert whole.outcomes == ["failed"]
    assert (whole.results[0]["items"], whole.results[0]["rows"]) == (ROWS, 0)
    assert [half.outcomes for half in halves] == [["failed"], ["succeeded"]]
    assert [half.results[0]["items"] for half in halves] == [20, 20]
    rows = [json.loads(line.replace(b"True", b"true")) for line in halves[1].rows[0].splitlines()]
    assert rows == [[7, place, 20 + place, True, 0] for place in range(20)]
    assert bundle.outcomes == ["succeeded", "succeeded", "failed"]
    assert [result["items"] for result in bundle.results] == [13, 6, 1]
    # The second of them was loaded while the first one ran.
    assert bundle.rows[1].splitlines()[0] == b"[8, 0, 14, True, 2]"


def test_a_part_that_is_not_there_fails_to_load(node, tmp_path):
    """Rows beyond the end are told as a failure to load, whether loaded ahead or not (R208)."""
    dataset = formats(tmp_path)["csv"]()
    plan = make_plan([dataset], [dataset.list_files()], mini_batch_size="1MB", scratch=tmp_path)
    (work,) = [batch.work for batch in plan]
    node.script(SCRIPT)
    node.start(inputs=plan.readers)

    for works in ([[39, 41]], [[20, 21], [39, 41]]):
        answer = node.run(*({**work, "part": part} for part in works))

        error = answer.results[-1]["error"]
        assert (error["category"], error["stage"]) == ("load", "load")
        assert "rows 40 to 41 of a mini-batch were asked for, and it has 40" in error["message"]
