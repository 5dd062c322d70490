"""What a flow's parameter may be in place of a dataset."""

from __future__ import annotations

import pandas as pd
import pytest

from prefect_parallelrun import ConfigError, FileDataset, TabularDataset
from prefect_parallelrun.flow_parameters import chosen, of_this_flow_run
from prefect_parallelrun.pipeline_parameter import PipelineParameter

FILES = FileDataset.from_files("/data/*.png").as_named_input("digits").as_download("/here")
TABLE = TabularDataset.from_delimited_files("/data/*.csv", separator=";").as_named_input("rows")


def given(value, default):
    return chosen("inputs", PipelineParameter("data", default), {"data": value})


def test_what_is_no_pipeline_parameter_stays():
    """Everything else among the inputs is itself."""
    assert chosen("inputs", FILES, {"data": 1}) is FILES
    assert chosen("arguments", "--data", {"data": 1}) == "--data"


def test_outside_of_flows_the_default_holds():
    """Without a flow, or in one that has no such parameter, the default stands (R39)."""
    assert of_this_flow_run() == {}
    assert chosen("inputs", PipelineParameter("data", FILES), {}) is FILES
    assert chosen("arguments", PipelineParameter("threshold", 0.5), {}) == 0.5


@pytest.mark.parametrize("default", [FILES, TABLE])
def test_paths_in_place_of_a_dataset(default):
    """A path, or a list of them, replaces where the files are and nothing else."""
    found = given(["/other/a", "/other/b"], default)

    assert found.paths == ("/other/a", "/other/b")
    assert type(found) is type(default)
    for attribute in ("name", "delivery", "target_path", "settings", "partition_format"):
        assert getattr(found, attribute, None) == getattr(default, attribute, None)
    assert given("/other", default).paths == ("/other",)


def test_a_dataset_as_a_step_file_writes_it(tmp_path, monkeypatch):
    """A mapping says what else there is to a dataset; of its name and delivery the default speaks for it."""
    monkeypatch.chdir(tmp_path)

    files = given({"files": "more/*.png", "content": True}, FILES)
    table = given({"json_lines": "/rows.jsonl", "name": "lines"}, FILES)

    assert (files.paths, files.content) == ((str(tmp_path / "more/*.png"),), True)
    assert (files.name, files.delivery, files.target_path) == ("digits", "download", "/here")
    assert (table.settings.format, table.name) == ("json_lines", "lines")


def test_a_dataset_itself(tmp_path):
    """A dataset that a flow was called with is taken as it is."""
    other = FileDataset.from_files(str(tmp_path))

    assert given(other, FILES) is other


@pytest.mark.parametrize("value", [None, 3, [], "", {"file": "/data"}, {"files": 3}, {}])
@pytest.mark.parametrize("default", [FILES, TABLE])
def test_what_is_no_dataset(value, default):
    """What cannot be one is refused, and the error names the flow's parameter (R39)."""
    with pytest.raises(ConfigError, match="the flow's parameter 'data'"):
        given(value, default)


@pytest.mark.parametrize("where", ["inputs", "side_inputs"])
@pytest.mark.parametrize("default", [None, "/data"])
def test_a_default_that_is_no_dataset(where, default):
    """In place of a dataset only a dataset can be the default, which says what a path then means (R39)."""
    with pytest.raises(ConfigError, match=f"^{where}=.*'data' needs a dataset as default_value"):
        chosen(where, PipelineParameter("data", default), {})


def test_a_table_without_files_has_no_paths():
    """Paths do not say how files are to be read where the default is no table of files."""
    frame = TabularDataset.from_pandas_dataframe(pd.DataFrame({"a": [1]}))

    with pytest.raises(ConfigError, match="delimited"):
        given("/data/rows.csv", frame)
    assert given({"delimited": "/data/rows.csv"}, frame).settings.format == "delimited"
