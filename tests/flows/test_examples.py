"""The example flows, and the first flow of the README, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOWS = ROOT / "flows"
LIMIT_S = 150

# The first flow of a Prefect home waits for its server and database: seconds, on a busy machine many.
pytestmark = pytest.mark.timeout(2 * LIMIT_S + 20)


@pytest.fixture(scope="module")
def run_script(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that runs a Python script, with a Prefect home of its own, and gives back
    what it printed."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
    }
    # The home is shared by all scripts, since making its database takes seconds.
    environment["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))

    def run(*command: object, folder: Path = ROOT) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env=environment,
            text=True,
            capture_output=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def printed(output: str, name: str) -> str:
    """Return what stands behind a name at the start of a line."""
    found = re.search(rf"^{name} +(.*)$", output, flags=re.MULTILINE)
    assert found, output
    return found[1]


def test_digits_are_recognised_and_then_reused(
    run_script: Callable[..., str], tmp_path: Path
) -> None:
    """Scoring 1,797 images gives one row each, nearly all right; a second run of the same script
    finds nothing changed and takes the first one's result (R28, R34, R52)."""
    first = run_script(FLOWS / "digits.py", "--data", tmp_path)
    written = (tmp_path / "predictions" / "predictions.txt").stat()
    second = run_script(FLOWS / "digits.py", "--data", tmp_path)

    rows = (tmp_path / "predictions" / "predictions.txt").read_text().splitlines()
    assert [row.partition(":")[0] for row in rows] == [f"{i:04d}.png" for i in range(1797)]
    assert float(printed(first, "accuracy").partition("%")[0]) > 93
    assert printed(first, "step").endswith("reused: no")
    assert printed(second, "step").endswith("reused: yes")
    assert printed(second, "accuracy") == printed(first, "accuracy")
    assert (tmp_path / "predictions" / "predictions.txt").stat().st_mtime_ns == written.st_mtime_ns
    assert (Path(printed(second, "logs")) / "job_result.txt").is_file()


def test_irises_are_told_apart(run_script: Callable[..., str], tmp_path: Path) -> None:
    """A table is cut into several mini-batches of whole rows, each row comes out once and in input
    order, and the script finds the file beside it in its working directory (R9, R24, R107)."""
    output = run_script(FLOWS / "iris.py", "--data", tmp_path)

    rows = (tmp_path / "species" / "species.txt").read_text().splitlines()
    assert [int(row.split()[0]) for row in rows] == list(range(150))
    assert {row.split()[1] for row in rows} == {"setosa", "versicolor", "virginica"}
    assert printed(output, "accuracy") == "96.0% of 150 flowers"
    assert int(printed(output, "batches").split()[0]) > 2


@pytest.mark.slow
def test_a_model_for_each_store_and_brand(run_script: Callable[..., str], tmp_path: Path) -> None:
    """A table is cut by its keys, a model file is written for each combination, and the next step
    scores with them as a side input; run again, neither step has anything to do (R28, R75, R102)."""
    first = run_script(FLOWS / "many_models.py", "--data", tmp_path)
    second = run_script(FLOWS / "many_models.py", "--data", tmp_path)

    assert len(list((tmp_path / "models").glob("*.pickle"))) == 60
    assert int(printed(first, "models").split(",")[0]) == 60
    error, mean_error = re.findall(r"([\d.]+)%", printed(first, "error"))
    assert float(error) < float(mean_error) / 3
    rows = (tmp_path / "forecasts" / "forecasts.txt").read_text().splitlines()
    assert len(rows) == 60 * 120
    for step in ("train", "score"):
        assert printed(first, step).endswith("reused: no")
        assert printed(second, step).endswith("reused: yes")
    assert printed(second, "error") == printed(first, "error")


def test_first_flow_of_the_readme_works_as_it_stands(
    run_script: Callable[..., str], tmp_path: Path
) -> None:
    """The two files of the README, copied into an empty folder, count the words of 100 files."""
    script, flow = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL
    )
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "count_words.py").write_text(script)
    (tmp_path / "first_flow.py").write_text(flow)

    output = run_script("first_flow.py", folder=tmp_path)

    assert "100 files counted, see " in output
    counted = (tmp_path / "counts" / "words.txt").read_text().splitlines()
    assert counted == [f"{number:02d}.txt {number}" for number in range(100)]
