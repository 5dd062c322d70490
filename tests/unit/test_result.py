from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from pathlib import Path

import pandas
import pytest
from pydantic import ValidationError

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import DatasetError, OutputError
from prefect_parallelrun.models import Counts
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import keep_definition


def result(folder: Path, **changes) -> ParallelRunResult:
    fields = {
        "name": "predict",
        "run_id": "20260804T100000-abcdef",
        "run_directory": str(folder),
        "output": str(folder / "out"),
        "append_row_file": str(folder / "out" / "out.txt"),
        "mini_batches": Counts(total=3, succeeded=3),
        "items": Counts(total=30, succeeded=30),
        "attempts": 3,
        "started_at": datetime(2026, 8, 4, 10, 0, 0, 123456, tzinfo=UTC),
        "ended_at": datetime(2026, 8, 4, 10, 5, tzinfo=UTC),
        "logs_directory": str(folder / "logs"),
    }
    return ParallelRunResult(**(fields | changes))


def with_output(folder: Path, text: str) -> ParallelRunResult:
    (folder / "out").mkdir()
    (folder / "out" / "out.txt").write_text(text)
    return result(folder)


def test_the_stored_form_reads_back_as_reused(tmp_path):
    """What is stored as JSON says that nothing had to run, whoever reads it; the object does not."""
    fresh = result(tmp_path)

    assert fresh.reused is False
    assert fresh.model_dump()["reused"] is False
    assert pickle.loads(pickle.dumps(fresh)) == fresh
    stored = ParallelRunResult.model_validate_json(fresh.model_dump_json())
    assert stored == fresh.model_copy(update={"reused": True})


def test_prefects_json_serializer_keeps_a_result(tmp_path):
    """Through Prefect's result storage an equal result comes back, with reused=True (R240)."""
    from prefect.serializers import JSONSerializer

    fresh = result(tmp_path, items=Counts(total=30, succeeded=18, failed=12, reused=5))
    serializer = JSONSerializer()

    stored = serializer.loads(serializer.dumps(fresh))

    assert stored == fresh.model_copy(update={"reused": True})
    assert isinstance(stored.items, Counts)


def test_a_result_takes_no_other_fields_and_does_not_change(tmp_path):
    """Results are frozen, and a misspelt field is refused."""
    with pytest.raises(ValidationError, match="colour"):
        result(tmp_path, colour="red")
    with pytest.raises(ValidationError, match="frozen"):
        result(tmp_path).name = "other"


@pytest.mark.parametrize(
    ("mini_batches", "items", "state"),
    [
        (Counts(total=3, succeeded=3), Counts(total=30, succeeded=30), "Completed"),
        (
            Counts(total=3, succeeded=2, failed=1),
            Counts(total=30, succeeded=18, failed=12),
            "Completed with 12 failed items",
        ),
        (
            Counts(total=1, succeeded=1),
            Counts(total=2, succeeded=1, failed=1),
            "Completed with 1 failed item",
        ),
        (Counts(total=2, succeeded=0, failed=2), Counts(), "Completed with 2 failed mini-batches"),
    ],
)
def test_the_state_names_failures_that_were_tolerated(tmp_path, mini_batches, items, state):
    """Failures that were tolerated are never silent (R208)."""
    assert result(tmp_path, mini_batches=mini_batches, items=items).state == state


def test_to_pandas_reads_what_dataframes_became(tmp_path):
    """By default: a space as separator, no header, quoted values whole (R103)."""
    frame = with_output(tmp_path, '5.1 "Iris setosa"\n4.9 virginica\n').to_pandas()

    assert frame.equals(pandas.DataFrame({0: [5.1, 4.9], 1: ["Iris setosa", "virginica"]}))


@pytest.mark.parametrize("keyword", ["sep", "delimiter"])
def test_to_pandas_takes_the_keywords_of_read_csv(tmp_path, keyword):
    """`sep` and `delimiter` both work, and names replace the numbers of columns."""
    frame = with_output(tmp_path, "a.png: 7\nb.png: 3\n").to_pandas(
        **{keyword: ":"}, names=["file", "digit"]
    )

    assert frame.to_dict("list") == {"file": ["a.png", "b.png"], "digit": [7, 3]}


def test_to_pandas_of_no_rows_is_empty(tmp_path):
    """An empty output is an empty DataFrame, not an error."""
    assert with_output(tmp_path, "").to_pandas().empty


def test_to_pandas_of_summary_only_says_why_not(tmp_path):
    """Without a common output file the error names output_action and the folder."""
    with pytest.raises(OutputError, match=r"summary_only.*out"):
        result(tmp_path, append_row_file=None).to_pandas()


def test_to_pandas_names_a_file_that_is_gone(tmp_path):
    """A deleted output is an OutputError that names the file."""
    with pytest.raises(OutputError, match=r"out\.txt.*is gone"):
        result(tmp_path).to_pandas()


def test_without_failures_there_are_no_failed_items(tmp_path):
    """Where nothing failed, failed_items() is None."""
    assert result(tmp_path).failed_items() is None


def failures(folder: Path, *records: dict, inputs=()) -> ParallelRunResult:
    records = [{"input": 0, **record} for record in records]
    (folder / "failed_items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    step = StepDefinition(name="predict", config=ParallelRunConfig("score.py"), inputs=inputs)
    keep_definition(RunPaths(folder), step)
    return result(folder, items=Counts(total=9, succeeded=6, failed=3))


def test_failed_files_are_a_dataset(tmp_path):
    """failed_items() has the failed files, and where it is not known which, all candidates (R204)."""
    for name in ("a", "b", "c [1]*"):
        (tmp_path / name).write_text(name)

    dataset = failures(
        tmp_path,
        {"kind": "file", "item": str(tmp_path / "a")},
        {
            "kind": "file",
            "item": None,
            "candidates": [str(tmp_path / "b"), str(tmp_path / "c [1]*")],
        },
        inputs=(FileDataset.from_files(tmp_path),),
    ).failed_items()

    assert [Path(item.path).name for item in dataset.list_files()] == ["a", "b", "c [1]*"]


def test_failed_files_are_read_as_their_input_is(tmp_path):
    """failed_items() has the storage and the partition_format of the input that they are of (R204, R78)."""
    folder = FileDataset.from_files(tmp_path)
    inputs = (
        folder,
        folder.as_download(),
        FileDataset.from_files(
            "s3://b/in", credentials="s3-credentials/keys", partition_format="{store}/x.txt"
        ),
    )

    found = failures(
        tmp_path, {"kind": "file", "item": "s3://b/in/7/x.txt", "input": 2}, inputs=inputs
    ).failed_items()
    assert found.paths == ("s3://b/in/7/x.txt",)
    assert found.storage.credentials == "s3-credentials/keys"
    assert found.partition_format == "{store}/x.txt"

    records = [{"kind": "file", "item": str(tmp_path / "a"), "input": n} for n in (0, 1)]
    assert failures(tmp_path, records[1], inputs=inputs).failed_items().delivery == "download"
    assert failures(tmp_path, *records, inputs=(folder, folder)).failed_items() is not None
    with pytest.raises(DatasetError, match=r"several inputs, which differ.*failed_items\.jsonl"):
        failures(tmp_path, *records, inputs=inputs).failed_items()


def test_failed_rows_are_no_dataset_of_files(tmp_path):
    """For a table the error says where to read about the failed rows."""
    with pytest.raises(DatasetError, match=r"rows of tables.*failed_items\.jsonl"):
        failures(tmp_path, {"kind": "tabular", "item": None}).failed_items()


def test_failed_mini_batches_without_input_are_no_dataset_of_files(tmp_path):
    """R105: with --rank_mini_batch_count the items are mini-batches; the error says so."""
    with pytest.raises(DatasetError, match=r"mini-batches without input.*failed_items\.jsonl"):
        failures(tmp_path, {"kind": "rank", "item": "rank 3"}).failed_items()


def test_failed_items_of_a_run_folder_that_is_gone(tmp_path):
    """A run folder that was cleaned away is a DatasetError that names the file."""
    with pytest.raises(DatasetError, match=r"failed_items\.jsonl.*is gone"):
        result(tmp_path, items=Counts(total=1, failed=1)).failed_items()


def test_the_output_is_an_input_of_a_next_step(tmp_path):
    """as_input() is the one output file, or for summary_only the files of the folder."""
    rows = with_output(tmp_path, "1\n")
    (tmp_path / "out" / "other.txt").write_text("2\n")

    (file,) = rows.as_input("previous").list_files()
    everything = result(tmp_path, append_row_file=None).as_input("previous")

    assert Path(file.path).name == "out.txt"
    assert [Path(item.path).name for item in everything.list_files()] == ["other.txt", "out.txt"]
    assert everything.name == "previous"
