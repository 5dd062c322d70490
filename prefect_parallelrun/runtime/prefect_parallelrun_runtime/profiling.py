"""A profile of what a worker process does in the script: import, `init()`, `run()`, `shutdown()` (rule R81).

The script's own profilers go first: one that is at work, or begins, is left alone, and ours rests until
the script is next called without one. (Only `profile` within a profile fails, as it does within any
other: its first event is the end of a call that it did not see.)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import marshal
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect_parallelrun_runtime import failures

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Settings

_SAVE_EVERY_S = 10.0

_Function = tuple[str, int, str]
"""File, line and name, as `pstats` has it."""


class Profiler:
    """That of a run without a profile: it does nothing."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the script."""
        return function(*arguments)

    def profiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what to call instead of a function that is called often."""
        return function

    def save_now_and_then(self) -> None:
        """Save the profile if the last time is long enough ago, so that a process killed later leaves one."""

    def save(self) -> None:
        """Write the profile so far; `pstats` reads it."""


class _Saved(Profiler):
    """That of a run with a profile; how it is taken is for the classes below to say."""

    _profiler: Any

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = failures.process_file(settings, "profile")
        self._saved_at = float("-inf")
        self._failed = False

    def profiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(self.call, function)

    def save_now_and_then(self) -> None:
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        unfinished = f"{self._path}.part"
        try:
            self._profiler.snapshot_stats()
            data = marshal.dumps(self._for_people(self._profiler.stats))
            with open(unfinished, "wb") as file:
                file.write(data)
            os.replace(unfinished, self._path)
        except Exception as error:
            # Whatever it is: who only looks on must not end the process.
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            if not self._failed:
                self._failed = True
                trouble = f"the profile {self._path} cannot be written: {error!r}"
                failures.append_own(self._settings, self._settings["process"], trouble)
        self._saved_at = time.monotonic()

    def _for_people(self, stats: dict[_Function, Any]) -> dict[_Function, Any]:
        """Return the figures by names that can be written, and in the user's own source files."""
        names = {function: self._name(*function) for function in stats}
        return {
            names[function]: (*figures, {names.get(one, one): n for one, n in callers.items()})
            for function, (*figures, callers) in stats.items()
        }

    def _name(self, file: str, line: int, function: str) -> _Function:
        # Who compiles source of his own may give it any kind of str for a file name; marshal takes but one.
        path = failures.in_users_source(str.__str__(file), self._settings)
        return path, line, str.__str__(function)


class _CProfile(_Saved):
    """Takes it by `cProfile`."""

    def __init__(self, module: Any, settings: Settings) -> None:
        super().__init__(settings)
        self._profiler = module.Profile()
        self._is_on = False
        if hasattr(sys, "monitoring"):
            self._make_way()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if sys.getprofile() is None:
            # From Python 3.12 on, a second one is refused.
            with contextlib.suppress(ValueError):
                self._profiler.enable()
                self._is_on = True
        try:
            return function(*arguments)
        finally:
            self._rest()

    def _rest(self) -> None:
        # Until Python 3.11, the last profiler of a thread is the only one, and `disable` ends any.
        if self._is_on and (
            hasattr(sys, "monitoring") or sys.getprofile() in (None, self._profiler)
        ):
            self._profiler.disable()
        self._is_on = False

    def _make_way(self) -> None:
        """Rest when another profiler wants to begin (from Python 3.12 on)."""
        monitoring: Any = getattr(sys, "monitoring")  # noqa: B009  (mypy checks for 3.11)
        use = monitoring.use_tool_id

        def use_tool_id(tool: int, name: str) -> None:
            if tool == monitoring.PROFILER_ID and self._is_on:
                self._rest()
            use(tool, name)

        monitoring.use_tool_id = use_tool_id


class _Profile(_Saved):
    """Takes it by `profile`."""

    def __init__(self, module: Any, settings: Settings) -> None:
        super().__init__(settings)
        self._profiler = module.Profile()
        self._heard = self._hear  # one object, to know it again

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        is_on = sys.getprofile() is None
        if is_on:
            self._profiler.set_cmd("script")
            self._profiler.t = self._profiler.get_time()  # what was before is nobody's time
            # Here and nowhere deeper: a return from a call that it has not seen is an error to it.
            sys.setprofile(self._heard)
        try:
            return function(*arguments)
        finally:
            if sys.getprofile() is self._heard:
                sys.setprofile(None)
            if is_on:
                self._finish_calls()

    def _hear(self, frame: Any, event: str, argument: Any) -> None:
        try:
            self._profiler.dispatcher(frame, event, argument)
        except Exception:
            # It asserts that calls and returns match. Where a script switches stacks, or profilers, they
            # do not, and the script is not to fail for it.
            sys.setprofile(None)

    def _finish_calls(self) -> None:
        try:
            self._profiler.simulate_cmd_complete()
        except Exception:
            self._profiler.cur = None
            self._profiler.simulate_call("profiler")


def start(settings: Settings) -> Profiler:
    """Return the profiler that the settings ask for."""
    name = settings["profiling_module"]
    if not name:
        return Profiler()
    try:
        module = _of_standard_library(name)
    except ImportError as error:
        trouble = f"no profile is taken, as {name} cannot be imported: {error}"
        failures.append_own(settings, settings["process"], trouble)
        return Profiler()
    taken = _CProfile if name == "cProfile" else _Profile
    return taken(module, settings)


def _of_standard_library(name: str) -> Any:
    """Import a module whatever else is called so, and leave that name to the script's own module."""
    before, path = set(sys.modules), sys.path[:]
    standard = os.path.dirname(os.__file__)
    sys.path[:] = [entry for entry in path if entry.startswith(standard)]
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = path
        for own in {"cProfile", "profile"} - before:
            sys.modules.pop(own, None)
