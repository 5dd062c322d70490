from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prefect_parallelrun import manifest, reuse
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import (
    FileDataset,
    OutputFileDatasetConfig,
    TabularDataset,
)
from prefect_parallelrun.definition import StepDefinition


@pytest.fixture
def files(tmp_path):
    """A folder with a script, one with data, and one with labels."""
    for name in ("scripts/score.py", "scripts/other.py", "data/a.txt", "labels/names.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("def run(b): return b\n")
    return tmp_path


@pytest.fixture
def fingerprint(files):
    """Return a function that makes the fingerprint of a step, with what it is told changed."""

    def make(config=None, *, source_sha256="1", **changes):
        settings = {"entry_script": str(files / "scripts" / "score.py"), **(config or {})}
        step = StepDefinition(
            **{
                "name": "score-files",
                "config": ParallelRunConfig(**settings),
                "inputs": (FileDataset.from_files(str(files / "data")),),
                "output": OutputFileDatasetConfig(destination=str(files / "out")),
                **changes,
            }
        )
        listings = [dataset.list_files() for dataset in step.inputs]
        seen = reuse.data(step, listings)
        parts = reuse.fingerprint_parts(step, source_sha256=source_sha256, seen=seen)
        return reuse.step_fingerprint(step.name, parts)

    return make


@pytest.mark.parametrize(
    "config",
    [
        {"mini_batch_size": 1},
        {"environment_variables": {"A": "1"}},
        {"append_row_file_name": "other.txt"},
        {"output_order": "completion"},
        {"output_action": "summary_only"},
    ],
    ids=str,
)
def test_config_that_counts(fingerprint, config):
    """What can change the rows, or where they are, changes the fingerprint (design 5)."""
    assert fingerprint(config) != fingerprint()


@pytest.mark.parametrize(
    "config",
    [
        {"node_count": 2},
        {"process_count_per_node": 2},
        {"compute_target": "tcp://host:8786"},
        {"logging_level": "DEBUG"},
        {"run_invocation_timeout": 61},
        {"run_max_try": 4},
        {"error_threshold": 5},
        {"allowed_failed_count": 5},
        {"allowed_failed_percent": 5},
        {"source_limits": ("1GB", 5)},
        {"description": "words"},
        {"mini_batch_size": 10},
        {"mini_batch_size": "10"},
    ],
    ids=str,
)
def test_config_that_does_not_count(fingerprint, config):
    """What cannot change the rows leaves the fingerprint alone; 10 files are the default (design 5)."""
    assert fingerprint(config) == fingerprint()


def test_everything_else_that_counts(fingerprint, files):
    """Name, source, script, arguments, output folder, inputs and side inputs all count (design 5)."""
    labels = FileDataset.from_files(str(files / "labels"))
    seen = {
        fingerprint(),
        fingerprint(name="other-files"),
        fingerprint(source_sha256="2"),
        fingerprint({"entry_script": str(files / "scripts" / "other.py")}),
        fingerprint(arguments=("--a", "b")),
        fingerprint(arguments=("--a b",)),
        fingerprint(output=None),
        fingerprint(output=OutputFileDatasetConfig(destination=str(files / "elsewhere"))),
        fingerprint(inputs=(labels,)),
        fingerprint(inputs=(labels, labels)),
        fingerprint(side_inputs=(labels,)),
        fingerprint(arguments=("--labels", labels)),
    }
    (files / "scripts" / "parallel_run_step.settings.json").write_text(
        '{"append_row": {"pandas.DataFrame.to_csv": {"sep": ","}}}'
    )
    seen.add(fingerprint())

    assert len(seen) == 13


def test_the_content_of_what_scripts_can_read_counts(fingerprint, files):
    """A changed file of an input, a side input or a dataset among the arguments counts (R52)."""
    labels = FileDataset.from_files(str(files / "labels"))
    for settings, changed in [
        ({}, "data/a.txt"),
        ({"side_inputs": (labels,)}, "labels/names.txt"),
        ({"arguments": ("--labels", labels)}, "labels/names.txt"),
    ]:
        before = fingerprint(**settings)
        (files / changed).write_text((files / changed).read_text() + "more")
        assert fingerprint(**settings) != before


def test_a_folder_of_the_run_as_output(fingerprint):
    """The fingerprint does not depend on which run it is that has the output in its folder."""
    output = OutputFileDatasetConfig()

    first = fingerprint(output=output, arguments=("--out", output))

    assert fingerprint(output=output, arguments=("--out", output)) == first


@pytest.fixture
def outputs(tmp_path):
    """A run folder and an output folder with two files."""
    run, output = tmp_path / "run", tmp_path / "out"
    (output / "deep").mkdir(parents=True)
    run.mkdir()
    (output / "rows.txt").write_text("rows")
    (output / "deep" / "more.txt").write_text("more")
    return run, output


def _touch_other_content(path: Path) -> None:
    path.write_text("other and longer")


@pytest.mark.parametrize("damage", [Path.unlink, _touch_other_content])
def test_manifest_of_one_file(outputs, damage):
    """With append_row only the one file counts, whatever else is in its folder (R50)."""
    run, output = outputs
    assert not manifest.is_intact(run)
    manifest.write(run, output, output / "rows.txt")
    assert manifest.is_intact(run)

    (output / "deep" / "more.txt").unlink()
    assert manifest.is_intact(run)

    damage(output / "rows.txt")
    assert not manifest.is_intact(run)


@pytest.mark.parametrize(
    "damage",
    [
        lambda output: (output / "deep" / "more.txt").unlink(),
        lambda output: (output / "deep" / "more.txt").write_text("other and longer"),
        lambda output: (output / "new.txt").write_text(""),
        lambda output: (output / "rows.txt").rename(output / "other.txt"),
    ],
)
def test_manifest_of_a_folder(outputs, damage):
    """With summary_only any difference in the folder counts (design 5)."""
    run, output = outputs
    manifest.write(run, output, None)
    assert manifest.is_intact(run)

    damage(output)

    assert not manifest.is_intact(run)


def test_lost_files(outputs):
    """What was noted and is not there as it was is lost; what came later is nobody's (R201)."""
    run, output = outputs
    assert manifest.lost_files(run) is None
    manifest.write(run, output, None)
    (output / "new.txt").write_text("")
    assert manifest.lost_files(run) == []

    (output / "rows.txt").write_text("other and longer")
    shutil.rmtree(output / "deep")
    assert sorted(manifest.lost_files(run)) == ["deep/more.txt", "rows.txt"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"output": "x"}', '{"output": 1, "files": 2}'])
def test_a_manifest_that_cannot_be_read(outputs, content):
    """An output of which nothing certain is known is not intact."""
    run, output = outputs
    manifest.write(run, output, None)
    (run / "output_manifest.json").write_text(content)

    assert not manifest.is_intact(run)
    assert manifest.lost_files(run) is None


def test_grouping(files):
    """Mini-batches keep their numbers as long as the same paths are cut in the same way (R204)."""
    data = files / "data"
    (data / "b.csv").write_text("x\n1\n")

    def grouping(dataset, **config):
        step = StepDefinition(
            name="score-files",
            config=ParallelRunConfig(str(files / "scripts" / "score.py"), **config),
            inputs=(dataset,),
        )
        return reuse.grouping(step, step.list_inputs())

    both = FileDataset.from_files(str(data))
    table = TabularDataset.from_delimited_files(str(data / "b.csv"))
    first, cut = grouping(both), grouping(table)

    assert grouping(both, node_count=2, run_max_try=1) == first
    assert len({first, cut, grouping(both, mini_batch_size=1)}) == 3
    (data / "b.csv").write_text("x\n1\n2\n")
    assert grouping(both) == first  # a file that was mended is still the same item
    assert grouping(table) != cut  # a table that was is cut elsewhere
    (data / "c.txt").write_text("")
    assert grouping(both) != first
