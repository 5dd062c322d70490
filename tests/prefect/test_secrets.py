"""No secret is anywhere but in its block and in the Dask worker that needs it (R78)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from prefect import flow, get_client, task
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, get_current_settings
from prefect_dask import DaskTaskRunner

from prefect_parallelrun import (
    FileDataset,
    OutputFileDatasetConfig,
    PipelineParameter,
    TabularDataset,
)
from prefect_parallelrun.blocks import (
    AzureAccountKeyCredentials,
    AzureSasCredentials,
    S3Credentials,
)
from prefect_parallelrun.datasets.hidden import _FLIPPED
from tests.storage.conftest import azure, azure_endpoint, s3, s3_endpoint  # noqa: F401
from tests.storage.servers import AZURE_ACCOUNT, AZURE_KEY, S3_KEY

SCRIPT = """
import json, os, sys
from pathlib import Path
from azureml_user.parallel_run import EntryScript

def environment(pid):
    return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\\0")

def run(mini_batch):
    for path in mini_batch:
        if Path(path).read_text() == "bad":
            raise ValueError(f"{path} cannot be scored")
    seen = {
        "environ": dict(os.environ), "own": environment("self"), "parent": environment(os.getppid()),
        "argv": sys.argv, "orig": sys.orig_argv,
        "parent argv": Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\\0"),
        "labels": Path(sys.argv[2], "names.txt").read_text(),
    }
    EntryScript().logger.info("%s", seen)
    Path(EntryScript().output_dir, "seen.json").write_text(json.dumps(seen))
    return [json.dumps(seen)] * len(mini_batch)
"""

PROGRAM = """
import json, logging, sys
from prefect import flow
from prefect_parallelrun import *
from distributed import LocalCluster

given = json.load(open(sys.argv[1]))
# At DEBUG Dask's own log is a dump of all that goes over the wire.
logging.getLogger("distributed").setLevel(logging.INFO)

def dataset(place, name):
    url, how = given[place]
    return FileDataset.from_files(url, **how).as_named_input(name)

def step(name, config, inputs, output, **settings):
    url, how = given[output]
    labels = dataset("side", "labels").as_mount()
    return ParallelRunStep(
        name,
        ParallelRunConfig(
            given["script"], process_count_per_node=1, logging_level="DEBUG", run_max_try=1, **config
        ),
        [dataset(one, "numbers") for one in inputs],
        side_inputs=[labels],
        arguments=["--labels", labels],
        output=OutputFileDatasetConfig(destination=url, **how),
        **settings,
    )

def shown(step):
    print(repr(step), [repr(one) for one in (*step.inputs, *step.side_inputs, step.output)])
    return step

@flow
def score(target):
    rows = shown(step("rows-out", {"compute_target": target}, ["s3", "azure"], "s3-out"))()
    print(rows, rows.state)
    step("rows-out", {}, ["s3", "azure"], "s3-out").submit().result()
    tolerated = {"output_action": "summary_only", "error_threshold": 5, "mini_batch_size": 1}
    print(shown(step("files-out", tolerated, ["s3-bad"], "azure-out"))())
    for place in ("gone", "denied"):
        try:
            step("no-input", {}, [place], "s3-out")()
        except ParallelRunError as error:
            print(repr(error), error)
    try:
        step("no-output", {}, ["s3"], "denied")()
    except ParallelRunError as error:
        print(repr(error), error)

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster:
        score(cluster.scheduler_address)
    print("all of it ran")
"""

INLINE_KEY = base64.b64encode(b"a key that opens nothing, of an account").decode()


def sas_token():
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    return generate_account_sas(
        AZURE_ACCOUNT,
        AZURE_KEY,
        resource_types=ResourceTypes(service=True, container=True, object=True),
        permission=AccountSasPermissions(read=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )


@pytest.fixture
def stores(s3, azure):  # noqa: F811
    """Data in both stores."""
    for n in range(3):
        s3.put(f"in/{n}.txt", str(n))
        azure.put(f"in/{n}.txt", str(n))
    s3.put("bad/0.txt", "bad")
    s3.put("bad/1.txt", "good")
    azure.put("side/names.txt", "a b c")
    return s3, azure


@pytest.fixture
def secrets():
    """What must be found nowhere, but the access key of S3, which is a name."""
    return {"s3": f"s3-secret-{uuid.uuid4().hex}", "azure": AZURE_KEY, "sas": sas_token()}


def blocks(secrets, stores):
    """What opens each place: names of blocks that were saved."""
    s3, azure = stores  # noqa: F811
    kept = {
        "s3": S3Credentials(
            access_key_id=S3_KEY, secret_access_key=secrets["s3"], endpoint_url=s3.endpoint
        ),
        "azure": AzureAccountKeyCredentials(
            account_name=AZURE_ACCOUNT, account_key=AZURE_KEY, endpoint=azure.endpoint
        ),
        "sas": AzureSasCredentials(
            account_name=AZURE_ACCOUNT, sas_token=secrets["sas"], endpoint=azure.endpoint
        ),
        "denied": AzureAccountKeyCredentials(
            account_name=AZURE_ACCOUNT, account_key=INLINE_KEY, endpoint=azure.endpoint
        ),
    }
    names = {}
    for place, block in kept.items():
        name = f"{place}-{uuid.uuid4().hex[:8]}"
        block.save(name)
        names[place] = {"credentials": f"{block.get_block_type_slug()}/{name}"}
    return names


def options(secrets, stores):
    """What opens each place: options of fsspec."""
    s3, azure = stores  # noqa: F811

    def opened(parts):
        return {
            "connection_string": f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};"
            f"{parts};BlobEndpoint={azure.endpoint};"
        }

    given = {
        "s3": {"key": S3_KEY, "secret": secrets["s3"], "endpoint_url": s3.endpoint},
        "azure": opened(f"AccountKey={AZURE_KEY}"),
        "sas": opened(f"SharedAccessSignature={secrets['sas']}"),
        "denied": opened(f"AccountKey={INLINE_KEY}"),
    }
    return {place: {"storage_options": one} for place, one in given.items()}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [blocks, options])
def test_secrets_are_nowhere(how, stores, secrets, tmp_path, prefect_server):
    """Run folder, results, database, logs, output and environments have no secret in them (R78)."""
    s3, azure = stores  # noqa: F811
    opens = how(secrets, stores)
    script = tmp_path / "scripts" / "score.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    given = {
        "script": str(script),
        "s3": [f"{s3.url}/in", opens["s3"]],
        "azure": [f"{azure.url}/in", opens["azure"]],
        "side": [f"{azure.url}/side", opens["sas"]],
        "s3-bad": [f"{s3.url}/bad", opens["s3"]],
        "gone": [f"{s3.url}/gone", opens["s3"]],
        "denied": [f"{azure.url}/in", opens["denied"]],
        "s3-out": [f"{s3.url}/out", opens["s3"]],
        "azure-out": [f"{azure.url}/out", opens["azure"]],
    }
    (tmp_path / "given.json").write_text(json.dumps(given))
    home = tmp_path / "home"

    said = run_flow(tmp_path, home)

    assert "all of it ran" in said, said[-6000:]
    rows = s3.read("out/parallel_run_step.txt").decode().splitlines()
    assert len(rows) == 6
    seen = json.loads(rows[0])
    assert seen["labels"] == "a b c"
    assert "PREFECT_API_URL" in seen["environ"]
    assert len(seen["parent"]) > 5
    assert azure.names().count("out/seen.json") == 1
    places = {
        "what was said": said.encode(),
        "output in s3": s3.read("out/parallel_run_step.txt"),
        "output in azure": azure.read("out/seen.json"),
    }
    places |= kept_in(tmp_path / "runs", home, *kept_by_prefect())
    found = [
        (place, name, line[:300])
        for place, content in places.items()
        for name, forms in spelled(secrets).items()
        for form in forms
        if form in content
        for line in content.splitlines()
        if form in line
    ]
    assert not found


def kept_by_prefect():
    """Return the folders that Prefect writes to: its home, and that of the server's database."""
    database = urlsplit(get_current_settings().server.database.connection_url.get_secret_value())
    return Path(PREFECT_HOME.value()), Path(database.path[1:]).parent


def kept_in(*folders):
    """Return what is in the files of folders, by name; of stored results also what they stand for."""
    places = {}
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files, folder
        for path in files:
            content = places[str(path)] = path.read_bytes()
            if content.startswith(b"{"):
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    result = json.loads(content)["result"]
                    places[f"result in {path}"] = base64.decodebytes(result.encode())
    return places


def run_flow(tmp_path, home):
    """Run the program against the session's server, and return all that it and its children said."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_HOME": str(home),
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
        "DASK_LOGGING__DISTRIBUTED": "info",
        "PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT": str(tmp_path / "runs"),
    }
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "given.json")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=150,
        cwd=tmp_path,
    )
    return done.stdout.decode(errors="replace")


def spelled(secrets):
    """Return the ways in which each secret may be written; of the SAS its signature."""
    (signature,) = parse_qs(secrets["sas"])["sig"]
    plain = {**secrets, "sas": signature, "denied": INLINE_KEY}
    return {
        name: {
            form.encode()
            for form in (text, quote(text, safe=""), quote(text), json.dumps(text)[1:-1])
        }
        | {base64.b64encode(text.encode())}
        for name, text in plain.items()
    }


@pytest.fixture
def hidden():
    """A secret that is in nothing else."""
    return f"hush{uuid.uuid4().hex}"


def test_parameters_of_flows_and_results_of_tasks(s3, files, hidden, prefect_server):  # noqa: F811
    """Whatever holds a secret may be a flow's parameter and a task's: Prefect keeps its place only (R39, R78)."""
    s3.put("in/a.txt", "A")
    s3.put("other/b.txt", "B")
    how = {"storage_options": {**s3.storage_options, "secret": hidden}}
    days = FileDataset.from_files(f"{s3.url}/in", **how)
    output = OutputFileDatasetConfig(destination=f"{s3.url}/out", **how)
    given = {
        "days": FileDataset.from_files(f"{s3.url}/other", **how),
        "signed": FileDataset.from_files(f"https://example.org/signed.csv?sv=2024&sig={hidden}"),
        "query": TabularDataset.from_sql_query(
            f"postgresql+psycopg://me:{hidden}@localhost/sales", "SELECT 1"
        ),
        "output": output,
        "step": files.step(inputs=[PipelineParameter("days", days)], output=output),
    }

    @task(persist_result=True)
    def taken(what: Any) -> Any:
        return what

    @flow
    def score(days: Any, signed: Any, query: Any, output: Any, step: Any) -> Any:
        taken.submit(days).result()
        return [step(), taken(signed), taken(query), taken([output])]

    state = score(**given, return_state=True)

    result, *back = state.result()
    assert Path(result.run_directory, "output", "parallel_run_step.txt").read_text() == (
        "row b.txt B\n"
    )
    assert back[0].storage == given["signed"].storage
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    shown = json.dumps(run.parameters)
    for place in (f"{s3.url}/other", "example.org/signed.csv", "me:***@localhost", f"{s3.url}/out"):
        assert place in shown
    places = {"parameters": shown.encode(), **kept_in(files.folder / "runs", *kept_by_prefect())}
    assert any(b"signed.csv" in places[place] for place in places if place.startswith("result in"))
    assert not [place for place, content in places.items() if hidden.encode() in content]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_options_reach_a_task_in_another_process(s3, files, hidden, prefect_server):  # noqa: F811
    """What was given as `storage_options` opens inputs and output where Dask runs the step (R78)."""
    s3.put("in/a.txt", "A")
    how = {"storage_options": {**s3.storage_options, "secret": hidden}}
    given = {
        "days": FileDataset.from_files(f"{s3.url}/in", **how),
        "output": OutputFileDatasetConfig(destination=f"{s3.url}/out", **how),
    }
    cluster = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0"}

    @flow(task_runner=DaskTaskRunner(cluster_kwargs=cluster))
    def score(days: Any, output: Any) -> Any:
        return files.step(inputs=[days], output=output).submit().result()

    score(**given)

    assert s3.read("out/parallel_run_step.txt") == b"row a.txt A\n"
    places = kept_in(files.folder / "runs", *kept_by_prefect())
    assert not [place for place, content in places.items() if hidden.encode() in content]


def test_a_path_is_opened_like_the_default(s3, files, hidden, prefect_server):  # noqa: F811
    """A path as pipeline parameter is opened by what opens the default, and delivered alike (R39, R78)."""
    s3.put("more/b.txt", "B")
    name = f"keys-{hidden[-8:]}"
    S3Credentials(access_key_id=S3_KEY, secret_access_key=hidden, endpoint_url=s3.endpoint).save(
        name
    )
    for how in ({"credentials": f"s3-credentials/{name}"}, {"storage_options": s3.storage_options}):
        default = FileDataset.from_files(f"{s3.url}/in", **how).as_download()
        step = files.step(inputs=[PipelineParameter("days", default)])

        @flow
        def planned(days: str, step: Any) -> Any:
            return [one.size for one in step.plan()]

        assert planned(f"{s3.url}/more", step) == [1]


def test_a_stored_result_names_the_block(hidden, prefect_server):
    """A dataset with a credentials block is stored without its secret, in whatever form (R78)."""
    name = f"keys-{hidden[-8:]}"
    S3Credentials(access_key_id=S3_KEY, secret_access_key=hidden).save(name)

    @task(persist_result=True)
    def made() -> Any:
        return FileDataset.from_files("s3://bucket/in", credentials=f"s3-credentials/{name}")

    assert flow(lambda: made().storage, name="made")().options == {}
    places = kept_in(*kept_by_prefect())
    assert any(name.encode() in places[place] for place in places if place.startswith("result in"))
    for content in places.values():
        assert hidden.encode() not in content
        assert hidden.encode().translate(_FLIPPED) not in content


def test_the_search_finds(secrets):
    """The search itself finds a secret in each of its spellings."""
    found = spelled(secrets)
    assert AZURE_KEY.encode() in found["azure"]
    assert quote(AZURE_KEY, safe="").encode() in found["azure"]
    assert all(len(form) > 20 for forms in found.values() for form in forms)
