"""The interpreter of a node's worker processes: found, or built from requirements once for its host."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_parallelrun.node.built_environments import BuiltEnvironments, NoEnvironment, Wanted
from prefect_parallelrun.node.transfer import Stopped

OLDEST = (3, 11)
"""Of Python, that the worker processes' own code runs on."""
LOOK_S = 0.2
"""How often it is looked whether pip has ended, the node ends, or another process has built it."""
TELL_S = 2.0
"""How often is told how it gets on."""
ASK_S = 60.0
"""How long an interpreter may take to say what it is: a disk that is cold, or far away."""
_ANSWER = b"parallelrun-environment:"
"""Begins the line with the answer: an interpreter may print more, from its sitecustomize."""
_LONGEST = 1 << 20
"""Bytes of its output that are looked at, the last ones."""
_QUESTION = f"""
import sys
told = {{"version": "%d.%d.%d" % sys.version_info[:3], "old": sys.version_info[:2] < {OLDEST!r}}}
if not told["old"]:
    sys.path[:] = [one for one in sys.path if one]  # not the folder that this happens to run in
    import importlib.util, os, sysconfig
    def lacks(name):
        return getattr(importlib.util.find_spec(name), "origin", None) is None
    told["lacking"] = [name for name in sys.argv[1:] if lacks(name)]
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
    told["likeness"] = [told["version"], sysconfig.get_config_var("SOABI"), sysconfig.get_platform(), libc]
import json
answer = "\\n{_ANSWER.decode()}" + json.dumps(told) + "\\n"
out = getattr(sys.stdout, "buffer", sys.stdout)  # as bytes, whatever PYTHONIOENCODING says
out.write(answer.encode("ascii"))
"""
_DECISIVE = ("PYTHON", "LD_")
"""Begin the names of variables that may keep an interpreter from starting."""
_OF_ANOTHER = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__")
"""What another interpreter is not to inherit: it tells where modules of the Dask worker's own are."""

__all__ = ["Interpreters", "NoEnvironment", "activated", "without_ours"]


def without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment as another interpreter is to inherit it."""
    return {name: value for name, value in environment.items() if name not in _OF_ANOTHER}


def activated(environment: Mapping[str, str], python: str) -> dict[str, str]:
    """Return an environment in which `python`, and the programs beside it, are found first."""
    folder = Path(python).parent
    found = {**environment, "PATH": f"{folder}{os.pathsep}{environment.get('PATH', os.defpath)}"}
    if folder.with_name("pyvenv.cfg").exists():
        found["VIRTUAL_ENV"] = str(folder.parent)
    elif folder.with_name("conda-meta").exists():
        found["CONDA_PREFIX"] = str(folder.parent)
    return found


@dataclass(frozen=True, slots=True)
class _Answer:
    lacking: Sequence[str]
    """Of the modules that were asked for."""
    likeness: Sequence[str]
    """See `Wanted.likeness`."""


class Interpreters:
    """Finds the interpreter of a step's `Environment` on this node, or builds it.

    Args:
        log: file that takes what is said while one is built.
        inherited: environment variables of the Dask worker, without secrets.
        given: environment variables of the step, which its interpreter has too.
        stopping: says that the node ends.
        tell: called with what is being done, as long as it goes on.
    """

    def __init__(
        self,
        *,
        log: Path,
        inherited: Mapping[str, str],
        given: Mapping[str, str],
        stopping: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self._inherited = without_ours(inherited)
        self._given = given
        self._stopping = stopping
        self._tell = tell
        self._told_at = 0.0
        self._built = BuiltEnvironments(
            log=log,
            environment=self._inherited,
            pause=self._pause,
        )

    def python(
        self, python: str, requirements: Sequence[str], name: str, modules: Sequence[str]
    ) -> str:
        """Return the path of the interpreter.

        Args:
            python: see `Environment.python`; empty for this process's own.
            requirements: what is installed into an environment made with that; empty: it is used as it is.
            name: of the environment, or empty.
            modules: what the inputs and outputs of the step need there.

        Raises:
            NoEnvironment: it is not there, cannot be built, or does not suit.
            Stopped: the node ends.
        """
        called = f"environment {name!r}" if name else "environment"
        found = _located(python, called)
        if requirements:
            base = self._asked(found, [], called, self._inherited)
            wanted = Wanted(
                base=found, likeness=base.likeness, requirements=requirements, called=called
            )
            found = self._built.python(wanted)
        as_in_the_step = {**activated(self._inherited, found), **self._given}
        answer = self._asked(found, modules, called, as_in_the_step)
        if answer.lacking:
            raise NoEnvironment(
                f"{called}: {found} has no {' and no '.join(answer.lacking)}, which the tables of this "
                f"step need: {_cure(found, answer.lacking, built=bool(requirements))}"
            )
        return found

    # -- inside ------------------------------------------------------------------------------

    def _asked(
        self, python: str, modules: Sequence[str], called: str, environment: Mapping[str, str]
    ) -> _Answer:
        """Return what an interpreter that suits says of itself."""
        try:
            ended, out, err = self._output([python, "-c", _QUESTION, *modules], environment)
        except subprocess.TimeoutExpired:
            raise NoEnvironment(
                f"{called}: {python} does not work: it did not say within {ASK_S:g} s what it is"
            ) from None
        except OSError as error:
            raise NoEnvironment(f"{called}: {python} does not work: {error}") from None
        told: dict[str, Any] | None = None
        for line in out.splitlines():
            if line.startswith(_ANSWER):
                with contextlib.suppress(ValueError):
                    told = json.loads(line[len(_ANSWER) :])
        if told is None:
            how = _end_of((err or out).decode(errors="replace").strip())
            with_ = [n for n in self._given if n.startswith(_DECISIVE) and n in environment]
            raise NoEnvironment(
                f"{called}: {python} does not work as a Python interpreter"
                + (f", with {', '.join(with_)} of environment_variables" if with_ else "")
                + f": {how or f'it ended with {ended} and printed nothing'}"
            )
        if told["old"]:
            raise NoEnvironment(
                f"{called}: {python} is Python {told['version']}; worker processes need "
                f"{OLDEST[0]}.{OLDEST[1]} or newer"
            )
        return _Answer(told["lacking"], told["likeness"])

    def _output(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> tuple[int, bytes, bytes]:
        """Return how a program ended, and the end of what it wrote.

        Into files, not pipes: what it leaves running, it takes no pipe's end to.
        """
        deadline = time.monotonic() + ASK_S
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        ended = process.wait(LOOK_S)
                        break
                    if time.monotonic() > deadline:
                        raise subprocess.TimeoutExpired(command, ASK_S)
                    self._pause(f"waits for {command[0]}", seconds=0)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            written = []
            for file in (out, err):
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST))
                written.append(file.read())
        return ended, written[0], written[1]

    def _pause(self, doing: str, seconds: float = LOOK_S) -> None:
        if self._stopping():
            raise Stopped
        now = time.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            self._tell(doing)
        time.sleep(seconds)


def _end_of(text: str) -> str:
    """Return the last lines of a text, some 500 characters."""
    _, cut, rest = text[-500:].partition("\n")
    return text[-500:] if len(text) <= 500 or not cut else rest


def _located(python: str, called: str) -> str:
    if not python:
        return sys.executable
    path = os.path.expanduser(python)  # noqa: PTH111
    if os.sep not in path:
        found = shutil.which(path)
        if found is None:
            raise NoEnvironment(
                f"{called}: there is no program {path!r} in the PATH of its Dask worker (a folder is "
                f"given as './{path}')"
            )
        return os.path.abspath(found)  # noqa: PTH100  (PATH may have relative folders)
    if os.path.isdir(path):  # noqa: PTH112
        inside = [os.path.join(path, "bin", name) for name in ("python", "python3")]  # noqa: PTH118
        path = next((one for one in inside if os.access(one, os.X_OK)), inside[0])
    if not os.path.exists(path):  # noqa: PTH110
        link = os.path.islink(path)  # noqa: PTH114
        where = f": that is a link to {os.path.realpath(path)}, which is not there" if link else ""
        raise NoEnvironment(f"{called}: there is no interpreter {path}{where}")
    if not os.access(path, os.X_OK):
        raise NoEnvironment(f"{called}: {path} is no program that its Dask worker may run")
    return path


def _cure(python: str, lacking: Sequence[str], *, built: bool) -> str:
    names = " ".join(lacking)
    return f"add {names} to the requirements" if built else f"{python} -m pip install {names}"
