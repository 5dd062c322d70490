"""The description of a Dask cluster: what goes together."""

from __future__ import annotations

import pytest

from prefect_parallelrun import ConfigError, ParallelRunConfig
from prefect_parallelrun.compute_target import DaskComputeTarget

TLS = {"tls_ca": "ca.pem", "tls_certificate": "me.pem", "tls_key": "wqTs81"}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "needs an address, or a cluster_class"),
        ({"address": "10.0.0.4:8786"}, "address='10.0.0.4:8786'.*tcp://"),
        ({"address": "tcp://a:1", "cluster_class": "a.B"}, "address='tcp://a:1' is given too"),
        ({"address": "tcp://a:1", "cluster_kwargs": {"n": 1}}, "cluster_kwargs is for"),
        ({"address": "tcp://a:1", "cluster_secrets": {"n": "wqTs81"}}, "cluster_secrets is for"),
        ({"address": "tcp://a:1", "adapt_kwargs": {"minimum": 1}}, "adapt_kwargs is for"),
        ({"address": "tcp://a:1", **TLS}, "address='tcp://a:1'.*encrypted"),
        ({"address": "tls://a:1", "tls_ca": "ca.pem"}, "give all three"),
        ({"cluster_class": "LocalCluster"}, "import path"),
        ({"cluster_class": "os.system('x')"}, "import path"),
        ({"cluster_class": "a.B", **TLS}, "for a cluster that is there"),
        (
            {
                "cluster_class": "a.B",
                "cluster_kwargs": {"n": 1},
                "cluster_secrets": {"n": "wqTs81"},
            },
            "both have 'n'",
        ),
        ({"address": "tcp://a:1", "client_kwargs": {"asynchronous": True}}, "'asynchronous'"),
        ({"cluster_class": "a.B", "cluster_kwargs": {"asynchronous": True}}, "'asynchronous'"),
        ({"cluster_class": "a.B", "cluster_secrets": {"asynchronous": True}}, "'asynchronous'"),
        ({"address": "tls://me:wqTs81@a:1"}, "address has a login"),
        ({"address": "me:wqTs81@a:1", "cluster_class": "a.B"}, "address has a login"),
    ],
)
def test_what_does_not_go_together(fields, complaint):
    """Each contradiction is named, and no secret is shown (R230, R78)."""
    with pytest.raises(ConfigError, match=complaint) as caught:
        DaskComputeTarget(**fields)
    assert "wqTs81" not in str(caught.value)


def test_secrets_are_not_shown():
    """The text of a description has no secret (R78)."""
    there = DaskComputeTarget(address="tls://a:1", **TLS)
    started = DaskComputeTarget(cluster_class="a.B", cluster_secrets={"token": "wqTs81"})

    assert "wqTs81" not in f"{there!r} {there} {started!r} {started}"


def test_a_config_names_a_block(tmp_path):
    """compute_target is the name of a block, and is saved as such; another block's is refused (R230)."""
    config = ParallelRunConfig("score.py", compute_target=" dask-compute-target/lab ")
    assert config.compute_target == "dask-compute-target/lab"
    config.save_to_yaml(tmp_path / "config.yaml")
    assert ParallelRunConfig.load_yaml(tmp_path / "config.yaml") == config
    with pytest.raises(ConfigError, match="compute_target has a login") as caught:
        ParallelRunConfig("score.py", compute_target="tls://me:wqTs81@a:1")
    assert "wqTs81" not in str(caught.value)
    for other in ("dask-compute-target/", "s3-credentials/lab", "lab"):
        with pytest.raises(ConfigError, match="dask-compute-target/<name>"):
            ParallelRunConfig("score.py", compute_target=other)
