"""Entry script that does nothing but say when each call of `run()` began, and sleep if it is told to."""

from __future__ import annotations

import argparse
import time

parser = argparse.ArgumentParser()
parser.add_argument("--sleep", type=float, default=0.0)
sleep_s = parser.parse_known_args()[0].sleep


def run(mini_batch):
    began = time.time()
    if sleep_s:
        time.sleep(sleep_s)
    return [began]
