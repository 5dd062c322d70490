"""Environments that are built from requirements on a node: once per host, and kept by their hash.

In the folder of all of them there is for each hash

- `<hash>.json`: the record of one that is whole, with the name of its folder; it comes last, in one step;
- `<hash>-…`: the folder of a virtual environment. Each build has one of its own: where a builder was
  killed, pip may go on for a moment, and must find nothing but its own, abandoned folder;
- `<hash>.lock`: locked by the process that builds;
- `<hash>.failed`: what pip said when it was last tried in vain; who waited for that does not try again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from prefect_parallelrun.paths import RUNTIME_FOLDER

BUILD_S = 3600.0
"""How long building one may take."""
FIRST, LAST = 8, 16
"""Lines of pip that an error quotes: where the trouble begins, and where it ends."""
_AT_WORK = ("Collecting ", "Processing ", "Building wheel for ")
_NO_ENSUREPIP = (
    "(on Debian and Ubuntu, install python3-venv for the Python that the environment is made with)"
)
_TAIL = 4096
"""Bytes of the log that are looked at for how it gets on."""
_CHUNK = 1 << 20
"""Bytes of what is said that are read at a time."""
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
"""That pip replaces in requirements by its value: a password, or a token."""
_SHORTEST = 4
"""Characters of such a value that is hidden: `ci` is no secret, and stands in many words."""
_LOGIN = re.compile(r"://[^/?#\s@]*@")
_QUERY = re.compile(r"(://[^\s?#'\"<>]*\?)[^\s#'\"<>)]+")
"""Of a URL: what signs it is there."""
_FROM = re.compile(r" \(from -r \S+ \(line \d+\)\)")
"""After each requirement, where it was read: in a file of ours."""
_LAUNCH = (
    "import os, sys; sys.path.insert(0, sys.argv[1]);"
    "from prefect_parallelrun_runtime import reaper;"
    "reaper.die_with_parent(int(sys.argv[2])); os.execv(sys.argv[3], sys.argv[3:])"
)
"""Begins pip so that the kernel ends it with the Dask worker, also where that is killed."""


class NoEnvironment(Exception):
    """The environment cannot be had on a node; the message says why, and what to do."""


class _Failed(Exception):
    """It was tried in vain; what pip said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An environment to be built."""

    base: str
    """Interpreter that it is made with."""
    likeness: Sequence[str]
    """What an environment made with it shares only with its like: Python's version, platform, C library."""
    requirements: Sequence[str]
    called: str
    """What people know it by."""

    def key(self) -> str:
        """Return the hash by which it is kept."""
        told = json.dumps(
            [list(self.requirements), list(self.likeness), os.path.realpath(self.base)]
        )
        return hashlib.sha256(told.encode()).hexdigest()[:24]


class BuiltEnvironments:
    """Those of this host, for this user.

    Args:
        log: file that takes what is said while one is built.
        environment: for pip, without what it is not to know.
        pause: waits a little, telling what is being done; raises where the node ends.
    """

    def __init__(
        self,
        *,
        log: Path,
        environment: Mapping[str, str],
        pause: Callable[[str], None],
    ) -> None:
        self._log = log
        self._environment = environment
        self._pause = pause

    def python(self, wanted: Wanted) -> str:
        """Return the interpreter of an environment, which is built if it is not there.

        Raises:
            NoEnvironment: it cannot be built or kept.
        """
        place = kept() / wanted.key()
        try:
            # Without the lock: of those that come with an image, nothing may be writable.
            if found := self._whole(place):
                return found
            place.parent.mkdir(parents=True, exist_ok=True)
            before = _failed_at(place)
            with self._alone(place, wanted.called):
                if found := self._whole(place):
                    return found
                if _failed_at(place) != before:
                    said = place.with_suffix(".failed").read_text()
                    raise NoEnvironment(
                        f"{wanted.called} cannot be built, as another process of this host has just found:"
                        f"\n{said}"
                    )
                return self._built(place, wanted)
        except OSError as error:
            raise NoEnvironment(
                f"{wanted.called} cannot be kept on the node: {error}. Environments are kept below "
                f"{place.parent}; the variable XDG_CACHE_HOME of the Dask workers names another place"
            ) from None

    # -- inside ------------------------------------------------------------------------------

    def _whole(self, place: Path) -> str | None:
        """Return the interpreter of one that was built to its end, and is still there."""
        record = place.with_suffix(".json")
        try:
            folder = json.loads(record.read_bytes())["folder"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        python = place.parent / folder / "bin" / "python"
        if not python.exists():  # somebody removed it, or what it was made with
            return None
        with contextlib.suppress(OSError):
            os.utime(record)  # so that people see which ones are used
        return str(python)

    @contextlib.contextmanager
    def _alone(self, place: Path, called: str) -> Iterator[None]:
        """Be the only process of this host that builds it; wait as long as another one does."""
        with place.with_suffix(".lock").open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._pause(f"waits until another process of its host has built {called}")
            yield

    def _built(self, place: Path, wanted: Wanted) -> str:
        for left in place.parent.glob(f"{place.name}-*"):  # by a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        folder = place.with_name(f"{place.name}-{secrets.token_hex(4)}")
        try:
            self._build(folder, wanted)
            _write(
                place.with_suffix(".json"),
                {
                    "folder": folder.name,
                    "requirements": list(wanted.requirements),
                    "likeness": list(wanted.likeness),
                },
            )
        except _Failed as error:
            with contextlib.suppress(OSError):  # the disk may be full
                place.with_suffix(".failed").write_text(f"{error}")
            raise NoEnvironment(
                f"{wanted.called} cannot be built:\n{error}\nlog: {self._log}"
            ) from None
        finally:
            if not self._whole(place):
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            place.with_suffix(".failed").unlink()
        return str(folder / "bin" / "python")

    def _build(self, folder: Path, wanted: Wanted) -> None:
        deadline = time.monotonic() + BUILD_S
        make = [wanted.base, "-m", "venv", "--without-pip", str(folder)]
        self._run(make, wanted, deadline, "makes its folder")
        python = str(folder / "bin" / "python")
        # By itself: venv would swallow what it says when it fails.
        add_pip = [python, "-Im", "ensurepip", "--default-pip"]
        self._run(add_pip, wanted, deadline, "puts pip into it")
        file = folder / "requirements.txt"
        file.write_text("".join(f"{line}\n" for line in wanted.requirements))
        pip = [python, "-m", "pip", "install", "--no-input"]
        pip += ["--disable-pip-version-check", "--progress-bar=off", "-r", str(file)]
        self._run(pip, wanted, deadline, "pip begins")

    def _run(self, command: list[str], wanted: Wanted, deadline: float, what: str) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        launch = [sys.executable, "-ISc", _LAUNCH, str(RUNTIME_FOLDER), str(os.getpid())]
        # Not into the log itself, which belongs to the run: pip hides passwords, but no tokens within a path,
        # and the programs of packages hide nothing.
        with self._log.open("ab") as log, tempfile.TemporaryFile() as out:
            began = log.tell()
            said = _Said(out, secrets_of(wanted.requirements, self._environment))
            process = subprocess.Popen(
                [*launch, *command],
                # Else what a user set for their own pip would install past the environment.
                env={**self._environment, "PIP_USER": "0"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while process.poll() is None:
                    log.write(said.more())
                    log.flush()
                    last = self._logged(max(began, log.tell() - _TAIL))[-1:] or [what]
                    self._pause(f"builds {wanted.called}: {last[0]}"[:200])
                    if time.monotonic() > deadline:
                        raise _Failed(f"it is not built after {BUILD_S:g} s")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                while more := said.more(ended=True):
                    log.write(more)
        if process.returncode:
            raise _Failed(
                "\n".join(trouble(self._logged(began))) or f"it ended with {process.returncode}"
            )

    def _logged(self, since: int) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(since)
            lines = _FROM.sub("", log.read().decode(errors="replace")).splitlines()
        return [line.strip() for line in lines if line.strip()]


class _Said:
    """What programs write into a file, without secrets.

    Args:
        file: that they write into, at its one position: it is read without moving that.
        secrets: texts that are hidden.
    """

    def __init__(self, file: IO[bytes], secrets: Sequence[str]) -> None:
        self._file = file
        self._secrets = secrets
        self._at = 0

    def more(self, *, ended: bool = False) -> bytes:
        """Return some of what is new, in whole lines; nothing: that is all there is.

        Args:
            ended: nothing will be added to the last line.
        """
        data = os.pread(self._file.fileno(), _CHUNK, self._at)
        lines = data[: data.rfind(b"\n") + 1]
        if not lines and (ended or len(data) == _CHUNK):
            lines = data
        self._at += len(lines)
        return without(self._secrets, lines.decode(errors="replace")).encode()


def secrets_of(requirements: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return what pip may say of the values of variables that requirements name, the longest first."""
    names = {name for line in requirements for name in _VARIABLE.findall(line)}
    values = {environment.get(name, "") for name in names}
    values |= set(map(unquote, values))
    return sorted((one for one in values if len(one) >= _SHORTEST), key=len, reverse=True)


def without(secrets: Sequence[str], text: str) -> str:
    """Return a text without secrets, and without what opens the URLs in it."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _QUERY.sub(r"\1***", _LOGIN.sub("://***@", text))


def kept() -> Path:
    """Return the folder of all that was built on this host for this user.

    Raises:
        NoEnvironment: there is no home.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "prefect-parallelrun" / "environments"
    except RuntimeError:
        raise NoEnvironment(
            "the user of the Dask worker has no home to keep an environment in: set XDG_CACHE_HOME for the "
            "Dask workers"
        ) from None


def trouble(said: Sequence[str]) -> list[str]:
    """Return the lines in which pip says what went wrong."""
    first = next((n for n, line in enumerate(said) if line.lower().startswith("error")), None)
    if first is None:
        hint = [_NO_ENSUREPIP] if any("No module named ensurepip" in line for line in said) else []
        return [*said[-LAST:], *hint]
    # A build that fails may not say of what: the line before tells which package was at work.
    at_work = [line for line in said[:first] if line.startswith(_AT_WORK)]
    told = [*at_work[-1:], *said[first:]]
    return told if len(told) <= FIRST + LAST else [*told[:FIRST], "…", *told[-LAST:]]


def _failed_at(place: Path) -> int | None:
    """Return when it was last tried in vain."""
    try:
        return place.with_suffix(".failed").stat().st_mtime_ns
    except OSError:
        return None


def _write(path: Path, content: Mapping[str, object]) -> None:
    """Write a file that is there whole, or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(content, indent=1))
    new.replace(path)
