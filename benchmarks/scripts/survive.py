"""Twenty items of which one is poison: the work of `survival.py`, as a function and as an entry script."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

POISON = 7
"""The item that kills its process, hangs, or raises."""
WORK_S = 0.05


def work(item, poison, folder):
    """Do one item's work; the item notes in `folder` that it was begun."""
    runs = os.open(Path(folder, "runs"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(runs, f"{item}\n".encode())
    os.close(runs)
    if item == POISON:
        if poison == "exits":
            os._exit(1)
        if poison == "raises":
            raise ValueError("poison")
        while True:
            time.sleep(3600)
    time.sleep(WORK_S)
    return item


def run(mini_batch):
    """Do the work of each file, which is named after its item."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--poison")
    parser.add_argument("--folder")
    args, _ = parser.parse_known_args()
    return [work(int(Path(path).stem), args.poison, args.folder) for path in mini_batch]
