"""Entry script: forecasts the sales of each store and brand, with the model that was trained for it."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import numpy as np
import series_model


def init():
    """Read the arguments, once in each worker process."""
    global arguments
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, required=True)
    arguments, _ = parser.parse_known_args()


def run(mini_batch, mini_batch_context):
    """Forecast the sales of one store and brand, a DataFrame; return a row for each week."""
    name = series_model.file_name(mini_batch_context.partition_key_value)
    model, mean = pickle.loads((arguments.models / name).read_bytes())
    rows = mini_batch[["store", "brand", "week", "sold"]].copy()
    rows["forecast"] = np.exp(model.predict(series_model.features(mini_batch)))
    rows["mean"] = mean
    return rows
