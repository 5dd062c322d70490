"""The commands that run something, as a person calls them (R1, R201, R204, R213, R242)."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import uuid
from typing import NamedTuple

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from prefect_parallelrun import FileDataset, ParallelRunConfig, cli
from prefect_parallelrun.output.lock import RunLock
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord

SCRIPT = """
import os, sys, time

word = sys.argv[2]

def run(mini_batch):
    for path in mini_batch:
        name = os.path.basename(path)
        if name == "c.txt" and os.path.exists({bad!r}):
            raise ValueError("bad file " + name)
        while os.path.exists({stuck!r}):
            open({stuck!r} + "-reached", "w").close()
            time.sleep(0.05)
    return [f"{{word}} {{os.path.basename(path)}}" for path in mini_batch]
"""

STEP = """
name: score-files
config: {{entry_script: score.py, source_directory: scripts, mini_batch_size: 2,
         process_count_per_node: 1, run_max_try: 1{more}}}
inputs: [files: data]
arguments: [--word, row]
output: out
"""


class Call(NamedTuple):
    code: int
    stdout: str
    stderr: str


class Project:
    """A step file with its script and data, and the program called on it."""

    def __init__(self, folder, capfd, monkeypatch):
        self.folder, self._capfd, self._monkeypatch = folder, capfd, monkeypatch
        self.bad, self.stuck = folder / "bad", folder / "stuck"
        self.script = folder / "scripts" / "score.py"
        self.script.parent.mkdir()
        self.write_script()
        self.data = folder / "data"
        self.data.mkdir()
        for name in "abcde":
            (self.data / f"{name}.txt").write_text(name)
        self.file = folder / "step.yaml"
        self.write_step()

    def write_script(self, text=SCRIPT):
        self.script.write_text(text.format(bad=str(self.bad), stuck=str(self.stuck)))

    def write_step(self, more=""):
        self.file.write_text(STEP.format(more=more and f", {more}"))

    def call(self, *arguments):
        """Call the program in this process, as its entry point does."""
        self._monkeypatch.setattr(sys, "argv", ["parallelrun", *map(str, arguments)])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Call(ended.value.code, *self._capfd.readouterr())

    def program(self, *arguments):
        """Return the program's command line and environment, for a process of its own."""
        environment = {
            **os.environ,
            "PREFECT_HOME": str(PREFECT_HOME.value()),
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        }
        command = [sys.executable, "-m", "prefect_parallelrun", *map(str, arguments)]
        return {"args": command, "env": environment, "cwd": self.folder}

    @property
    def paths(self):
        *_, newest = sorted((self.folder / "runs" / "score-files").iterdir())
        return RunPaths(newest)

    @property
    def run_id(self):
        return self.paths.root.name

    @property
    def rows(self):
        return (self.folder / "out" / "parallel_run_step.txt").read_text().splitlines()


@pytest.fixture
def project(tmp_path, capfd, monkeypatch):
    return Project(tmp_path, capfd, monkeypatch)


def test_run_and_run_again(project):
    """A step file runs as a Prefect task; once more, nothing has to run; --json is for machines (R242)."""
    first = project.call("run", project.file)

    assert first.code == 0, first.stderr
    assert first.stdout.splitlines()[:3] == [
        f"Completed; output: {project.folder / 'out' / 'parallel_run_step.txt'}",
        "in 5 = out 5 + failed 0 (items)",
        f"logs: {project.paths.logs}",
    ]
    assert project.rows == [f"row {name}.txt" for name in "abcde"]
    again = project.call("run", project.file, "--json")
    told = json.loads(again.stdout)
    assert again.code == 0
    assert (told["state"], told["reused"], told["run_id"]) == ("Completed", True, project.run_id)
    assert told["items"] == {
        "total": 5,
        "succeeded": 5,
        "failed": 0,
        "reused": told["items"]["reused"],
    }


TABLE_SCRIPT = """
def run(mini_batch):
    return mini_batch.assign(twice=mini_batch["amount"] * 2)
"""


def test_run_of_a_table(project):
    """The table of a step file comes to the script as DataFrames, with the types that the file says (R242)."""
    (project.data / "rows.csv").write_text("word;amount\nx;1\ny;2\nz;3\n")
    project.script.write_text(TABLE_SCRIPT)
    project.file.write_text(
        project.file.read_text()
        .replace("mini_batch_size: 2", "mini_batch_size: 10KB")
        .replace(
            "[files: data]",
            "[{delimited: data/*.csv, separator: ';', column_types: {amount: float64}}]",
        )
    )

    ended = project.call("run", project.file)
    assert ended.code == 0, ended.stderr
    assert "in 3 = out 3 + failed 0 (items)" in ended.stdout
    assert project.rows == ["x 1.0 2.0", "y 2.0 4.0", "z 3.0 6.0"]


def test_run_of_a_registered_dataset(project):
    """A step file may name a registered dataset and its version; one that is not there is refused (R242)."""
    name = f"texts-{uuid.uuid4().hex[:8]}"
    FileDataset.from_files(str(project.data)).register(name)
    (project.folder / "none").mkdir()
    FileDataset.from_files(str(project.folder / "none")).register(name, create_new_version=True)
    text = project.file.read_text()
    project.file.write_text(
        text.replace("[files: data]", f"[{{registered: {{name: {name}, version: 1}}}}]")
    )

    ended = project.call("run", project.file)
    assert ended.code == 0, ended.stderr
    assert project.rows == [f"row {name}.txt" for name in "abcde"]
    project.file.write_text(project.file.read_text().replace("version: 1", "version: 7"))
    refused = project.call("run", project.file)
    assert (refused.code, refused.stdout) == (2, "")
    assert name in refused.stderr


def test_a_run_that_fails(project):
    """It exits with 1; the script's own error is shown once, with its stack trace, and none of ours (R206)."""
    project.bad.touch()

    failed = project.call("run", project.file)

    assert (failed.code, failed.stdout) == (1, "")
    assert failed.stderr.count("stack trace in: ") == 1
    assert 'raise ValueError("bad file " + name)' in failed.stderr
    assert failed.stderr.endswith(f"logs: {project.paths.logs}\n")
    assert "task_engine" not in failed.stderr
    assert "sitting.py" not in failed.stderr


def test_tolerated_failures_have_an_exit_code(project):
    """A run that completed with failed items exits with 3, and so does going on in vain; then with 0 (R204, R208)."""
    project.bad.touch()
    project.write_step("error_threshold: 2")

    tolerated = project.call("run", project.file)
    assert tolerated.code == 3, tolerated.stderr
    assert "Completed with 2 failed items; output: " in tolerated.stdout
    assert "in 5 = out 3 + failed 2 (items)" in tolerated.stdout

    refused = project.call("resume", "score-files")
    assert refused.code == 2
    assert f"parallelrun retry-failed {project.run_id}" in refused.stderr

    project.bad.unlink()
    retried = project.call("retry-failed", project.run_id, "--json")
    assert (retried.code, json.loads(retried.stdout)["state"]) == (0, "Completed"), retried.stderr
    assert len(project.rows) == 5


def test_resume(project):
    """A failed run goes on from its folder; a changed script is refused by name unless told (R201)."""
    project.bad.touch()
    assert project.call("run", project.file).code == 1
    project.file.unlink()  # the run folder is enough
    run = project.run_id

    (project.script.parent / "more.py").write_text("")
    project.script.write_text(project.script.read_text() + "\n# changed\n")
    refused = project.call("resume", run)
    assert refused.code == 2
    assert "more.py (new), score.py" in refused.stderr
    assert "--with-current-script" in refused.stderr

    again = project.call("resume", run, "--with-current-script")
    assert again.code == 1
    assert f"run `parallelrun resume {run} --with-current-script` to go on" in again.stderr

    project.bad.unlink()
    resumed = project.call("resume", "score-files", "--with-current-script")
    assert resumed.code == 0, resumed.stderr
    assert "in 5 = out 5 + failed 0 (items)" in resumed.stdout
    assert project.rows == [f"row {name}.txt" for name in "abcde"]
    record = RunRecord.read(project.paths)
    assert (record.state, record.fingerprint, record.run_id) == ("Completed", "", run)

    ended = project.call("resume", run)
    assert (ended.code, ended.stderr) == (
        2, f"run {run} has ended (Completed): there is nothing to go on with\n",
    )  # fmt: skip


def test_resume_with_the_same_script(project):
    """The resumed run is the step's own run: the step itself then has nothing to do (R201)."""
    project.bad.touch()
    assert project.call("run", project.file).code == 1
    project.bad.unlink()

    assert project.call("resume", "score-files").code == 0
    assert json.loads(project.call("run", project.file, "--json").stdout)["reused"] is True
    assert len(list((project.folder / "runs" / "score-files").iterdir())) == 1


def test_resume_refuses_what_is_not_its_to_go_on_with(project):
    """Another driver's run, and a run whose inputs changed, are left as they are (R201)."""
    project.bad.touch()
    assert project.call("run", project.file).code == 1

    with RunLock(project.paths):
        owned = project.call("resume", "score-files")
    assert owned.code == 2
    assert f"is being worked on by another driver: process {os.getpid()}" in owned.stderr

    (project.data / "a.txt").write_text("other")
    changed = project.call("resume", "score-files")
    assert changed.code == 2
    assert "changed since" in changed.stderr


def test_replay(project):
    """One mini-batch runs with its own files and arguments, with the script as it is or as it was (R213)."""
    project.bad.touch()
    assert project.call("run", project.file).code == 1
    before = sorted((path, path.stat().st_mtime_ns) for path in project.paths.root.rglob("*"))

    failed = project.call("replay", "score-files", 1)
    assert failed.code == 1
    assert failed.stderr.startswith("Traceback (most recent call last):\n  File")
    assert failed.stderr.endswith("ValueError: bad file c.txt\n")
    assert "inline.py" not in failed.stderr
    part = project.call("replay", "score-files", 1, "--items", "1:2")
    assert (part.code, part.stdout) == (0, "mini-batch 1: list with 1 element\n['row d.txt']\n")

    project.script.write_text(
        "def run(mini_batch):\n    return [path[-5] for path in mini_batch]\n"
    )
    mended = project.call("replay", "score-files", 1)
    assert (mended.code, mended.stdout) == (0, "mini-batch 1: list with 2 elements\n['c', 'd']\n")
    assert mended.stderr.startswith("note: the script changed since the run began: score.py;")
    assert project.call("replay", "score-files", 1, "--as-it-was").code == 1

    for arguments, said in [
        (["3"], "mini_batch=3 cannot be used"),
        (["-1"], "mini_batch=-1 cannot be used: they are counted from 0"),
        (["1", "--items", "1"], "items='1' cannot be used"),
        (["1", "--items", "1:3"], "items='1:3' cannot be used: it has 2 items"),
    ]:
        refused = project.call("replay", "score-files", *arguments)
        assert refused.code == 2
        assert said in refused.stderr
    assert before == sorted(
        (path, path.stat().st_mtime_ns) for path in project.paths.root.rglob("*")
    )


def test_replay_of_rows(project):
    """How many rows a mini-batch has, only its data tell: more are refused, with how many there are (R213)."""
    (project.data / "rows.csv").write_text("n\n" + "".join(f"{n}\n" for n in range(103)))
    project.script.write_text("def run(mini_batch):\n    return list(mini_batch['n'])\n")
    project.file.write_text(
        project.file.read_text()
        .replace("files: data", "delimited: data/rows.csv")
        .replace("mini_batch_size: 2", "mini_batch_size: 1MB")
    )
    assert project.call("run", project.file).code == 0

    part = project.call("replay", "score-files", 0, "--items", "101:103")
    refused = project.call("replay", "score-files", 0, "--items", "101:104")

    assert (part.code, part.stdout) == (
        0, "mini-batch 0: list with 2 elements\n[101, 102]\n",
    )  # fmt: skip
    assert refused.code == 2
    assert refused.stderr == "items='101:104' cannot be used: it has 103 rows\n"


def test_replay_of_a_run_without_mini_batches(project):
    """One that ended before it was planned is no run whose inputs changed (R213)."""
    assert project.call("run", project.file).code == 0
    record = RunRecord.read(project.paths)
    record.model_copy(update={"grouping": "", "state": "Failed"}).write(project.paths)

    refused = project.call("replay", "score-files", 0)

    assert refused.code == 2
    assert "ended before anything was planned, so it has no mini-batches" in refused.stderr


def test_replay_refuses_other_inputs(project):
    """Where a file changed it says so and takes an option; where mini-batches are others it refuses (R213)."""
    assert project.call("run", project.file).code == 0
    (project.data / "a.txt").write_text("other")

    changed = project.call("replay", "score-files", 0)
    assert changed.code == 2
    assert "--with-current-inputs" in changed.stderr
    assert project.call("replay", "score-files", 0, "--with-current-inputs").code == 0

    (project.data / "a.txt").unlink()
    others = project.call("replay", "score-files", 0, "--with-current-inputs")
    assert others.code == 2
    assert "are others than they were" in others.stderr


def test_debug(project):
    """Chosen mini-batches run in this process; what the script raises or returns wrongly is shown (R1)."""
    project.bad.touch()
    argv, path, folder = sys.argv[:], sys.path[:], os.getcwd()

    assert project.call("debug", project.file).stdout == (
        "mini-batch 0: list with 2 elements\n['row a.txt', 'row b.txt']\n"
    )
    last = project.call("debug", project.file, "--index", 2, "--mini-batches", 5)
    assert (last.code, last.stdout) == (0, "mini-batch 2: list with 1 element\n['row e.txt']\n")
    failed = project.call("debug", project.file, "--index", 1)
    assert (failed.code, failed.stdout) == (1, "")
    assert failed.stderr.endswith("ValueError: bad file c.txt\n")
    assert project.call("debug", project.file, "--index", 3).code == 2
    project.script.write_text("def run(mini_batch):\n    return None\n")
    wrong = project.call("debug", project.file)
    assert wrong.code == 1
    assert "None" in wrong.stderr
    assert "File" not in wrong.stderr
    assert (sys.path, os.getcwd()) == (path, folder)
    assert argv[0] != str(project.script)


@pytest.mark.parametrize("code", [0, 7])
def test_a_script_that_exits(code, project):
    """`sys.exit()` in a script is its error, with a stack trace, where it is tried out (R1, R242)."""
    project.script.write_text(f"import sys\ndef run(mini_batch):\n    sys.exit({code})\n")

    for arguments in (["debug", project.file], ["plan", project.file, "--time", 1]):
        tried = project.call(*arguments)
        assert (tried.code, tried.stdout) == (1, "")
        assert tried.stderr.startswith("Traceback (most recent call last):\n  File")
        assert f"    sys.exit({code})\n" in tried.stderr
        assert tried.stderr.endswith(f"SystemExit: {code}\n")


def test_sigterm_while_a_script_is_tried(project):
    """SIGTERM in the script's own code ends the program as it always does, with no stack trace (R205)."""
    project.script.write_text(
        "import os, signal, time\ndef run(mini_batch):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
    )
    ended = subprocess.run(
        **project.program("debug", project.file), capture_output=True, text=True, timeout=50
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")


def test_the_script_at_home(project):
    """In `debug` the script finds arguments, helpers, EntryScript and folders as in a worker process, and may write (R17, R67, R107)."""
    (project.script.parent / "helper.py").write_text("WORD = 'helped'\n")
    labels = project.script.parent / "labels.txt"
    labels.write_text("cat\n")
    (project.script.parent / ".amlignore").write_text("drafts.txt\n")
    (project.script.parent / "drafts.txt").write_text("")
    model = project.script.parent / "more" / "model.bin"
    model.parent.mkdir()
    model.write_bytes(b"m" * 200_000)
    project.script.write_text(
        "import os, sys\nimport helper\nfrom azureml_user.parallel_run import EntryScript\n"
        "def run(mini_batch):\n"
        "    it = EntryScript()\n"
        "    it.logger.info('hello from the script')\n"
        "    assert it.output_dir == os.environ['AZUREML_BI_OUTPUT_PATH'], it.output_dir\n"
        "    assert os.path.isdir(it.log_dir) and 'parallelrun-debug' in it.log_dir, it.log_dir\n"
        "    assert it.agent_name == 'process000'\n"
        "    assert not os.path.exists('drafts.txt')\n"
        "    with open('labels.txt') as file:\n"
        "        label = file.read().strip()\n"
        "    for name in ('labels.txt', 'more/model.bin', 'score.py', 'new.txt'):\n"
        "        open(name, 'w').close()\n"
        "    return [helper.WORD, label, *sys.argv[1:]]\n"
    )

    for _ in range(2):  # the second is not in the folders of the first
        tried = project.call("debug", project.file)
        assert tried.stdout.endswith("\n['helped', 'cat', '--word', 'row']\n"), tried.stderr
        assert tried.stderr.count("hello from the script") == 1
    assert not (project.script.parent / "logs").exists()
    assert not (project.script.parent / "new.txt").exists()
    assert (labels.read_text(), model.stat().st_size) == ("cat\n", 200_000)
    assert project.script.stat().st_size > 0


def test_validate(project):
    """It prints what a file means without running it; exit code 2 says what cannot work (R242)."""
    good = project.call("validate", project.file)
    assert good.code == 0, good.stderr
    assert "mini-batches  3\n" in good.stdout
    assert f"entry script  {project.script}\n" in good.stdout
    assert json.loads(project.call("validate", project.file, "--json").stdout)["items"] == 5
    assert not (project.folder / "runs").exists()

    config = project.folder / "config.yaml"
    ParallelRunConfig("scripts/score.py", run_max_try=7).save_to_yaml(config)
    saved = project.call("validate", config)
    assert saved.code == 0, saved.stderr
    assert "run_max_try=7" in saved.stdout

    project.script.write_text("def ruin(mini_batch): ...\n")
    for file in (project.file, config):
        bad = project.call("validate", file)
        assert (bad.code, bad.stdout) == (2, "")
        assert "run" in bad.stderr
    project.write_script()
    (project.data / "gone").mkdir()
    for name in "abcde":
        (project.data / f"{name}.txt").unlink()
    empty = project.call("validate", project.file)
    assert empty.code == 2
    assert "without any file" in empty.stderr


@pytest.mark.parametrize(
    "arguments", [["fly"], ["run"], ["debug", "step.yaml", "--index", "x"], ["run", "a", "b"]]
)
def test_wrong_usage(arguments, project):
    """What the program cannot parse is exit code 2, said on standard error (R242)."""
    refused = project.call(*arguments)

    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr


def test_help(project):
    """The program alone prints its help, in groups; each command's help has an example (R242)."""
    for arguments in ([], ["--help"]):
        shown = project.call(*arguments)
        assert shown.code == 0
        assert "─ Run ─" in shown.stdout
    for command in ("run", "debug", "replay", "resume", "retry-failed", "validate"):
        assert (
            f"parallelrun {command} "
            in project.call(command, "--help").stdout.split("Example", 1)[1]
        )


def test_help_is_quick(project):
    """What a person asks for first brings in neither Prefect, Dask nor pandas (R242)."""
    code = (
        "import sys; from prefect_parallelrun.cli import app, looking, running\n"
        "print(sorted({'prefect', 'dask', 'distributed', 'pandas', 'bokeh'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout == "[]\n"


def test_checking_is_without_dask(project):
    """What only looks at a step file does not wait for Dask and pandas to be imported (R242)."""
    code = (
        "import sys; from prefect_parallelrun import understanding\n"
        "print(sorted({'dask', 'distributed', 'pandas', 'bokeh'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [["validate", "step.yaml"], ["--help"]])
def test_nobody_reads(arguments, project):
    """A reader that has gone, like `head`, ends the program without a word (R242)."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        **project.program(*arguments),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)

    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


def test_output_that_cannot_be_written(project):
    """A full disk is said in a sentence; a standard output that was closed is nobody's (R242)."""
    command = project.program("validate", project.file)
    with open("/dev/full", "w") as full:
        ended = subprocess.run(**command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (
        1, "standard output cannot be written: No space left on device\n",
    )  # fmt: skip

    command["args"] = ["sh", "-c", 'exec "$@" >&- <&-', "sh", *command["args"]]
    closed = subprocess.run(**command, stderr=subprocess.PIPE, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number, code, project):
    """Ctrl-C and SIGTERM end the run, and every process of it, with the exit code of a shell (R205)."""
    project.stuck.touch()
    with subprocess.Popen(
        **project.program("run", project.file),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            wait_until(
                lambda: (project.folder / "stuck-reached").exists() or process.poll() is not None,
                50,
            )
            process.send_signal(number)
            said, _ = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    assert process.returncode == code, said
    assert RunRecord.read(project.paths).state == "Cancelled"
    mark = f"PARALLELRUN_PROCESS={project.run_id}".encode()
    wait_until(lambda: not any(mark in environ_of(pid) for pid in os.listdir("/proc")), 5)


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_resume_after_the_driver_was_killed(project):
    """A run whose driver got SIGKILL is Interrupted, and goes on from its folder to the same rows (R201)."""
    project.stuck.touch()
    with subprocess.Popen(
        **project.program("run", project.file), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            wait_until(
                lambda: (project.folder / "stuck-reached").exists() or process.poll() is not None,
                50,
            )
        finally:
            process.kill()
    mark = f"PARALLELRUN_PROCESS={project.run_id}".encode()
    wait_until(lambda: not any(mark in environ_of(pid) for pid in os.listdir("/proc")), 20)
    project.stuck.unlink()

    assert json.loads(project.call("status", "score-files", "--json").stdout)["state"] == (
        "Interrupted"
    )
    resumed = project.call("resume", "score-files")
    assert resumed.code == 0, resumed.stderr
    assert "in 5 = out 5 + failed 0 (items)" in resumed.stdout
    assert project.rows == [f"row {name}.txt" for name in "abcde"]


def test_a_breakpoint(project):
    """`breakpoint()` in the script stops on the terminal; --pdb opens the debugger where it raises (R1)."""
    project.script.write_text(
        "def run(mini_batch):\n    found = len(mini_batch)\n    breakpoint()\n    return 1 / (found - 2)\n"
    )
    with Terminal(project.program("debug", project.file, "--pdb")) as terminal:
        terminal.expect("(Pdb) ")
        terminal.send("p 'found', found\n")
        terminal.expect("('found', 2)")
        terminal.expect("(Pdb) ")
        terminal.send("continue\n")
        terminal.expect("ZeroDivisionError")
        terminal.expect("(Pdb) ")
        terminal.send("p mini_batch[0]\n")
        terminal.expect("a.txt")
        terminal.send("quit\n")
        assert terminal.end() == 1, terminal.said


def test_leaving_the_debugger(project):
    """`quit` at a breakpoint ends the program like Ctrl-C, with no stack trace (R1)."""
    project.script.write_text("def run(mini_batch):\n    breakpoint()\n    return mini_batch\n")
    with Terminal(project.program("debug", project.file)) as terminal:
        terminal.expect("(Pdb) ")
        terminal.send("quit\n")
        assert terminal.end() == 130, terminal.said
    assert "Traceback" not in terminal.said


class Terminal:
    """A program on a terminal of its own, and a person who types."""

    def __init__(self, program):
        self._program = program
        self.said = ""
        self._seen = 0

    def __enter__(self):
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            **self._program, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def expect(self, text):
        """Wait until the program has said something, after what was expected before."""
        deadline = time.monotonic() + 40
        while text not in self.said[self._seen :]:
            assert time.monotonic() < deadline, f"{text!r} not in {self.said!r}"
            assert self._read(), f"ended without {text!r}: {self.said!r}"
        self._seen = self.said.index(text, self._seen) + len(text)

    def send(self, text):
        os.write(self._ours, text.encode())

    def end(self):
        """Wait for the program's end and return its exit code."""
        deadline = time.monotonic() + 40
        while self._read():
            assert time.monotonic() < deadline, self.said
        return self._process.wait(10)

    def _read(self):
        ready, _, _ = select.select([self._ours], [], [], 0.5)
        if not ready:
            return True
        try:
            text = os.read(self._ours, 65536)
        except OSError:  # what a terminal says when nobody is at its other end
            return False
        self.said += text.decode(errors="replace")
        return bool(text)


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def environ_of(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""
