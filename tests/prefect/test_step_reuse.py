from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from prefect import flow
from prefect.cache_policies import FLOW_PARAMETERS, NO_CACHE
from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_TASKS_REFRESH_CACHE,
    temporary_settings,
)

from prefect_parallelrun import (
    DatasetError,
    FileDataset,
    ParallelRunError,
    ReusePolicy,
    datasets,
    reasons,
)
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord


@pytest.fixture
def again(files, tmp_path):
    """Return a function that runs a step and says whether it was reused, and its state's name."""

    def run(**settings):
        step = files.step(**{"output": tmp_path / "out", **settings})
        state = step(return_state=True)
        return state.result().reused, state.name

    return run


NEW = (False, "Completed")
REUSED = (True, "Cached")
REUSED_AS_IT_LIES = (True, "Completed")
"""Nothing had to run, but Prefect did not know of it."""


def test_an_unchanged_step_is_reused(files, again, read_rows):
    """The same settings and inputs give the earlier result, and nothing runs (R52, R240)."""
    assert again() == NEW
    assert again() == REUSED
    assert again() == REUSED
    assert len(files.runs()) == 1


def test_reused_through_submit_and_direct_call(files):
    """A reused result says so, however the step was called."""

    @flow
    def score():
        direct = files.step()()
        return direct.reused, files.step().submit().result().reused, files.step()().reused

    assert score() == (False, True, True)


CHANGES = {
    "script": lambda files: files.script.write_text(files.script.read_text() + "\n# changed\n"),
    "helper": lambda files: (files.script.parent / "helper.py").write_text("x = 1"),
    "content": lambda files: (files.data / "a.txt").write_text("longer than it was"),
    "time": lambda files: os.utime(files.data / "a.txt", ns=(1, 1)),
    "added": lambda files: (files.data / "d.txt").write_text("D"),
    "removed": lambda files: (files.data / "a.txt").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_rows_runs_again(files, again, change):
    """A change of the script, of what is beside it, or of an input file is a new run (R52)."""
    assert again() == NEW

    CHANGES[change](files)

    assert again() == NEW
    assert again() == REUSED


def test_settings_that_can_change_the_output(files, again):
    """Another setting that can change the rows begins anew; another place takes all rows over (R52, R202)."""
    assert again() == NEW
    assert again(arguments=["--word", "other"]) == NEW
    assert again(output=None) == REUSED_AS_IT_LIES
    assert len(files.runs()) == 3


def test_settings_that_cannot_change_the_output(files, again):
    """Another setting that cannot change the rows leaves the result in place (design 5)."""
    assert again() == NEW
    assert again(config={"node_count": 2, "run_max_try": 1, "logging_level": "DEBUG"}) == REUSED


def test_side_inputs_count(files, again, tmp_path):
    """A changed side input is a new run, whether or not it is an argument (R49, R52)."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "names.txt").write_text("x")
    side = FileDataset.from_files(str(tmp_path / "labels")).as_named_input("labels").as_mount()
    settings = {"side_inputs": [side]}
    assert again(**settings) == NEW
    assert again(**settings) == REUSED

    (tmp_path / "labels" / "names.txt").write_text("changed")

    assert again(**settings) == NEW


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("other")])
def test_an_output_that_is_gone_or_changed(files, again, tmp_path, damage):
    """The rows are still in the run folder: the output is published again, and nothing runs (design 5)."""
    assert again() == NEW
    output = tmp_path / "out" / "parallel_run_step.txt"
    damage(output)

    assert again() == REUSED_AS_IT_LIES
    assert output.read_text().splitlines() == files.rows()
    assert again() == REUSED
    assert len(files.runs()) == 1


def test_summary_only_output(files, again, tmp_path):
    """With summary_only, any difference in the output folder runs the step again (design 5)."""
    files.script.write_text(
        "import os\n"
        "def run(mini_batch):\n"
        "    for path in mini_batch:\n"
        "        name = os.path.basename(path) + '.out'\n"
        "        open(os.path.join(os.environ['AZUREML_BI_OUTPUT_PATH'], name), 'w').close()\n"
        "    return mini_batch\n"
    )
    settings = {"config": {"output_action": "summary_only"}}
    assert again(**settings) == NEW
    assert again(**settings) == REUSED

    (tmp_path / "out" / "a.txt.out").unlink()

    assert again(**settings) == NEW
    assert len(files.runs()) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.txt.out",
        "b.txt.out",
        "c.txt.out",
    ]


def test_allow_reuse_false_runs_always(files, again):
    """Without allow_reuse every call is a new run; later calls with it take the newest (R52, design 5)."""
    assert again(allow_reuse=False) == NEW
    assert again(allow_reuse=False) == NEW
    assert len(files.runs()) == 2
    assert again() == REUSED


def test_refresh_cache_asks_for_a_new_run(files, again):
    """Prefect's own way to ask for a fresh result counts as well, as an option and as a setting."""
    assert again() == NEW
    assert again(task_options={"refresh_cache": True}) == NEW
    with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}):
        assert again() == NEW
        assert again(task_options={"refresh_cache": False}) == REUSED
    assert len(files.runs()) == 3


def test_an_expired_result_is_not_taken(files, again):
    """Where Prefect's cache is to forget a result, the run folder does not remember it either."""
    settings = {"task_options": {"cache_expiration": timedelta(seconds=0)}}
    assert again(**settings) == NEW
    assert again(**settings) == NEW
    assert len(files.runs()) == 2


def test_rows_do_not_get_younger_by_being_taken(files, again):
    """What a new run takes over, and a call in which nothing runs, is as old as it was before (R52, R202)."""
    age, one_hour = timedelta(hours=2), {"task_options": {"cache_expiration": timedelta(hours=1)}}
    assert again() == NEW
    (first,) = map(RunPaths, files.runs())
    record = RunRecord.read(first)
    assert record.rows_since > record.started_at, "its age counts from the end, as Prefect's does"
    aged = record.rows_since - age
    record.model_copy(update={"rows_since": aged}).write(first)
    assert again(task_options={"cache_policy": NO_CACHE}) == REUSED_AS_IT_LIES
    (files.data / "d.txt").write_text("D")
    assert again() == NEW
    second = RunPaths(files.runs()[-1])
    assert RunRecord.read(second).base == first.root.name
    assert [RunRecord.read(one).rows_since for one in (first, second)] == [aged, aged]

    # It is neither taken as a whole, nor the base of a run.
    assert again(**one_hour) == NEW
    third = RunRecord.read(RunPaths(files.runs()[-1]))
    assert (third.run_id != second.root.name, third.base) == (True, None)
    assert "some of it is older than cache_expiration=1:00:00" in " ".join(third.reuse)
    assert third.rows_since > third.started_at
    assert again(**one_hour) == REUSED


def test_earlier_runs_are_looked_through_once(files, again, monkeypatch):
    """Of thousands of runs each costs a look, so a call looks for the bases of its run but once (R202)."""
    assert again() == NEW
    looked, bases = [], reasons.bases

    def looking(*given, **options):
        looked.append(bases(*given, **options))
        return looked[-1]

    monkeypatch.setattr(reasons, "bases", looking)
    (files.data / "d.txt").write_text("D")
    assert again() == NEW
    assert looked == [[RunPaths(files.runs()[0])]]
    assert RunRecord.read(RunPaths(files.runs()[-1])).base == files.runs()[0].name


def test_an_error_while_the_key_is_made(files, again, monkeypatch):
    """What then runs is stored under no key that a later call could have, in a larger policy too (R52)."""
    kept, fails = FileDataset.list_files, [True]

    def listed(dataset):
        if fails and fails.pop():
            raise DatasetError("the storage did not answer")
        return kept(dataset)

    monkeypatch.setattr(FileDataset, "list_files", listed)
    policy = {"task_options": {"cache_policy": ReusePolicy() + FLOW_PARAMETERS}}

    @flow
    def score(name: str):
        return again(**policy)

    assert score("one") == NEW
    fails.append(True)
    assert score("one") == REUSED_AS_IT_LIES
    (files.data / "a.txt").write_text("other")
    fails.append(True)
    assert score("one") == NEW
    assert score("one") == REUSED_AS_IT_LIES
    assert score("one") == REUSED


def test_contents_are_read_once(files, again, monkeypatch):
    """The record of a run is of the very contents that its fingerprint is of (R52)."""
    kept, read = datasets.files._digest, []

    def digest(path):
        read.append(Path(path).name)
        return kept(path)

    monkeypatch.setattr(datasets.files, "_digest", digest)
    inputs = [FileDataset.from_files(str(files.data), content=True)]

    assert again(inputs=inputs) == NEW
    assert sorted(read) == ["a.txt", "b.txt", "c.txt"]


def test_a_result_that_prefect_has_lost(files, again, tmp_path):
    """A completed run whose output is intact is taken although Prefect's storage is gone (R52)."""
    assert again() == NEW
    shutil.rmtree(PREFECT_LOCAL_STORAGE_PATH.value())

    assert again() == REUSED_AS_IT_LIES
    assert again() == REUSED
    assert len(files.runs()) == 1


def test_tolerated_failures_run_again(files, again):
    """A run that completed with failed items is gone on with: only these are tried again (design 5)."""
    files.script.write_text(
        "def run(mini_batch):\n"
        "    if mini_batch[0].endswith('c.txt'):\n"
        "        raise ValueError('bad file')\n"
        "    return mini_batch\n"
    )
    settings = {"config": {"error_threshold": -1, "run_max_try": 1}}

    assert again(**settings) == (False, "Completed with 1 failed item")
    assert again(**settings) == (False, "Completed with 1 failed item")
    (run,) = files.runs()
    with Journal(RunPaths(run).journal) as journal:
        assert journal.totals().attempts == 3


def test_a_failed_run_is_not_stored(files, again):
    """After a failure the same step runs again, and its success is what is kept."""
    files.script.write_text(
        "import os\n"
        f"flag = {str(files.folder / 'mended')!r}\n"
        "def run(mini_batch):\n"
        "    if not os.path.exists(flag):\n"
        "        raise ValueError('not yet')\n"
        "    return mini_batch\n"
    )
    settings = {"config": {"run_max_try": 1}}
    with pytest.raises(ParallelRunError, match="not yet"):
        again(**settings)

    (files.folder / "mended").write_text("")

    assert again(**settings) == NEW
    assert again(**settings) == REUSED
    assert len(files.runs()) == 1


PARTLY = (
    "def run(mini_batch):\n"
    "    if mini_batch[0].endswith('c.txt'):\n"
    "        raise ValueError('bad file')\n"
    "    return mini_batch\n"
)


def test_the_state_of_the_task_run_names_tolerated_failures(files):
    """R208: Prefect shows `Completed with 1 failed item`; the result is there, however it is asked for."""
    files.script.write_text(PARTLY)
    config = {"error_threshold": -1, "run_max_try": 1, "mini_batch_size": 1}

    @flow
    def score():
        state = files.step(config=config)(return_state=True)
        submitted = files.step(config=config, name="another").submit()
        submitted.wait()
        direct = files.step(config=config, name="third")()
        return state.name, state.result(), submitted.state.name, submitted.result(), direct

    name, result, submitted_name, submitted, direct = score()

    assert name == submitted_name == "Completed with 1 failed item"
    assert [one.items.failed for one in (result, submitted, direct)] == [1, 1, 1]
    assert not any(one.reused for one in (result, submitted, direct))


def test_before_a_result_expires_its_failed_items_alone_run_again(files):
    """R201: a run with failed items is gone on with although its result is to expire one day."""
    files.script.write_text(PARTLY)
    step = files.step(
        config={"error_threshold": -1, "run_max_try": 1, "mini_batch_size": 1},
        task_options={"cache_expiration": timedelta(days=1)},
    )
    first = step()
    again = step()

    assert (first.run_id, first.items.failed) == (again.run_id, again.items.failed)
    assert again.mini_batches.reused == first.mini_batches.succeeded
    assert again.attempts == first.attempts + 1
