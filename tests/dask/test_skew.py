"""Dask workers in environments of their own, where this package is missing or another (R230)."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import distributed
import pytest

import prefect_parallelrun
from prefect_parallelrun.errors import ClusterError
from tests.dask.conftest import lines

OURS = prefect_parallelrun.__version__
NAMES = "def run(mini_batch): return [path.rsplit('/')[-1] for path in mini_batch]"
EXPECTED = [f"{n:02d}.txt" for n in range(100)]


class Environments:
    """Virtual environments that have all that this one has, but for this package."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, name: str, *, version: str | None = None, without: str = "") -> Path:
        """Return the interpreter of a new one, with this package in another version, if any.

        `without` is a distribution that it does not have, either.
        """
        place = self._folder / name
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
        python = place / "bin/python"
        here, there = (
            Path(path)
            for path in (
                sysconfig.get_path("purelib"),
                sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}),
            )
        )
        hidden = ("prefect_parallelrun", "__pycache__", *([without] if without else []))
        for entry in here.iterdir():
            if not entry.name.startswith(hidden) and entry.suffix != ".pth":
                (there / entry.name).symlink_to(entry)
        if version is not None:
            source = Path(prefect_parallelrun.__file__).parent
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, there / source.name, ignore=skip)
            said = there / source.name / "version.py"
            said.write_text(said.read_text().replace(f'"{OURS}"', f'"{version}"'))
        return python


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    return Environments(tmp_path_factory.mktemp("environments"))


@pytest.fixture(scope="module")
def bare(environments):
    return environments.make("bare")


@pytest.fixture(scope="module")
def older(environments):
    return environments.make("older", version="0.0.9")


@pytest.fixture
def started(tmp_path):
    """Return a function that starts a scheduler and Dask workers, each by its interpreter."""
    with contextlib.ExitStack() as stack:
        number = 0

        def call(*workers, scheduler=sys.executable):
            nonlocal number
            number += 1
            file = tmp_path / f"scheduler-{number}.json"
            where = ["--scheduler-file", str(file), "--no-dashboard", "--host", "127.0.0.1"]
            start("dask_scheduler", scheduler, *where, "--port", "0")
            for index, python in enumerate(workers):
                start("dask_worker", python, *where, "--no-nanny", "--name", f"worker{index}")
            client = stack.enter_context(
                distributed.Client(scheduler_file=str(file), set_as_default=False)
            )
            client.wait_for_workers(len(workers), timeout=60)
            there = client.scheduler_info(n_workers=-1)["workers"]
            return client, {worker["name"]: address for address, worker in there.items()}

        def start(what, python, *arguments):
            # As on a machine that has nothing of the flow's: no path of its shell, another folder.
            environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
            log = stack.enter_context(open(tmp_path / f"{what}.log", "a"))
            command = [str(python), "-m", f"distributed.cli.{what}", *arguments]
            command += ["--nthreads", "2"] if what == "dask_worker" else []
            process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)

        yield call


def test_dask_workers_without_this_package_are_told_what_to_install(run, numbers, started, bare):
    """R230: none has it: an error at once, which names each, what is there, and what to install where."""
    client, workers = started(bare, bare)

    began = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        run(NAMES, numbers, node_count=2, compute_target=client.scheduler.address)

    assert time.monotonic() - began < 30
    message = str(caught.value)
    assert all(address in message for address in workers.values())
    assert f"there is no prefect-parallelrun (Python {sys.version.split()[0]}, {bare})" in message
    assert f'pip install "prefect-parallelrun=={OURS}" in the environment of the Dask' in message
    assert message.count("pip install") == 1
    assert client.run(eval, "'prefect_parallelrun' in __import__('sys').modules") == dict.fromkeys(
        workers.values(), False
    )


def test_the_run_goes_on_with_those_that_have_it(run, numbers, started, bare, older, caplog):
    """R230: one warning names the others, of which nothing is asked any more."""
    client, workers = started(bare, sys.executable, older)

    with caplog.at_level(logging.WARNING, "test"):
        result = run(NAMES, numbers, node_count=3, compute_target=client.scheduler.address)

    assert lines(result) == EXPECTED
    [told] = [record.message for record in caplog.records if "cannot be nodes" in record.message]
    assert f"{workers['worker0']} on " in told
    assert f"{workers['worker2']} on " in told
    assert workers["worker1"] not in told
    assert f"there is no prefect-parallelrun (Python {sys.version.split()[0]}, {bare})" in told
    assert "there is prefect-parallelrun 0.0.9 (Python" in told
    assert f"and {OURS} where the flow runs" in told


def test_another_version_is_no_node(run, numbers, started, older):
    """R230: nothing is begun there, and the error says both versions."""
    client, workers = started(older)

    with pytest.raises(ClusterError, match=r"0\.0\.9") as caught:
        run(NAMES, numbers, compute_target=client.scheduler.address)

    assert workers["worker0"] in str(caught.value)
    assert "install their version where the flow runs" in str(caught.value)
    begun = (
        "[name for name in __import__('sys').modules if name.startswith('prefect_parallelrun.')]"
    )
    assert client.run(eval, begun) == {workers["worker0"]: ["prefect_parallelrun.version"]}
    # As it is after pip has brought the wanted version: what the Dask worker has loaded, it keeps.
    [said] = older.parent.parent.glob("lib/*/site-packages/prefect_parallelrun/version.py")
    said.write_text(said.read_text().replace("0.0.9", OURS))
    try:
        with pytest.raises(ClusterError, match=r"0\.0\.9.*and start them again"):
            run(NAMES, numbers, compute_target=client.scheduler.address)
    finally:
        said.write_text(said.read_text().replace(OURS, "0.0.9"))


def test_what_cannot_be_loaded_is_told(run, numbers, started, environments):
    """R230: the same version, installed without what it needs (`pip install --no-deps`)."""
    client, workers = started(environments.make("partial", version=OURS, without="pydantic"))

    with pytest.raises(ClusterError) as caught:
        run(NAMES, numbers, compute_target=client.scheduler.address)

    assert "cannot be loaded" in str(caught.value)
    assert "No module named 'pydantic'" in str(caught.value)
    assert workers["worker0"] in str(caught.value)


def test_the_scheduler_needs_nothing_of_it(run, numbers, started, bare):
    """R230: a scheduler of a plain Dask image; it only hands on what is meant for Dask workers."""
    client, _ = started(sys.executable, scheduler=bare)

    result = run(NAMES, numbers, compute_target=client.scheduler.address)

    assert lines(result) == EXPECTED


def test_an_embedded_cluster_is_not_asked(run, numbers, monkeypatch):
    """Its Dask workers are threads of this process."""
    for place in ("tending.question", "contact.versions.question"):
        monkeypatch.setattr(f"prefect_parallelrun.driver.{place}", None)

    assert lines(run(NAMES, numbers)) == EXPECTED
