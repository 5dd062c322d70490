"""Entry script: trains and stores one model for each store and brand."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import numpy as np
import series_model
from sklearn.linear_model import LinearRegression

from azureml_user.parallel_run import EntryScript


def init():
    """Read the arguments, once in each worker process."""
    global training_weeks, output
    parser = argparse.ArgumentParser()
    parser.add_argument("--training_weeks", type=int, required=True)
    arguments, _ = parser.parse_known_args()
    training_weeks = arguments.training_weeks
    output = Path(EntryScript().output_dir)


def run(mini_batch, mini_batch_context):
    """Train on all sales of one store and brand, a DataFrame."""
    known = mini_batch[mini_batch["week"] < training_weeks]
    model = LinearRegression().fit(series_model.features(known), np.log(known["sold"]))
    name = series_model.file_name(mini_batch_context.partition_key_value)
    (output / name).write_bytes(pickle.dumps((model, known["sold"].mean())))
    return mini_batch
