"""Loading the entry script, in a worker process or in the user's own (debugging)."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

_VAR_POSITIONAL = 0x04
"""The flag of a code object that takes `*args` (`inspect.CO_VARARGS`; inspect is slow to import)."""


class UnusableScript(Exception):
    """The entry script lacks what it must have."""


class Script(NamedTuple):
    """An entry script that was imported."""

    module: ModuleType
    run: Callable[..., Any]
    wants_context: bool
    """Whether `run` takes the context as its second argument (rule R101)."""
    init: Callable[[], Any] | None
    shutdown: Callable[[], Any] | None


class MiniBatchContext:
    """The second argument of `run`, for scripts that take one."""

    __slots__ = ("dataset", "minibatch_index", "partition_key_value")

    def __init__(
        self, minibatch_index: int, dataset: Any, partition_key_value: dict[str, Any] | None
    ) -> None:
        self.minibatch_index = minibatch_index
        """The mini-batch's number in the run, an int from 0: the same at every attempt."""
        self.dataset = dataset
        """What the mini-batch holds, as a dataset."""
        self.partition_key_value = partition_key_value
        """Value of each partition key; None without partition keys."""


def load_script(path: str, source_folder: str, argv: list[str]) -> Script:
    """Import the entry script as `python path *argv` would find itself: `sys.argv`, helpers, `__file__`.

    Exceptions of the script itself are raised as they are.

    Args:
        path: Absolute path of the script.
        source_folder: Root of the source files; helpers are imported from there and from beside the script.
        argv: `sys.argv[1:]`.

    Raises:
        UnusableScript: it has no `run` that can be called.
    """
    sys.argv[:] = [path, *argv]
    folders = dict.fromkeys([os.path.dirname(path), source_folder])
    sys.path[:] = [*folders, *(entry for entry in sys.path if entry not in folders)]
    module = _import(path)
    run = getattr(module, "run", None)
    if not callable(run):
        found = (
            "no function run"
            if run is None
            else f"a run that is no function but {type(run).__name__}"
        )
        raise UnusableScript(
            f"{os.path.basename(path)} has {found}; it must define run(mini_batch)"
        )
    return Script(
        module,
        run,
        takes_context(run),
        getattr(module, "init", None),
        getattr(module, "shutdown", None),
    )


def _import(path: str) -> ModuleType:
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules:
        name = f"entry_script_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnusableScript(f"{path} is no Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, so that it can import and pickle its own classes
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def takes_context(run: Callable[..., Any]) -> bool:
    """Return whether `run` has a second positional parameter."""
    code = getattr(run, "__code__", None)
    if code is None:
        return _takes_context_by_signature(run)
    positional = code.co_argcount - (1 if getattr(run, "__self__", None) is not None else 0)
    if positional < 2 and code.co_flags & _VAR_POSITIONAL:
        # A decorator's wrapper passes on what it gets: the function below it decides.
        wrapped = getattr(run, "__wrapped__", None)
        return wrapped is not None and takes_context(wrapped)
    return bool(positional >= 2)


def _takes_context_by_signature(run: Callable[..., Any]) -> bool:
    import inspect

    try:
        parameters = inspect.signature(run).parameters.values()
    except (TypeError, ValueError):  # built in C, without a signature
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in parameters) >= 2
