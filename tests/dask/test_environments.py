"""Interpreters of worker processes that have none of our packages: found on the node, or built there (R35)."""

from __future__ import annotations

import json
import venv
import zipfile

import distributed
import pytest

from prefect_parallelrun import Environment
from prefect_parallelrun.errors import ConfigError
from tests.dask.conftest import lines

SHOW = """
    import json, os, shutil, sys
    try:
        import tiny
        number = tiny.NUMBER
    except ImportError:
        number = 0

    def run(mini_batch):
        found = [sys.prefix, shutil.which("python"), number, os.environ.get("SHOWN")]
        return [json.dumps(found)] * len(mini_batch)
"""


@pytest.fixture(autouse=True)
def _kept_here(tmp_path, monkeypatch):
    """What is built is kept in the test's own folder, and pip looks nowhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def tiny(tmp_path):
    """A requirement: a package that the test makes."""
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    about = "tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "NUMBER = 42\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return f"tiny @ {wheel.as_uri()}"


def found(result):
    """What the processes saw, each once."""
    return {tuple(json.loads(line)) for line in lines(result)}


def test_a_virtual_environment_without_anything_of_ours(run, numbers, tmp_path):
    """Its python is that of the processes, of what they start too, and variables are in force before it."""
    folder = tmp_path / "bare"
    venv.create(folder, with_pip=False, symlinks=True)

    result = run(SHOW, numbers, environment=folder, environment_variables={"SHOWN": "yes"})

    assert found(result) == {(str(folder), str(folder / "bin" / "python"), 0, "yes")}


def test_requirements_are_built_once_for_all_nodes_and_runs_of_a_host(run, numbers, tiny, tmp_path):
    """By one process, while the others wait; the second run finds it there."""
    for _ in range(2):
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster:
            result = run(
                SHOW,
                numbers,
                environment=Environment(requirements=[tiny], name="tiny"),
                compute_target=cluster,
                node_count=2,
                mini_batch_size=1,
                process_count_per_node=1,
            )
        ((prefix, _, number, _),) = found(result)
        assert number == 42

    (built,) = (tmp_path / "cache" / "prefect-parallelrun" / "environments").glob("*/bin")
    assert prefix == str(built.parent)
    logs = list((tmp_path / "runs").glob("*/logs/sys/environment/node*.txt"))
    assert len(logs) == 1
    assert "Successfully installed tiny-1.0" in logs[0].read_text()


def test_a_broken_build_is_told_in_the_words_of_pip(run, numbers, tmp_path):
    """Before any worker process starts; the error names the environment, the node and the log."""
    with pytest.raises(ConfigError) as caught:
        run(SHOW, numbers, environment={"requirements": ["no-such-thing==1.0"], "name": "scoring"})

    text = str(caught.value)
    assert "node000" in text
    assert "'scoring' cannot be built" in text
    assert "No matching distribution found for no-such-thing==1.0" in text
    (log,) = (tmp_path / "runs").glob("*/logs/sys/environment/node000.txt")
    assert str(log) in text
    assert not list((tmp_path / "cache").glob("*/environments/*/bin"))


def test_an_interpreter_that_is_not_there(run, numbers):
    with pytest.raises(ConfigError, match="there is no interpreter /no/such/python"):
        run(SHOW, numbers, environment="/no/such/python")


def test_tables_need_pandas_there(run, tmp_path):
    """It is told before any worker process starts."""
    from prefect_parallelrun import TabularDataset

    (tmp_path / "a.csv").write_text("x\n1\n")
    folder = tmp_path / "bare"
    venv.create(folder, with_pip=False, symlinks=True)

    with pytest.raises(ConfigError, match="has no pandas and no pyarrow, which the tables"):
        run(
            SHOW,
            [TabularDataset.from_delimited_files(str(tmp_path / "a.csv")).as_named_input("a")],
            environment=folder,
        )
