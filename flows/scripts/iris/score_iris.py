"""Entry script: one row, flower and species, for each flower of a table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def init():
    """Read the names of the species from the file beside this script."""
    global species
    species = Path("labels.txt").read_text().split()


def run(mini_batch):
    """Classify the flowers of one mini-batch, a DataFrame, by two questions about their petals."""
    answer = (mini_batch["petal_length"] > 2.5).astype(int)
    answer += (mini_batch["petal_length"] > 2.5) & (mini_batch["petal_width"] > 1.7)
    return pd.DataFrame({"flower": mini_batch["flower"], "species": [species[i] for i in answer]})
