"""Side inputs on the nodes: fetched once per host, at the path that the script is to find them (R74-R77)."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.errors import ConfigError, DatasetError

READ_ALL = """
    import os, sys
    def run(mini_batch):
        folder = sys.argv[sys.argv.index("--labels") + 1]
        found = []
        for parent, _, names in os.walk(folder):
            found += [os.path.relpath(os.path.join(parent, name), folder) for name in names]
        texts = [f"{name}={open(os.path.join(folder, name)).read()}" for name in sorted(found)]
        return [f"{folder} {' '.join(texts)}" for _ in mini_batch]
"""


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """After each test, no file of a node is left."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [path.name for path in folder.glob("parallelrun-*")] == []


@pytest.fixture
def items(tmp_path):
    """A small input."""
    folder = tmp_path / "items"
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.txt").write_text(str(n))
    return [FileDataset.from_files(folder)]


@pytest.fixture
def labels(tmp_path):
    """A local folder of labels."""
    folder = tmp_path / "labels"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text("A")
    (folder / "more" / "b.txt").write_text("B")
    return folder


def rows_of(result):
    return Path(result.append_row_file).read_text().splitlines()


def test_fetched_once_for_all_nodes_of_a_host(http_server, run, items, tmp_path):
    """A remote folder is fetched once for two nodes of a host, with its folders (R74, R231)."""
    # Each waits for the other: a node that has done all there is before the other begins takes with it what
    # it fetched.
    met = tmp_path / "met"
    met.mkdir()
    script = textwrap.dedent(READ_ALL) + textwrap.dedent(f"""
        import os, pathlib, time
        read_all, met = run, pathlib.Path({str(met)!r})
        def run(mini_batch):
            (met / str(os.getpid())).touch()
            while len(list(met.iterdir())) < 2:
                time.sleep(0.01)
            return read_all(mini_batch)
    """)
    http_server.put("labels/a.txt", "A")
    http_server.put("labels/more/b.txt", "B")
    side = FileDataset.from_files(f"{http_server.url}/labels/").as_named_input("labels").as_mount()
    result = run(
        script, items, side_inputs=(side,), arguments=("--labels", side), node_count=2,
        mini_batch_size=1, process_count_per_node=1,
    )  # fmt: skip
    rows = rows_of(result)
    assert {row.partition(" ")[2] for row in rows} == {"a.txt=A more/b.txt=B"}
    assert len(list(met.iterdir())) == 2
    assert http_server.sent["labels/a.txt"] == 1


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_from_object_stores_at_a_path_of_ones_own(kind, request, run, items, tmp_path):
    """The script finds it at the path that was given, which is gone after the run (R75)."""
    place = request.getfixturevalue(kind)
    place.put("labels/a.txt", "A")
    wanted = tmp_path / "made" / "for" / "labels"
    side = FileDataset.from_files(
        f"{place.url}/labels", storage_options=place.storage_options
    ).as_download(str(wanted))
    result = run(READ_ALL, items, side_inputs=(side,), arguments=("--labels", side), node_count=2)
    assert set(rows_of(result)) == {f"{wanted} a.txt=A"}
    assert not (tmp_path / "made").exists()


def test_local_files_at_a_path_of_ones_own_are_not_copied(run, items, labels, tmp_path):
    """`as_mount(path)` of a local folder gives it another name; an empty folder there stays (R75)."""
    wanted = tmp_path / "mnt"
    wanted.mkdir()
    side = FileDataset.from_files(labels).as_mount(wanted)
    script = """
        import os, sys
        def run(mini_batch):
            return [f"{sys.argv[2]} {os.path.realpath(sys.argv[2])}" for _ in mini_batch]
    """
    result = run(script, items, side_inputs=(side,), arguments=("--labels", side))
    assert set(rows_of(result)) == {f"{wanted} {labels}"}
    assert wanted.is_dir()
    assert not wanted.is_symlink()
    assert (labels / "a.txt").read_text() == "A"


def test_files_of_like_names_and_of_archives(s3, run, items):
    """Files that a disk would mix up are kept apart, and those of an archive keep their names (R74, R231)."""
    for name in ("a", "a/x.txt", "a//x.txt"):
        s3.put(f"labels/{name}", f"<{name}>")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("in/more/b.txt", "B")
    s3.put("x.zip", archive.getvalue())
    for url, texts in (
        (f"{s3.url}/labels", "0/a=<a> 1/a/x.txt=<a//x.txt> 2/a/x.txt=<a/x.txt>"),
        (f"zip://in::{s3.url}/x.zip", "more/b.txt=B"),
    ):
        side = FileDataset.from_files(url, storage_options=s3.storage_options)
        result = run(READ_ALL, items, side_inputs=(side,), arguments=("--labels", side))
        assert {row.partition(" ")[2] for row in rows_of(result)} == {texts}


def test_a_file_at_a_path_of_its_own(http_server, run, items, tmp_path):
    """A single file is at the path itself, also within a longer argument (R75, R76)."""
    url = http_server.put("model.bin", "weights")
    side = FileDataset.from_files(url).as_mount(tmp_path / "models" / "m.bin")
    script = """
        import sys
        def run(mini_batch):
            return [open(sys.argv[2]).read() + " " + sys.argv[2] for _ in mini_batch]
    """
    result = run(script, items, arguments=("--model", side))
    assert set(rows_of(result)) == {f"weights {tmp_path}/models/m.bin"}


def test_a_relative_path_is_in_the_nodes_folder(labels, run, items, nothing_is_left):
    """A relative path is one below the node's private folder, the same for its processes (R75)."""
    side = FileDataset.from_files(labels).as_download("data/labels")
    result = run(READ_ALL, items, side_inputs=(side,), arguments=("--labels", side), node_count=2)
    for row in rows_of(result):
        folder, _, texts = row.partition(" ")
        assert folder.startswith(str(nothing_is_left))
        assert folder.endswith("/data/labels")
        assert texts == "a.txt=A more/b.txt=B"


def test_what_is_there_already_is_not_replaced(run, items, labels, tmp_path):
    """Something else at the wanted path is left alone, and the run says so at once (R75)."""
    wanted = tmp_path / "mnt"
    wanted.mkdir()
    (wanted / "mine").write_text("mine")
    side = FileDataset.from_files(labels).as_mount(wanted)
    with pytest.raises(DatasetError, match=f"{wanted} is there already") as caught:
        run(READ_ALL, items, side_inputs=(side,), arguments=("--labels", side))
    assert "node000" in str(caught.value)
    assert (wanted / "mine").read_text() == "mine"


def test_a_link_of_a_dead_run_is_replaced(run, items, labels, tmp_path, nothing_is_left):
    """What a killed run has left at the wanted path, and its folder, are cleared away (R75)."""
    dead = nothing_is_left / "parallelrun-dead-data"
    (dead / "links").mkdir(parents=True)
    (dead / "lock").write_text(
        "parallelrun-dead-data of prefect-parallelrun, removed when no node of the run is left\n"
    )
    (dead / "0").symlink_to(labels)
    wanted = tmp_path / "mnt"
    wanted.symlink_to(dead / "0")
    note = {"path": str(wanted), "place": str(dead / "0"), "made": [], "was_folder": False}
    (dead / "links" / "0.json").write_text(json.dumps(note))
    side = FileDataset.from_files(labels).as_mount(wanted)
    result = run(READ_ALL, items, side_inputs=(side,), arguments=("--labels", side))
    assert set(rows_of(result)) == {f"{wanted} a.txt=A more/b.txt=B"}
    assert not os.path.lexists(wanted)


def test_folders_of_the_user_are_left_alone(http_server, run, items, tmp_path, nothing_is_left):
    """Whatever a folder is called: what is not marked as a run's is neither removed nor emptied (R74)."""
    mine = [
        nothing_is_left / "parallelrun-demo-data",
        tmp_path / "disk" / "parallelrun-demo-data" / "labels",
    ]
    for folder in mine:
        folder.mkdir(parents=True)
        (folder / "precious.txt").write_text("x")
    wanted = tmp_path / "mnt"
    wanted.symlink_to(mine[1])
    url = http_server.put("labels/a.txt", "A")
    side = FileDataset.from_files(url).as_mount(wanted)
    with pytest.raises(DatasetError, match=f"{wanted} is a link to .* made by somebody else"):
        run(READ_ALL, items, side_inputs=(side,), arguments=("--labels", side))
    assert wanted.readlink() == mine[1]
    for folder in mine:
        assert [path.name for path in folder.iterdir()] == ["precious.txt"]
    shutil.rmtree(mine[0])


def test_at_its_own_path(run, items, labels, tmp_path):
    """A local folder that is to be where it is already, by whatever name, is done (R75)."""
    (tmp_path / "name").symlink_to(labels)
    for wanted in (labels, tmp_path / "name"):
        side = FileDataset.from_files(labels).as_mount(wanted)
        result = run(READ_ALL, items, side_inputs=(side,), arguments=("--labels", side))
        assert set(rows_of(result)) == {f"{wanted} a.txt=A more/b.txt=B"}
    assert (tmp_path / "name").readlink() == labels
    assert sorted(path.name for path in labels.iterdir()) == ["a.txt", "more"]


@pytest.mark.parametrize(
    ("first", "second"), [("m", "m"), ("m", "m/b"), ("m/b", "./m"), ("/mnt/m", "/mnt/m/b/c")]
)
def test_paths_within_each_other_are_refused(run, items, labels, first, second):
    """Two side inputs at one path, or one inside the other, are refused: nothing is put into them (R75)."""
    sides = tuple(FileDataset.from_files(labels).as_mount(path) for path in (first, second))
    with pytest.raises(ConfigError, match="none is, or is within, another"):
        run(READ_ALL, items, side_inputs=sides, arguments=("--labels", sides[0]))


def test_dask_workers_with_folders_of_their_own(http_server, run, items, tmp_path, two_workers):
    """Nodes of one host whose TMPDIR differ have the side input at the same path, until the last leaves (R75)."""
    http_server.put("labels/a.txt", "A")
    wanted = tmp_path / "made" / "labels"
    side = FileDataset.from_files(f"{http_server.url}/labels/").as_mount(wanted)
    script = """
        import os, sys, time
        from pathlib import Path
        def run(mini_batch):
            # Each node has begun before the first ends.
            Path(sys.argv[4], os.environ["TMPDIR"].replace("/", "-")).touch()
            end = time.monotonic() + 30
            while len(os.listdir(sys.argv[4])) < 2 and time.monotonic() < end:
                time.sleep(0.02)
            return [os.environ["TMPDIR"] + " " + Path(sys.argv[2], "a.txt").read_text() for _ in mini_batch]
    """
    (tmp_path / "seen").mkdir()
    result = run(
        script, items, side_inputs=(side,), compute_target=two_workers, node_count=2,
        arguments=("--labels", side, "--seen", tmp_path / "seen"),
        mini_batch_size=1, process_count_per_node=1,
    )  # fmt: skip
    assert set(rows_of(result)) == {f"{tmp_path}/tmp{n} A" for n in range(2)}
    assert not (tmp_path / "made").exists()
    assert list(tmp_path.glob("tmp[01]/parallelrun-*")) == []


@pytest.fixture
def two_workers(tmp_path):
    """The address of a Dask cluster of two workers, each with a TMPDIR of its own, as Slurm starts them."""
    import distributed

    with distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster:
        workers = []
        for n in range(2):
            folder = tmp_path / f"tmp{n}"
            folder.mkdir()
            command = [
                sys.executable,
                "-m",
                "distributed.cli.dask_worker",
                cluster.scheduler_address,
            ]
            command += ["--nthreads", "1", "--no-dashboard", "--no-nanny"]
            with (tmp_path / f"worker{n}.log").open("w") as log:
                environment = {**os.environ, "TMPDIR": str(folder)}
                workers.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        try:
            with distributed.Client(cluster) as client:
                client.wait_for_workers(2, timeout=30)
            yield cluster.scheduler_address
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait(20)


@pytest.mark.timed
def test_a_side_input_that_cannot_be_had_ends_the_run_soon(http_server, run, items):
    """A side input that is not there fails the run at once, naming URL and node (R206)."""
    http_server.put("labels/a.txt", "A")
    side = FileDataset.from_files(f"{http_server.url}/labels/")
    side.list_files()
    http_server.trouble("labels/a.txt", 404, times=None)
    began = time.monotonic()
    listed = Listed.of(side, f"{http_server.url}/labels/a.txt")
    with pytest.raises(DatasetError, match=r"node00\d .*labels/a\.txt is not there"):
        run(READ_ALL, items, side_inputs=(listed,), arguments=("--labels", listed), node_count=2)
    assert time.monotonic() - began < 20, "took longer"


class Listed(FileDataset):
    """A dataset that gives the listing it had when it was made, whatever has happened since."""

    @classmethod
    def of(cls, dataset, path):
        from prefect_parallelrun.datasets.dataset import FileItem

        listed = cls(dataset.paths, storage=dataset.storage)
        listed.__dict__["listing"] = [FileItem(path, 1, 0)]
        return listed

    def list_files(self):
        return self.listing


def test_inputs_have_no_path_of_their_own(run, items):
    """A target path on an input, and a staged input among the arguments, are refused (R77)."""
    with pytest.raises(ConfigError, match="for side inputs"):
        run(READ_ALL, [items[0].as_mount("/mnt/x")])
    staged = items[0].as_download()
    with pytest.raises(ConfigError, match="give it in side_inputs too"):
        run(READ_ALL, [staged], arguments=("--labels", staged))
    with pytest.raises(ConfigError, match=r"without '\.\.'"):
        run(READ_ALL, items, side_inputs=(items[0].as_mount("../x"),))


@pytest.mark.timed
def test_a_side_input_that_hangs_ends_the_run_at_the_limit(http_server, run, items):
    """A server that never answers is given up at --task_overhead_timeout, and the run with it (R205)."""
    http_server.put("labels/a.txt", "A")
    url = f"{http_server.url}/labels/a.txt"
    side = Listed.of(FileDataset.from_files(f"{http_server.url}/labels/"), url)
    http_server.trouble("labels/a.txt", "hang", times=None)
    began = time.monotonic()
    with pytest.raises(DatasetError, match=r"labels/a\.txt cannot be read"):
        run(
            READ_ALL, items, side_inputs=(side,),
            arguments=("--labels", side, "--task_overhead_timeout", "2"),
        )  # fmt: skip
    assert time.monotonic() - began < 20, "took longer"


def test_a_slow_side_input_is_waited_for_as_long_as_it_comes(
    http_server, run, items, monkeypatch, tmp_path
):
    """Fetching may take longer than a node may take to join, and than --first_task_creation_timeout (R205)."""
    from prefect_parallelrun.driver import contact
    from prefect_parallelrun.node import side_inputs, staging

    monkeypatch.setattr(contact, "JOIN_LIMIT_S", 1.0)
    monkeypatch.setattr(side_inputs, "TELL_S", 0.1)
    monkeypatch.setattr(staging, "THREADS", 1)
    for n in range(30):
        http_server.put(f"labels/{n}.txt", "A")
    real = http_server.next_trouble

    def slowly(path):
        if path.startswith("labels/") and path.endswith(".txt"):
            time.sleep(0.07)
        return real(path)

    monkeypatch.setattr(http_server, "next_trouble", slowly)
    side = FileDataset.from_files(f"{http_server.url}/labels/")
    began = time.monotonic()
    result = run(
        READ_ALL, items, side_inputs=(side,),
        arguments=(
            "--labels", side, "--first_task_creation_timeout", "1", "--task_overhead_timeout", "1",
        ),
    )  # fmt: skip
    assert time.monotonic() - began > 3
    assert result.items.succeeded == 4
    log = next(tmp_path.rglob("70_driver_log.txt")).read_text()
    assert "fetches side input" in log


def test_the_next_sitting_fetches_it_again(http_server, run, items, tmp_path):
    """A resumed run has its side inputs and inputs, and nothing of them is in the run folder (R201)."""
    http_server.put("labels/a.txt", "precious label")
    for n in range(3):
        http_server.put(f"in/{n}.txt", f"precious {n}")
    side = FileDataset.from_files(f"{http_server.url}/labels/")
    dataset = FileDataset.from_files(f"{http_server.url}/in/")
    script = """
        import os, sys
        def run(mini_batch):
            if mini_batch[0].endswith("1.txt") and not os.path.exists(sys.argv[4]):
                raise ValueError("not yet")
            assert open(sys.argv[2] + "/a.txt").read().endswith(" label")
            return [os.path.basename(path) for path in mini_batch]
    """
    folder, flag = tmp_path / "run", tmp_path / "flag"
    given = {
        "side_inputs": (side,), "arguments": ("--labels", side, "--flag", flag),
        "mini_batch_size": 1, "run_max_try": 1, "run_folder": folder,
    }  # fmt: skip
    with pytest.raises(Exception, match="not yet"):
        run(script, [dataset], **given)
    flag.touch()
    result = run(script, [dataset], **given)
    assert rows_of(result) == ["0.txt", "1.txt", "2.txt"]
    # The driver has a look at a byte, to see whether the server gives parts.
    assert http_server.sent["in/0.txt"] < 2 * len("precious 0")
    assert http_server.sent["labels/a.txt"] >= 2 * len("precious label")
    found = [
        path for path in folder.rglob("*") if path.is_file() and b"precious" in path.read_bytes()
    ]
    assert found == []


def test_debug_has_them_too(http_server, s3, tmp_path):
    """`debug()` fetches inputs and side inputs as nodes do, and leaves nothing behind (R76)."""
    from prefect_parallelrun.config import ParallelRunConfig
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.driver import inline

    http_server.put("labels/a.txt", "A")
    s3.put("in/0.txt", "0")
    s3.put("in/1.txt", "1")
    side = FileDataset.from_files(f"{http_server.url}/labels/")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "score.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "def run(mini_batch):\n"
        "    label = Path(sys.argv[2], 'a.txt').read_text()\n"
        "    return [label + Path(path).read_text() for path in mini_batch]\n"
    )
    definition = StepDefinition(
        name="test-step",
        config=ParallelRunConfig(
            "score.py", source_directory=str(tmp_path / "source"), mini_batch_size=1
        ),
        inputs=(FileDataset.from_files(f"{s3.url}/in", storage_options=s3.storage_options),),
        side_inputs=(side,),
        arguments=("--labels", side),
    )
    assert inline.debug(definition, mini_batches=2) == [["A0"], ["A1"]]


def test_no_secret_is_where_scripts_or_people_can_see_it(s3, run, items, tmp_path, caplog):
    """What opens a storage is in no log, no file of the run and no environment of a process (R78)."""
    s3.put("labels/a.txt", "A")
    s3.put("in/0.txt", "0")
    secret = "unguessable-secret"
    options = {**s3.storage_options, "secret": secret}
    script = """
        import os
        def run(mini_batch):
            with open("/proc/self/environ", "rb") as environ, open("/proc/self/cmdline", "rb") as line:
                seen = environ.read() + line.read()
            with open(f"/proc/{os.getppid()}/environ", "rb") as environ:
                seen += environ.read()
            return [seen.hex() for _ in mini_batch]
    """
    inputs = [FileDataset.from_files(f"{s3.url}/in", storage_options=options)]
    side = FileDataset.from_files(f"{s3.url}/labels", storage_options=options)
    with caplog.at_level("DEBUG"):
        result = run(script, inputs, side_inputs=(side,), arguments=("--labels", side))
    assert secret.encode() not in bytes.fromhex(rows_of(result)[0])
    assert secret not in "".join(
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("test", "distributed"))
    )
    for path in Path(result.run_directory).rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()
