"""GPUs of whole runs: each process sees its own, on the whole host, and the next one gets them (R40-R45)."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import distributed
import pynvml
import pytest
from distributed.deploy.local import LocalCluster

from prefect_parallelrun.node.threads import cores_here
from tests.dask.conftest import lines
from tests.nvml_stand_in import Card, Library, cards

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


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    """Return a function that puts GPUs into this host; leases of other tests do not count there."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(*present):
        return Library(*present).put_in_place(monkeypatch)

    return put


@pytest.fixture
def shown(run, numbers, tmp_path):
    """Return a function that runs a step and tells what its processes see.

    It takes the Dask workers' resources, for a cluster of that many workers, or a compute target.
    """

    def call(processes, *, workers=1, resources=None, compute_target=None, **settings):
        seen = tmp_path / "seen"
        seen.mkdir()
        script = SHOW.format(seen=str(seen), processes=processes)
        settings |= {
            "node_count": workers,
            "process_count_per_node": processes // workers,
            "mini_batch_size": 1,
        }
        if resources is None:
            result = run(script, numbers, compute_target=compute_target, **settings)
        else:
            with distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=False,
                resources=resources,
                dashboard_address="127.0.0.1:0",
            ) as cluster:
                result = run(script, numbers, compute_target=cluster, **settings)
        return sorted({tuple(json.loads(line)) for line in lines(result)})

    return call


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_the_first_processes_have_one_each_and_the_rest_none(shown, caplog):
    """R44, R45: of four processes two have one each; the flow's log names the others."""
    found = shown(4, resources={"GPU": 2})

    assert [one[2] for one in found] == ["0", "1", "", ""]
    assert {one[3] for one in found} == {"2"}
    (told,) = warnings(caplog)
    assert told.startswith(
        "node000: its GPUs are not as asked for: process002, process003 run without a GPU: each of its 4"
    )


def test_a_dask_worker_that_declares_more_than_there_are_is_told_of(shown, host, caplog):
    """The node has what there is."""
    host(*cards(2))

    found = shown(2, resources={"GPU": 3})

    assert [one[2] for one in found] == ["0", "1"]
    assert {one[3] for one in found} == {"2"}
    (told,) = warnings(caplog)
    assert "its Dask worker declares 3 GPUs, and NVML shows 2" in told


def test_two_nodes_of_a_host_never_share_one(shown, monkeypatch):
    """R42: both see all four, and declare two each."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,0,2")

    found = shown(4, workers=2, resources={"GPU": 2})

    assert sorted(one[2] for one in found) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("each", "expected"),
    [(0.25, ["0", "0", "0", "0"]), (0, [""] * 4)],
)
def test_a_fraction_is_shared(shown, each, expected):
    """Four processes on one card; with 0 none sees it."""
    found = shown(4, resources={"GPU": 1}, gpus_per_process=each)

    assert sorted((one[2] for one in found), reverse=True) == expected


def test_two_cards_each(shown, host):
    """Of four that NVML sees, one of them in MIG mode: its two instances count as two."""
    host(Card("GPU-d", instances=("MIG-a", "MIG-b")), *cards(2))

    found = shown(2, resources={}, gpus_per_process=2)

    own = [card.uuid for card in cards(2)]
    assert [one[2] for one in found] == ["MIG-a,MIG-b", ",".join(own)]
    assert {one[3] for one in found} == {"4"}


def test_the_users_variable_chooses_among_them(shown, host, caplog):
    """`environment_variables` of the step; that they are fewer than there are is no shortage."""
    host(*cards(4))

    found = shown(1, environment_variables={"CUDA_VISIBLE_DEVICES": "2"})

    assert [one[2:] for one in found] == [("2", "1")]
    assert warnings(caplog) == []


def test_a_node_that_declares_none_hides_what_it_sees(shown, host):
    """The GPUs of its host are others'."""
    host(*cards(2))

    assert [one[2:] for one in shown(1, resources={"GPU": 0})] == [("", "0")]


def test_embedded_workers_declare_their_gpus(shown, host, monkeypatch):
    """As the Dask resource `GPU`; with none given a node with GPUs has one process (R33)."""
    host(cards(1)[0], Card("GPU-lost", error=pynvml.NVML_ERROR_GPU_IS_LOST), cards(3)[2])
    declared = []

    class Watched(LocalCluster):
        def __init__(self, *args, **settings):
            declared.append(settings["resources"])
            super().__init__(*args, **settings)

    monkeypatch.setattr(distributed, "LocalCluster", Watched)

    found = shown(2)

    assert declared == [{"GPU": 2}]
    assert [one[2] for one in found] == [cards(1)[0].uuid, cards(3)[2].uuid]


def test_a_node_with_gpus_has_one_process_if_nobody_says(run, numbers, host):
    """R33: however many cores it has; R63: the log tree tells how busy they are."""
    host(*cards(2), Card("GPU-busy", percent=75, used=3 << 30))

    result = run("def run(mini_batch): return mini_batch", numbers, process_count_per_node=None)

    logs = Path(result.logs_directory)
    assert "1 processes, 3 GPUs" in (logs / "sys" / "master_role.txt").read_text()
    sampled = (logs / "perf" / "node000" / "node_resource_usage.csv").read_text()
    first = next(csv.DictReader(sampled.splitlines()))
    assert (first["gpu2_percent"], first["gpu2_memory_used_bytes"]) == ("75", str(3 << 30))


def test_a_step_that_wants_no_gpu_has_a_process_for_each_core(run, numbers, host):
    """The node's GPUs are counted, and limit nothing."""
    host(*cards(3))

    result = run(
        "def run(mini_batch): return mini_batch",
        numbers,
        process_count_per_node=None,
        gpus_per_process=0,
    )

    told = Path(result.logs_directory, "sys", "master_role.txt").read_text()
    assert f"{cores_here()} processes, 3 GPUs" in told


def test_workers_that_each_see_all_with_their_own_first_keep_it(shown):
    """As dask-cuda starts them: a Dask worker in a process of its own for each GPU."""
    workers = {
        n: {
            "cls": distributed.Nanny,
            "options": {
                "nthreads": 1,
                "resources": {"GPU": 1},
                "env": {"CUDA_VISIBLE_DEVICES": turned, "TMPDIR": os.environ["TMPDIR"]},
            },
        }
        for n, turned in enumerate(("0,1", "1,0"))
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"dashboard_address": "127.0.0.1:0", "port": 0},
    }
    with distributed.SpecCluster(workers, scheduler, silence_logs=False) as cluster:
        found = shown(2, workers=2, compute_target=cluster)

    assert sorted(one[2] for one in found) == ["0", "1"]
    assert {one[3] for one in found} == {"1"}
