"""Scores rows with a scikit-learn model; with `--wait` it only takes so many seconds, and says when."""

import argparse
import os
import pickle
import sys
import time
from pathlib import Path

import pandas as pd

from azureml_user.parallel_run import EntryScript

model = None
options = None
range_of = [0] * 1_000_000  # as many elements as there are rows, at no cost


def init():
    global model, options
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--wait", type=float)
    options, _ = parser.parse_known_args(sys.argv[1:])
    if options.model:
        model = pickle.loads(Path(options.model).read_bytes())


def run(mini_batch):
    if options.wait is not None:
        began = time.time()
        time.sleep(options.wait)
        spans = Path(EntryScript().output_dir, f"{os.getpid()}.txt")
        with spans.open("a") as file:
            file.write(f"{began} {time.time()}\n")
        return range_of[: len(mini_batch)]
    features = mini_batch.drop(columns="id").to_numpy()
    return pd.DataFrame({"id": mini_batch["id"], "label": model.predict(features)})
