"""What is another in a step now than in one of its runs, named as exactly as the run folder allows (R210)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from prefect_parallelrun import reuse
from prefect_parallelrun.datasets import Dataset, FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord, kept_definition, kept_listing

_NAMED = 5
"""So many files are named; the others are counted."""
_OUTPUT_SETTINGS = (
    "output_action",
    "append_row_file_name",
    "output_format",
    "output_order",
    "the output folder",
    "to_csv settings",
)


def changes(
    paths: RunPaths,
    record: RunRecord,
    definition: StepDefinition,
    *,
    seen: Sequence[reuse.Seen],
    parts: Mapping[str, str],
) -> list[str]:
    """Return what changed since a run, one clause for each: `the script changed: score.py`.

    Values of arguments and of environment variables are not told, since they may be secrets.

    Args:
        paths: of the run.
        record: of the run.
        definition: the step as it is now.
        seen: see `reuse.data`.
        parts: see `reuse.fingerprint_parts`.
    """
    differing = [
        name for name in {**record.parts, **parts} if record.parts.get(name) != parts.get(name)
    ]
    if not record.parts:
        return ["it was not written down what it was made of"]
    before: StepDefinition | None = None
    if differing != ["source"]:
        with suppress(ParallelRunError):  # else what changed is named, and not how
            before = kept_definition(paths)
    by_name = {one.name: one for one in seen}
    datasets = {} if before is None else reuse.datasets(before)
    clauses = []
    for name in differing:
        if name == "source":
            clauses.append(_source(paths, definition, seen))
        elif name not in _CLAUSES:
            is_new = name not in record.parts
            clauses += _data(paths, name, datasets.get(name), by_name.get(name), is_new=is_new)
        elif before is None:
            clauses.append(f"{name} changed")
        else:
            clauses.append(_CLAUSES[name](before, definition))
    return clauses


def _source(paths: RunPaths, definition: StepDefinition, seen: Sequence[reuse.Seen]) -> str:
    try:
        files = snapshot.differences(paths.source, definition.config, leave_out=definition.left_out)
    except (OSError, ValueError):  # a ConfigError is one too
        files = []
    told = _with_names("the script changed", files)
    folder = definition.config.source_folder
    changed = {str(folder / file.removesuffix(" (new)").removesuffix(" (gone)")) for file in files}
    for one in seen:
        if one.is_input and any(file.path in changed for file in one.files):
            # Else nobody would understand why a new file of an input makes everything run.
            return (
                f"{told} (files of {one.title} are in the folder of the script, and so part of it, unless "
                ".amlignore names them or source_directory is another folder)"
            )
    return told


def _data(
    paths: RunPaths, name: str, before: Dataset | None, now: reuse.Seen | None, *, is_new: bool
) -> list[str]:
    if now is None:
        return [f"{name} is not there any more"]
    shown = now.title
    if is_new:
        return [f"{shown} is new"]
    try:
        files = file_changes(shown, kept_listing(paths, name), now.files)
    except (OSError, ValueError, TypeError):
        return [f"{shown} changed"]
    # Of no files at all a dataset tells how it reads them.
    settings_changed = before is not None and (
        list(before.fingerprint_parts([])) != list(now.dataset.fingerprint_parts([]))
    )
    how = [f"how {shown} is read changed"] if settings_changed or not files else []
    return how + files


def file_changes(name: str, before: Iterable[FileItem], now: Iterable[FileItem]) -> list[str]:
    """Say which files differ between two listings, both in the order of their paths; nothing if none does.

    Args:
        name: of the input or side input, for people.
        before: as `run_record.kept_listing` gives them.
        now: as they are now.

    Raises:
        OSError, ValueError, TypeError: they were not written down, or are damaged.
    """
    counts = {"changed": 0, "new": 0, "gone": 0}
    named: list[str] = []

    def add(what: str, file: str) -> None:
        counts[what] += 1
        if len(named) < _NAMED:
            named.append(file)

    old, new = iter(before), iter(now)
    left, right = next(old, None), next(new, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.path < right.path):
            assert left is not None
            add("gone", f"{left.path} (gone)")
            left = next(old, None)
        elif left is None or right.path < left.path:
            add("new", f"{right.path} (new)")
            right = next(new, None)
        else:
            if left.size != right.size or _state_differs(left, right):
                add("changed", f"{right.path} ({_how(left, right)})")
            left, right = next(old, None), next(new, None)
    total = sum(counts.values())
    if not total:
        return []
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    more = f" and {total - _NAMED:,} more" if total > _NAMED else ""
    return [f"files of {name}: {told}: {', '.join(named)}{more}"]


def _how(before: FileItem, now: FileItem) -> str:
    if before.size != now.size:
        return f"{before.size:,} → {now.size:,} bytes"
    return "its content changed" if before.etag and now.etag else "its time changed"


def _state_differs(before: FileItem, now: FileItem) -> bool:
    if before.etag and now.etag:
        return before.etag != now.etag
    return before.modified_ns != now.modified_ns


def _arguments(before: StepDefinition, now: StepDefinition) -> str:
    old, new = before.script_arguments(""), now.script_arguments("")
    names = []
    for place in range(max(len(old), len(new))):
        if old[place : place + 1] != new[place : place + 1]:
            given = [
                text for text in chain(new[: place + 1], old[place : place + 1]) if text[:1] == "-"
            ]
            names += [given[-1].partition("=")[0]] if given else []
    return _with_names("arguments changed", dict.fromkeys(names))


def _environment(before: StepDefinition, now: StepDefinition) -> str:
    old, new = before.config.environment, now.config.environment
    if old is None or new is None:
        return _setting("environment")(before, now)
    return _with_names("environment changed", new.changes(old))


def _environment_variables(before: StepDefinition, now: StepDefinition) -> str:
    old = before.config.environment_variables or {}
    new = now.config.environment_variables or {}
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return _with_names("environment variables changed", names)


def _output(before: StepDefinition, now: StepDefinition) -> str:
    old, new = reuse.output_settings(before), reuse.output_settings(now)
    told = [
        name for name, was, is_now in zip(_OUTPUT_SETTINGS, old, new, strict=True) if was != is_now
    ]
    return _with_names("output settings changed", told)


def _setting(name: str) -> Callable[[StepDefinition, StepDefinition], str]:
    def clause(before: StepDefinition, now: StepDefinition) -> str:
        return f"{name} was {_value(before, name)}, and is {_value(now, name)}"

    return clause


def _value(definition: StepDefinition, name: str) -> str:
    value: Any = getattr(definition.config, name)
    return "not given" if value is None else f"{value}"


def _with_names(what: str, names: Iterable[str]) -> str:
    found = list(names)
    if not found:
        return what
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{what}: {', '.join(found[:_NAMED])}{more}"


_CLAUSES: dict[str, Callable[[StepDefinition, StepDefinition], str]] = {
    "arguments": _arguments,
    "environment_variables": _environment_variables,
    "output": _output,
    "entry_script": _setting("entry_script"),
    "environment": _environment,
    "mini_batch_size": _setting("mini_batch_size"),
    "partition_keys": _setting("partition_keys"),
}
