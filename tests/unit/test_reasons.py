"""Why a step runs again, or does not, in sentences (R210): each against a real run."""

from __future__ import annotations

import logging
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_parallelrun import settings
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import Dataset, FileDataset, OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import run_step
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.output.lock import RunLock
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RUNNING, RunRecord
from prefect_parallelrun.work import Work

SCRIPT = """
import os

def run(mini_batch):
    if os.path.exists({bad!r}) and mini_batch[0].endswith("b.txt"):
        raise ValueError("bad file")
    return [os.path.basename(path) for path in mini_batch]
"""


class Step:
    """A step over three files of one mini-batch each, of which the second can be made to fail."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bad = folder, folder / "bad"
        self.script, self.data = folder / "scripts" / "score.py", folder / "data"
        self.labels = folder / "labels"
        for parent in (self.script.parent, self.data, self.labels):
            parent.mkdir()
        self.script.write_text(SCRIPT.format(bad=str(self.bad)))
        for name in "abc":
            (self.data / f"{name}.txt").write_text(name)
        (self.labels / "names.txt").write_text("x")

    def work(self, config=None, **changes) -> Work:
        chosen = {
            "mini_batch_size": 1,
            "process_count_per_node": 1,
            "run_max_try": 1,
            "environment_variables": {"TOKEN": "secret-one"},
        }
        definition = StepDefinition(
            **{
                "name": "score-files",
                "config": ParallelRunConfig(str(self.script), **{**chosen, **(config or {})}),
                "inputs": (FileDataset.from_files(str(self.data)).as_named_input("images"),),
                "side_inputs": (FileDataset.from_files(str(self.labels)),),
                "arguments": ("--threshold", "0.5", "--password", "secret-two"),
                "output": OutputFileDatasetConfig(destination=str(self.folder / "out")),
                **changes,
            }
        )
        return Work.of_step(definition)

    def run(self, work: Work | None = None, **options) -> RunPaths:
        work = work or self.work()
        run_id = settings.new_run_id(work.fingerprint)
        paths = RunPaths(settings.step_folder("score-files") / run_id)
        run_step(
            work.definition,
            run_folder=paths.root,
            run_id=run_id,
            fingerprint=work.fingerprint,
            source_sha256=work.source_sha256,
            log=logging.getLogger("test"),
            **options,
        )
        return paths


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A step that has run once, with success; tests get copies of its folder."""
    folder = tmp_path_factory.mktemp("reasons") / "step"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(folder / "runs"))
        step = Step(folder)
        step.run()
    shutil.copytree(folder, folder.with_name("kept"), copy_function=shutil.copy2)
    return step


@pytest.fixture
def step(ran, monkeypatch):
    """The step as it was after its run, at the same paths, for one test to change."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(ran.folder / "runs"))
    shutil.rmtree(ran.folder)
    shutil.copytree(ran.folder.with_name("kept"), ran.folder, copy_function=shutil.copy2)
    return ran


def newest(step: Step) -> RunPaths:
    return settings.run_paths("score-files")


def why(step: Step, work: Work | None = None) -> str:
    """Return why nothing is reused, which must be one sentence about the newest run."""
    reuse = (work or step.work()).reuse()
    assert (reuse.run_id, reuse.whole, reuse.mini_batches) == (None, False, 0)
    (reason,) = reuse.reasons
    assert reason.startswith(f"nothing reused of run {newest(step).root.name} (Completed)"), reason
    return reason


def clause(step: Step, **changes) -> str:
    """Return what the newest run is said to differ in."""
    return why(step, step.work(**changes)).partition(", the newest of this step: ")[2]


def test_nothing_changed(step):
    """The run stands for the step as a whole, whatever cannot change the rows was changed (R52)."""
    reuse = step.work(config={"node_count": 2, "logging_level": "DEBUG"}).reuse()

    assert (reuse.run_id, reuse.whole, reuse.mini_batches) == (newest(step).root.name, True, 3)
    assert reuse.reasons[0].startswith(f"all reused: run {newest(step).root.name} (Completed)")
    assert len(reuse.reasons) == 1


def test_a_first_run(tmp_path, monkeypatch):
    """There is nothing to compare with."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))
    reuse = Step(tmp_path).work().reuse()

    assert reuse.reasons == ("nothing reused: this is the first run of step score-files",)


def test_the_script_changed(step):
    """The files of the source that changed, came or went are named."""
    (step.script.parent / "old.py").write_text("")
    step.run()
    (step.script.parent / "old.py").unlink()
    (step.script.parent / "new.py").write_text("")
    step.script.write_text(step.script.read_text() + "# other\n")

    assert clause(step) == "the script changed: new.py (new), score.py, old.py (gone)"


def test_an_input_in_the_folder_of_the_script(step):
    """Its files are part of the source, which is said: else a new one would rerun all without a cause (R210)."""
    nearby = step.script.parent / "images"
    nearby.mkdir()
    (nearby / "a.txt").write_text("a")
    images = (FileDataset.from_files(str(nearby)).as_named_input("images"),)
    step.run(step.work(inputs=images))
    (nearby / "b.txt").write_text("b")

    told = why(step, step.work(inputs=images))

    assert (
        "the script changed: images/b.txt (new) (files of input 0 (images) are in the folder"
        in told
    )
    (step.script.parent / ".amlignore").write_text("images/\n.amlignore\n")
    step.run(step.work(inputs=images))
    (nearby / "c.txt").write_text("c")
    (reason,) = step.work(inputs=images).reuse().reasons
    assert "the script changed" not in reason


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"arguments": ("--threshold", "0.7", "--password", "secret-two")},
            "arguments changed: --threshold",
        ),
        (
            {"arguments": ("--threshold=0.5", "--password", "secret-three")},
            "arguments changed: --threshold, --password",
        ),
        (
            {"config": {"environment_variables": {"TOKEN": "secret-other", "NEW": "1"}}},
            "environment variables changed: TOKEN, NEW",
        ),
        (
            {"config": {"environment": {"requirements": ["a==1"], "name": "scoring"}}},
            "environment was not given, and is 'scoring'",
        ),
        ({"config": {"mini_batch_size": 2}}, "mini_batch_size was 1, and is 2"),
        ({"config": {"mini_batch_size": None}}, "mini_batch_size was 1, and is not given"),
        ({"side_inputs": ()}, "side input 0 is not there any more"),
    ],
)
def test_a_setting_changed(step, changes, told):
    """It is named, and so is its value where that cannot be a secret (R78)."""
    reason = clause(step, **changes)

    assert reason == told
    assert "secret" not in reason


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"config": {"append_row_file_name": "b.txt", "output_order": "completion"}},
            "output settings changed: append_row_file_name, output_order",
        ),
        ({"output": None}, "output settings changed: the output folder"),
    ],
)
def test_the_same_rows_elsewhere(step, changes, told):
    """Where only the place and order of the output are others, no row is made again (R202)."""
    reuse = step.work(**changes).reuse()

    assert (reuse.base, reuse.whole, reuse.mini_batches) == (newest(step).root.name, True, 3)
    assert reuse.reasons == (
        f"run {newest(step).root.name} (Completed) is taken over, since then {told}: 0 of 3 "
        "mini-batches run",
    )


def test_files_of_an_input_changed(step):
    """Each file that changed, came or went is named, and how it changed."""
    (step.data / "a.txt").write_text("longer")
    os.utime(step.data / "b.txt", ns=(1, 1))
    (step.data / "c.txt").unlink()
    (step.data / "bb.txt").write_text("new")

    told = why(step).partition("has the same items, unchanged; files of ")[2]

    assert told == (
        "input 0 (images): 2 changed, 1 new, 1 gone: "
        f"{step.data}/a.txt (1 → 6 bytes), {step.data}/b.txt (its time changed), "
        f"{step.data}/bb.txt (new), {step.data}/c.txt (gone)"
    )


def test_a_side_input_changed(step):
    """It is told apart from inputs."""
    (step.labels / "names.txt").write_text("other")

    assert f"files of side input 0: 1 changed: {step.labels}/names.txt" in clause(step)


def test_how_an_input_is_read_changed(step):
    """It is told, whether files differ, too, or all are as they were."""
    paths = f"{step.data}/*"
    data = FileDataset.from_files(paths, content=True).as_named_input("images")
    how = "how input 0 (images) is read changed"

    assert clause(step, inputs=(data,)) == how
    os.utime(step.data / "b.txt", (1, 1))
    assert clause(step, inputs=(data,)) == (
        f"{how}; files of input 0 (images): 1 changed: {step.data}/b.txt (its time changed)"
    )
    formatted = FileDataset.from_files(paths, partition_format="{name}.txt").as_named_input(
        "images"
    )
    assert clause(step, inputs=(formatted,)).startswith(f"{how}; files of input 0 (images)")


def test_several_changes(step):
    """All of them are told in one sentence."""
    step.script.write_text(step.script.read_text() + "# other\n")

    told = clause(step, config={"mini_batch_size": 3})

    assert told == "the script changed: score.py; mini_batch_size was 1, and is 3"


def test_without_what_is_kept_for_it(step):
    """Of a run folder that lacks what it is compared by, at least the part that changed is named."""
    paths = newest(step)
    for path in (paths.definition, paths.source, paths.listings):
        path.unlink()
    (step.data / "a.txt").write_text("longer")
    step.script.write_text(step.script.read_text() + "# other\n")

    told = clause(step, config={"mini_batch_size": 3})

    assert told == "the script changed; mini_batch_size changed; input 0 (images) changed"


def test_the_newest_of_several(step):
    """A step is compared with its newest run, and goes on with the newest of the same fingerprint."""
    first = newest(step)
    other = step.run(step.work(config={"mini_batch_size": 2}))

    assert clause(step, config={"mini_batch_size": 3}).endswith("was 2, and is 3")
    assert step.work().reuse().run_id == first.root.name
    assert newest(step) == other


def test_the_output_is_lost(step):
    """Rows that are kept are written again; what the script itself wrote has to be made again (R50)."""
    (step.folder / "out" / "parallel_run_step.txt").unlink()
    reuse = step.work().reuse()
    assert reuse.whole
    assert "was deleted or changed: parallel_run_step.txt; it is written again" in reuse.reasons[1]

    own = step.work(config={"output_action": "summary_only"})
    step.run(own)
    (step.folder / "out" / "of-the-script.txt").write_text("other")
    assert "was deleted or changed" in why(step, own)


def test_what_a_step_was_told(step):
    """allow_reuse=False, and results that hold for so long only, are reasons too (R52)."""
    reuse = step.work().reuse(afresh="allow_reuse=False")
    assert reuse.reasons == ("nothing reused: allow_reuse=False",)

    expired = step.work().reuse(expiration=timedelta(0))
    assert "some of it is older than cache_expiration=0:00:00" in expired.reasons[0]
    assert step.work().reuse(expiration=timedelta(days=1)).whole


def test_data_whose_changes_nobody_can_see(step, monkeypatch):
    """Then an earlier result may be outdated, and the input is named."""
    monkeypatch.setattr(Dataset, "shows_changes", lambda _self, _files: False)

    assert "it cannot be seen whether input 0 (images) changed" in step.work().reuse().reasons[0]


def test_a_run_that_failed(step):
    """It is gone on with: so many are done, and why each of the others runs again."""
    step.bad.write_text("")
    work = step.work(config={"error_threshold": 0})
    with pytest.raises(ParallelRunError):
        step.run(work)
    failed = newest(step)

    # The threshold does not decide the rows: it is the same step. So is the older, which completed.
    reuse = work.reuse()

    done, *rest = reuse.reasons
    assert (reuse.run_id, reuse.whole) == (failed.root.name, False)
    assert f"run {failed.root.name} (Failed) is gone on with" in done
    assert f"{reuse.mini_batches} of 3 mini-batches are done" in done
    assert any(
        "1 failed last time and run again (1): ValueError: bad file (score.py:6 in run)" in one
        for one in rest
    )
    left = 3 - 1 - reuse.mini_batches
    assert any(f"{left} had not been run yet" in one for one in rest) == (left > 0)

    record = RunRecord.read(failed)
    record.model_copy(update={"state": RUNNING}).write(failed)
    assert "(Interrupted) is gone on with" in work.reuse().reasons[0]
    with RunLock(failed):
        assert "is being worked on by another driver" in work.reuse().reasons[0]


def test_it_is_in_the_runs_log_and_record(step):
    """What is reused, and why not more, is told when the step runs (R210)."""
    (step.data / "a.txt").write_text("longer")
    work = step.work()
    reasons = work.reuse().reasons
    paths = step.run(work, reuse_notes=reasons)

    assert "a.txt (1 → 6 bytes)" in reasons[0]
    assert reasons[0] in paths.driver_log.read_text()
    assert RunRecord.read(paths).reuse == reasons
