"""Interpreters of worker processes that have none of our packages: found on the node, or built there (R35)."""

from __future__ import annotations

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import distributed
import pandas as pd
import pytest

from prefect_parallelrun import Environment, TabularDataset
from prefect_parallelrun.driver.outlook import Outlook
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.node import interpreters
from tests.dask.conftest import lines
from tests.storage.servers import lacking

SHOW = """
    import json, shutil, sys
    try:
        import tiny
        number = tiny.NUMBER
    except ImportError:
        number = 0

    def run(mini_batch):
        return [json.dumps([sys.prefix, shutil.which("python"), number])] * len(mini_batch)
"""
OURS = ("prefect", "distributed", "dask", "pandas", "psutil", "pydantic", "of_dask_worker")
OTHER_PANDAS = "2.2.3"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is built is kept in the test's own folder, and pip looks nowhere; what a user set for pip holds
    no build up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_USER", "1")
    return tmp_path / "cache" / "prefect-parallelrun" / "environments"


def make_wheel(folder: Path, name: str) -> Path:
    """Make a package of one module with a number."""
    wheel, about = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", "NUMBER = 42\n")
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        archive.writestr(f"{about}/WHEEL", kind)
        archive.writestr(f"{about}/RECORD", "")
    return wheel


@pytest.fixture
def tiny(tmp_path):
    """A requirement: a package that the test makes."""
    return f"tiny @ {make_wheel(tmp_path, 'tiny').as_uri()}"


@pytest.fixture
def bare(tmp_path):
    """A virtual environment with nothing in it."""
    folder = tmp_path / "bare"
    venv.create(folder, with_pip=False, symlinks=True)
    return folder


@pytest.fixture(scope="session")
def other_pandas(tmp_path_factory):
    """A virtual environment with another pandas, and nothing of ours."""
    folder = tmp_path_factory.mktemp("other") / "venv"
    venv.create(folder, with_pip=True, symlinks=True)
    wanted = [f"pandas=={OTHER_PANDAS}", "pyarrow==18.1.0", "numpy<2.2"]
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--only-binary=:all:", *wanted]
    environment = {name: value for name, value in os.environ.items() if name != "PIP_NO_INDEX"}
    done = subprocess.run(pip, env=environment, capture_output=True, text=True)
    if done.returncode:
        lacking("packages", f"pip installs no other pandas: {done.stderr[-300:]}")
    return folder


def found(result):
    """What the processes saw, each once."""
    return {tuple(json.loads(line)) for line in lines(result)}


# -- one that is there -----------------------------------------------------------------------


def test_a_virtual_environment_without_anything_of_ours(run, numbers, bare, tmp_path, monkeypatch):
    """Its python is that of the processes, and of what they start too; modules and keys of the Dask worker
    do not reach it (R35, R78)."""
    (tmp_path / "of_dask_worker.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_KEY", "hunter2")
    script = f"""
        import importlib.util, json, os, shutil, sys

        def run(mini_batch):
            ours = [name for name in {OURS} if importlib.util.find_spec(name)]
            ours += [name for name in os.environ if name in ("PREFECT_API_KEY", "PYTHONHOME")]
            return [json.dumps([sys.prefix, shutil.which("python"), *ours])] * len(mini_batch)
    """

    result = run(script, numbers, environment=bare)

    assert found(result) == {(str(bare), str(bare / "bin" / "python"))}


def test_variables_are_in_force_before_the_interpreter_of_an_environment_starts(run, numbers, bare):
    """Those that only the start of Python reads do what they say there (R112)."""
    script = """
        import faulthandler, json, os, sys

        def run(mini_batch):
            seen = [sys.flags.utf8_mode, hash("a"), faulthandler.is_enabled(), os.environ.get("EMPTY")]
            return [json.dumps(seen)] * len(mini_batch)
    """
    variables = {"PYTHONUTF8": "1", "PYTHONHASHSEED": "7", "PYTHONFAULTHANDLER": "1", "EMPTY": ""}
    show = [str(bare / "bin" / "python"), "-c", "print(hash('a'))"]
    hashed = subprocess.run(show, env={"PYTHONHASHSEED": "7"}, capture_output=True, check=True)

    result = run(script, numbers, environment=bare, environment_variables=variables)

    assert found(result) == {(1, int(hashed.stdout), True, "")}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("output_format", ["csv", "parquet"])
def test_tables_are_data_frames_of_the_pandas_that_is_there(
    run, tmp_path, other_pandas, output_format
):
    """Nothing that belongs to a version of pandas goes between the processes."""
    assert pd.__version__ != OTHER_PANDAS
    script = """
        import pandas, sys

        def run(mini_batch):
            assert isinstance(mini_batch, pandas.DataFrame)
            return mini_batch.assign(by=pandas.__version__, text_is=str(mini_batch["s"].dtype))
    """
    frame = pd.DataFrame({"n": [1, 2], "s": ["a", None], "d": pd.to_datetime(["2024-01-01", None])})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    inputs = [
        TabularDataset.from_parquet_files(str(tmp_path / "a.parquet")).as_named_input("parquet"),
        TabularDataset.from_delimited_files(str(tmp_path / "a.csv")).as_named_input("csv"),
    ]

    result = run(
        script,
        inputs,
        environment=other_pandas,
        output_format=output_format,
        append_row_file_name=f"rows.{output_format}",
    )

    rows = result.to_pandas()
    assert set(rows["by"]) == {OTHER_PANDAS}
    assert set(rows["text_is"]) == {"object"}  # with ours it would be "str"
    assert rows["n"].tolist() == [1, 2, 1, 2]
    assert rows["s"].fillna("-").tolist() == ["a", "-", "a", "-"]
    assert pd.to_datetime(rows["d"]).dt.year.fillna(0).tolist() == [2024, 0, 2024, 0]


def test_tables_need_pandas_there(run, tmp_path, bare):
    """It is told before any worker process starts, with the command that helps."""
    (tmp_path / "a.csv").write_text("x\n1\n")

    with pytest.raises(ConfigError) as caught:
        run(
            SHOW,
            [TabularDataset.from_delimited_files(str(tmp_path / "a.csv")).as_named_input("a")],
            environment=bare,
        )

    text = str(caught.value)
    assert f"{bare}/bin/python has no pandas and no pyarrow, which the tables of this step" in text
    assert f"{bare}/bin/python -m pip install pandas pyarrow" in text


def test_parquet_needs_pyarrow_there(run, numbers, bare):
    """Also where the inputs are files (R221)."""
    with pytest.raises(ConfigError, match="has no pyarrow, which the tables of this step need"):
        run(SHOW, numbers, environment=bare, output_format="parquet")


def test_an_interpreter_that_is_not_there(run, numbers):
    with pytest.raises(ConfigError, match="there is no interpreter /no/such/python"):
        run(SHOW, numbers, environment="/no/such/python")


def test_what_takes_long_is_heard_often_and_logged_seldom(
    run, numbers, tmp_path, monkeypatch, caplog
):
    """So that the log of a run, and Prefect's page of it, are not of the build alone."""
    gate, slow, heard = tmp_path / "gate", tmp_path / "slow", []
    slow.write_text(
        f'#!/bin/sh\nuntil [ -e {gate} ]; do sleep 0.05; done\nexec {sys.executable} "$@"\n'
    )
    slow.chmod(0o755)
    monkeypatch.setattr(interpreters, "TELL_S", 0.0)
    note = Outlook.node_fetches

    def hear(self, node, told, now):
        heard.append(told)
        if len(heard) == 4:
            gate.touch()
        return note(self, node, told, now)

    monkeypatch.setattr(Outlook, "node_fetches", hear)
    caplog.set_level("INFO")

    run("def run(mini_batch): return mini_batch", numbers, environment=slow)

    assert set(heard) == {f"waits for {slow}"}
    assert caplog.messages.count(f"node000 waits for {slow}") == 1


# -- one that is built -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_requirements_are_built_once_for_all_nodes_and_runs_of_a_host(
    run, numbers, tiny, tmp_path, cache
):
    """By one process, while the other nodes and the other run wait; a third run finds it there."""

    def once(_):
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster:
            return run(
                SHOW,
                numbers,
                environment=Environment(requirements=[tiny], name="tiny"),
                compute_target=cluster,
                node_count=2,
                mini_batch_size=1,
                process_count_per_node=1,
            )

    with ThreadPoolExecutor(2) as threads:
        results = [*threads.map(once, range(2)), once(2)]

    ((prefix, _, number),) = set.union(*map(found, results))
    assert number == 42
    (built,) = cache.glob("*/bin")
    assert prefix == str(built.parent)
    logs = list((tmp_path / "runs").glob("*/logs/sys/environment/node*.txt"))
    assert len(logs) == 1
    assert "Successfully installed tiny-1.0" in logs[0].read_text()
    (readme,) = logs[0].parents[2].glob("readme.txt")
    assert "\nlogs/sys/environment/<node>.txt\n" in readme.read_text()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_broken_build_is_told_in_the_words_of_pip_and_the_run_goes_on_when_it_is_mended(
    run, numbers, tmp_path, cache, monkeypatch
):
    """The error names environment, node and log; a run that is gone on with tries again."""
    environment = {"requirements": ["tiny==1.0"], "name": "scoring"}
    folder = tmp_path / "runs" / "broken"

    with pytest.raises(ConfigError) as caught:
        run(SHOW, numbers, environment=environment, run_folder=folder)

    text = str(caught.value)
    assert "node000" in text
    assert "'scoring' cannot be built" in text
    assert "No matching distribution found for tiny==1.0" in text
    (log,) = folder.glob("logs/sys/environment/node000.txt")
    assert str(log) in text
    assert not list(cache.glob("*/bin"))

    make_wheel(tmp_path, "tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    result = run(SHOW, numbers, environment=environment, run_folder=folder)

    assert {number for _, _, number in found(result)} == {42}


class _Index(http.server.SimpleHTTPRequestHandler):
    """A package index that wants a login."""

    login = "Basic " + base64.b64encode(b"me:hunter2hunter2").decode()

    def do_GET(self):
        if self.headers.get("Authorization") != self.login:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_password_of_a_package_index_stays_on_the_node(
    run, numbers, tmp_path, cache, monkeypatch, caplog
):
    """Requirements name its variable; it stands in no log, no run folder, no error and no record (R78).

    Nor does a token within the path of the index, which pip itself shows.
    """
    place = tmp_path / "index" / "hunter2token" / "simple" / "tiny"
    place.mkdir(parents=True)
    make_wheel(place, "tiny")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("INDEX_PASSWORD", "hunter2hunter2")
    monkeypatch.setenv("INDEX_TOKEN", "hunter2token")

    def handler(*arguments):
        return _Index(*arguments, directory=str(tmp_path / "index"))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        host = f"127.0.0.1:{server.server_port}"
        index = f"http://me:${{INDEX_PASSWORD}}@{host}/${{INDEX_TOKEN}}/simple"
        try:
            result = run(
                SHOW, numbers, environment={"requirements": [f"--index-url {index}", "tiny"]}
            )
            with pytest.raises(ConfigError) as caught:
                run(
                    SHOW, numbers, environment={"requirements": [f"--index-url {index}", "nothing"]}
                )
        finally:
            server.shutdown()
            thread.join()

    assert {number for _, _, number in found(result)} == {42}
    assert "No matching distribution found for nothing" in str(caught.value)
    written = [one for one in tmp_path.rglob("*") if one.is_file()]
    logs = [one.read_text() for one in written if one.match("sys/environment/node000.txt")]
    assert any(f"Looking in indexes: http://***@{host}/***/simple" in one for one in logs)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in caplog.text
    assert not [one for one in written if b"hunter2" in one.read_bytes()]
