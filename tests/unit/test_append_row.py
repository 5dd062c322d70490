"""The settings file beside an entry script."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from prefect_parallelrun import FileDataset, ParallelRunConfig, append_row
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.worker_settings import worker_settings
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import plan_step
from prefect_parallelrun_runtime import encode


def test_without_a_file_nothing_is_overridden(tmp_path):
    """R103: the settings file is optional."""
    assert append_row.to_csv_keywords(tmp_path) == {}


def test_the_file_gives_to_csv_keywords(tmp_path):
    """R103: Azure's form of the file is read."""
    (tmp_path / append_row.FILE_NAME).write_text(
        '{"append_row": {"pandas.DataFrame.to_csv": {"sep": ",", "index": true}}}'
    )

    assert append_row.to_csv_keywords(tmp_path) == {"sep": ",", "index": True}


@pytest.mark.parametrize(
    "text",
    [
        "{",  # no JSON
        '{"append_row": {}}',  # another form
        '{"append_row": {"pandas.DataFrame.to_csv": [1]}}',
        '{"append_row": {"pandas.DataFrame.to_csv": {"path_or_buf": "/etc/passwd"}}}',
        '{"append_row": {"pandas.DataFrame.to_csv": {"seperator": ","}}}',  # a slip of the pen
    ],
)
def test_a_file_that_cannot_work_is_refused_by_name(tmp_path, text):
    """R103: a wrong settings file is refused before any worker starts, and named."""
    (tmp_path / append_row.FILE_NAME).write_text(text)

    with pytest.raises(ConfigError, match=append_row.FILE_NAME):
        append_row.to_csv_keywords(tmp_path)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"sep": "::"}, r"sep='::'.*1-character"),
        ({"sep": ""}, "sep=''"),
        ({"sep": 5}, "sep=5"),
        ({"quotechar": "''"}, "quotechar"),
        ({"escapechar": "ab"}, "escapechar"),
        ({"quoting": 17}, "quoting=17"),
        ({"quoting": "all"}, "quoting='all'"),
        ({"lineterminator": 1}, "lineterminator=1"),
        ({"decimal": ",,"}, "decimal=',,'"),
        ({"float_format": "%d%d"}, "float_format"),
        ({"date_format": 5}, "date_format=5.*a text"),
        ({"columns": "a"}, "columns='a'.*list"),
        ({"columns": []}, "columns"),
        ({"header": "a"}, "header='a'.*true, false, or a list"),
        ({"header": ["x"], "columns": ["a", "b"]}, "header.*as many names as columns, 2"),
        ({"index": "no"}, "index='no'.*true or false"),
        ({"index_label": 3}, "index_label=3"),
        ({"sep": ",", "quoting": 3, "na_rep": "a,b"}, "cannot be used together"),
    ],
    ids=str,
)
def test_a_value_that_to_csv_does_not_take_is_refused(tmp_path, keywords, words):
    """R103: a bad value fails the step at once, and not in every mini-batch; keyword and value are named."""
    content = {"append_row": {"pandas.DataFrame.to_csv": keywords}}
    (tmp_path / append_row.FILE_NAME).write_text(json.dumps(content))

    with pytest.raises(ConfigError, match=words):
        append_row.check(tmp_path, "text")


@pytest.mark.parametrize("output_format", ["csv", "jsonl", "parquet"])
def test_the_settings_file_is_for_text_only(tmp_path, output_format):
    """R103, R221: keywords that another format would not heed are refused, with what to do instead."""
    content = {"append_row": {"pandas.DataFrame.to_csv": {"sep": ";"}}}
    (tmp_path / append_row.FILE_NAME).write_text(json.dumps(content))

    with pytest.raises(ConfigError, match=f"output_format='{output_format}'.*remove the file"):
        append_row.check(tmp_path, output_format)
    append_row.check(tmp_path, "text")


FRAME = pd.DataFrame(
    {
        "name": ["a b", 'say "x"', None],
        "score": [0.5, 1.25, None],
        "at": pd.to_datetime(["2024-02-29", "2024-03-01", None]),
    },
    index=["p", "q", "r"],
)
KEYWORDS = [
    ({}, '"a b" 0.5 2024-02-29\n"say ""x""" 1.25 2024-03-01\n  \n'),
    ({"sep": ","}, 'a b,0.5,2024-02-29\n"say ""x""",1.25,2024-03-01\n,,\n'),
    ({"na_rep": "-"}, '"a b" 0.5 2024-02-29\n"say ""x""" 1.25 2024-03-01\n- - -\n'),
    ({"float_format": "%.3f", "columns": ["score"]}, '0.500\n1.250\n""\n'),
    ({"columns": ["at", "score"]}, "2024-02-29 0.5\n2024-03-01 1.25\n \n"),
    ({"header": True, "columns": ["score"]}, 'score\n0.5\n1.25\n""\n'),
    ({"header": ["s"], "columns": ["score"]}, 's\n0.5\n1.25\n""\n'),
    ({"header": False, "columns": ["score"]}, '0.5\n1.25\n""\n'),
    ({"index": True, "columns": ["score"]}, "p 0.5\nq 1.25\nr \n"),
    (
        {"index": True, "index_label": "key", "header": True, "columns": ["score"]},
        "key score\np 0.5\nq 1.25\nr \n",
    ),
    ({"quoting": 1, "columns": ["score"]}, '"0.5"\n"1.25"\n""\n'),
    (
        {"quotechar": "'", "columns": ["name"], "na_rep": "-"},
        "'a b'\n'say \"x\"'\n-\n",
    ),
    ({"lineterminator": "\r\n", "columns": ["score"]}, '0.5\r\n1.25\r\n""\r\n'),
    ({"date_format": "%d.%m.%Y", "columns": ["at"]}, '29.02.2024\n01.03.2024\n""\n'),
    (
        {"doublequote": False, "escapechar": "\\", "columns": ["name"]},
        '"a b"\n"say \\"x\\""\n""\n',
    ),
    ({"decimal": ",", "columns": ["score"]}, '0,5\n1,25\n""\n'),
]


def test_every_keyword_is_tried_below():
    """R103: each keyword that is allowed has a case."""
    assert {name for keywords, _ in KEYWORDS for name in keywords} == append_row._KEYWORDS


@pytest.mark.parametrize(("keywords", "text"), KEYWORDS, ids=str)
def test_every_keyword_comes_to_the_output(tmp_path, keywords, text):
    """R103: from the file through the settings of the worker process to the published output."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "score.py").write_text("def run(mini_batch):\n    return mini_batch\n")
    content = {"append_row": {"pandas.DataFrame.to_csv": keywords}}
    (source / append_row.FILE_NAME).write_text(json.dumps(content))
    (tmp_path / "data.txt").touch()
    definition = StepDefinition(
        name="predict",
        config=ParallelRunConfig(entry_script=str(source / "score.py")),
        inputs=(FileDataset.from_files(str(tmp_path / "data.txt")),),
    )
    definition.validate()
    settings = worker_settings(
        definition,
        plan_step(definition, scratch=tmp_path / "scratch"),
        run_id="r",
        entry_script="score.py",
        destination=tmp_path,
    )

    halves = [FRAME.iloc[:1], FRAME.iloc[1:]]
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        for index, frame in enumerate(halves):
            encoded = encode.encode(
                frame,
                settings["output_action"],
                settings["append_row"],
                settings["output_format"],
            )
            output.add(success(index), encoded.data, encoded.columns)
        published = output.publish(tmp_path, "out.txt", order="input")

    assert published.read_bytes().decode() == text


def success(mini_batch):
    return AttemptRecord(
        mini_batch=mini_batch,
        attempt=1,
        final=True,
        outcome=Outcome.SUCCEEDED,
        node="node000",
        process="process000",
        items_total=1,
        items_succeeded=1,
        items_failed=0,
    )
