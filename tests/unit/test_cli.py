from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from prefect_parallelrun import cli, settings
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import run_step
from prefect_parallelrun.errors import ErrorThresholdExceeded, OutputError
from prefect_parallelrun.paths import RunPaths

SCRIPT = """
import os
def run(mini_batch):
    if os.path.exists(%r) and mini_batch[0].endswith("b.txt"):
        raise ValueError("bad file")
    return [os.path.basename(path) for path in mini_batch]
"""


@pytest.fixture(autouse=True)
def run_root(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(root))
    return root


@pytest.fixture
def failed_run(tmp_path, run_root):
    """The id of a run of which one item failed; and how to mend the script."""
    (tmp_path / "scripts").mkdir()
    script, bad = tmp_path / "scripts" / "score.py", tmp_path / "bad"
    script.write_text(SCRIPT % str(bad))
    bad.write_text("")
    (tmp_path / "data").mkdir()
    for name in "abc":
        (tmp_path / "data" / f"{name}.txt").write_text("")
    config = ParallelRunConfig(
        str(script), mini_batch_size=1, process_count_per_node=1, run_max_try=1
    )
    with pytest.raises(ErrorThresholdExceeded):
        run_step(
            StepDefinition(
                name="score-files",
                config=config,
                inputs=(FileDataset.from_files(str(tmp_path / "data")),),
            ),
            run_folder=run_root / "score-files" / "one",
            run_id="one",
            fingerprint="f",
            log=logging.getLogger("test"),
        )
    return "one", bad.unlink


class Call(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def call(capsys, monkeypatch):
    """Return a function that calls the program as its entry point does."""

    def program(*arguments: str) -> Call:
        monkeypatch.setattr(sys, "argv", ["parallelrun", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Call(ended.value.code, *capsys.readouterr())

    return program


def test_retry_failed_then_verify(failed_run, run_root, call):
    """What failed runs again into the same output; `verify` agrees; both say where things are (R204, R208)."""
    run, mend = failed_run
    mend()

    retried = call("retry-failed", run)
    assert retried.code == 0, retried.stderr
    output = run_root / "score-files" / run / "output" / "parallel_run_step.txt"
    assert f"Completed; output: {output}\n" in retried.stdout
    assert f"logs: {run_root / 'score-files' / run / 'logs'}\n" in retried.stdout
    assert output.read_text() == "a.txt\nb.txt\nc.txt\n"

    verified = call("verify", str(run_root / "score-files" / run))
    assert (verified.code, verified.stdout) == (0, "in 3 = out 3 + failed 0 (items)\n")

    output.write_text("a.txt\nc.txt\n")
    verified = call("verify", run)
    assert verified.code == 1
    assert str(output) in verified.stdout
    assert verified.stdout.endswith("in 3 = out 3 + failed 0 (items)\n")


def test_a_retry_that_fails_again(failed_run, run_root, call):
    """It exits with 1, the script's own error, and where the logs are (R206)."""
    failed = call("retry-failed", failed_run[0])

    assert failed.code == 1
    assert "ValueError: bad file" in failed.stderr
    assert f"logs: {run_root / 'score-files' / 'one' / 'logs'}" in failed.stderr
    assert "Traceback" not in failed.stderr.split("ValueError: bad file")[0]


@pytest.mark.parametrize("command", ["verify", "retry-failed"])
def test_a_run_that_is_not_there(command, call):
    """It is a sentence and exit code 2, not a stack trace."""
    refused = call(command, "nothing")

    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("'nothing' is no run folder")


def test_as_a_module():
    """`python -m prefect_parallelrun` is the same program."""
    program = [sys.executable, "-m", "prefect_parallelrun", "verify", "nothing"]
    called = subprocess.run(program, capture_output=True, text=True)

    assert called.returncode == 2
    assert called.stderr.startswith("'nothing' is no run folder")


def test_run_ids(run_root):
    """A run is named by its folder, or by its id where only one step has it."""
    for step in ("first-step", "other-step"):
        folder = run_root / step / "twice"
        folder.mkdir(parents=True)
        RunPaths(folder).record.write_text("{}")
        RunPaths(folder).token.write_text("twice")
    once = run_root / "first-step" / "once"
    once.mkdir()
    RunPaths(once).record.write_text("{}")
    RunPaths(once).token.write_text("once")
    foreign = run_root / "first-step" / "experiment"
    foreign.mkdir()
    RunPaths(foreign).record.write_text("{}")

    assert settings.run_paths("once").root == once
    assert settings.run_paths(str(folder)).root == folder
    with pytest.raises(OutputError, match="'twice' may be any of 2 runs: first-step/twice, other-"):
        settings.run_paths("twice")
    with pytest.raises(OutputError, match="'experiment' is no run folder"):
        settings.run_paths("experiment")


def test_names_of_new_runs():
    """They sort by time, hold the beginning of the fingerprint, and differ."""
    names = [settings.new_run_id("0123456789") for _ in range(50)]

    assert len(set(names)) == 50
    moments = [name.split("-")[0] for name in names]
    assert moments == sorted(moments)
    assert {name.split("-")[1] for name in names} == {"01234567"}
    assert all(Path(name).name == name for name in names)
