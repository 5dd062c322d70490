"""Outputs in object stores: whole or not at all, uploaded at the end (R50, R231)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import fsspec
import pytest

from prefect_parallelrun import reuse
from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig
from prefect_parallelrun.errors import ConfigError, DatasetError, OutputError
from prefect_parallelrun.output import upload
from prefect_parallelrun.output.upload import RemoteFolder
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord

ROWS = """
def run(mini_batch):
    return [open(path).read() for path in mini_batch]
"""
FILES = """
import os
from pathlib import Path
from azureml_user.parallel_run import EntryScript

def run(mini_batch):
    assert os.environ["AZUREML_BI_OUTPUT_PATH"] == str(EntryScript().output_dir)
    for path in map(Path, mini_batch):
        target = Path(EntryScript().output_dir, path.stem[0], path.name)
        target.parent.mkdir(exist_ok=True)
        target.write_text("scored " + path.read_text())
    return mini_batch
"""


@pytest.fixture
def data(tmp_path):
    """Six files with a number each."""
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(6):
        (folder / f"{n}.txt").write_text(str(n))
    return folder


@pytest.fixture(params=["s3", "azure"])
def store(request):
    """An empty bucket, or container."""
    return request.getfixturevalue(request.param)


def output_in(store, folder="out"):
    return OutputFileDatasetConfig(
        destination=f"{store.url}/{folder}", storage_options=dict(store.storage_options)
    )


def test_the_rows_are_one_object(run, data, store):
    """append_row: exactly one object with all rows in input order, and the result names it (R28, R231)."""
    result = run(ROWS, data, output=output_in(store))

    assert store.names() == ["out/parallel_run_step.txt"]
    assert store.read("out/parallel_run_step.txt") == b"0\n1\n2\n3\n4\n5\n"
    assert result.output == f"{store.url}/out"
    assert result.append_row_file == f"{store.url}/out/parallel_run_step.txt"
    assert result.to_pandas()[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert result.as_input("rows").to_path().startswith(result.run_directory)


def test_an_earlier_object_is_replaced(run, data, store):
    """An output of an earlier run is replaced at the end, and what else is there stays (R50)."""
    store.put("out/parallel_run_step.txt", "earlier, and much longer than what comes\n" * 10)
    store.put("out/other.txt", "stays")

    run(ROWS, data, output=output_in(store))

    assert store.read("out/parallel_run_step.txt") == b"0\n1\n2\n3\n4\n5\n"
    assert store.names() == ["out/other.txt", "out/parallel_run_step.txt"]


def test_what_the_script_wrote_is_uploaded(run, data, store):
    """summary_only: all files below the output folder, by their names there (R12, R72, R73)."""
    result = run(FILES, data, output=output_in(store), output_action="summary_only")

    assert store.names() == [f"out/{n}/{n}.txt" for n in range(6)]
    assert store.read("out/3/3.txt") == b"scored 3"
    assert (result.output, result.append_row_file) == (f"{store.url}/out", None)


def test_the_output_among_the_arguments(run, data, s3):
    """The output among the arguments is the local folder in which the script writes (R51, R73)."""
    output = output_in(s3)
    script = """
import sys
def run(mini_batch):
    assert sys.argv[1:2] == ["--to"]
    open(sys.argv[2] + "/one.txt", "w").write("1")
    return mini_batch
"""
    run(script, data, output=output, arguments=("--to", output), output_action="summary_only")

    assert s3.names() == ["out/one.txt"]


def test_a_bucket_that_is_not_there(run, data, store, tmp_path):
    """Where nothing can be written is refused before any worker starts (R50)."""
    url = f"{store.url}-is-not-there/out"
    output = OutputFileDatasetConfig(destination=url, storage_options=store.storage_options)
    script = f"open({str(tmp_path / 'ran')!r}, 'w')\n{ROWS}"

    with pytest.raises(ConfigError, match=f"output='{url}'.*cannot be written|is not there"):
        run(script, data, output=output)

    assert not (tmp_path / "ran").exists()


def test_a_key_that_opens_nothing(run, data, azure):
    """Denied access is told before any worker starts, without the key (R78)."""
    key = azure.storage_options["connection_string"].replace("Eby8", "AAAA")
    output = OutputFileDatasetConfig(
        destination=f"{azure.url}/out", storage_options={"connection_string": key}
    )

    with pytest.raises(ConfigError, match="access is denied") as caught:
        run(ROWS, data, output=output)

    assert "8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq" not in str(caught.value)
    assert not azure.names()


def test_an_upload_can_be_stopped(s3, tmp_path, monkeypatch):
    """Whoever stops a run does not wait for its uploads (R205)."""
    held, asked = threading.Event(), threading.Event()

    def hang(_store, _source, _url):
        asked.set()
        held.wait(30)

    def look():
        if asked.is_set():
            raise KeyboardInterrupt

    monkeypatch.setattr(upload._Store, "put", hang)
    remote = RemoteFolder.of(output_in(s3))
    with pytest.raises(KeyboardInterrupt):
        remote.upload(tmp_path, [str(n) for n in range(100)], look)
    held.set()
    assert not s3.names()


def test_a_failed_upload_keeps_everything(run, data, s3, monkeypatch, tmp_path):
    """A failed upload is an OutputError; the next sitting only uploads (R201)."""
    monkeypatch.setattr(upload._Store, "put", refuse)
    folder = tmp_path / "runs" / "one"

    with pytest.raises(OutputError, match=r"(?s)could not be uploaded.*run the step again"):
        run(ROWS, data, output=output_in(s3), run_folder=folder)

    assert s3.names() == []
    monkeypatch.undo()
    result = run(ROWS, data, output=output_in(s3), run_folder=folder)
    assert result.reused
    assert s3.read("out/parallel_run_step.txt") == b"0\n1\n2\n3\n4\n5\n"


def refuse(_store, _source, url):
    raise upload.DatasetError(f"{url} cannot be written: the storage is full")


def test_a_killed_upload_of_files_goes_on(run, data, s3, monkeypatch, tmp_path):
    """summary_only: files of a failed upload are whole or not there; the next sitting uploads all."""
    put = upload._Store.put
    written = []

    def some(store, source, url):
        if len(written) >= 3:
            refuse(store, source, url)
        written.append(url)
        put(store, source, url)

    monkeypatch.setattr(upload, "_AT_ONCE", 1)
    monkeypatch.setattr(upload._Store, "put", some)
    folder = tmp_path / "runs" / "one"
    settings = {"output": output_in(s3), "output_action": "summary_only", "run_folder": folder}

    with pytest.raises(OutputError, match="could not be uploaded"):
        run(FILES, data, **settings)

    assert len(s3.names()) == 3
    monkeypatch.undo()
    assert run(FILES, data, **settings).reused
    assert s3.names() == [f"out/{n}/{n}.txt" for n in range(6)]


def test_intact_only_while_the_object_is_as_it_was(run, data, store, tmp_path):
    """A result holds while its object is there with the same content; else it is uploaded again."""
    folder = tmp_path / "runs" / "one"
    run(ROWS, data, output=output_in(store), run_folder=folder)
    remote = RemoteFolder.of(output_in(store))
    key = "out/parallel_run_step.txt"
    assert reuse.is_intact(folder, remote)

    store.put(key, "5\n4\n3\n2\n1\n0\n")
    assert not reuse.is_intact(folder, remote)
    result = run(ROWS, data, output=output_in(store), run_folder=folder)
    assert result.reused
    assert store.read(key) == b"0\n1\n2\n3\n4\n5\n"
    assert reuse.is_intact(folder, remote)

    store.delete(key)
    assert not reuse.is_intact(folder, remote)


def test_nothing_is_uploaded_twice(run, data, s3, tmp_path, monkeypatch):
    """A completed run whose object is as it was uploads nothing when it is gone on with."""
    folder = tmp_path / "runs" / "one"
    run(ROWS, data, output=output_in(s3), run_folder=folder)
    monkeypatch.setattr(upload._Store, "put", refuse)

    assert run(ROWS, data, output=output_in(s3), run_folder=folder).reused


def test_a_large_file_appears_in_one_step(s3, tmp_path):
    """While a file is uploaded in parts, readers see the earlier one, and then the whole (R50)."""
    size = 120 << 20
    with (tmp_path / "big").open("wb") as file:
        file.truncate(size)
    s3.put("out/big", "earlier")
    remote = RemoteFolder.of(output_in(s3))
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            seen.add(s3.client.head_object(Bucket=s3.name, Key="out/big")["ContentLength"])

    reader = threading.Thread(target=look)
    reader.start()
    try:
        remote.upload(tmp_path, ["big"], look=lambda: None)
    finally:
        done.set()
        reader.join()

    assert seen | {size} == {len("earlier"), size}
    assert s3.client.head_object(Bucket=s3.name, Key="out/big")["ContentLength"] == size
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=s3.name)


def test_a_storage_with_folders_and_names(tmp_path):
    """Where a file shows while it is written, it is written under another name first (R50)."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("A")
    output = OutputFileDatasetConfig(destination=f"memory://test-{os.getpid()}/out")
    remote = RemoteFolder.of(output)

    remote.check("probe")
    states = remote.upload(tmp_path, ["sub/a.txt"], look=lambda: None)

    files = output.storage.filesystem()
    assert files.find(remote.url) == [f"/test-{os.getpid()}/out/sub/a.txt"]
    assert files.cat_file(remote.url_of("sub/a.txt")) == b"A"
    assert remote.states(["sub/a.txt"]) == states


def test_a_web_server_takes_no_output(run, data, http_server):
    """A storage that cannot be written to is refused before any worker starts."""
    output = OutputFileDatasetConfig(destination=f"{http_server.url}/out")

    with pytest.raises(ConfigError, match="output="):
        run(ROWS, data, output=output)


def test_without_the_local_copy(run, data, s3, tmp_path, monkeypatch):
    """Once the run's own copy is gone, the result is read from the store (R231)."""
    s3.open_by_environment(monkeypatch)
    output = OutputFileDatasetConfig(destination=f"{s3.url}/out")
    result = run(ROWS, data, output=output)
    (RunPaths(tmp_path / "x").root.parent / result.run_directory / "output").rename(
        tmp_path / "away"
    )

    assert result.to_pandas()[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert result.as_input("rows").to_path() == f"{s3.url}/out/parallel_run_step.txt"
    s3.delete("out/parallel_run_step.txt")
    with pytest.raises(OutputError, match="is gone"):
        result.to_pandas()


def test_a_later_step_reads_the_output(run, data, store):
    """`OutputFileDatasetConfig.as_input` opens what is there, with what opened it for writing."""
    output = output_in(store)
    run(FILES, data, output=output, output_action="summary_only")

    result = run(ROWS, [output.as_input("scored")])

    with open(result.append_row_file) as file:
        assert file.read().splitlines() == [f"scored {n}" for n in range(6)]


def test_no_option_in_the_run_folder(run, data, s3, tmp_path):
    """Inline options are nowhere in the run folder; to go on without the flow needs a block (R78)."""
    folder = tmp_path / "runs" / "one"
    run(ROWS, data, output=output_in(s3), run_folder=folder)

    secret = s3.storage_options["secret"].encode()
    for path in folder.rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes(), path
    assert RunRecord.read(RunPaths(folder)).completed


def test_the_definition_says_that_options_are_missing(s3, tmp_path):
    """A step that was written down without its options says so when they are needed (R78)."""
    from prefect_parallelrun.config import ParallelRunConfig
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.run_record import keep_definition, kept_definition

    (tmp_path / "score.py").write_text("def run(mini_batch): return mini_batch")
    options = dict(s3.storage_options)
    definition = StepDefinition(
        name="test-step",
        config=ParallelRunConfig(str(tmp_path / "score.py")),
        inputs=(FileDataset.from_files(f"{s3.url}/in", storage_options=options),),
        output=OutputFileDatasetConfig(destination=f"{s3.url}/out", credentials="s3-credentials/a"),
    )

    keep_definition(RunPaths(tmp_path), definition)

    assert s3.storage_options["secret"].encode() not in RunPaths(tmp_path).definition.read_bytes()
    again = kept_definition(RunPaths(tmp_path))
    assert again.output.storage.credentials == "s3-credentials/a"
    assert definition.inputs[0].storage.options == options
    with pytest.raises(ConfigError, match=r"storage_options.*credentials block"):
        again.list_inputs()


def test_what_another_run_put_there_is_not_ours(run, data, store, tmp_path, monkeypatch):
    """An object that another run wrote between an upload and the look at it is an error, never noted (R50)."""
    folder = tmp_path / "runs" / "one"
    theirs = b"A\nB\nC\nD\nE\nF\n"  # as long as ours
    put = upload._Store.put

    def overtaken(self, source, name):
        put(self, source, name)
        store.put(f"out/{name}", theirs)

    monkeypatch.setattr(upload._Store, "put", overtaken)
    with pytest.raises(OutputError, match=r"(?s)parallel_run_step.txt was replaced.*another run"):
        run(ROWS, data, output=output_in(store), run_folder=folder)
    assert not reuse.is_intact(folder, RemoteFolder.of(output_in(store)))

    monkeypatch.undo()
    assert run(ROWS, data, output=output_in(store), run_folder=folder).reused
    assert store.read("out/parallel_run_step.txt") == b"0\n1\n2\n3\n4\n5\n"


@pytest.mark.parametrize(
    ("storage", "size"), [("s3", 0), ("s3", 7), ("s3", 120 << 20), ("azure", 0), ("azure", 7)]
)
def test_what_was_written_is_known_again(request, tmp_path, monkeypatch, storage, size):
    """By the storage's digest, also of parts; where it tells none, as with keys of KMS, by reading it back."""
    store = request.getfixturevalue(storage)
    with (tmp_path / "some").open("wb") as file:
        file.write(b"other"[:size])
        file.truncate(size)
    remote = RemoteFolder.of(output_in(store))
    read = []
    holds = upload._Store._holds
    monkeypatch.setattr(upload._Store, "_holds", lambda *of: read.append(of) is None and holds(*of))

    states = remote.upload(tmp_path, ["some"], look=lambda: None)

    assert remote.states(["some"]) == states
    assert not read
    monkeypatch.setattr(upload.content, "is_shown", lambda _info, _file: False)
    assert remote.upload(tmp_path, ["some"], look=lambda: None).keys() == {"some"}
    assert read


def test_a_later_sitting_uploads_what_is_missing(store, tmp_path, monkeypatch):
    """What is there with the same content is left as it is; what differs is written."""
    names = [f"{n}.txt" for n in range(4)]
    for name in names:
        (tmp_path / name).write_text(name)
    remote = RemoteFolder.of(output_in(store))
    remote.upload(tmp_path, names[:2], look=lambda: None)
    store.put("out/1.txt", "other")
    put, written = upload._Store.put, []

    def noted(self, source, name):
        written.append(name)
        put(self, source, name)

    monkeypatch.setattr(upload._Store, "put", noted)
    remote.upload(tmp_path, names, look=lambda: None)

    assert sorted(written) == ["1.txt", "2.txt", "3.txt"]
    assert [store.read(f"out/{name}").decode() for name in names] == names


def test_odd_names(store, tmp_path):
    """Files keep their names, whatever these would mean within a URL."""
    names = ["e::f.txt", "m[1].pkl", "a*b", "a?b", "a#b", "a%20b", "ä ü ", "sub/?q", "sub/.hidden"]
    for name in names:
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    remote = RemoteFolder.of(output_in(store))

    for wanted in (names, names[:1], names[2:3]):
        states = remote.upload(tmp_path, wanted, look=lambda: None)
        assert remote.states(wanted) == states

    assert store.names() == sorted(f"out/{name}" for name in names)
    assert all(store.read(f"out/{name}").decode() == name for name in names)


@pytest.mark.parametrize(
    ("storage", "name"),
    [
        ("s3", "new\nline"),
        ("s3", "q?versionId=1"),
        ("azure", "q?versionid=1"),
        ("azure", "back\\slash"),
        ("azure", "new\nline"),
    ],
)
def test_names_that_a_storage_cannot_keep(request, tmp_path, storage, name):
    """A file that could not be found again is refused, before anything is written, with what to do."""
    store = request.getfixturevalue(storage)
    for one in (name, "fine"):
        (tmp_path / one).write_text("1")

    with pytest.raises(
        OutputError, match=r"(?s)cannot be the name.*rename it in the script"
    ) as caught:
        RemoteFolder.of(output_in(store)).upload(tmp_path, ["fine", name], look=lambda: None)

    assert repr(name) in str(caught.value)
    assert store.names() == []


@pytest.mark.timed
def test_a_storage_that_does_not_answer(run, data, tmp_path):
    """It is asked for about ten seconds before anything runs; the error says how often (R50)."""
    output = OutputFileDatasetConfig(destination="http://127.0.0.1:9/out")
    began = time.monotonic()

    with pytest.raises(ConfigError, match=r"output=.*tried \d+ times in \d+ s"):
        run(ROWS, data, output=output)

    assert time.monotonic() - began < 20, "took longer"


@pytest.mark.parametrize("archive", ["nobucket/x.zip", "BUCKET/none.zip", "BUCKET/broken.zip"])
def test_archives_that_cannot_be_opened(run, data, s3, archive):
    """An archive that is not there, or is none, is our error that names the URL, as output and as input."""
    s3.put("broken.zip", "no archive")
    url = f"zip://a::s3://{archive.replace('BUCKET', s3.name)}"

    with pytest.raises(ConfigError, match="output="):
        run(
            ROWS,
            data,
            output=OutputFileDatasetConfig(destination=url, storage_options=s3.storage_options),
        )
    with pytest.raises(DatasetError, match=r"zip://a::s3://.*(cannot be read|is not there)"):
        FileDataset.from_files(url, storage_options=s3.storage_options).list_files()


def test_half_of_the_copy_is_gone(run, data, s3, monkeypatch):
    """A copy that is not whole is not taken for the output: the remote one is (R231)."""
    s3.open_by_environment(monkeypatch)
    output = OutputFileDatasetConfig(destination=f"{s3.url}/out")
    result = run(FILES, data, output=output, output_action="summary_only")
    assert result.as_input("scored").to_path() == result.as_argument()
    (Path(result.run_directory) / "output" / "3" / "3.txt").unlink()

    found = result.as_input("scored").list_files()

    assert [file.path for file in found] == [f"{s3.url}/out/{n}/{n}.txt" for n in range(6)]
    assert result.as_argument().to_path() == f"{s3.url}/out"


def test_options_that_were_not_kept(run, data, s3):
    """Where the copy is gone and the options were given inline, the error says what is missing (R78)."""
    result = run(ROWS, data, output=output_in(s3))
    (Path(result.run_directory) / "output" / "parallel_run_step.txt").unlink()

    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of other tests
    with pytest.raises(OutputError, match=r"(?s)cannot be read.*credentials block") as caught:
        result.to_pandas()

    assert "is gone" not in str(caught.value)
