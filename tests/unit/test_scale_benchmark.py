"""benchmarks/scale.py still fits the driver that it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_real_driver_runs_on_simulated_nodes():
    """Some are lost and some attempts fail; each mini-batch is in journal and output once (it looks itself)."""
    setting = {"nodes": 4, "processes": 2, "seconds": 1.0, "count": 1_500, "profiled": False}
    done = subprocess.run(
        [sys.executable, "benchmarks/scale.py", "--one", json.dumps(setting)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    one = json.loads(done.stdout)
    assert one["lost"] > 0
    assert one["failed"] > 0
    assert one["bundles"] >= setting["count"]
    assert one["driver_cpu_s"] + one["writer_cpu_s"] > 0
    assert list(one["rss_mb"]) == ["at 10 %", "at 50 %", "at 100 %", "at its peak"]
