"""Every promise under faults, once each and seeded; `python -m tests.chaos` for hundreds of them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos import disk
from tests.chaos.__main__ import told
from tests.chaos.cluster import ChaosCluster
from tests.chaos.faults import Kind
from tests.chaos.plan import SHAPES, Shape, make_plan
from tests.chaos.round import Outcome, Round
from tests.chaos.server import PrefectServer

ONES, SEVENS, BAD, TABLE, *_ = SHAPES


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three Dask workers in processes of their own; nannies bring back those that are killed."""
    cluster = ChaosCluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Prefect server, if a round wants one."""
    server = PrefectServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def play(cluster, server, tmp_path):
    """Return a function that plays a round and fails if a promise was broken, or no fault hit."""

    def call(seed: int, shape: Shape, *kinds: Kind, mini_batches: int = 160, **more) -> Outcome:
        # On a busy machine a round may be over before the last fault is due, and tells too little then.
        for once_more in range(3):
            plan = make_plan(
                seed + 1000 * once_more, kinds=kinds, all_of_them=True, shape=shape,
                mini_batches=mini_batches, **more,
            )  # fmt: skip
            cluster.wait_whole()
            outcome = Round(plan, cluster, tmp_path / plan.name, server).run()
            assert outcome.verdict.good, "\n".join(told(outcome))
            hit = Counter(fault.kind for fault in outcome.faults)
            if hit == Counter(kinds):
                return outcome
            assert hit < Counter(kinds), hit
        raise AssertionError(f"of {kinds} only {hit} hit, three times")

    return call


def test_a_process_that_dies_or_hangs_takes_only_its_own_mini_batch(play):
    """R38, R205, R207: killed, exited, hung: the output is whole, and nobody else ran again."""
    play(1, SEVENS, Kind.CHILD_KILL, Kind.CHILD_EXIT, Kind.CHILD_HANG)


def test_bad_items_stand_alone_while_processes_are_killed(play):
    """R203, R204: with isolate_failures exactly the bad items fail, whatever dies meanwhile."""
    play(2, BAD, Kind.CHILD_KILL, Kind.CHILD_KILL)


def test_a_lost_node_changes_nothing_and_costs_no_attempt(play):
    """R86, R200: a supervisor and a Dask worker are killed; nothing of them is left running."""
    play(3, TABLE, Kind.SUPERVISOR_KILL, Kind.WORKER_KILL)


def test_a_node_that_stops_answering_is_replaced_and_may_come_back(play):
    """R86, R205: SIGSTOP of a Dask worker, SIGCONT later: its old results change nothing."""
    play(4, ONES, Kind.WORKER_STOP)


def test_a_killed_driver_is_started_again_and_goes_on(play):
    """R200, R201: kill -9 twice: at most a second of finished work runs again, the bytes are the same."""
    outcome = play(5, SEVENS, Kind.DRIVER_KILL, Kind.DRIVER_KILL)
    assert outcome.sittings == 3


def test_a_full_disk_ends_the_run_and_what_was_done_is_kept(play):
    """R200, R201: a clear error that says how to go on; with space again, the run goes on."""
    outcome = play(6, SEVENS, Kind.DISK_FULL if disk.may_mount() else Kind.FILE_LIMIT)
    assert outcome.sittings == 2


@pytest.mark.slow
def test_a_limit_on_file_sizes_is_no_different_from_a_full_disk(play):
    """R200, R201: EFBIG in the middle of a write: the same error, the same going on."""
    outcome = play(7, SEVENS, Kind.FILE_LIMIT)
    assert outcome.sittings == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_flow_that_is_killed_goes_on_when_it_is_run_again(play):
    """R201, R240: the same flow again finds the run that its killed predecessor had begun."""
    outcome = play(8, SEVENS, Kind.DRIVER_KILL, Kind.CHILD_KILL, in_flow=True, mini_batches=300)
    assert outcome.sittings == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 106))
def test_faults_of_all_kinds_at_random(cluster, server, tmp_path, seed):
    """R200, R205, R207: four to eight faults in one run: every row once, every re-run explained."""
    kinds = [kind for kind in Kind if kind != Kind.DISK_FULL or disk.may_mount()]
    cluster.wait_whole()
    outcome = Round(make_plan(seed, kinds=kinds), cluster, tmp_path / "round", server).run()
    assert outcome.verdict.good, "\n".join(told(outcome))
    assert outcome.faults


def test_the_harness_leaves_nothing_mounted(tmp_path: Path):
    """A small disk that was full is unmounted, and the folder is an ordinary one again."""
    if not disk.may_mount():
        pytest.skip("a tmpfs cannot be mounted here")
    small = disk.SmallDisk(tmp_path / "small")
    small.fill()
    with pytest.raises(OSError, match="No space left"):
        (small.folder / "more").write_bytes(bytes(8192))
    small.close()
    assert not os.path.ismount(small.folder)
