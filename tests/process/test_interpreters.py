"""Interpreters of a step's environment on a node: real ones, asked and built by real processes (R35)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
import venv
from pathlib import Path

import psutil
import pytest

from prefect_parallelrun.node import built_environments, interpreters
from prefect_parallelrun.node.interpreters import Interpreters, NoEnvironment
from prefect_parallelrun.node.transfer import Stopped

BACKEND = """
    import os, time, zipfile

    def build_wheel(folder, config_settings=None, metadata_directory=None):
        open({began!r}, "a").write(str(os.getpid()) + "\\n")
        while {waits!r} and not os.path.exists({gate!r}):
            time.sleep(0.02)
        if {breaks!r} and not os.path.exists({gate!r}):
            print("looking for libfoo")
            raise RuntimeError("libfoo.h is not there: install libfoo-dev")
        name, about = "gated-1.0-py3-none-any.whl", "gated-1.0.dist-info"
        with zipfile.ZipFile(os.path.join(folder, name), "w") as archive:
            archive.writestr("gated.py", "NUMBER = 42\\n")
            archive.writestr(about + "/METADATA", "Metadata-Version: 2.1\\nName: gated\\nVersion: 1.0\\n")
            archive.writestr(about + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
            archive.writestr(about + "/RECORD", "")
        return name
"""
BUILD = """
    import json, os, sys
    from pathlib import Path
    from prefect_parallelrun.node.interpreters import Interpreters

    log, requirement, told = sys.argv[1:]
    found = Interpreters(
        log=Path(log), inherited=os.environ, given={}, stopping=lambda: False,
        tell=lambda doing: open(told, "a").write(doing + "\\n"),
    )
    print(found.python("", [requirement], "", []))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is built is kept in the test's own folder, and pip looks nowhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(interpreters, "TELL_S", 0.0)
    return tmp_path / "cache" / "prefect-parallelrun" / "environments"


@pytest.fixture
def ask(tmp_path):
    """Return a function that finds an interpreter: `ask(python, requirements=…, modules=…, given=…)`."""

    def call(
        python="", *, requirements=(), modules=(), given=None, name="", stopping=lambda: False
    ):
        found = Interpreters(
            log=tmp_path / "log.txt",
            inherited=os.environ,
            given=given or {},
            stopping=stopping,
            tell=lambda doing: None,
        )
        return found.python(str(python), requirements, name, modules)

    return call


@pytest.fixture
def program(tmp_path):
    """Return a function that makes an executable file of a shell script."""

    def call(script):
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}")
        path.chmod(0o755)
        return path

    return call


class Gated:
    """A package whose building waits, or fails, until a file is there."""

    def __init__(self, folder: Path, *, breaks: bool) -> None:
        folder.mkdir()
        self.gate, self.began = folder / "gate", folder / "began"
        (folder / "backend.py").write_text(
            textwrap.dedent(BACKEND).format(
                began=str(self.began), gate=str(self.gate), breaks=breaks, waits=not breaks
            )
        )
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "gated"\nversion = "1.0"\n'
        )
        self.requirement = f"gated @ {folder.as_uri()}"

    def times(self) -> int:
        """How often it was built, or begun to be."""
        return len(self.began.read_text().split()) if self.began.exists() else 0


@pytest.fixture
def builder(tmp_path):
    """Return a function that starts a process of its own which wants an environment."""
    started = []

    def call(requirement):
        number = len(started)
        command = [sys.executable, "-c", textwrap.dedent(BUILD), str(tmp_path / f"log{number}.txt")]
        process = subprocess.Popen(
            [*command, requirement, str(tmp_path / f"told{number}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def until(what, *, within_s=60.0):
    """Wait for a condition."""
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def refused(ask, *arguments, **options):
    """Return why there is no environment."""
    with pytest.raises(NoEnvironment) as caught:
        ask(*arguments, **options)
    return str(caught.value)


# -- one that is there -----------------------------------------------------------------------


def test_an_interpreter_may_print_what_it_likes(ask, program):
    """Its answer is found among the rest; what it leaves running is waited for by nobody."""
    noisy = program(f"""
        echo '{{"version": "2.7"}} hello'; echo hello >&2
        sleep 600 &
        exec {sys.executable} "$@"
    """)

    assert ask(noisy, modules=["json"]) == str(noisy)


def test_the_variables_of_the_step_decide_what_it_finds(ask, tmp_path):
    """`PYTHONPATH` of environment_variables counts, and that of the Dask worker does not (R112)."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "only_here.py").write_text("")

    assert ask(sys.executable, modules=["only_here"], given={"PYTHONPATH": str(tmp_path / "lib")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "lib"))
        assert "has no only_here" in refused(ask, sys.executable, modules=["only_here"])


def test_what_lies_where_the_dask_worker_runs_is_none_of_its_modules(ask, tmp_path, monkeypatch):
    """A folder `pandas` in the working directory is no pandas, nor is a `json.py` json."""
    (tmp_path / "pandas").mkdir()
    (tmp_path / "json.py").write_text("raise ValueError")
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    monkeypatch.chdir(tmp_path)

    told = refused(ask, bare, modules=["pandas"])

    assert f"has no pandas, which the tables of this step need: {bare}/bin/python -m pip" in told


def test_variables_that_keep_it_from_starting_are_named(ask):
    """Not their values; and an encoding of standard output keeps nothing from being answered (R112)."""
    told = refused(ask, sys.executable, given={"PYTHONHOME": "/no/such", "TOKEN": "hunter2"})

    assert "as a Python interpreter, with PYTHONHOME of environment_variables: " in told
    assert "No module named 'encodings'" in told
    assert "hunter2" not in told
    assert ask(sys.executable, given={"PYTHONIOENCODING": "utf-16"}) == sys.executable


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", "does not work as a Python interpreter: it ended with 0 and printed nothing"),
        ("echo I am no Python", "does not work as a Python interpreter: I am no Python"),
        ("echo broken >&2; exit 3", "does not work as a Python interpreter: broken"),
        ("kill -SEGV $$", "it ended with -11 and printed nothing"),
    ],
)
def test_what_is_no_python(ask, program, script, told):
    assert told in refused(ask, program(script))


def test_one_that_hangs_is_given_up_with_all_it_started(ask, program, tmp_path, monkeypatch):
    """So that no start of a node hangs with it."""
    monkeypatch.setattr(interpreters, "ASK_S", 0.5)
    hangs = program(f"sleep 600 & echo $! > {tmp_path}/pid; wait")

    assert "did not say within 0.5 s what it is" in refused(ask, hangs)
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def test_a_node_that_ends_does_not_wait_for_one_that_hangs(ask, program):
    with pytest.raises(Stopped):
        ask(program("sleep 600"), stopping=lambda: True)


def test_a_python_that_is_too_old(ask, monkeypatch):
    """Its version is told, and the one that is needed."""
    monkeypatch.setattr(
        interpreters, "_QUESTION", interpreters._QUESTION.replace("(3, 11)", "(99, 0)")
    )

    told = refused(ask, sys.executable)

    assert f"is Python {sys.version.split()[0]}; worker processes need 3.11 or newer" in told


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.10"])
def test_really_old_ones_can_say_so(ask, version):
    """The question is one that each of them understands."""
    found = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    if not found:
        pytest.skip(f"there is no Python {version}")

    assert f"is Python {version}." in refused(ask, found[0])


def test_where_there_is_none(ask, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no program")

    assert refused(ask, tmp_path / "no").endswith(f"there is no interpreter {tmp_path}/no")
    assert f"there is no interpreter {tmp_path}/empty/bin/python" in refused(
        ask, tmp_path / "empty"
    )
    (tmp_path / "empty" / "bin").mkdir()
    (tmp_path / "empty" / "bin" / "python").symlink_to(tmp_path / "gone")
    assert refused(ask, tmp_path / "empty").endswith(
        f"{tmp_path}/empty/bin/python: that is a link to {tmp_path}/gone, which is not there"
    )
    assert f"{tmp_path}/text is no program that" in refused(ask, tmp_path / "text")
    told = refused(ask, "no-such-python", name="scoring")
    assert "environment 'scoring': there is no program 'no-such-python' in the PATH" in told
    assert "'./no-such-python'" in told


def test_by_name_by_home_and_by_folder(ask, tmp_path, monkeypatch):
    """`~` is the node's home; a folder of conda has no pyvenv.cfg, and is an environment too."""
    conda = tmp_path / "conda"
    (conda / "bin").mkdir(parents=True)
    (conda / "conda-meta").mkdir()
    (conda / "bin" / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{conda / 'bin'}:{os.environ['PATH']}")
    python = str(conda / "bin" / "python3")

    assert ask("~/conda") == python
    assert ask(conda) == python
    assert ask("python3") == python
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("PATH", "conda/bin")  # worker processes have another working directory
        assert ask("python3") == python
    active = interpreters.activated({"PATH": "/bin"}, python)
    assert active == {"PATH": f"{conda}/bin:/bin", "CONDA_PREFIX": str(conda)}


# -- one that is built -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_processes_that_want_one_at_once_build_it_once_also_where_the_builder_is_killed(
    builder, tmp_path, cache
):
    """The others wait, and say so; one of them goes on, and what the killed one left is for nobody."""
    gated = Gated(tmp_path / "gated", breaks=False)
    processes = [builder(gated.requirement) for _ in range(3)]
    told = [tmp_path / f"told{number}" for number in range(3)]
    waiting = "waits until another"
    until(lambda: gated.times() == 1)
    until(lambda: sum(waiting in one.read_text() for one in told if one.exists()) == 2)
    (half,) = cache.glob("*-*")
    (number,) = (n for n, one in enumerate(told) if waiting not in one.read_text())
    killed = processes.pop(number)
    (pip,) = psutil.Process(killed.pid).children()

    killed.kill()
    killed.communicate()
    with contextlib.suppress(psutil.NoSuchProcess):
        pip.wait(timeout=10)  # the kernel ended it: the gate is still shut
    gated.gate.touch()
    found = {process.communicate(timeout=100)[0] for process in processes}
    found.add(builder(gated.requirement).communicate(timeout=100)[0])

    (python,) = found
    assert gated.times() == 2
    assert subprocess.run([python.strip(), "-c", "import gated"], check=True)
    assert not half.exists()
    assert [one.name for one in cache.glob("*-*")] == [Path(python).parts[-3]]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_broken_build_is_told_in_the_words_of_pip_once_and_is_tried_again(
    builder, ask, tmp_path, cache
):
    """Which package it was and what it printed; who waited tells the same; nothing is left of it."""
    gated = Gated(tmp_path / "gated", breaks=True)
    processes = [builder(gated.requirement) for _ in range(2)]

    told = [process.communicate(timeout=100)[0] for process in processes]

    assert gated.times() == 1
    for one in told:
        assert f"Processing {tmp_path}/gated\nerror: subprocess-exited-with-error" in one
        assert "RuntimeError: libfoo.h is not there: install libfoo-dev" in one
    other = "cannot be built, as another process of this host has just found:"
    first, second = sorted(told, key=lambda one: other in one)
    assert "environment cannot be built:\n" in first
    assert "\nlog: " in first
    assert other in second
    assert not list(cache.glob("*-*"))

    gated.gate.touch()
    python = ask(requirements=[gated.requirement])

    assert subprocess.run([python, "-c", "import gated"], check=True)
    assert not list(cache.glob("*.failed"))
    (record,) = cache.glob("*.json")
    assert json.loads(record.read_text())["requirements"] == [gated.requirement]
    os.utime(record, (1, 1))
    assert ask(requirements=[gated.requirement], stopping=lambda: gated.times() > 2) == python
    assert record.stat().st_mtime > 1
    Path(python).unlink()
    with pytest.raises(Stopped):  # it would be built anew
        ask(requirements=[gated.requirement], stopping=lambda: bool(list(cache.glob("*-*"))))
    assert not list(cache.glob("*-*"))


def test_what_decides_which_environment_it_is():
    """Requirements, version, platform and C library, and the interpreter; not what it is called."""
    plain = {"base": "/bin/sh", "likeness": ["3.11", "x86"], "requirements": ["a"], "called": "a"}
    others = [{"base": "/bin/ls"}, {"likeness": ["3.12", "x86"]}, {"requirements": ["a", "b"]}]

    keys = {built_environments.Wanted(**{**plain, **other}).key() for other in [{}, *others]}

    assert len(keys) == 4
    assert built_environments.Wanted(**{**plain, "called": "b"}).key() in keys


def test_a_place_where_nothing_can_be_kept(ask, tmp_path, monkeypatch):
    """The error names it, and what to do."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    told = refused(ask, requirements=["a"])

    assert "cannot be kept on the node: [Errno 20] Not a directory" in told
    assert "the variable XDG_CACHE_HOME of the Dask workers names another place" in told


def test_a_user_without_a_home(ask, monkeypatch):
    """As in a container that runs as a user of no name."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54_321)

    assert "has no home to keep an environment in: set XDG_CACHE_HOME" in refused(
        ask, requirements=["a"]
    )


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")
def test_a_full_disk(ask, tmp_path, monkeypatch):
    """It is told as what it is, and what there is of the environment is removed."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("the kernel refuses to mount a file system")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(small))
        told = refused(ask, requirements=["a"])
        left = list(small.glob("*/environments/*-*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)

    assert "No space left on device" in told
    assert not left


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Looking in indexes: https://host/s3cr3t-token/simple", "Looking in indexes: https://host/***/simple"),
        ("fatal: no https://ci:pa%20ss@host/a.git", "fatal: no https://***@host/a.git"),
        ("it is 'pa ss' or pa%20ss", "it is '***' or ***"),
        ("Downloading https://host/a.whl?sv=1&sig=abc (2 kB)", "Downloading https://host/a.whl?*** (2 kB)"),
        ("efficient ci", "efficient ci"),
    ],
)  # fmt: skip
def test_secrets_are_hidden_in_what_is_said(said, told):
    """Of variables that requirements name, wherever they stand; pip hides only passwords (R78)."""
    lines = ["--index-url https://${WHO}:${PASSWORD}@host/${TOKEN}/simple", "tiny"]
    values = {"WHO": "ci", "PASSWORD": "pa%20ss", "TOKEN": "s3cr3t-token", "OTHER": "Looking"}

    assert built_environments.without(built_environments.secrets_of(lines, values), said) == told


def test_secrets_are_hidden_also_where_a_line_comes_in_pieces(tmp_path):
    """A line is looked at as a whole; the last one when it cannot become longer."""
    with (tmp_path / "said").open("w+b", buffering=0) as file:
        said = built_environments._Said(file, ["s3cr3t"])
        file.write(b"one\nit is s3c")
        assert said.more() == b"one\n"
        file.write(b"r3t, and s3cr3t")
        assert said.more() == b""
        assert said.more(ended=True) == b"it is ***, and ***"
        assert said.more(ended=True) == b""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["Collecting a", "Collecting b", "ERROR: no b"], ["Collecting b", "ERROR: no b"]),
        (["no pip: No module named ensurepip"], ["no pip: No module named ensurepip", built_environments._NO_ENSUREPIP]),
        (
            ["error: a"] + [str(n) for n in range(50)],
            ["error: a", *map(str, range(7)), "…", *map(str, range(34, 50))],
        ),
    ],
)  # fmt: skip
def test_what_an_error_quotes_of_pip(said, told):
    """From where the trouble begins, and its end, which names the package."""
    assert built_environments.trouble(said) == told
