"""Entry script: one row, `file: digit`, for each image."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def init():
    """Load the model, once in each worker process."""
    global model
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_dir", type=Path, required=True)
    arguments, _ = parser.parse_known_args()
    model = pickle.loads((arguments.model_dir / "digits.pickle").read_bytes())


def run(mini_batch):
    """Recognise the digits of one mini-batch, a list of image files."""
    pixels = np.stack([np.asarray(Image.open(path)).ravel() for path in mini_batch])
    digits = model.predict(pixels)
    return [f"{Path(path).name}: {digit}" for path, digit in zip(mini_batch, digits, strict=True)]
