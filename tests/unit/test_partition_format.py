"""`partition_format` and `partition_keys`: what paths say, and how it makes mini-batches (R102)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset, TabularDataset
from prefect_parallelrun.datasets.partitions import parse_format
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import ConfigError, DatasetError
from prefect_parallelrun.pipeline_parameter import PipelineParameter
from prefect_parallelrun.planning import make_plan

WORDS = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8
)


@pytest.mark.parametrize(
    ("text", "path", "values"),
    [
        (
            ".../{user}/{season}/{genres}.wav",
            "/music/ann/winter/jazz.wav",
            {"user": "ann", "season": "winter", "genres": "jazz"},
        ),
        (
            "/{Department}/{date:yyyy/MM/dd}/data.jsonl",
            "/x/Accounts/2019/03/01/data.jsonl",
            {"Department": "Accounts", "date": "2019-03-01T00:00:00"},
        ),
        ("{user}/*.csv", "s3://bucket/songs/ann/1.csv", {"user": "ann"}),
        ("{user}/*.csv", "zip://songs/ann/1.csv::s3://b/c.zip", {"user": "ann"}),
        ("{user}/*.csv", "simplecache::s3://b/ann/1.csv", {"user": "ann"}),
        ("{user}/{song}.csv", "https://h/ann%20b/1.csv?v=a/b.csv", {"user": "ann b", "song": "1"}),
        ("{user}/{song}", "s3://b/ann%20b/1?v=1", {"user": "ann%20b", "song": "1?v=1"}),
        ("{user}/{song}", "/b/x::y/1?v=%20", {"user": "x::y", "song": "1?v=%20"}),
        ("part-{n}.*", "/a/b/part-7.parquet", {"n": "7"}),
        ("{file}.{extension}", "/a/b.tar.gz", {"file": "b", "extension": "tar.gz"}),
        (
            "{at:dd-MM-yyyy_HH-mm-ss}.log",
            "/a/31-12-1999_23-59-58.log",
            {"at": "1999-12-31T23:59:58"},
        ),
        ("{year:yyyy}/x", "/2024/x", {"year": "2024-01-01T00:00:00"}),
        ("Kaffee (süß)/{a b}+.csv", "/d/Kaffee (süß)/ö\n+.csv", {"a b": "ö\n"}),
    ],
)
def test_what_a_path_says(text, path, values):
    """R102: a format describes the end of the path: names, dates, `*`, and text as it stands."""
    assert parse_format(text).values(path) == values


@settings(max_examples=100, deadline=None)
@given(values=st.lists(WORDS, min_size=1, max_size=4), above=st.lists(WORDS, max_size=3))
def test_whole_folder_names_come_back_as_they_are(values, above):
    """R102: whatever a folder is called, its name is the value."""
    names = [f"k{place}" for place in range(len(values))]
    path = "/" + "/".join([*above, *values, "file"])

    found = parse_format("/".join(f"{{{name}}}" for name in names) + "/file").values(path)

    assert found == dict(zip(names, values, strict=True))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("data/*.csv", "no placeholder"),
        ("", "no placeholder"),
        ("{a}/{a}.csv", "'a' is there twice"),
        ("{a}{b}.csv", "text before '{b}'"),
        ("{a}*.csv", "text before '*'"),
        ("{}/x", "needs a name"),
        ("{a/b}", "needs a name"),
        ("{a/x", "no counterpart"),
        ("a}/x", "no counterpart"),
        ("**/{a}", "no \\*\\*"),
        ("{a}//x", "two slashes"),
        ("{a}/", "two slashes side by side, or one at its end"),
        ("{d:yyyy/MMM}", "no date"),
        ("{d:yyyy/yyyy}", "no date"),
        ("{d:}", "no date"),
        ("{d:day}", "no date"),
        ("{d:yyyy/dd}", "gaps"),
        ("{d:HH}", "gaps"),
    ],
)
def test_what_cannot_be_a_format(text, why):
    """R102: a format that cannot be one is refused at once, for files and for tables, and says why."""
    with pytest.raises(ConfigError, match=f"partition_format=.*{why}"):
        FileDataset.from_files("x", partition_format=text)
    for make in (
        TabularDataset.from_delimited_files,
        TabularDataset.from_json_lines_files,
        TabularDataset.from_parquet_files,
    ):
        with pytest.raises(ConfigError, match=f"partition_format=.*{why}"):
            make("x", partition_format=text)
    with pytest.raises(ConfigError, match="partition_format=7"):
        FileDataset.from_files("x", partition_format=7)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("{user}/{season}/x.wav", "/x.wav"),
        ("{user}/x.wav", "/ann/x.wave"),
        ("{user}/x.wav", "/ann/1/y.wav"),
        ("{d:yyyy/MM/dd}/x", "/2020/13/01/x"),
        ("{d:yyyy/MM/dd}/x", "/2021/02/29/x"),
        ("{d:yyyy/MM}/x", "/2021/2/x"),
        ("{d:yyyy}/x", "/1492/x"),
    ],
)
def test_a_path_that_does_not_match(text, path):
    """R102: a file whose path is otherwise is an error that names the file and the format."""
    with pytest.raises(DatasetError) as caught:
        parse_format(text).values(path)

    assert path in str(caught.value)
    assert text in str(caught.value)


def make_files(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_a_file_that_does_not_match_ends_the_planning(tmp_path):
    """R102: before any worker starts, with keys and without; files and tables."""
    make_files(tmp_path, ["a/1.csv", "b/2.csv", "3.txt"])
    for dataset in (
        FileDataset.from_files(tmp_path, partition_format="{who}/*.csv"),
        TabularDataset.from_delimited_files(tmp_path, partition_format="{who}/*.csv"),
    ):
        for keys in (None, ["who"]):
            with pytest.raises(DatasetError, match=r"3\.txt does not end as"):
                plan_of(dataset, keys)


def plan_of(dataset, keys):
    return make_plan(
        [dataset],
        [dataset.list_files()],
        mini_batch_size=None,
        partition_keys=keys,
        scratch=Path("unused"),
    )


SONGS = [
    "ann/summer/jazz.wav",
    "ann/summer/rock.wav",
    "ann/winter/jazz.wav",
    "bob/summer/jazz.wav",
    "bob/winter/jazz.wav",
    "bob/winter/rock.wav",
]


def test_each_combination_is_one_mini_batch(tmp_path):
    """R102, Azure's own example: user and genre over 6 files are 4 mini-batches here; the season,
    which is not named, does not count. Files in path order, mini-batches by their first file."""
    make_files(tmp_path, SONGS)
    dataset = FileDataset.from_files(tmp_path, partition_format=".../{user}/{season}/{genre}.wav")
    assert dataset.partition_keys == ("user", "season", "genre")

    plan = plan_of(dataset, ["user", "genre"])

    assert (len(plan), plan.known_count, plan.items) == (4, 4, 6)
    found = [(b.index, b.work["key"], b.items, b.size, b.work["files"]) for b in plan]
    root = f"{tmp_path}/"
    assert found == [
        (0, {"user": "ann", "genre": "jazz"}, 2, 38, [root + SONGS[0], root + SONGS[2]]),
        (1, {"user": "ann", "genre": "rock"}, 1, 19, [root + SONGS[1]]),
        (2, {"user": "bob", "genre": "jazz"}, 2, 38, [root + SONGS[3], root + SONGS[4]]),
        (3, {"user": "bob", "genre": "rock"}, 1, 19, [root + SONGS[5]]),
    ]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.sampled_from("abc")] * 3), min_size=1, max_size=30),
    keys=st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=3, unique=True),
)
def test_no_file_is_lost_doubled_or_mixed(rows, keys):
    """R102: every file is in exactly one mini-batch, with those of the same values alone, in order."""
    from prefect_parallelrun.datasets.dataset import FileItem
    from prefect_parallelrun.planning.key_cuts import cut_files_by_key

    files = [FileItem(f"/{x}/{y}/{z}/{n:02}", 1, 1) for n, (x, y, z) in enumerate(sorted(rows))]
    cut = cut_files_by_key(files, parse_format("{x}/{y}/{z}/*"), keys)

    pieces = list(cut.pieces())
    seen = [path for piece in pieces for path in piece.work["files"]]
    assert sorted(seen) == [file.path for file in files]
    assert cut.count == len({tuple(piece.work["key"].values()) for piece in pieces})
    firsts = [piece.work["files"][0] for piece in pieces]
    assert firsts == sorted(firsts)
    for piece in pieces:
        assert list(piece.work["key"]) == keys
        for path in piece.work["files"]:
            own = dict(zip("xyz", path.split("/")[1:], strict=False))
            assert {key: own[key] for key in keys} == piece.work["key"]


def test_each_input_is_cut_by_itself(tmp_path):
    """R47, R102: the same value in two inputs is two mini-batches."""
    make_files(tmp_path, ["one/a/1.txt", "one/b/2.txt", "two/a/3.txt"])
    inputs = [
        FileDataset.from_files(tmp_path / name, partition_format="{who}/*.txt")
        for name in ("one", "two")
    ]

    plan = make_plan(
        inputs,
        [one.list_files() for one in inputs],
        mini_batch_size=None,
        partition_keys=["who"],
        scratch=tmp_path,
    )

    assert [(b.input_index, b.work["key"]["who"]) for b in plan] == [(0, "a"), (0, "b"), (1, "a")]


def definition(tmp_path, dataset, keys):
    (tmp_path / "score.py").write_text("def run(mini_batch):\n    return mini_batch\n")
    return StepDefinition(
        name="step",
        config=ParallelRunConfig(str(tmp_path / "score.py"), partition_keys=keys),
        inputs=(dataset,),
    )


def test_keys_that_an_input_has_not(tmp_path):
    """R102: they are refused before anything starts, naming those that there are, and the way to keys."""
    some = FileDataset.from_files(tmp_path, partition_format="{user}/{season}.wav")
    table = TabularDataset.from_pandas_dataframe(pd.DataFrame({"user": [1]}))

    definition(tmp_path, some, ["season"]).validate()
    with pytest.raises(ConfigError, match=r"'genre' is none of .*\['user', 'season'\]"):
        definition(tmp_path, some, ["user", "genre"]).validate()
    with pytest.raises(ConfigError, match=r"no partition keys.*partition_by\("):
        definition(tmp_path, table, ["user"]).validate()


def test_keys_of_a_pipeline_parameter():
    """R39, R102: Azure's users pass keys as JSON text; the flow's parameter may be text or a list."""
    config = ParallelRunConfig(
        "score.py", partition_keys=PipelineParameter("keys", '["user", "season"]')
    )

    assert config.resolved({}).partition_keys == ("user", "season")
    assert config.resolved({"keys": '["a"]'}).partition_keys == ("a",)
    assert config.resolved({"keys": ["b"]}).partition_keys == ("b",)
    with pytest.raises(ConfigError, match="partition_keys='\\[user'"):
        config.resolved({"keys": "[user"})


@pytest.mark.parametrize("kind", ["CSV", "JSON lines", "Parquet"])
def test_values_become_columns(tmp_path, kind):
    """R102: text or datetime64[ns], in every row, after the file's own columns; in every format."""
    for name, numbers in (("x/2020/01", [1, 2]), ("y/2021/12", [3])):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        frame = pd.DataFrame({"n": numbers})
        if kind == "CSV":
            frame.to_csv(folder / "data", index=False)
        elif kind == "Parquet":
            frame.to_parquet(folder / "data")
        else:
            frame.to_json(folder / "data", orient="records", lines=True)
    make = {
        "CSV": TabularDataset.from_delimited_files,
        "JSON lines": TabularDataset.from_json_lines_files,
        "Parquet": TabularDataset.from_parquet_files,
    }[kind]
    dataset = make(tmp_path, partition_format="{store}/{month:yyyy/MM}/data")

    expected = pd.DataFrame({"n": [1, 2, 3], "store": ["x", "x", "y"]})
    months = pd.to_datetime(["2020-01-01", "2020-01-01", "2021-12-01"])
    expected["month"] = months.as_unit("ns")
    pd.testing.assert_frame_equal(dataset.to_pandas_dataframe(), expected)
    pd.testing.assert_frame_equal(dataset.take(2).to_pandas_dataframe(), expected[:2])


def test_a_column_of_the_same_name(tmp_path):
    """R102: a value of the path that would hide a column of the file is an error."""
    make_files(tmp_path, ["x/a.csv"])
    (tmp_path / "x/a.csv").write_text("store,n\n1,2\n")
    dataset = TabularDataset.from_delimited_files(tmp_path, partition_format="{store}/a.csv")

    with pytest.raises(DatasetError, match="column 'store', and the files have one"):
        dataset.to_pandas_dataframe()


def test_the_format_decides_about_reuse(tmp_path):
    """R28, R102: another format is another step."""
    make_files(tmp_path, ["x/a.csv"])
    for make in (FileDataset.from_files, TabularDataset.from_delimited_files):
        parts = {
            text: tuple(dataset.fingerprint_parts(dataset.list_files()))
            for text in (None, "{a}/a.csv", "{b}/a.csv")
            for dataset in [make(tmp_path, partition_format=text)]
        }
        assert len(set(parts.values())) == 3
