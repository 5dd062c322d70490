"""Leases of GPUs with real supervisors: who has which, on the whole host, and who gets it next (R42-R45)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import tempfile
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefect_parallelrun_runtime import crew, leases, processes
from tests.process.conftest import Node

SHOW = """
    import json, os, sys, time

    def init():
        shown = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
        print(json.dumps(shown), flush=True)

    def run(mini_batch):
        exec(sys.argv[1])
        return []
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where the supervisors of a test have the folder of their leases: nobody else's do."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def locks(temporary):
    """The folder of the leases."""
    return temporary / f"parallelrun-gpus-{os.geteuid()}"


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a node whose processes tell what they see."""
    nodes: list[Node] = []

    def call(processes=1, seen=2, *, count=None, each=None, run="run", action="pass", **settings):
        root = tmp_path / f"node{len(nodes)}"
        root.mkdir()
        node = Node(root)
        nodes.append(node)
        node.script(SHOW)
        gpus = [{"visible": str(n), "key": f"GPU-{n}"} for n in range(seen)]
        return node.start(
            process_count=processes,
            gpus=gpus,
            gpu_count=len(gpus) if count is None else count,
            gpus_per_process=each,
            run_id=f"{tmp_path.name}-{run}",
            arguments=[action],
            init_failures_allowed=20,
            **settings,
        )

    yield call
    for node in nodes:
        node.close()


def of_node(run_id, seen, each):
    """Return the leases of a node that has all GPUs it sees."""
    gpus = [{"visible": str(n), "key": f"GPU-{n}"} for n in range(seen)]
    return leases.Leases(
        {"gpus": gpus, "gpu_count": seen, "gpus_per_process": each, "run_id": run_id}
    )


@pytest.fixture
def take(temporary, monkeypatch):
    """Return a function that takes the lease of one process of a run, and holds it until the test ends."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    held: list[leases.Lease] = []

    def call(run_id, seen, each=None):
        held.append(of_node(run_id, seen, each).take())
        return held[-1]

    yield call
    for lease in held:
        lease.close()


def started(node, process):
    """Wait until a process is ready, and return what it sees."""
    node.event("process_ready", process=process)
    return json.loads(node.log("stdout", process))["CUDA_VISIBLE_DEVICES"]


def all_started(node, count):
    """Wait for the first processes, and return what each sees."""
    return [started(node, f"process{n:03d}") for n in range(count)]


def kill(node, process):
    """Kill a process as the kernel does that needs its memory."""
    os.kill(node.event("process_started", process=process)["pid"], signal.SIGKILL)


def test_the_next_process_gets_what_the_last_one_had(start):
    """R43-R45: 2 GPUs, 4 processes; process 0 stops, and process 4 gets 0; then 1 stops, and 5 gets 1."""
    node = start(4)

    assert all_started(node, 4) == ["0", "1", "", ""]
    kill(node, "process000")
    assert started(node, "process004") == "0"
    kill(node, "process001")
    assert started(node, "process005") == "1"
    kill(node, "process002")
    assert started(node, "process006") == ""

    assert "started | GPU 0" in node.log("process_log", "process004")
    assert "started | GPU none" in node.log("process_log", "process006")
    assert json.loads(node.log("stdout"))["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_those_without_are_named_once(start):
    """R44: a replacement that has none, as the one before, is no news."""
    node = start(4, each=1)
    all_started(node, 4)
    kill(node, "process003")
    started(node, "process004")

    (told,) = node.named("gpus_lacking")
    assert told["reason"] == (
        "process002, process003 run without a GPU: each of its 4 processes is to have 1, and it has 2"
    )


@pytest.mark.parametrize(
    ("action", "settings"),
    [
        ("os._exit(3)", {}),
        ("sys.exit(3)", {}),
        ("os.kill(os.getpid(), 11)", {}),
        ("time.sleep(600)", {"run_timeout_s": 0.1}),
        # What it leaves behind has the lease too, in a session of its own, until it is killed as well.
        ("os.fork() and os._exit(3); os.setsid(); time.sleep(600)", {}),
    ],
)
def test_for_whatever_reason_it_stops(start, action, settings):
    """R43: by itself, by a signal, by its time limit, or with children that outlive it."""
    node = start(1, seen=1, action=action, **settings)
    assert started(node, "process000") == "0"

    node.answer(node.ranks())

    assert started(node, "process001") == "0"
    assert node.named("gpus_lacking") == []


def test_a_program_that_lives_on_does_not_keep_the_gpu(start):
    """R43: a daemon that nothing ties to the process; with its lease the next one would have no GPU."""
    daemon = """
        os.system("env -i setsid sh -c 'echo > there; exec sleep 600' &")
        while not os.path.exists("there"):
            time.sleep(0.01)
        os._exit(3)
    """
    node = start(1, seen=1, action=textwrap.dedent(daemon))
    node.answer(node.ranks())

    assert started(node, "process001") == "0"


def test_a_process_that_is_slow_to_start_keeps_its_own_alone(start):
    """R43: it is a fork of the supervisor, which has the leases of all, until its files lie where they shall."""
    node = start(2)
    all_started(node, 2)
    script = node.source / "score.py"
    script.unlink()
    os.mkfifo(script)  # whoever copies it waits for ever, as on a disk that hangs

    kill(node, "process001")
    node.event("process_started", process="process002")
    kill(node, "process000")
    node.event("process_started", process="process003")

    assert "started | GPU 0" in node.log("process_log", "process003")
    assert node.named("gpus_lacking") == []


def test_two_nodes_of_a_host_share_its_gpus(start):
    """R42: three GPUs, of which each has one process; the fourth process gets none, and is told of."""
    one, other = start(2, seen=3), start(2, seen=3)

    seen = all_started(one, 2) + all_started(other, 2)

    assert sorted(seen) == ["", "0", "1", "2"]
    lacking = one if "" in all_started(one, 2) else other
    told = lacking.event("gpus_lacking")["reason"]
    assert told.startswith("process001 run without a GPU")
    assert told.endswith("it has 3, of which other nodes of its host use some")


def test_a_node_takes_no_more_than_it_declares(start):
    """Of four GPUs that both see, two are one's and two the other's, and stay so when processes end."""
    assert all_started(start(3, seen=4, count=2), 3) == ["0", "1", ""]
    other = start(2, seen=4, count=2)
    second = all_started(other, 2)
    assert second == ["2", "3"]

    kill(other, "process001")

    assert started(other, "process002") == second[1]


def test_two_runs_on_a_host_take_different_ones_as_long_as_there_are_some(start):
    """Another run never leaves this one without: it takes the least used."""
    assert all_started(start(1, run="a"), 1) == ["0"]
    assert all_started(start(1, run="b"), 1) == ["1"]
    third = start(2, run="c")
    assert all_started(third, 2) == ["0", "1"]
    assert third.named("gpus_lacking") == []


def test_a_run_that_shares_gpus_beside_one_that_does_not(start):
    """With 0.25 three processes have two GPUs; the other run takes the one that has fewer, and the rest."""
    assert all_started(start(3, each=0.25, run="a"), 3) == ["0", "1", "0"]

    other = start(2, each=1, run="b")

    assert all_started(other, 2) == ["1", "0"]
    assert other.named("gpus_lacking") == []


def test_all_runs_that_use_a_gpu_count(take):
    """In whatever order they came: the kernel tells of any of their locks, not of the first."""
    crowded = [take(f"{n}-run", seen=1) for n in range(6)]
    others = [take(f"{n}-run", seen=2) for n in range(6, 11)]

    assert [lease.gpus[0]["visible"] for lease in [*crowded, *others]] == ["0"] * 6 + ["1"] * 5


def test_several_are_shown_in_the_nodes_order(take):
    """Whichever of them is used least: `cuda:0` is the first of the node."""
    take("a", seen=1)

    assert take("b", seen=2, each=2).environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_one_node_at_a_time_looks_for_free_ones(take, locks):
    """Else two that want two each could end with one each."""
    locks.mkdir(mode=0o700)
    folder = os.open(locks, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)

    assert take("a", seen=2, each=2).gpus == []

    os.close(folder)
    assert len(take("a", seen=2, each=2).gpus) == 2


def test_a_node_with_leases_of_its_own_spreads_its_processes(temporary, locks, monkeypatch):
    """Where the folder cannot be used, nothing but the node itself knows who has what."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    locks.touch()
    node = of_node("a", seen=2, each=0.5)

    taken = [node.take().environment["CUDA_VISIBLE_DEVICES"] for _ in range(5)]

    assert taken == ["0", "1", "0", "1", ""]
    assert str(locks) in node.trouble


def test_two_that_want_two_each_never_end_with_one_each(start):
    """`gpus_per_process=2`: nodes that start at once on one host."""
    nodes = [start(1, seen=4, each=2) for _ in range(2)]

    assert sorted(all_started(node, 1)[0] for node in nodes) == ["0,1", "2,3"]


@pytest.mark.parametrize(
    ("each", "processes", "expected"),
    [
        (2, 3, ["0,1", "2,3", ""]),
        (3, 2, ["0,1,2", ""]),  # one is left, which is too few for anybody
        (5, 1, [""]),
        (0.25, 5, ["0", "1", "2", "3", "0"]),  # the least used, of these the first
        (0.5, 9, ["0", "1", "2", "3", "0", "1", "2", "3", ""]),
        (0.6, 5, ["0", "1", "2", "3", ""]),  # two such do not fit on one
        (0, 2, ["", ""]),
    ],
)
def test_numbers_and_fractions(start, each, processes, expected):
    """Four GPUs."""
    node = start(processes, seen=4, each=each)

    assert all_started(node, processes) == expected
    if each and "" in expected:
        assert f"is to have {each:g}, and it has 4" in node.event("gpus_lacking")["reason"]


def test_what_is_asked_for_and_not_there_at_all_is_told_of(start):
    """A node without GPUs; where nobody asks for them, nothing is said."""
    node = start(1, seen=0, each=1)
    assert "is to have 1, and it has none" in node.event("gpus_lacking")["reason"]

    silent = start(1, seen=0)
    silent.event("process_ready")
    assert silent.named("gpus_lacking") == []
    assert all_started(silent, 1) == [None]

    # Somebody may have seen none that are there: who asks for none is shown none.
    assert all_started(start(1, seen=0, each=0), 1) == [""]


@pytest.mark.parametrize("how", ["supervisor killed", "agent gone"])
def test_a_node_that_ended_anyhow_leaves_its_gpus_to_the_next(start, how):
    """The kernel ends the leases with their processes; a run that is gone on with at once waits for that."""
    old = start(2)
    all_started(old, 2)
    if how == "supervisor killed":
        os.kill(old.pid, signal.SIGKILL)
    else:
        old._socket.close()

    assert all_started(start(2), 2) == ["0", "1"]


def test_gpus_that_are_about_to_be_free_are_waited_for(start, take, tmp_path):
    """What a killed process leaves behind may take a moment to die: the next one does not start without."""
    holder = take(f"{tmp_path.name}-run", seen=1)
    assert len(holder.gpus) == 1

    node = start(1, seen=1)
    node.event("supervisor_ready")
    assert node.named("process_started") == []
    holder.close()

    assert started(node, "process000") == "0"


def test_each_process_is_waited_for_as_long(take, tmp_path, monkeypatch):
    """One that got its GPU at the last moment leaves the next one as much time as it had."""
    monkeypatch.setattr(
        processes,
        "WorkerProcess",
        lambda slot, name, _, lease: SimpleNamespace(slot=slot, name=name, lease=lease),
    )
    gpus = [{"visible": str(n), "key": f"GPU-{n}"} for n in range(2)]
    settings = Node(tmp_path).settings() | {"gpus": gpus, "gpu_count": 2, "process_count": 2}
    first, second = (take(settings["run_id"], seen=2) for _ in gpus)
    node = crew.Crew(settings)
    assert list(node.fill(now=0.0)) == []

    first.close()
    (one,) = node.fill(now=1.9)
    assert list(node.fill(now=3.0)) == []
    second.close()
    (other,) = node.fill(now=3.8)

    assert [process.lease.gpus for process in (one, other)] == [[gpus[0]], [gpus[1]]]
    one.lease.close()
    other.lease.close()


def test_a_folder_that_is_gone_is_made_again(start, locks):
    """By somebody who cleans up: this node's processes still never share a GPU, nor do later nodes'."""
    node = start(3)
    assert all_started(node, 3) == ["0", "1", ""]
    shutil.rmtree(locks)

    kill(node, "process001")

    assert started(node, "process003") == "1"
    kill(node, "process002")
    assert started(node, "process004") == ""
    assert sorted(os.listdir(locks)) == ["GPU-0", "GPU-1"]


def _a_link(locks, elsewhere):
    locks.symlink_to(elsewhere)


def _open_to_all(locks, _elsewhere):
    locks.mkdir()
    locks.chmod(0o777)


def _of_somebody_else(locks, _elsewhere):
    locks.mkdir(mode=0o755)
    os.chown(locks, 12345, 12345)


def _with_a_link_inside(locks, elsewhere):
    locks.mkdir(mode=0o700)
    (locks / "GPU-0").symlink_to(elsewhere / "planted")


def _a_file(locks, _elsewhere):
    locks.touch()


@pytest.mark.parametrize(
    "plant", [_a_link, _open_to_all, _of_somebody_else, _with_a_link_inside, _a_file]
)
def test_nothing_is_written_through_what_somebody_else_has_planted(start, locks, tmp_path, plant):
    """Anybody may write to `/tmp`: the node goes on with leases of its own, and says so."""
    if plant is _of_somebody_else and os.geteuid() != 0:
        pytest.skip("only root can make a folder of another user")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    plant(locks, elsewhere)

    node = start(3)

    assert all_started(node, 3) == ["0", "1", ""]
    told = [event["reason"] for event in node.named("gpus_lacking")]
    assert "other nodes of its host may use the same GPUs: " in told[0]
    assert str(locks) in told[0] or "GPU-0" in told[0]
    kill(node, "process000")
    assert started(node, "process003") == "0"
    assert list(elsewhere.iterdir()) == []


def test_the_folder_is_nobody_elses(start, locks):
    """Its rights let nobody in."""
    all_started(start(1), 1)

    assert locks.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in Path(locks).iterdir()} == {0o600}
