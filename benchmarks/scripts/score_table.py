"""Scores rows with a scikit-learn model; with `--wait` it only takes so many seconds, and says when."""

import argparse
import pickle
import sys
import time
from pathlib import Path

import pandas as pd

model = None
options = None


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
        return [f"{began} {time.time()}"] + [""] * (len(mini_batch) - 1)
    features = mini_batch.drop(columns="id").to_numpy()
    return pd.DataFrame({"id": mini_batch["id"], "label": model.predict(features)})
