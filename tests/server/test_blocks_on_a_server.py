"""Blocks on a real server: registered, shown, edited, and used by steps."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import distributed
import httpx
import pytest
from prefect import flow

from prefect_parallelrun import FileDataset, ParallelRunStep, PipelineParameter
from prefect_parallelrun.blocks import (
    DaskComputeTargetBlock,
    HttpCredentials,
    ParallelRunConfigBlock,
    S3Credentials,
)
from tests.storage.servers import lacking

SECRET = "wqTs81-Jv3"
PATIENCE_S = 30.0
SLUGS = {
    "azure-account-key-credentials",
    "azure-sas-credentials",
    "dask-compute-target",
    "http-credentials",
    "parallel-run-config",
    "registered-dataset",
    "s3-credentials",
    "service-principal-credentials",
    "sql-connection",
}
SCRIPT = """
import os
from pathlib import Path

def run(mini_batch):
    return [f"{os.environ.get('WORD')} {len(mini_batch)} {Path(path).name}" for path in mini_batch]
"""
TOGETHER = """
import time

def init():
    folder = Path('{folder}')
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2:  # else one node may do it all before the other is there
        time.sleep(0.02)
"""


def in_a_process(server, tmp_path, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        env=server.environment(tmp_path / "runs"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def asked(server, method, path, **body):
    """Return an answer of the API; SQLite may be busy, of which Prefect says 503."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = httpx.request(method, f"{server.api}/{path}", timeout=PATIENCE_S, **body)
        if answer.status_code != 503 or time.monotonic() > deadline:
            assert answer.is_success, f"{answer.status_code} {answer.text}"
            return answer
        time.sleep(0.2)


def document_of(server, block):
    """Return what the API shows of a saved block to whoever asks."""
    return asked(server, "GET", f"block_documents/{block._block_document_id}").json()


def edited(server, block, **changes):
    """Save a block as the form of the pages does it: all fields as they are shown, but for changes."""
    data = {**document_of(server, block)["data"], **changes}
    body = {"data": data, "merge_existing_data": False}
    asked(server, "PATCH", f"block_documents/{block._block_document_id}", json=body)


def make_step(folder, settings, *, letters="abcdef", **more):
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for letter in letters:
        (data / letter).write_text(letter)
    return ParallelRunStep("score-files", settings, [FileDataset.from_files(str(data))], **more)


def rows(result):
    return Path(result.append_row_file).read_text().splitlines()


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "source" / "score.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return str(path)


@pytest.fixture
def name():
    return f"x-{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize("module", ["prefect_parallelrun", "prefect_parallelrun.blocks"])
def test_registration(server, tmp_path, module):
    """The package and its module register every block, as the pages want to show them (R240)."""
    out = in_a_process(server, tmp_path, "-m", "prefect", "block", "register", "-m", module)

    assert f"registered {len(SLUGS)} blocks" in out
    found = asked(server, "POST", "block_types/filter", json={}).json()
    ours = {one["slug"]: one for one in found if one["slug"] in SLUGS}
    assert set(ours) == SLUGS
    for one in ours.values():
        assert one["logo_url"].startswith("https://")
        assert one["documentation_url"].startswith("https://")
        assert one["description"].endswith(".")
        assert '.load("BLOCK_NAME")' in one["code_example"]


def test_a_block_is_found_by_its_name(here, tmp_path, name):
    """A process that imports nothing of ours loads a block by type and name (R240)."""
    S3Credentials(access_key_id="me", secret_access_key=SECRET).save(name)

    out = in_a_process(
        here,
        tmp_path,
        "-c",
        "from prefect.blocks.core import Block\n"
        f"print(type(Block.load('s3-credentials/{name}')).__module__)",
    )

    assert out.split() == ["prefect_parallelrun.blocks.credentials"]


def test_secrets_stay_secret(here, name):
    """No answer of the API and no file of the server shows a secret; saving what is shown keeps it (R78)."""
    blocks = [
        S3Credentials(access_key_id="me", secret_access_key=SECRET),
        HttpCredentials(token=SECRET),
        ParallelRunConfigBlock(entry_script="score.py", environment_variables={"T": SECRET}),
        DaskComputeTargetBlock(
            cluster_class="distributed.LocalCluster", cluster_secrets={"a": {"b": SECRET}}
        ),
        DaskComputeTargetBlock(
            address="tls://10.0.0.4:8786", tls_ca="ca.pem", tls_certificate="me.pem", tls_key=SECRET
        ),
    ]
    for n, block in enumerate(blocks):
        block.save(f"{name}-{n}")
        shown = document_of(here, block)
        assert SECRET not in str(shown)
        assert "********" in str(shown)
        edited(here, block)
        assert type(block).load(f"{name}-{n}") == block

    everything = asked(here, "POST", "block_documents/filter", json={}).text
    events = asked(here, "POST", "events/filter", json={}).text
    assert SECRET not in everything + events
    for file in here.home.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_settings_of_a_step(here, tmp_path, script, name):
    """A step runs with a block's settings; what is edited holds for the next step (R240, R39)."""
    ParallelRunConfigBlock(
        entry_script=script, mini_batch_size=4, environment_variables={"WORD": "first"}
    ).save(name)

    @flow
    def score(size: int | None = None):
        settings = ParallelRunConfigBlock.load(name)
        if size is not None:
            settings = settings.to_config(mini_batch_size=PipelineParameter("size", 4))
        return make_step(tmp_path, settings)()

    assert rows(score()) == [f"first {4 if n < 4 else 2} {c}" for n, c in enumerate("abcdef")]

    block = ParallelRunConfigBlock.load(name)
    edited(here, block, mini_batch_size=3, environment_variables={"WORD": "then"})

    assert rows(score()) == [f"then 3 {c}" for c in "abcdef"]
    assert rows(score(size=6)) == [f"then 6 {c}" for c in "abcdef"]


def test_a_cluster_for_a_run(here, tmp_path, script, name, caplog):
    """The cluster that a block describes begins and ends with the run; the run goes on by its name (R230)."""
    target = DaskComputeTargetBlock(
        cluster_class="distributed.LocalCluster",
        cluster_kwargs={"n_workers": 2, "threads_per_worker": 1, "processes": False},
        cluster_secrets={"dashboard_address": "127.0.0.1:0"},
        client_kwargs={"timeout": 20},
    )
    target.save(name)
    settings = ParallelRunConfigBlock(
        entry_script=script,
        mini_batch_size=1,
        node_count=2,
        process_count_per_node=1,
        compute_target=f"dask-compute-target/{name}",
    ).to_config()
    before = set(distributed.SpecCluster._instances)
    (tmp_path / "there").mkdir()
    Path(script).write_text(SCRIPT + TOGETHER.format(folder=tmp_path / "there"))

    with caplog.at_level(logging.INFO):
        result = make_step(tmp_path, settings)()

    assert rows(result) == [f"None 1 {c}" for c in "abcdef"]
    assert f"distributed.LocalCluster, as dask-compute-target/{name} says" in caplog.text
    assert sorted(p.name for p in Path(result.logs_directory, "user", "stdout").iterdir()) == [
        "node000",
        "node001",
    ]
    started = set(distributed.SpecCluster._instances) - before
    assert [one for one in started if one.status.name != "closed"] == []
    report = Path(result.report).read_text()
    assert f"dask-compute-target/{name}" in report


def test_an_encrypted_cluster(here, tmp_path, script, name):
    """A cluster behind TLS is reached with a block's certificates; without them it is not (R230)."""
    security = distributed.Security.temporary()
    with distributed.LocalCluster(
        n_workers=1,
        processes=False,
        security=security,
        dashboard_address="127.0.0.1:0",
        host="127.0.0.1",
    ) as cluster:
        block = DaskComputeTargetBlock(
            address=cluster.scheduler_address,
            tls_ca=security.tls_ca_file,
            tls_certificate=security.tls_client_cert,
            tls_key=security.tls_client_key,
        )
        block.save(name)
        settings = ParallelRunConfigBlock(
            entry_script=script, compute_target=f"dask-compute-target/{name}"
        )
        assert block.address.startswith("tls://")

        result = make_step(tmp_path, settings)()

    assert rows(result) == [f"None 6 {c}" for c in "abcdef"]
    key = security.tls_client_key.splitlines()[3]
    for file in (tmp_path / "runs").rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_the_form_of_the_pages(here, name):
    """Settings are edited on Prefect's page: what is changed is kept, secrets are neither shown nor lost."""
    if shutil.which("chromium") is None:
        lacking("chromium", "there is no chromium on PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    settings = ParallelRunConfigBlock(
        entry_script="/data/score.py", mini_batch_size=5, environment_variables={"T": SECRET}
    )
    settings.save(name)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto(f"{here.pages}/v2/blocks/block/{settings._block_document_id}/edit")
        script = page.get_by_label("Entry Script")
        sync_api.expect(script).to_have_value("/data/score.py", timeout=30_000)
        for said in ("Attempts per mini-batch.", "masked on Prefect's pages"):
            assert page.get_by_text(said).count() == 1
        assert SECRET not in page.content()
        script.fill("/data/other.py")
        page.get_by_role("button", name="Save").click()
        page.wait_for_url(f"**/blocks/block/{settings._block_document_id}", timeout=30_000)
        sync_api.expect(page.get_by_text("/data/other.py")).to_be_visible(timeout=30_000)
        browser.close()

    config = ParallelRunConfigBlock.load(name).to_config()
    assert config.entry_script == "/data/other.py"
    assert config.environment_variables == {"T": SECRET}
    assert config.mini_batch_size == 5
