"""Data of reports, made by hand: hostile, empty, and as large as it gets."""

from __future__ import annotations

import random

from prefect_parallelrun.models import Counts, ErrorGroup, NodeRecord, RunSummary
from prefect_parallelrun.report.page_data import Block, Cell, ReportData, Series, Slow

ORIGIN = 1_790_000_000.0
"""2026-09-21 14:13:20 UTC."""
HOSTILE = (
    "<script>window.pwned=1;alert(1)</script>.png",
    "</script><img src=x onerror=window.pwned=2>",
    "\"'><svg onload=window.pwned=3>",
    "{{ 7 * 7 }} {% raw %} @{text} $$x$$ &lt;b&gt;",
    "line\u2028separated \u202egnp.exe",
    "bell\x07 and a lone surrogate \udcff",
    "javascript:window.pwned=4",
)
"""Names and messages that want to be more than text."""


def empty(**changes) -> ReportData:
    """Return what is known of a run that failed before anything was run."""
    nothing = RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0)
    fields = {
        "step": "score",
        "run_id": "r1",
        "state": "Failed",
        "origin": ORIGIN,
        "started_at": ORIGIN,
        "duration_s": 0.0,
        "closing_line": "in 0 = out 0 + failed 0 (items)",
        "output": "",
        "logs": "logs",
        "failure": "no node joined within 60 s",
        "summary": nothing,
        "settings": (),
        "reuse": (),
        "nodes": (),
        "processes_started": 0,
        "ends": (),
        "lanes": (),
        "blocks": (),
        "blocks_are_shares": False,
        "bin_s": 1.0,
        "succeeded": (),
        "failed": (),
        "items": (),
        "duration_edges": (),
        "duration_counts": (),
        "duration_quantiles": (),
        "slowest": (),
        "cpu_cells": (),
        "cpu_total_s": 0.0,
        "elapsed_total_s": 0.0,
        "node_usage": (),
        "process_usage": (),
    }
    return ReportData(**{**fields, **changes})


def hostile() -> ReportData:
    """Return a short run in which everything that users write wants to be more than text."""
    groups = tuple(
        ErrorGroup(
            type=text,
            where=text,
            message=f"{text}\nmore {text}",
            count=number + 1,
            first_mini_batch=number,
            first_items=(text,),
            node="node000",
            process=text,
            log_file=text,
            traceback=f"Traceback\n  {text}",
        )
        for number, text in enumerate(HOSTILE)
    )
    text = " ".join(HOSTILE)
    return empty(
        step=HOSTILE[0],
        run_id=text,
        closing_line=text,
        output=text,
        logs=text,
        failure=text,
        duration_s=len(HOSTILE) * 2.0,
        summary=RunSummary(
            mini_batches=Counts(total=9, succeeded=2, failed=7),
            items=Counts(total=9, succeeded=2, failed=7),
            attempts=9,
            rows=2,
            errors=groups,
            missing_rows=1,
        ),
        settings=[(text, text) for text in HOSTILE],
        reuse=HOSTILE,
        nodes=[
            NodeRecord(node="node000", host=text, address=text, processes=1, reason=text)
            for text in HOSTILE
        ],
        processes_started=1,
        ends=[(text, 1) for text in HOSTILE],
        lanes=HOSTILE,
        blocks=[
            Block(lane=i, kind="run", start=0.0, end=i + 1.0, process=text, text=text)
            for i, text in enumerate(HOSTILE)
        ],
        succeeded=[1, 1],
        failed=[0, 7],
        items=[1, 1],
        duration_edges=[0.1, 0.2, 0.4],
        duration_counts=[3, 4],
        duration_quantiles=[(text, 0.1 + i / 100) for i, text in enumerate(HOSTILE)],
        slowest=[
            Slow(
                mini_batch=i,
                attempt=1,
                node=text,
                process=text,
                elapsed_s=1.0,
                run_s=1.0,
                cpu_s=1.0,
                outcome=text,
                items=(text,),
            )
            for i, text in enumerate(HOSTILE)
        ],
        cpu_cells=[Cell(elapsed_from=0.1, elapsed_to=0.2, cpu_from=0.0, cpu_to=0.1, count=3)],
        cpu_total_s=1.0,
        elapsed_total_s=2.0,
        node_usage=_usage(HOSTILE, samples=1),
        process_usage=_usage(HOSTILE, samples=3),
    )


def _usage(names, *, samples: int, every_s: float = 1.0) -> list[Series]:
    dice = random.Random(1)
    return [
        Series(
            name=name,
            times=[i * every_s for i in range(samples)],
            cpu_percent=[dice.uniform(0, 200) for _ in range(samples)],
            memory_bytes=[dice.uniform(1e8, 4e9) for _ in range(samples)],
        )
        for name in names
    ]


def large() -> ReportData:
    """Return as many blocks, bins, cells and samples as a report has at most."""
    lanes, bins = 100, 200
    names = [f"node{i:03} process{i:03}" for i in range(24)]
    return empty(
        state="Completed",
        failure=None,
        duration_s=36_000.0,
        lanes=[f"node{i // 8:03} #{i % 8}" for i in range(lanes)],
        blocks_are_shares=True,
        blocks=[
            Block(
                lane=lane,
                kind="run",
                start=at * 180.0,
                end=(at + 1) * 180.0,
                top=0.9,
                process=f"node{lane // 8:03} #{lane % 8}",
                text="run 90% of the time; 1,234 attempts ended, 12 of them failed",
            )
            for lane in range(lanes)
            for at in range(bins)
        ],
        bin_s=120.0,
        succeeded=[3000] * 300,
        failed=[30] * 300,
        items=[30_000] * 300,
        duration_edges=[0.01 * 1.2**i for i in range(41)],
        duration_counts=[1000 * i for i in range(40)],
        duration_quantiles=[("median", 0.4), ("95 %", 2.0), ("99 %", 3.0), ("longest", 9.0)],
        cpu_cells=[
            Cell(
                elapsed_from=0.01 * 1.2**i,
                elapsed_to=0.01 * 1.2 ** (i + 1),
                cpu_from=0.01 * 1.2**j,
                cpu_to=0.01 * 1.2 ** (j + 1),
                count=i * j + 1,
            )
            for i in range(60)
            for j in range(60)
        ],
        cpu_total_s=1e6,
        elapsed_total_s=2e6,
        node_usage=_usage(names, samples=300, every_s=120.0),
        process_usage=_usage(names, samples=300, every_s=120.0),
    )
