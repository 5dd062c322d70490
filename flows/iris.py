"""Tell 150 irises apart by their measurements: a table, cut into mini-batches of rows."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Nothing leaves this machine: Prefect reads these when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from prefect import flow, task
from sklearn.datasets import load_iris

from prefect_parallelrun import (
    ParallelRunConfig,
    ParallelRunResult,
    ParallelRunStep,
    TabularDataset,
)

HERE = Path(__file__).resolve().parent

config = ParallelRunConfig(
    source_directory=str(HERE / "scripts" / "iris"),
    entry_script="score_iris.py",
    mini_batch_size="1KB",
    error_threshold=0,
    append_row_file_name="species.txt",
    process_count_per_node=2,
)


@task
def write_table(file: Path) -> str:
    """Write the measurements as a CSV file; return its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = load_iris(as_frame=True).data
    table.columns = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    table.to_csv(file, index_label="flower")
    return str(file)


@task
def measure_accuracy(result: ParallelRunResult) -> float:
    """Return the share of flowers that got the right species."""
    iris = load_iris()
    rows = result.to_pandas(names=["flower", "species"])
    right = iris.target_names[iris.target[rows["flower"]]]
    return float((rows["species"] == right).mean())


@flow(name="iris")
def tell_irises_apart(folder: str) -> None:
    """Write the table, classify every flower, measure how good the answers are."""
    table = TabularDataset.from_delimited_files(write_table(Path(folder) / "iris.csv"))
    classify = ParallelRunStep(
        name="classify-irises",
        parallel_run_config=config,
        inputs=[table.as_named_input("irises")],
        output=str(Path(folder) / "species"),
        allow_reuse=False,
    )

    result = classify()

    print(f"accuracy  {measure_accuracy(result):.1%} of {result.items.succeeded} flowers")
    print(f"batches   {result.mini_batches.succeeded} mini-batches of about 1 KB")
    print(f"output    {result.append_row_file}")
    print(f"logs      {result.logs_directory}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(HERE / "data" / "iris"), help="folder for all files")
    tell_irises_apart(parser.parse_args().data)
