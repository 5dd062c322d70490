"""GPUs that nodes declare: each process sees its own, on the whole host, and the next one gets them (R40-R45)."""

from __future__ import annotations

import json

import distributed
import pytest

from tests.dask.conftest import lines

SHOW = """
    import json, os, time
    from pathlib import Path

    def run(mini_batch):
        me = os.environ["PARALLELRUN_PROCESS"].split("/")
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        Path({seen!r}, "-".join(me[1:])).write_text(shown)
        while len(os.listdir({seen!r})) < {processes}:
            time.sleep(0.01)
        return [json.dumps([me[1], me[2], shown, os.environ["AZ_BATCHAI_GPU_COUNT_FOUND"]])]
"""


@pytest.fixture
def shown(run, numbers, tmp_path):
    """Return a function that runs a step on a cluster whose Dask workers have these resources."""

    def call(processes, *, workers=1, resources=None, **settings):
        seen = tmp_path / "seen"
        seen.mkdir()
        with distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            resources=resources or {},
            dashboard_address=None,
        ) as cluster:
            result = run(
                SHOW.format(seen=str(seen), processes=processes),
                numbers,
                compute_target=cluster,
                node_count=workers,
                process_count_per_node=processes // workers,
                mini_batch_size=1,
                **settings,
            )
        return sorted({tuple(json.loads(line)) for line in lines(result)})

    return call


def test_the_first_processes_have_one_each_and_the_rest_none(shown):
    """R44, R45: of four processes two have one each."""
    found = shown(4, resources={"GPU": 2})

    assert [one[2] for one in found] == ["0", "1", "", ""]
    assert {one[3] for one in found} == {"2"}


def test_two_nodes_of_a_host_never_share_one(shown, monkeypatch):
    """R42: both see all four, and declare two each."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,0,2")

    found = shown(4, workers=2, resources={"GPU": 2})

    assert sorted(one[2] for one in found) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("each", "expected"),
    [(0.25, ["0", "0", "0", "0"]), (0.5, ["0", "0", "", ""]), (0, [""] * 4)],
)
def test_a_fraction_is_shared(shown, each, expected):
    """Four processes on one card, or two of them; with 0 none sees it."""
    found = shown(4, resources={"GPU": 1}, gpus_per_process=each)

    assert sorted((one[2] for one in found), reverse=True) == expected
