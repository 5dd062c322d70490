from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset, FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import (
    FAILED,
    RunRecord,
    find_run,
    first_files,
    keep_definition,
    keep_listings,
    kept_definition,
)

ONE, OTHER = "a" * 40, "a" * 8 + "b" * 32
"""Two fingerprints that begin alike."""


def _run(folder: Path, name: str, fingerprint: str, **values) -> RunPaths:
    paths = RunPaths(folder / name)
    paths.root.mkdir()
    record = RunRecord(
        step="score-files",
        run_id=name,
        fingerprint=fingerprint,
        started_at=datetime.now(UTC),
        output="out",
        **values,
    )
    record.write(paths)
    return paths


def test_the_newest_run_of_a_fingerprint(tmp_path):
    """It is found whatever its state; the beginning of the fingerprint in the name is not enough."""
    assert find_run(tmp_path / "none", ONE) is None
    _run(tmp_path, "20260101T000000000-aaaaaaaa-0001", ONE, state="Completed")
    newest = _run(tmp_path, "20260102T000000000-aaaaaaaa-0000", ONE, state=FAILED)
    other = _run(tmp_path, "20260103T000000000-aaaaaaaa-0000", OTHER)
    _run(tmp_path, "20260104T000000000-bbbbbbbb-0000", "b" * 40)
    (tmp_path / "20260105T000000000-aaaaaaaa-0000").mkdir()  # its driver was killed at once

    assert find_run(tmp_path, ONE) == newest
    assert find_run(tmp_path, OTHER) == other
    assert find_run(tmp_path, "c" * 40) is None


def test_the_run_of_a_task_run(tmp_path):
    """Without reuse only what the same task run began is gone on with (design 5)."""
    mine = _run(tmp_path, "20260101T000000000-aaaaaaaa-0000", ONE, task_run="1")
    _run(tmp_path, "20260102T000000000-aaaaaaaa-0000", ONE, task_run="2")

    assert find_run(tmp_path, ONE, task_run="1") == mine
    assert find_run(tmp_path, ONE, task_run="3") is None


def test_a_run_without_a_fingerprint_is_nobodys(tmp_path):
    """Rows of two scripts have no fingerprint, though the folder's name still begins with one."""
    _run(tmp_path, "20260101T000000000-aaaaaaaa-0000", "")

    assert find_run(tmp_path, ONE) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 1}', "\udcff"])
def test_a_record_that_cannot_be_read(tmp_path, content):
    """It is named, and passed over by who looks for a run."""
    paths = _run(tmp_path, "20260101T000000000-aaaaaaaa-0000", ONE)
    paths.record.write_text(content, errors="surrogateescape")

    with pytest.raises(OutputError, match=r"no run folder.*run\.json"):
        RunRecord.read(paths)
    assert find_run(tmp_path, ONE) is None


def test_a_record_comes_back_as_it_was(tmp_path):
    """Nothing is lost, and what a later version adds does not matter."""
    paths = _run(tmp_path, "one", ONE, state="Completed with 2 failed items", mini_batches=3)
    record = RunRecord.read(paths)
    paths.record.write_text(paths.record.read_text().replace("{", '{"later": 1,', 1))

    assert RunRecord.read(paths) == record
    assert (record.completed, record.mini_batches) == (True, 3)


def test_a_folder_whose_name_is_no_text(tmp_path):
    """File names are bytes: those of no encoding come back as they were."""
    paths = _run(tmp_path, "one", ONE)
    record = RunRecord.read(paths).model_copy(update={"output": os.fsdecode(b"/out \xff")})
    record.write(paths)

    assert os.fsencode(RunRecord.read(paths).output) == b"/out \xff"


def test_rows_of_a_record_that_does_not_say_their_age(tmp_path):
    """They are taken to be as old as the run (R52)."""
    record = RunRecord.read(_run(tmp_path, "one", ONE))
    began = datetime.now(UTC) - timedelta(hours=2)

    for told, oldest in ((None, began), (record.started_at, record.started_at)):
        aged = record.model_copy(update={"started_at": began, "rows_since": told})
        assert aged.oldest_rows_at == oldest
        assert aged.has_expired(timedelta(hours=1)) == (told is None)


def test_the_first_files_of_inputs(tmp_path):
    """Nothing is understood but the first line of each name, up to that of the last name wanted (R202)."""
    paths = RunPaths(tmp_path)
    files = [FileItem(f"/data/{index:05}", 1, 1) for index in range(3_500)]
    names = ["input 0", "input 1", "input 10", "side input 0"]
    keep_listings(paths, ((name, files) for name in names))
    lines = paths.listings.read_bytes().splitlines(keepends=True)
    damaged = [line if place % 4 == 0 else line[:20] + b"\n" for place, line in enumerate(lines)]
    paths.listings.write_bytes(b"".join(damaged[:12]) + b"{")

    found = list(first_files(paths, ["input 10", "input 1"]))

    assert found == [("input 1", files[:1000]), ("input 10", files[:1000])]
    with pytest.raises(ValueError, match="Expecting"):
        list(first_files(paths, ["input 1", "side input 0"]))


@pytest.fixture
def definition(tmp_path):
    (tmp_path / "score.py").write_text("def run(mini_batch): return mini_batch\n")
    (tmp_path / "data.txt").write_text("x")

    def make(**settings):
        return StepDefinition(
            name="score-files",
            config=ParallelRunConfig(str(tmp_path / "score.py"), **settings),
            inputs=(FileDataset.from_files(str(tmp_path / "data.txt")),),
            arguments=("--a", 1),
        )

    return make


def test_a_definition_comes_back(definition, tmp_path):
    """A step is written down with all it needs, readable by its owner alone."""
    step, paths = definition(environment_variables={"A": "secret"}), RunPaths(tmp_path)
    keep_definition(paths, step)

    kept = kept_definition(paths)

    assert kept.config == step.config
    assert kept.script_arguments("out") == ["--a", "1"]
    assert kept.list_inputs() == step.list_inputs()
    assert paths.definition.stat().st_mode & 0o077 == 0


class Cluster:
    """Stands for a Dask cluster object, which cannot be pickled."""

    scheduler_address = "tcp://host:1"

    def __init__(self):
        self.lock = threading.Lock()


def test_a_cluster_object_is_left_out(definition, tmp_path):
    """An address is kept; a cluster object could not be, and ends with its process anyhow."""
    for target, kept in [("tcp://host:1", "tcp://host:1"), (Cluster(), None)]:
        step = definition()
        step = StepDefinition(
            name=step.name,
            config=step.config.model_copy(update={"compute_target": target}),
            inputs=step.inputs,
        )
        keep_definition(RunPaths(tmp_path), step)

        assert kept_definition(RunPaths(tmp_path)).config.compute_target == kept


def test_a_definition_that_cannot_be_read(tmp_path):
    """It says so, and how to go on without it."""
    paths = RunPaths(tmp_path)
    with pytest.raises(OutputError, match="Run the step itself again"):
        kept_definition(paths)
    paths.definition.write_bytes(b"\x80\x05garbage")
    with pytest.raises(OutputError, match="Run the step itself again"):
        kept_definition(paths)
