"""What a run leaves on somebody else's cluster: nothing, however it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import tempfile
import threading
from pathlib import Path

import dask
import distributed
import psutil
import pytest

from prefect_parallelrun.errors import ErrorThresholdExceeded
from prefect_parallelrun.runtime_folder import _FOLDER as RUNTIME
from tests.dask.conftest import lines
from tests.dask.drivers import driver
from tests.dask.faults import EXPECTED, RECORD, Meanwhile, told, until

SETTINGS = {"mini_batch_size": 5, "node_count": 3, "process_count_per_node": 1}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two Dask workers of somebody's, with a folder of their own for temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    # Dask forgets what it has told a client an hour after that is gone.
    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"distributed.scheduler.events-cleanup-delay": "1s"}),
    ):
        patch.setenv("TMPDIR", str(folder))
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster:
            yield cluster


@pytest.fixture
def client(cluster):
    cluster.wait_for_workers(2, timeout=30)
    with distributed.Client(cluster, set_as_default=False) as client:
        # Each has begun a thread for tasks, and met the other.
        client.gather(
            [client.submit(abs, -1, workers=[one], pure=False) for one in workers(client)]
        )
        until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
        yield client


def workers(client):
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def state_of_worker(dask_worker):
    """Everything of a Dask worker's process that a run might leave there, but what it has imported."""
    descriptors = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    files = [os.readlink(path) for path in descriptors if os.path.lexists(path)]
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    loops = [t.get_coro().cr_code for t in asyncio.all_tasks() if hasattr(t.get_coro(), "cr_code")]
    return {
        "plugins": sorted(dask_worker.plugins),
        "tasks": sorted(map(str, dask_worker.state.tasks)),
        "data": len(dask_worker.data),
        "metrics": sorted(dask_worker.metrics),
        "callbacks": sorted(dask_worker.periodic_callbacks),
        "handlers": sorted([*dask_worker.handlers, *dask_worker.stream_handlers]),
        "extensions": sorted(dask_worker.extensions),
        "executors": sorted(dask_worker.executors),
        "resources": sorted(dask_worker.state.available_resources.items()),
        "dask settings": repr(dask.config.config),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": [folder for folder in sys.path if folder != RUNTIME],
        "niceness": os.nice(0),
        "signals": {str(s): repr(signal.getsignal(s)) for s in signal.valid_signals()},
        "hooks": [repr(sys.excepthook), repr(threading.excepthook)],
        "logging": [
            (one.name, one.level, list(map(repr, one.handlers)), list(map(repr, one.filters)))
            for one in loggers
            if isinstance(one, logging.Logger) and (one.level or one.handlers or one.filters)
        ],
        # Dask counts its own; the event loop has one for who asks whether this package is there.
        "threads": sorted(
            re.sub(r"\d+", "", one.name) for one in threading.enumerate() if one.name != "asyncio_0"
        ),
        # Dask keeps connections to whom it has talked with.
        "files": sorted(path for path in files if not path.startswith(("socket:", "pipe:"))),
        "pipes": sum(path.startswith("pipe:") for path in files),
        "processes": sorted(one.name() for one in psutil.Process().children(recursive=True)),
        "loops": sorted(code.co_name for code in loops if "parallelrun" in code.co_filename),
        "temporary": sorted(one for one in os.listdir(tempfile.gettempdir()) if "parallel" in one),
    }


def state_of_scheduler(dask_scheduler):
    """Everything of a scheduler that a run might leave there, but Dask's own statistics."""
    topics = dask_scheduler._broker._topics
    alive = set(dask_scheduler.clients)
    return {
        "tasks": sorted(map(str, dask_scheduler.tasks)),
        "task groups": sorted(map(str, dask_scheduler.task_groups)),
        "plugins": sorted(dask_scheduler.plugins),
        "extensions": sorted(dask_scheduler.extensions),
        "clients": sorted(dask_scheduler.clients),
        "metadata": repr(dask_scheduler.task_metadata),
        "resources": {name: list(has) for name, has in dask_scheduler.resources.items() if has},
        "news": sorted(
            {name for name, one in topics.items() for _, news in one.events if "node" in news}
        ),
        # Dask itself never takes a client off that has died.
        "subscribers": sorted(
            (name, len(one.subscribers & alive))
            for name, one in topics.items()
            if one.subscribers & alive
        ),
    }


def left(client):
    """What there is on the cluster."""
    return {
        "scheduler": client.run_on_scheduler(state_of_scheduler),
        **client.run(state_of_worker),
    }


class Cancelled(Exception):
    pass


def succeed(run, numbers, address, here):
    assert lines(run(RECORD, numbers, compute_target=address, **here, **SETTINGS)) == EXPECTED


def fail(run, numbers, address, here):
    script = RECORD.replace("return [Path(p).name for p in mini_batch]", "raise ValueError(name)")
    with pytest.raises(ErrorThresholdExceeded):
        run(script, numbers, compute_target=address, error_threshold=1, **here, **SETTINGS)


def cancel(run, numbers, address, here):
    (here_of(here) / "hold").touch()

    def watch():
        if len(told(here_of(here))) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(RECORD, numbers, compute_target=address, watch=watch, **here, **SETTINGS)


def kill(_, numbers, address, here):
    (here_of(here) / "hold").touch()
    folder = here_of(here) / "killed"
    with driver(folder, RECORD, numbers, compute_target=address, **here, **SETTINGS):
        until(lambda: len(told(here_of(here))) == 2)


def here_of(settings):
    return Path(settings["environment_variables"]["HERE"])


@pytest.mark.parametrize("end", [succeed, fail, cancel, kill], ids=lambda end: end.__name__)
def test_nothing_is_left_on_the_cluster(run, numbers, client, tmp_path, end):
    """R230, R205: tasks, plugins, events, resources, files, processes, threads, settings: as they were."""
    before = left(client)
    here = {"environment_variables": {"HERE": str(tmp_path)}}

    end(run, numbers, client.scheduler.address, here)

    differing = {}

    def as_before():
        differing.clear()
        after = left(client)
        differing.update(
            (f"{place}: {what}", (value, after[place][what]))
            for place, values in before.items()
            for what, value in values.items()
            if after[place][what] != value
            # In the second that Dask here waits (else an hour) nodes may still tell of their end.
            and not (end is kill and what == "news")
        )
        return not differing

    try:
        until(as_before, 15)
    except AssertionError:
        pytest.fail(f"the run has left something: {differing}")


def test_what_others_tell_is_no_news_of_the_run(run, numbers, client, tmp_path, capfd):
    """R230: their topics work as before, and the flow does not print what they print."""
    (tmp_path / "hold").touch()
    heard = []
    client.subscribe_topic("others", lambda event: heard.append(event[1]))

    def others_tell():
        until(lambda: len(told(tmp_path)) == 2)
        client.submit(tell_others, pure=False).result(30)
        until(lambda: heard)

    with Meanwhile(others_tell, tmp_path):
        result = run(
            RECORD,
            numbers,
            compute_target=client.scheduler.address,
            environment_variables={"HERE": str(tmp_path)},
            **SETTINGS,
        )

    assert lines(result) == EXPECTED
    assert heard == ["theirs"]
    printed = []

    def is_printed():
        printed.append(capfd.readouterr().out)
        return "by others" in "".join(printed)

    until(is_printed)
    assert "".join(printed).count("by others") == 1


def tell_others():
    distributed.get_worker().log_event("others", "theirs")
    distributed.print("by others")
