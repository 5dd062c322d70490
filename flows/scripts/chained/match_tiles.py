"""Entry script: a row for each tile, its name and that of the described tile that looks most like it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from sklearn.neighbors import NearestNeighbors
from tile_look import look


def init():
    """Read the descriptions of the tiles to choose from, once in each worker process."""
    global names, nearest
    parser = argparse.ArgumentParser()
    parser.add_argument("--described", type=Path, required=True)
    arguments, _ = parser.parse_known_args()
    described = pd.read_parquet(arguments.described / "looks.parquet").set_index("tile")
    names = described.index
    nearest = NearestNeighbors(n_neighbors=1).fit(described.to_numpy())


def run(mini_batch):
    """Find the match of each tile of one mini-batch, a list of image files."""
    distances, found = nearest.kneighbors([look(path) for path in mini_batch])
    return pd.DataFrame(
        {
            "tile": [Path(path).name for path in mini_batch],
            "match": names[found[:, 0]],
            "distance": distances[:, 0],
        }
    )
