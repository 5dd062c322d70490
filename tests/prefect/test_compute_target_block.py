"""Clusters that blocks describe: found, started, ended, and what is said where that fails."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import traceback
import uuid

import distributed
import pytest
from prefect.settings import PREFECT_API_URL

from prefect_parallelrun import ClusterError, ConfigError, ParallelRunConfig
from prefect_parallelrun.blocks import DaskComputeTargetBlock, S3Credentials
from prefect_parallelrun.driver import described
from prefect_parallelrun.driver.target import Target

LOG = logging.getLogger("test")
MADE: list[Cluster] = []


class Cluster:
    """A cluster class as others write them, of which tests know all that were made."""

    def __init__(self, *, token, wait=None, fail=False):
        self.closed = threading.Event()
        self.scheduler_address = "tcp://10.0.0.4:8786"
        MADE.append(self)
        if fail:
            raise RuntimeError(f"the cloud said: bad token {token}, not quota")
        if wait is not None:
            GATES[wait].wait(30)

    def adapt(self, *, minimum):
        self.minimum = minimum

    def close(self):
        self.closed.set()


class Telling:
    """A cluster class that tells, at one place, what it was given, as libraries spell it."""

    scheduler_address = "tcp://10.0.0.4:8786"

    def __init__(self, *, token, fail):
        self.fail = fail
        try:
            raise LookupError(token)
        except LookupError as error:
            spelt = KeyError(f"{token} {token!r} {json.dumps(token)} {token.encode()!r}")
            spelt.__cause__ = error
            self.complaint = spelt
        self.at("start")

    def at(self, place):
        if place == self.fail:
            raise self.complaint

    def adapt(self, **limits):
        self.at("adapt")

    @property
    def status(self):
        self.at("connect")
        raise RuntimeError("there is no such cluster")

    def close(self):
        self.at("close")


class Grudging(distributed.LocalCluster):
    """A cluster that runs well, and complains of its token when it is closed."""

    def __init__(self, *, token, **settings):
        self.token = token
        super().__init__(dashboard_address="127.0.0.1:0", **settings)

    def close(self, timeout=None):
        super().close(timeout)
        raise ValueError(f"401 for {self.token!r}")


GATES: dict[str, threading.Event] = {}
OURS = f"{__name__}.Cluster"


@pytest.fixture
def name():
    MADE.clear()
    return f"x-{uuid.uuid4().hex[:8]}"


def find(name, watch=None):
    return described.find(f"dask-compute-target/{name}", log=LOG, watch=watch)


def test_a_saved_block_is_as_good_as_its_name(name):
    """compute_target takes a saved block and keeps its name; one that was not saved is refused (R230)."""
    block = DaskComputeTargetBlock(address="tcp://10.0.0.4:8786")
    with pytest.raises(ConfigError, match="that was saved"):
        ParallelRunConfig("score.py", compute_target=block)
    block.save(name)

    config = ParallelRunConfig("score.py", compute_target=block)

    assert config.compute_target == f"dask-compute-target/{name}"
    assert find(name).place == "tcp://10.0.0.4:8786"


def test_a_cluster_is_started_with_all_arguments_and_ended(name):
    """Arguments, secret ones among them, and adaptive limits reach the class (R230)."""
    DaskComputeTargetBlock(
        cluster_class=OURS, cluster_secrets={"token": "wqTs81"}, adapt_kwargs={"minimum": 2}
    ).save(name)

    found = find(name)

    assert found.place is MADE[0]
    assert MADE[0].minimum == 2
    assert not MADE[0].closed.is_set()
    found.end()
    assert MADE[0].closed.is_set()


@pytest.mark.parametrize(
    ("fields", "error", "complaint"),
    [
        ({"cluster_class": "no_such_module.Cluster"}, ConfigError, "cannot be imported.*no_such"),
        ({"cluster_class": "distributed.NoSuch"}, ConfigError, "cannot be imported"),
        ({"cluster_class": "builtins.dict"}, ConfigError, "no Dask cluster.*scheduler_address"),
        (
            {
                "cluster_class": OURS,
                "cluster_kwargs": {"fail": True},
                "cluster_secrets": {"token": "wqTs81"},
            },
            ClusterError,
            "RuntimeError: the cloud said: bad token …, not quota",
        ),
        (
            {
                "cluster_class": OURS,
                "cluster_secrets": {"token": "wqTs81"},
                "adapt_kwargs": {"most": 2},
            },
            ClusterError,
            "adapt_kwargs=.*most",
        ),
    ],
)
def test_a_cluster_that_does_not_start(name, fields, error, complaint):
    """The error names the block, the class and the cause, without a secret; nothing is left over (R78)."""
    DaskComputeTargetBlock(**fields).save(name)

    with pytest.raises(error, match=complaint) as caught:
        find(name)

    assert f"dask-compute-target/{name}" in str(caught.value)
    assert "wqTs81" not in str(caught.value)
    # With the exception its causes are logged.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    if "adapt_kwargs" in fields:
        assert MADE[0].closed.is_set()


SPELT = "wqTs81\"'\\\n\u00e9 "


@pytest.mark.parametrize("fail", ["start", "adapt", "connect", "close"])
def test_a_secret_that_a_cluster_tells(name, fail, caplog):
    """However a class spells a secret, and wherever it fails, no error and no log has it (R78)."""
    caplog.set_level(logging.DEBUG)
    DaskComputeTargetBlock(
        cluster_class=f"{__name__}.Telling",
        cluster_kwargs={"fail": fail},
        cluster_secrets={"token": SPELT},
        adapt_kwargs={"minimum": 1},
    ).save(name)

    with pytest.raises(ClusterError) as caught:
        Target(f"dask-compute-target/{name}", node_count=1, log=LOG)

    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "wqTs81" not in told
    assert "KeyError: " in told


def test_a_run_whose_cluster_tells_a_secret_at_its_end(run, name, tmp_path, caplog):
    """A cluster that cannot be ended costs nothing but a line, and no file of the run has a secret (R78)."""
    DaskComputeTargetBlock(
        cluster_class=f"{__name__}.Grudging",
        cluster_kwargs={"n_workers": 1, "processes": False},
        cluster_secrets={"token": SPELT},
    ).save(name)
    source = tmp_path / "numbers"
    source.mkdir()
    (source / "1.txt").touch()

    result = run(
        "def run(mini_batch): return mini_batch",
        source,
        compute_target=f"dask-compute-target/{name}",
    )

    assert result.items.failed == 0
    assert "could not be ended: ValueError: 401 for" in caplog.text
    assert "wqTs81" not in caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"wqTs81" in path.read_bytes()]


@pytest.mark.parametrize("arguments", [{"timeout": "soon"}, {"nonsense": 1}])
def test_arguments_that_the_client_does_not_take(name, arguments):
    """What our Dask client does not take is an error that names block and arguments (R230)."""
    DaskComputeTargetBlock(address="tcp://127.0.0.1:9", client_kwargs=arguments).save(name)

    with pytest.raises(ClusterError, match=f"'dask-compute-target/{name}'.*client_kwargs={{'"):
        Target(f"dask-compute-target/{name}", node_count=1, log=LOG)


def test_blocks_that_are_none(name):
    """A block that is not there, or was edited to one that cannot work, is named with what to do."""
    with pytest.raises(ConfigError, match="nope': there is no such block"):
        find("nope")
    S3Credentials(access_key_id="me", secret_access_key="wqTs81").save(name)
    with pytest.raises(ConfigError, match="it is a S3Credentials"):
        described.find(f"s3-credentials/{name}", log=LOG, watch=None)
    edited = DaskComputeTargetBlock(address="tcp://10.0.0.4:8786")
    edited.address = "10.0.0.4:8786"
    edited.save(name)
    with pytest.raises(ConfigError, match=r"address='10\.0\.0\.4:8786'.*tcp://.*edit it"):
        find(name)


def test_a_run_that_is_cancelled_does_not_wait_for_its_cluster(name):
    """While a cluster starts, the run can be cancelled; the cluster is ended once it has come (R240)."""
    DaskComputeTargetBlock(
        cluster_class=OURS, cluster_kwargs={"wait": name}, cluster_secrets={"token": "t"}
    ).save(name)
    GATES[name] = threading.Event()

    def cancelled():
        if MADE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(name, watch=cancelled)
    assert not MADE[0].closed.is_set()
    GATES[name].set()
    assert MADE[0].closed.wait(30)


RENTED = """
import sys, time
from pathlib import Path
import distributed
from prefect_parallelrun.driver import described

class Rented(distributed.LocalCluster):
    def __init__(self, *, place):
        self.place = Path(place)
        self.place.touch()
        time.sleep(1)
        super().__init__(n_workers=1, processes=False, dashboard_address="127.0.0.1:0")

    def close(self, timeout=None):
        super().close(timeout)
        self.place.unlink(missing_ok=True)

if __name__ == "__main__":
    import logging
    place = Path(sys.argv[2])

    def watch():
        if place.exists():
            sys.exit(143)

    described.find(sys.argv[1], log=logging.getLogger("test"), watch=watch)
"""


def test_a_process_that_ends_takes_its_cluster_along(name, tmp_path):
    """A start that was given up is waited for at the end of the process, and the cluster ended (R240)."""
    (tmp_path / "rented.py").write_text(RENTED)
    place = tmp_path / "place"
    DaskComputeTargetBlock(
        cluster_class="rented.Rented", cluster_kwargs={"place": str(place)}
    ).save(name)

    ended = subprocess.run(
        [sys.executable, "rented.py", f"dask-compute-target/{name}", place],
        cwd=tmp_path,
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 143, ended.stderr
    assert not place.exists()


def test_certificates_reach_the_client(name):
    """Certificates become Dask's Security, with which the connection has to be encrypted (R230)."""
    DaskComputeTargetBlock(
        address="tls://10.0.0.4:8786",
        tls_ca="/etc/ca.pem",
        tls_certificate="/etc/me.pem",
        tls_key="/etc/me.key",
        client_kwargs={"timeout": 3},
    ).save(name)

    found = find(name)

    security = found.security
    assert isinstance(security, distributed.Security)
    assert security.require_encryption
    assert security.tls_ca_file == "/etc/ca.pem"
    assert security.tls_client_key == "/etc/me.key"
    assert found.client_kwargs == {"timeout": 3}
