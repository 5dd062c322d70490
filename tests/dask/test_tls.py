"""Encrypted clusters, with certificates that the test makes: by address, and by cluster object (R230)."""

from __future__ import annotations

import distributed
import pytest
from distributed.security import Security

from prefect_parallelrun import ClusterError, DaskComputeTarget
from tests.dask.conftest import lines

NAMES = """
    from pathlib import Path

    def run(mini_batch):
        return [Path(path).name for path in mini_batch]
"""
EXPECTED = [f"{n:02d}.txt" for n in range(100)]


@pytest.fixture(scope="module")
def security():
    """An authority's certificate, and one with its key that it vouches for."""
    return Security.temporary()


@pytest.fixture(scope="module")
def cluster(security):
    """Two Dask workers in processes of their own; all that they say to each other is encrypted."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        protocol="tls://",
        security=security,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
    ) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        yield cluster


def of(address, security):
    """The three certificates of a client, as a block or a YAML document gives them."""
    return DaskComputeTarget(
        address=address,
        tls_ca=security.tls_ca_file,
        tls_certificate=security.tls_client_cert,
        tls_key=security.tls_client_key,
    )


@pytest.mark.parametrize("given", ["client_kwargs", "certificates", "files", "cluster object"])
def test_a_run_on_an_encrypted_cluster(run, numbers, cluster, security, given, tmp_path):
    """R230: `tls://` with a Security, with PEM texts, with PEM files, and by the cluster object, which has its own."""
    address = cluster.scheduler_address
    if given == "client_kwargs":
        target = DaskComputeTarget(address=address, client_kwargs={"security": security})
    elif given == "certificates":
        target = of(address, security)
    elif given == "files":
        made = {}
        for name in ("ca_file", "client_cert", "client_key"):
            made[f"tls_{name}"] = str(tmp_path / f"{name}.pem")
            (tmp_path / f"{name}.pem").write_text(getattr(security, f"tls_{name}"))
        target = of(address, Security(require_encryption=True, **made))
    else:
        target = cluster

    result = run(
        NAMES,
        numbers,
        mini_batch_size=5,
        node_count=2,
        process_count_per_node=1,
        compute_target=target,
    )

    assert lines(result) == EXPECTED


@pytest.mark.parametrize("given", ["of another authority", "none", "key that is none"])
def test_a_wrong_certificate_is_a_clear_error(run, numbers, cluster, security, given):
    """R230, R205: it names compute_target and what TLS said, and shows no key."""
    address = cluster.scheduler_address
    if given == "of another authority":
        target = of(address, Security.temporary())
    elif given == "none":
        target = address
    else:
        other = Security.temporary().tls_client_key
        target = DaskComputeTarget(
            address=address,
            tls_ca=security.tls_ca_file,
            tls_certificate=security.tls_client_cert,
            tls_key=other,
        )

    with pytest.raises(ClusterError, match="compute_target=") as caught:
        run(NAMES, numbers, compute_target=target)

    assert address in str(caught.value)
    assert "BEGIN" not in str(caught.value)
    assert "certificates" in str(caught.value) or "tls_…" in str(caught.value)


def test_an_encrypted_cluster_that_is_taken_for_another(run, numbers, cluster):
    """R205: an address with tcp:// where it is tls://."""
    address = cluster.scheduler_address.replace("tls://", "tcp://")

    with pytest.raises(ClusterError, match="If it is encrypted, its address begins with tls://"):
        run(NAMES, numbers, compute_target=address)
