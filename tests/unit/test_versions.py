"""What is said of Dask workers that cannot be nodes, and when they are asked (R230)."""

from __future__ import annotations

import asyncio
import logging
import re
import tomllib
from pathlib import Path

import pytest

import prefect_parallelrun
from prefect_parallelrun.driver import versions

OURS = prefect_parallelrun.__version__
INSTALL = f'pip install "prefect-parallelrun=={OURS}"'
THERE = {
    "host": "worker-7",
    "python": "3.12.4",
    "executable": "/opt/conda/bin/python",
    "version": OURS,
    "missing": "",
    "error": "",
}
MISSING = {"version": "", "missing": "prefect_parallelrun", "error": "ModuleNotFoundError: no such"}
PYTHON = r"\(Python 3.12.4, /opt/conda/bin/python\)"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (MISSING, rf"there is no prefect-parallelrun {PYTHON}. Run "),
        ({"version": "0.0.9"}, rf"there is prefect-parallelrun 0.0.9 {PYTHON}, and {OURS} where"),
        (
            {"missing": "psutil", "error": "ModuleNotFoundError: No module named 'psutil'"},
            rf"is there, but cannot be loaded {PYTHON}: ModuleNotFoundError: No module named 'psutil'",
        ),
        (
            {"version": "", "error": "SyntaxError: invalid syntax"},
            rf"cannot be loaded there {PYTHON}: SyntaxError: invalid syntax",
        ),
    ],
)
def test_what_is_there_and_what_to_install_is_said(answer, said):
    """Each trouble names the interpreter, and ends in what to run."""
    text = versions.trouble({**THERE, **answer})

    assert re.search(said, text)
    assert f"{INSTALL} in the environment of the Dask workers, and start them again" in text


def test_a_python_that_is_too_old_is_not_told_to_install():
    """`pip install` would fail there."""
    text = versions.trouble({**THERE, **MISSING, "python": "3.10.14"})

    assert "which needs Python 3.11 or later" in text
    assert "pip install" not in text


def test_the_same_version_is_fit_with_another_python():
    """Nothing that is sent is for one version of Python alone."""
    assert versions.trouble(THERE) == ""


def test_the_oldest_python_is_the_one_of_the_package():
    """pyproject.toml and the message say the same."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]

    assert project["requires-python"] == ">={}.{}".format(*versions.OLDEST_PYTHON)


def test_the_question_answers_as_text_alone():
    """What is sent is source code, run by a function of the standard library."""
    call, run, text = versions.question(load="prefect_parallelrun.node.calls")

    assert (call.__module__, run) == ("asyncio.threads", eval)
    answer = run(text)
    assert (answer["version"], answer["error"]) == (OURS, "")
    assert "No module named 'nowhere'" in run(versions.question(load="nowhere")[2])["error"]


class Cluster:
    """Dask workers by address, with what each of them answers, or the event that it waits for."""

    def __init__(self, log):
        self.answers = {}
        self.asked = []
        self.changed = asyncio.Event()
        self.fitness = versions.Fitness(
            self._ask, asyncio.ensure_future, changed=self.changed, log=log
        )

    async def _ask(self, address):
        self.asked.append(address)
        answer = self.answers[address]
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return THERE
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def fit(self, wanted=1):
        """Return who is fit, once all that answer have answered."""
        self.fitness.fit(list(self.answers), wanted)
        for _ in range(5):
            await asyncio.sleep(0)
        return self.fitness.fit(list(self.answers), wanted)


def test_those_that_are_unfit_are_named_once_and_some_of_many(caplog):
    """One warning, of those with the same trouble five are named."""

    async def of_a_cluster():
        cluster = Cluster(logging.getLogger("test"))
        cluster.answers = {f"tcp://{n}": {**THERE, **MISSING} for n in range(8)}
        assert await cluster.fit() == []
        assert not caplog.records  # the error of the run says it, if none is fit
        cluster.answers["tcp://9"] = THERE
        assert await cluster.fit() == ["tcp://9"]
        assert await cluster.fit() == ["tcp://9"]
        assert len(cluster.asked) == 9
        assert "tcp://0 on worker-7" in cluster.fitness.why(cluster.answers)

    with caplog.at_level(logging.WARNING, "test"):
        asyncio.run(of_a_cluster())

    [record] = caplog.records
    assert "tcp://4 on worker-7 and 3 more: there is no prefect-parallelrun" in record.message
    assert record.message.count(INSTALL) == 1


def test_one_that_does_not_answer_holds_the_others_up_for_a_moment_only(monkeypatch):
    """A Dask worker that is busy in C code answers later, and is a node then."""
    monkeypatch.setattr(versions, "PATIENCE_S", 0.05)

    async def of_a_cluster():
        cluster = Cluster(logging.getLogger("test"))
        busy = asyncio.Event()
        cluster.answers = {"tcp://a": THERE, "tcp://b": busy, "tcp://c": OSError("cut")}
        assert await cluster.fit(3) == []
        while not (found := await cluster.fit(3)):
            await asyncio.sleep(0.01)
        assert found == ["tcp://a"]
        assert cluster.fitness.is_asking
        busy.set()
        del cluster.answers["tcp://c"]  # it was asked again each time
        assert cluster.asked.count("tcp://c") > 1
        assert await cluster.fit(3) == ["tcp://a", "tcp://b"]
        assert cluster.changed.is_set()

    asyncio.run(of_a_cluster())


def test_what_is_known_of_a_dask_worker_ends_with_it(monkeypatch):
    """Another may come at its address; and one that was mended is asked again after a while."""

    async def of_a_cluster():
        cluster = Cluster(logging.getLogger("test"))
        cluster.answers = {"tcp://a": {**THERE, **MISSING}}
        assert await cluster.fit() == []
        cluster.answers = {}
        assert await cluster.fit() == []
        cluster.answers = {"tcp://a": THERE}
        assert await cluster.fit() == ["tcp://a"]
        cluster.answers = {"tcp://b": {**THERE, **MISSING}}
        assert await cluster.fit() == []
        cluster.answers["tcp://b"] = THERE
        assert await cluster.fit() == []
        monkeypatch.setattr(versions, "AGAIN_S", 0.0)
        assert await cluster.fit() == ["tcp://b"]

    asyncio.run(of_a_cluster())


def test_of_a_large_cluster_not_all_are_asked():
    """A run of a few nodes asks some, and more where these are unfit."""

    async def of_a_cluster():
        cluster = Cluster(logging.getLogger("test"))
        cluster.answers = {f"tcp://{n}": THERE for n in range(1000)}
        assert len(await cluster.fit(2)) == versions.ASKED_AT_ONCE == len(cluster.asked)
        other = Cluster(logging.getLogger("test"))
        other.answers = {f"tcp://{n}": {**THERE, **MISSING} for n in range(200)}
        other.answers["tcp://fit"] = THERE
        while not (found := await other.fit(2)):
            pass
        assert found == ["tcp://fit"]

    asyncio.run(of_a_cluster())
