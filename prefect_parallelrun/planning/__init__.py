"""Datasets become mini-batches, lazily: from listings, samples and footers, not from the data."""

from __future__ import annotations

from prefect_parallelrun.planning.plan import Plan, frame_file, make_plan
from prefect_parallelrun.planning.step_plan import plan_step

__all__ = ["Plan", "frame_file", "make_plan", "plan_step"]
