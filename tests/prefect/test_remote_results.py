"""Remote outputs and data that changes unseen, through Prefect's cache and resumption (R52, R201)."""

from __future__ import annotations

import asyncio
import re
import uuid
from pathlib import Path

import pytest
from prefect import flow

from prefect_parallelrun import (
    FileDataset,
    OutputFileDatasetConfig,
    ParallelRunError,
    ParallelRunStep,
)
from prefect_parallelrun.blocks import S3Credentials
from prefect_parallelrun.datasets import Dataset
from prefect_parallelrun.driver.retry_failed import retry_failed
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.verify import verify
from tests.storage.conftest import s3, s3_endpoint  # noqa: F401
from tests.storage.servers import S3_KEY, S3_SECRET

KEY = "out/parallel_run_step.txt"


@pytest.fixture
def keys(s3):  # noqa: F811
    """The name of a block that opens the bucket."""
    block = S3Credentials(
        access_key_id=S3_KEY, secret_access_key=S3_SECRET, endpoint_url=s3.endpoint
    )
    name = f"keys-{uuid.uuid4().hex[:8]}"
    block.save(name)
    return f"s3-credentials/{name}"


@pytest.fixture
def scored(files, s3, keys):  # noqa: F811
    """Return a function that runs the step with a remote output, and says what came of it."""

    def run(**settings):
        output = OutputFileDatasetConfig(destination=f"{s3.url}/out", credentials=keys)
        state = files.step(output=output, **settings)(return_state=True)
        return state.result(), state.name

    return run


def test_an_unchanged_remote_output_is_reused(s3, scored):  # noqa: F811
    """While the object is as it was, the result is Cached; else the rows are uploaded again (R52)."""
    result, name = scored()
    assert (name, result.output) == ("Completed", f"{s3.url}/out")
    rows = s3.read(KEY)
    assert scored()[1] == "Cached"

    s3.put(KEY, "someone else's")
    result, name = scored()
    assert (result.reused, name) == (True, "Completed")
    assert s3.read(KEY) == rows
    assert scored()[1] == "Cached"

    s3.delete(KEY)
    assert scored()[0].reused
    assert s3.read(KEY) == rows


def test_verify_looks_at_the_store(s3, scored):  # noqa: F811
    """`parallelrun verify` finds that an uploaded output was changed (R208)."""
    result, _ = scored()
    paths = RunPaths(Path(result.run_directory))
    assert not verify(paths).findings

    s3.put(KEY, "someone else's")

    assert [f"{s3.url}/out" in finding for finding in verify(paths).findings] == [True]


def test_verify_without_what_opens_the_stores(files, s3, caplog):  # noqa: F811
    """Of a run whose options were not kept, verify checks the rest and says what it left out (R78, R208)."""
    options = {"key": S3_KEY, "secret": S3_SECRET, "endpoint_url": s3.endpoint}
    s3.put("in/a.txt", "a")
    data = FileDataset.from_files(f"{s3.url}/in", storage_options=options)
    output = OutputFileDatasetConfig(destination=f"{s3.url}/out", storage_options=options)
    result = files.step(inputs=[data], output=output)()

    assert not verify(RunPaths(Path(result.run_directory))).findings
    assert "What was uploaded was not checked" in caplog.text
    assert "The input was not checked" in caplog.text


def test_where_the_output_goes_counts(files, s3, keys, scored):  # noqa: F811
    """Another URL is another run, of the same rows; other credentials for the same are not (R52, R78, R202)."""
    first, _ = scored()
    options = {"key": S3_KEY, "secret": S3_SECRET, "endpoint_url": s3.endpoint}
    inline = OutputFileDatasetConfig(destination=f"{s3.url}/out", storage_options=options)
    other = OutputFileDatasetConfig(destination=f"{s3.url}/other", credentials=keys)

    assert files.step(output=inline)().run_id == first.run_id
    assert files.step(output=other)().run_id != first.run_id
    assert s3.names() == ["other/parallel_run_step.txt", KEY] or len(s3.names()) == 2
    assert first.output_credentials == keys


def test_a_later_step_takes_the_result(files, s3, keys, scored, tmp_path):  # noqa: F811
    """The result of a step with a remote output is an input, and an argument, of the next (R51)."""
    result, _ = scored()
    script = files.folder / "scripts" / "second.py"
    script.write_text(
        "import os, sys\n"
        "def run(mini_batch):\n"
        "    return [open(path).read().count('row') for path in mini_batch]"
        " if os.listdir(sys.argv[2]) == ['parallel_run_step.txt'] else []\n"
    )

    def second():
        step = files.step("second-step", inputs=[result], arguments=["--rows", result])
        config = step.parallel_run_config.model_copy(update={"entry_script": str(script)})
        return ParallelRunStep(
            "second-step", config, [result], arguments=["--rows", result], allow_reuse=False
        )()

    assert second().to_pandas()[0].tolist() == [3]
    (RunPaths(files.runs()[0]).output).rename(tmp_path / "away")
    assert second().to_pandas()[0].tolist() == [3]


def test_a_result_that_is_side_input_and_argument(files, s3, scored, tmp_path):  # noqa: F811
    """A result among side inputs and arguments is one and the same: where the node has put it (R51, R74)."""
    result, _ = scored()
    files.script.write_text(
        "import sys\n"
        "def run(mini_batch):\n"
        "    return [str(open(sys.argv[2] + '/parallel_run_step.txt').read().count('row')) + sys.argv[2] for _ in mini_batch]\n"
    )

    def second():
        step = files.step(
            "second-step", side_inputs=[result], arguments=["--rows", result], allow_reuse=False
        )
        return set(step().to_pandas()[0])

    copy = RunPaths(files.runs()[0]).output
    assert second() == {f"3{copy}"}
    copy.rename(tmp_path / "away")
    (row,) = second()
    assert row.startswith("3/")
    assert row.endswith("-data/0")


def test_a_text_is_a_url(files, s3, monkeypatch):  # noqa: F811
    """output="s3://…" is a remote output as well; its storage is opened as the environment says (R50)."""
    s3.open_by_environment(monkeypatch)

    @flow
    async def score():
        return await asyncio.to_thread(files.step(output=f"{s3.url}/out"))

    assert asyncio.run(score()).append_row_file == f"{s3.url}/{KEY}"
    assert s3.names() == [KEY]


def test_retry_failed_needs_a_block(files, s3, keys):  # noqa: F811
    """What failed is retried with credentials from a block; inline options were not kept (R78, R204)."""
    files.script.write_text(
        "def run(mini_batch):\n    assert len(mini_batch) == 2\n    return mini_batch\n"
    )
    options = {"key": S3_KEY, "secret": S3_SECRET, "endpoint_url": s3.endpoint}
    config = {"error_threshold": 5, "run_max_try": 1}
    results = [
        files.step(
            name,
            config=config,
            output=OutputFileDatasetConfig(destination=f"{s3.url}/{name}", **opened),
        )()
        for name, opened in (
            ("by-block", {"credentials": keys}),
            ("by-options", {"storage_options": options}),
        )
    ]
    files.script.write_text("def run(mini_batch):\n    return mini_batch\n")
    by_block, by_options = (RunPaths(files.runs(result.name)[0]) for result in results)

    assert retry_failed(by_block, log=Quiet()).items.failed == 0
    assert s3.read("by-block/parallel_run_step.txt").count(b"\n") == 3
    with pytest.raises(ConfigError, match="credentials block"):
        retry_failed(by_options, log=Quiet())


def test_failed_items_are_opened_as_the_input_was(files, s3, keys):  # noqa: F811
    """failed_items() lists remote files by the input's block; without one it says what is missing (R78, R204)."""
    urls = [s3.put(f"in/{name}.txt", name) for name in "ab"]
    files.script.write_text(
        "def run(mini_batch):\n    assert mini_batch[0][-5] != 'b'\n    return mini_batch\n"
    )
    options = {"key": S3_KEY, "secret": S3_SECRET, "endpoint_url": s3.endpoint}
    config = {"error_threshold": 5, "run_max_try": 1, "mini_batch_size": 1}
    by_block, by_options = (
        files.step(name, [FileDataset.from_files(f"{s3.url}/in", **opened)], config)()
        for name, opened in (
            ("by-block", {"credentials": keys}),
            ("by-options", {"storage_options": options}),
        )
    )

    assert [file.path for file in by_block.failed_items().list_files()] == urls[1:]
    with pytest.raises(ConfigError, match="credentials block"):
        by_options.failed_items().list_files()


class Quiet:
    """A log that nobody reads."""

    def __getattr__(self, _):
        return lambda *_args, **_settings: None


def test_what_changes_unseen_is_not_reused(files, monkeypatch):
    """A completed run over data whose change nobody can see is no reason not to run (ADR)."""
    monkeypatch.setattr(Dataset, "shows_changes", lambda _self, _files: False)

    assert [files.step()(return_state=True).name for _ in range(2)] == ["Completed"] * 2
    assert len(files.runs()) == 2


def test_what_changes_unseen_is_resumed(files, monkeypatch):
    """A run over such data that did not complete is gone on with (R201)."""
    monkeypatch.setattr(Dataset, "shows_changes", lambda _self, _files: False)
    good = files.script.read_text()
    files.script.write_text(good.replace("return [", "assert len(mini_batch) == 2\n    return ["))
    with pytest.raises(ParallelRunError):
        files.step(config={"run_max_try": 1})()

    with pytest.raises(ParallelRunError):
        files.step(config={"run_max_try": 1})()

    assert len(files.runs()) == 1


def test_the_how_to_page(s3, tmp_path, monkeypatch):  # noqa: F811
    """The code on the page about storage and credentials runs as it stands there, block after block."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "storage-and-credentials.md"
    code = "\n".join(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    )
    for name in ("days/1.csv", "days/2.csv", "stores/names.txt", "daily/1.csv"):
        s3.put(name, "a")
    code = code.replace("http://localhost:9000", s3.endpoint).replace("s3://sales", s3.url)
    code = code.replace("sales", f"sales-{uuid.uuid4().hex[:8]}")
    monkeypatch.chdir(tmp_path)
    Path("count.py").write_text("def run(mini_batch):\n    return mini_batch\n")

    exec(compile(code, str(page), "exec"), {"__name__": "page"})

    assert "counted/parallel_run_step.txt" in s3.names()
