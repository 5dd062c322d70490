"""The interpreter of a node's worker processes: found, or built from requirements once for its host."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prefect_parallelrun.node.transfer import Stopped

OLDEST = (3, 11)
"""Of Python, that the worker processes' own code runs on."""
LOOK_S = 0.2
"""How often it is looked whether pip has ended, the node ends, or another process has built it."""
TELL_S = 2.0
"""How often is told how it gets on."""
BUILD_S = 3600.0
"""How long building one may take."""
ASK_S = 60.0
"""How long an interpreter may take to say what it is: a disk that is cold, or far away."""
SAID = 12
"""Lines of pip that an error quotes."""
_QUESTION = """
import importlib.util, json, sys
wanted = sys.argv[1:]
lacking = [name for name in wanted if importlib.util.find_spec(name) is None]
print(json.dumps({"version": sys.version.split()[0], "numbers": sys.version_info[:2], "lacking": lacking}))
"""
_OF_ANOTHER = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""What another interpreter is not to inherit: it tells where modules of the Dask worker's own are."""


class NoEnvironment(Exception):
    """The environment cannot be had on a node; the message says why, and what to do."""


def without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment as another interpreter is to inherit it."""
    return {name: value for name, value in environment.items() if name not in _OF_ANOTHER}


def activated(environment: Mapping[str, str], python: str) -> dict[str, str]:
    """Return an environment in which `python`, and the programs beside it, are found first."""
    folder = Path(python).parent
    found = {**environment, "PATH": f"{folder}{os.pathsep}{environment.get('PATH', os.defpath)}"}
    if folder.with_name("pyvenv.cfg").exists():
        found["VIRTUAL_ENV"] = str(folder.parent)
    return found


class Interpreters:
    """Finds the interpreter of a step's `Environment` on this node, or builds it.

    Args:
        log: file that takes what is said while one is built.
        run_id: of the run.
        stopping: says that the node ends.
        tell: called with what is being done, as long as it goes on.
    """

    def __init__(
        self,
        *,
        log: Path,
        run_id: str,
        stopping: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self._log = log
        self._run_id = run_id
        self._stopping = stopping
        self._tell = tell
        self._told_at = 0.0

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
        base = _located(python, called)
        version = self._asked(base, [], called)
        if not requirements:
            self._asked(base, modules, called)
            return base
        built = self._built(base, version, requirements, called)
        self._asked(built, modules, called)
        return built

    # -- inside ------------------------------------------------------------------------------

    def _asked(self, python: str, modules: Sequence[str], called: str) -> str:
        """Return the version of an interpreter that suits."""
        try:
            answer = subprocess.run(
                [python, "-c", _QUESTION, *modules],
                env=without_ours(os.environ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ASK_S,
                check=True,
                text=True,
            )
            told = json.loads(answer.stdout)
        except subprocess.CalledProcessError as error:
            raise NoEnvironment(
                f"{called}: {python} does not work: {error.stderr[-500:]}"
            ) from None
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise NoEnvironment(f"{called}: {python} does not work: {error}") from None
        if tuple(told["numbers"]) < OLDEST:
            raise NoEnvironment(
                f"{called}: {python} is Python {told['version']}; worker processes need "
                f"{OLDEST[0]}.{OLDEST[1]} or newer"
            )
        if told["lacking"]:
            raise NoEnvironment(
                f"{called}: {python} has no {' and no '.join(told['lacking'])}, which the tables of this "
                "step need: install it there, or add it to the requirements"
            )
        version: str = told["version"]
        return version

    def _built(self, base: str, version: str, requirements: Sequence[str], called: str) -> str:
        """Return the interpreter of the environment with these requirements, built if it is not there."""
        told = json.dumps([list(requirements), version, os.path.realpath(base)])
        folder = _kept() / hashlib.sha256(told.encode()).hexdigest()[:24]
        python, done = folder / "bin" / "python", folder / "parallelrun.json"
        with self._alone(folder.with_suffix(".lock"), called):
            failed = folder.with_suffix(".failed")
            if done.exists():
                return str(python)
            with contextlib.suppress(OSError):
                run_id, _, text = failed.read_text().partition("\n")
                if run_id == self._run_id:  # another node of this host has just tried
                    raise NoEnvironment(text)
            try:
                self._build(base, folder, requirements, called)
            except NoEnvironment as error:
                shutil.rmtree(folder, ignore_errors=True)
                failed.write_text(f"{self._run_id}\n{error}")
                raise
            failed.unlink(missing_ok=True)
            done.write_text(told)
        return str(python)

    @contextlib.contextmanager
    def _alone(self, lock: Path, called: str) -> Iterator[None]:
        """Be the only process of this host that builds an environment; wait as long as another one does."""
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("a")
        except OSError as error:
            raise NoEnvironment(f"{called} cannot be kept on the node: {error}") from None
        with file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._pause(f"waits until another process of its host has built {called}")
            yield

    def _build(self, base: str, folder: Path, requirements: Sequence[str], called: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of a build that was killed
        deadline = time.monotonic() + BUILD_S
        self._run([base, "-m", "venv", str(folder)], called, deadline)
        wanted = folder / "requirements.txt"
        wanted.write_text("".join(f"{line}\n" for line in requirements))
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input"]
        self._run([*pip, "--disable-pip-version-check", "-r", str(wanted)], called, deadline)

    def _run(self, command: list[str], called: str, deadline: float) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            began = log.tell()
            process = subprocess.Popen(
                command,
                env=without_ours(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while process.poll() is None:
                    said = self._said(began)
                    self._pause(f"builds {called}: {said[-1] if said else 'begins'}"[:200])
                    if time.monotonic() > deadline:
                        raise NoEnvironment(
                            f"{called} is not built after {BUILD_S:g} s, see {self._log}"
                        )
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            said = self._said(began)
            first = next((n for n, line in enumerate(said) if line.startswith("ERROR")), 0)
            quoted = "\n".join(said[first:][-SAID:])
            raise NoEnvironment(f"{called} cannot be built:\n{quoted}\nlog: {self._log}")

    def _said(self, since: int) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(since)
            text = log.read().decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _pause(self, doing: str) -> None:
        if self._stopping():
            raise Stopped
        now = time.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            self._tell(doing)
        time.sleep(LOOK_S)


def _located(python: str, called: str) -> str:
    if not python:
        return sys.executable
    path = os.path.expanduser(python)  # noqa: PTH111
    if os.sep not in path:
        found = shutil.which(path)
        if found is None:
            raise NoEnvironment(
                f"{called}: there is no program {path!r} in the PATH of its Dask worker"
            )
        return found
    if os.path.isdir(path):  # noqa: PTH112
        path = os.path.join(path, "bin", "python")  # noqa: PTH118
    if not os.access(path, os.X_OK):
        raise NoEnvironment(f"{called}: there is no interpreter {path}")
    return path


def _kept() -> Path:
    """Return the folder of all that was built on this host for this user."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "prefect-parallelrun" / "environments"
