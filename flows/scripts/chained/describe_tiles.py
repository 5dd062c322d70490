"""Entry script: a row for each tile, its name and what it looks like."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from tile_look import look


def run(mini_batch):
    """Describe the tiles of one mini-batch, a list of image files."""
    rows = pd.DataFrame([look(path) for path in mini_batch])
    rows.insert(0, "tile", [Path(path).name for path in mini_batch])
    return rows
