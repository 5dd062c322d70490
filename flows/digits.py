"""Recognise 1,797 handwritten digits, image by image, on two nodes of two processes each.

Run it twice: the second time the step has nothing to do.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import time
from pathlib import Path

# Nothing leaves this machine: Prefect reads these when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import numpy as np
from PIL import Image
from prefect import flow, task
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunResult, ParallelRunStep

HERE = Path(__file__).resolve().parent
TRAINING_IMAGES = 1000
"""The classifier learns from the first so many; its accuracy is measured on the others."""

config = ParallelRunConfig(
    source_directory=str(HERE / "scripts" / "digits"),
    entry_script="score_digits.py",
    mini_batch_size=20,
    error_threshold=10,
    output_action="append_row",
    append_row_file_name="predictions.txt",
    node_count=2,
    process_count_per_node=2,
    run_invocation_timeout=60,
    run_max_try=3,
)


@task
def write_images(folder: Path) -> str:
    """Write each digit as a PNG file; return the glob that finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(load_digits().images):
        png = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(png, format="PNG")
        keep(folder / f"{number:04d}.png", png.getvalue())
    return str(folder / "*.png")


@task
def train_classifier(folder: Path) -> str:
    """Train on the first images and store the model; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    model = SVC().fit(digits.data[:TRAINING_IMAGES] * 15, digits.target[:TRAINING_IMAGES])
    keep(folder / "digits.pickle", pickle.dumps(model))
    return str(folder)


@task
def measure_accuracy(result: ParallelRunResult) -> float:
    """Return the share of right answers among the images that the classifier had not seen."""
    rows = result.to_pandas(sep=":", names=["file", "digit"])
    number = rows["file"].str.removesuffix(".png").astype(int)
    right = rows["digit"].to_numpy() == load_digits().target[number]
    return float(right[number >= TRAINING_IMAGES].mean())


@flow(name="digits")
def recognise_digits(folder: str) -> None:
    """Make the images and the model, score every image, measure how good the scores are."""
    data = Path(folder)
    images = FileDataset.from_files(write_images(data / "images")).as_named_input("images")
    model_folder = train_classifier(data / "model")
    model = FileDataset.from_files(model_folder).as_named_input("model").as_mount()
    predict = ParallelRunStep(
        name="predict-digits",
        parallel_run_config=config,
        inputs=[images],
        side_inputs=[model],
        arguments=["--model_dir", model],
        output=str(data / "predictions"),
    )

    began = time.monotonic()
    result = predict()
    took_s = time.monotonic() - began

    accuracy = measure_accuracy(result)
    print(f"accuracy  {accuracy:.1%} on the {1797 - TRAINING_IMAGES} images not trained on")
    print(f"items     {result.items.succeeded:,} of {result.items.total:,} images scored")
    print(f"step      {took_s:.2f} s, reused: {'yes' if result.reused else 'no'}")
    print(f"output    {result.append_row_file}")
    print(f"logs      {result.logs_directory}")
    if result.report:
        print(f"report    {result.report}")


def keep(path: Path, content: bytes) -> None:
    """Write the file unless it has this content already, since a new file is scored anew."""
    if path.exists() and path.read_bytes() == content:
        return
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", default=str(HERE / "data" / "digits"), help="folder for all files"
    )
    recognise_digits(parser.parse_args().data)
