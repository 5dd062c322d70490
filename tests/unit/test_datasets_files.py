"""FileDataset: what paths stand for, and what decides reuse."""

from __future__ import annotations

import glob
import os
import pickle
import subprocess
import sys

import pytest

from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig
from prefect_parallelrun.errors import ConfigError, DatasetError


def make_files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def listed(dataset, folder):
    return [os.path.relpath(item.path, folder) for item in dataset.list_files()]


def test_a_folder_gives_all_its_files_sorted(tmp_path):
    """A folder stands for every file in and below it, hidden ones too, sorted by path (R7)."""
    make_files(tmp_path, "b.txt", "a/z.txt", "a/.hidden", "c/d/e.txt")

    items = FileDataset.from_files(tmp_path).list_files()

    assert [os.path.relpath(item.path, tmp_path) for item in items] == [
        "a/.hidden",
        "a/z.txt",
        "b.txt",
        "c/d/e.txt",
    ]
    assert all(os.path.isabs(item.path) for item in items)
    assert [item.size for item in items] == [9, 7, 5, 9]
    assert all(item.modified_ns == os.stat(item.path).st_mtime_ns for item in items)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]),
        ("sub/*", ["sub/c.txt", "sub/x.bin"]),
        ("[a]*.txt", ["a.txt"]),
    ],
)
def test_a_glob_gives_the_files_it_matches(tmp_path, pattern, expected):
    """A glob stands for the files that it matches, `**` for any depth; a folder that matches is no file."""
    make_files(tmp_path, "a.txt", "b.txt", "sub/c.txt", "sub/x.bin", "sub/deep/d.txt")

    assert listed(FileDataset.from_files(str(tmp_path / pattern)), tmp_path) == expected


def test_overlapping_paths_give_each_file_once(tmp_path):
    """A file that several paths stand for is one item."""
    make_files(tmp_path, "a.txt", "b.txt")

    dataset = FileDataset.from_files([tmp_path / "b.txt", tmp_path, str(tmp_path / "*.txt")])

    assert listed(dataset, tmp_path) == ["a.txt", "b.txt"]


def test_a_name_that_looks_like_a_pattern_is_taken_as_it_is(tmp_path):
    """A path that exists is itself, though it holds characters of patterns."""
    make_files(tmp_path, "data[1]/a.txt", "data1/b.txt")

    assert listed(FileDataset.from_files(tmp_path / "data[1]"), tmp_path) == ["data[1]/a.txt"]


def test_relative_home_and_url_paths(tmp_path, monkeypatch):
    """Relative paths are relative to the working directory of now; `~` and `file://` are understood."""
    make_files(tmp_path, "a b.txt")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    relative = FileDataset.from_files("a b.txt")
    monkeypatch.chdir("/")

    for dataset in (
        relative,
        FileDataset.from_files("~/a b.txt"),
        FileDataset.from_files((tmp_path / "a b.txt").as_uri()),
    ):
        assert [item.path for item in dataset.list_files()] == [str(tmp_path / "a b.txt")]


def test_links_are_followed_once(tmp_path):
    """Links to files and folders are followed, keep their names, and a link in a circle ends."""
    make_files(tmp_path, "real/a.txt")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "real")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "b.txt").symlink_to(tmp_path / "real" / "a.txt")

    assert listed(FileDataset.from_files(tmp_path / "linked"), tmp_path) == ["linked/a.txt"]
    assert listed(FileDataset.from_files(tmp_path / "b.txt"), tmp_path) == ["b.txt"]


def test_a_glob_goes_round_no_circle(tmp_path):
    """`**` finds a file once, not once for each time round a link to a folder above (and two links end, too)."""
    make_files(tmp_path, "in/a.txt", "in/sub/b.txt", "in/.hidden/c.txt")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "linked").symlink_to(tmp_path / "in" / "sub")

    def found(pattern):
        return listed(FileDataset.from_files(str(tmp_path / pattern)), tmp_path)

    assert found("in/**/*.txt") == found("in/**") == ["in/a.txt", "in/sub/b.txt"]
    assert found("i*/**/sub/**/*") == ["in/sub/b.txt", "in/sub/up/a.txt"]
    assert found("in/**/**/a.txt") == ["in/a.txt"]
    assert found("in/sub/**") == ["in/sub/b.txt", "in/sub/up/a.txt"]
    assert found("linked/**/b.txt") == ["linked/b.txt"]


def test_a_folder_whose_name_looks_like_a_pattern_is_pointed_out(tmp_path):
    """A glob below `run[1]` matches nothing; the error says how to name that folder."""
    make_files(tmp_path, "run[1]/a.txt")
    folder = str(tmp_path / "run[1]")

    with pytest.raises(DatasetError, match="matches no file") as caught:
        FileDataset.from_files(f"{folder}/*.txt").list_files()

    assert f"glob.escape({folder!r})" in str(caught.value)
    escaped = FileDataset.from_files(f"{glob.escape(folder)}/*.txt")
    assert listed(escaped, tmp_path) == ["run[1]/a.txt"]


@pytest.mark.parametrize("wanted", ["missing.txt", "missing/*.txt", "empty", "*.png", "broken"])
def test_nothing_there_is_refused_by_name(tmp_path, wanted):
    """A missing path, an empty folder or glob, and a link to nowhere are errors that name the path."""
    make_files(tmp_path, "a.txt")
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    dataset = FileDataset.from_files([tmp_path / "a.txt", tmp_path / wanted])

    with pytest.raises(DatasetError, match=str(tmp_path / wanted).replace("*", r"\*")):
        dataset.list_files()


def test_listing_is_fresh_each_time(tmp_path):
    """A dataset names places, not files: each listing shows what is there now."""
    make_files(tmp_path, "a.txt")
    dataset = FileDataset.from_files(tmp_path)
    assert listed(dataset, tmp_path) == ["a.txt"]

    make_files(tmp_path, "b.txt")

    assert listed(dataset, tmp_path) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("paths", [[], "", 3, None, [None], b"x", "file://other/x"])
def test_paths_of_the_wrong_kind_are_refused_at_once(paths):
    """What is neither a path nor a URL is refused when the dataset is made."""
    with pytest.raises(ConfigError, match="paths="):
        FileDataset.from_files(paths)


@pytest.mark.parametrize("parameter", ["storage_options", "credentials"])
def test_what_opens_no_storage_is_refused_without_its_value(parameter):
    """A value of the wrong kind, perhaps a secret, is not shown (R78)."""
    with pytest.raises(ConfigError, match=f"{parameter} cannot be used") as caught:
        FileDataset.from_files("s3://bucket/x", **{parameter: "hush"})

    assert "hush" not in str(caught.value)


def test_names_and_modes_give_copies(tmp_path):
    """Naming or mounting a dataset leaves it as it was; it cannot be changed."""
    dataset = FileDataset.from_files(tmp_path)

    named = dataset.as_named_input("labels-1_b").as_mount().as_download()

    assert (dataset.name, named.name) == (None, "labels-1_b")
    assert named.to_path() == dataset.to_path() == str(tmp_path)
    with pytest.raises(AttributeError, match="does not change"):
        named.name = "other"
    for bad in ("", "a b", "ä", None):
        with pytest.raises(ConfigError, match="name="):
            dataset.as_named_input(bad)
    assert dataset.as_mount("/data").target_path == "/data"
    with pytest.raises(ConfigError, match=r"as_mount\(path\)='s3://b/x' cannot be used"):
        dataset.as_mount("s3://b/x")


def test_to_path_is_the_file_or_the_fixed_folder(tmp_path):
    """As a side input a file is that file; a folder or a glob is the folder that all is in (R74)."""
    make_files(tmp_path, "in/a.txt", "in/sub/b.txt")

    def path_of(paths):
        return FileDataset.from_files(paths).to_path()

    assert path_of(tmp_path / "in" / "a.txt") == str(tmp_path / "in" / "a.txt")
    assert path_of(tmp_path / "in") == str(tmp_path / "in")
    assert path_of(str(tmp_path / "in" / "*" / "*.txt")) == str(tmp_path / "in")
    assert path_of([tmp_path / "in" / "a.txt", tmp_path / "in" / "sub"]) == str(tmp_path / "in")


def test_the_fingerprint_follows_time_or_content(tmp_path):
    """A touched file counts as changed, unless content decides; a changed one counts in both cases."""
    make_files(tmp_path, "a.txt")
    by_time = FileDataset.from_files(tmp_path)
    by_content = FileDataset.from_files(tmp_path, content=True)

    def prints():
        return [list(d.fingerprint_parts(d.list_files())) for d in (by_time, by_content)]

    before = prints()
    assert prints() == before
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    touched = prints()
    assert touched[0] != before[0]
    assert touched[1] == before[1]
    (tmp_path / "a.txt").write_text("A.txt")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    changed = prints()
    assert changed[0] == touched[0]
    assert changed[1] != touched[1]


def test_a_dataset_survives_pickling(tmp_path):
    """A dataset may cross to another process."""
    make_files(tmp_path, "a.txt")
    dataset = FileDataset.from_files(tmp_path).as_named_input("x")

    copy = pickle.loads(pickle.dumps(dataset))

    assert (copy.name, copy.list_files()) == ("x", dataset.list_files())
    assert repr(copy) == repr(dataset)


def test_an_output_is_an_input_of_a_later_step(tmp_path):
    """An output with a destination is a dataset of what will be there; without one nobody knows where."""
    output = OutputFileDatasetConfig("scores", tmp_path / "out")
    dataset = output.as_input("scored")
    make_files(tmp_path, "out/rows.txt")

    assert (output.name, output.destination) == ("scores", str(tmp_path / "out"))
    assert dataset.name == "scored"
    assert listed(dataset, tmp_path) == ["out/rows.txt"]
    with pytest.raises(ConfigError, match="destination"):
        OutputFileDatasetConfig().as_input("x")
    assert OutputFileDatasetConfig(destination="s3://b/out").as_input().to_path() == "s3://b/out"
    with pytest.raises(ConfigError, match="destination="):
        OutputFileDatasetConfig(destination="")


def test_datasets_import_neither_prefect_nor_pandas():
    """Describing data costs no import of prefect, dask, pandas or Arrow."""
    code = (
        "import sys; from prefect_parallelrun.datasets import TabularDataset, FileDataset;"
        "TabularDataset.from_delimited_files('x.csv', column_types={'a': int});"
        "print([m for m in ('prefect','dask','distributed','pandas','numpy','pyarrow') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
