"""One model for each store and brand: 60 series of weekly sales, each trained and scored by itself.

The sales table is cut by its keys; the first step stores a model for each combination, and the second
one gets these as a side input. Run it twice: the second time both steps have nothing to do.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

# Nothing leaves this machine: Prefect reads these when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import numpy as np
import pandas as pd
from prefect import flow, task

from prefect_parallelrun import (
    ParallelRunConfig,
    ParallelRunResult,
    ParallelRunStep,
    TabularDataset,
)

HERE = Path(__file__).resolve().parent
STORES = range(1, 13)
BRANDS = ["dominicks", "minute maid", "tropicana", "florida's", "own/brand"]
WEEKS = 120
TRAINING_WEEKS = 100
"""Each model learns from the first so many; its error is measured on the others."""

SCRIPTS = str(HERE / "scripts" / "many_models")

training = ParallelRunConfig(
    source_directory=SCRIPTS,
    entry_script="train_models.py",
    partition_keys=["store", "brand"],
    error_threshold=0,
    output_action="summary_only",
    node_count=2,
    process_count_per_node=1,
)

scoring = ParallelRunConfig(
    source_directory=SCRIPTS,
    entry_script="score_models.py",
    partition_keys=["store", "brand"],
    error_threshold=0,
    append_row_file_name="forecasts.txt",
    node_count=2,
    process_count_per_node=1,
)


@task
def write_sales(file: Path) -> str:
    """Write the sales of each week, store and brand as a CSV file; return its path."""
    random = np.random.default_rng(7)
    weeks = np.arange(WEEKS)
    series = []
    for store in STORES:
        for brand in BRANDS:
            price = random.uniform(1.5, 3.5, WEEKS).round(2)
            advert = random.random(WEEKS) < 0.2
            level, elasticity = random.uniform(200, 2000), random.uniform(0.2, 0.6)
            season = 1 + 0.3 * np.sin(2 * np.pi * (weeks / 52 + random.random()))
            sold = level * season * np.exp(-elasticity * price + 0.4 * advert)
            noise = random.normal(1, 0.05, WEEKS)
            series.append(
                pd.DataFrame(
                    {
                        "store": store,
                        "brand": brand,
                        "week": weeks,
                        "price": price,
                        "advert": advert,
                        "sold": (sold * noise).round(1),
                    }
                )
            )
    table = pd.concat(series).sort_values("week", kind="stable")
    file.parent.mkdir(parents=True, exist_ok=True)
    keep(file, table.to_csv(index=False).encode())
    return str(file)


@task
def measure_error(result: ParallelRunResult) -> tuple[float, float]:
    """Return the mean error in weeks that no model has seen, as a share of what was sold then; and
    that of a forecast of each series' mean."""
    rows = result.to_pandas(names=["store", "brand", "week", "sold", "forecast", "mean"])
    rows = rows[rows["week"] >= TRAINING_WEEKS]
    sold = rows["sold"]
    return (
        float((rows["forecast"] - sold).abs().sum() / sold.sum()),
        float((rows["mean"] - sold).abs().sum() / sold.sum()),
    )


@flow(name="many-models")
def forecast_sales(folder: str) -> None:
    """Make the table, cut it by store and brand, train a model for each, score with all of them."""
    data = Path(folder)
    table = TabularDataset.from_delimited_files(write_sales(data / "sales.csv"))
    series = table.partition_by(["store", "brand"], data / "series").as_named_input("series")
    train = ParallelRunStep(
        name="train-models",
        parallel_run_config=training,
        inputs=[series],
        arguments=["--training_weeks", TRAINING_WEEKS],
        output=str(data / "models"),
    )
    models, train_s = timed(train)
    score = ParallelRunStep(
        name="score-models",
        parallel_run_config=scoring,
        inputs=[series],
        side_inputs=[models],
        arguments=["--models", models],
        output=str(data / "forecasts"),
    )
    forecasts, score_s = timed(score)

    error, error_of_means = measure_error(forecasts)
    print(
        f"error     {error:.1%} of the sales in the last {WEEKS - TRAINING_WEEKS} weeks, not trained on "
        f"(with the mean of each series: {error_of_means:.1%})"
    )
    print(f"models    {models.mini_batches.succeeded}, one for each store and brand")
    print(f"items     {forecasts.items.succeeded:,} of {forecasts.items.total:,} rows scored")
    print(f"train     {train_s:.2f} s, reused: {'yes' if models.reused else 'no'}")
    print(f"score     {score_s:.2f} s, reused: {'yes' if forecasts.reused else 'no'}")
    print(f"output    {forecasts.append_row_file}")
    print(f"logs      {forecasts.logs_directory}")
    if forecasts.report:
        print(f"report    {forecasts.report}")


def timed(step: ParallelRunStep) -> tuple[ParallelRunResult, float]:
    """Run a step; return its result, and the seconds that it took."""
    began = time.monotonic()
    return step(), time.monotonic() - began


def keep(path: Path, content: bytes) -> None:
    """Write the file unless it has this content already, since a new file is processed anew."""
    if path.exists() and path.read_bytes() == content:
        return
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", default=str(HERE / "data" / "many_models"), help="folder for all files"
    )
    forecast_sales(parser.parse_args().data)
