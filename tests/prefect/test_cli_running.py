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
from typing import NamedTuple

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from prefect_parallelrun import ParallelRunConfig, cli
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
        (["1", "--items", "1"], "items='1' cannot be used"),
        (["1", "--items", "1:3"], "items='1:3' cannot be used: it has 2 items"),
    ]:
        refused = project.call("replay", "score-files", *arguments)
        assert refused.code == 2
        assert said in refused.stderr
    assert before == sorted(
        (path, path.stat().st_mtime_ns) for path in project.paths.root.rglob("*")
    )


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


def test_the_script_at_home(project):
    """In `debug` the script finds arguments, helpers, EntryScript and folders as in a worker process (R17, R67, R107)."""
    (project.script.parent / "helper.py").write_text("WORD = 'helped'\n")
    (project.script.parent / "labels.txt").write_text("cat\n")
    project.script.write_text(
        "import os, sys\nimport helper\nfrom azureml_user.parallel_run import EntryScript\n"
        "def run(mini_batch):\n"
        "    it = EntryScript()\n"
        "    it.logger.info('hello from the script')\n"
        "    assert it.output_dir == os.environ['AZUREML_BI_OUTPUT_PATH'], it.output_dir\n"
        "    assert os.path.isdir(it.log_dir) and 'parallelrun-debug' in it.log_dir, it.log_dir\n"
        "    assert it.agent_name == 'process000'\n"
        "    with open('labels.txt') as file:\n"
        "        return [helper.WORD, file.read().strip(), *sys.argv[1:]]\n"
    )

    for _ in range(2):  # the second is not in the folders of the first
        tried = project.call("debug", project.file)
        assert tried.stdout.endswith("\n['helped', 'cat', '--word', 'row']\n"), tried.stderr
        assert tried.stderr.count("hello from the script") == 1
    assert not (project.script.parent / "logs").exists()


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


def test_nobody_reads(project):
    """A reader that has gone, like `head`, ends the program without a word (R242)."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        **project.program("validate", project.file),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)

    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


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
