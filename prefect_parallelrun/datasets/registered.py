"""Datasets that are kept in Prefect under a name, version by version; never with a secret in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_parallelrun import errors
from prefect_parallelrun.datasets.credentials import BLOCKS
from prefect_parallelrun.datasets.kept_storage import may_be_kept
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from prefect_parallelrun.datasets.dataset import Dataset

_FORMAT = 1
"""Counts up when definitions are written in another way."""
_HERE = "prefect_parallelrun.datasets."
"""Only records of these modules are part of a definition."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_NO_SECRETS = "Prefect keeps the secret in a credentials block, and the dataset only names it"


class Registered(NamedTuple):
    """A dataset as it is registered."""

    version: int
    """From 1 on."""
    dataset: Dataset


def register(
    dataset: Dataset, name: str, *, create_new_version: bool, description: str | None
) -> int:
    """Keep a dataset under a name, and return the version that it is.

    Raises:
        ConfigError: see `Dataset.register`.
    """
    _check_name(name)
    if not isinstance(create_new_version, bool):
        raise errors.refuse("create_new_version", create_new_version, "use True or False")
    definition = {"format": _FORMAT, "dataset": _written(dataset)}
    while True:
        known: dict[int, Any] = import_module(BLOCKS).registered_versions(name)
        for version, other in sorted(known.items(), reverse=True):
            if other == definition:
                return version
        if known and not create_new_version:
            raise errors.refuse(
                "name",
                name,
                f"another dataset is registered so, in {_listed(known)}: register it with "
                "create_new_version=True, or under another name",
            )
        version = max(known, default=0) + 1
        # Where someone else was quicker, theirs is one more to compare with.
        if import_module(BLOCKS).keep_version(name, version, definition, description):
            return version


def versions(name: str) -> list[int]:
    """Return the versions that are registered under a name, oldest first; none where there is none.

    Raises:
        ConfigError: the name cannot be one, or Prefect's API does not answer.
    """
    _check_name(name)
    return sorted(import_module(BLOCKS).registered_versions(name))


def get(name: str, version: int | str) -> Registered:
    """Return a registered dataset.

    Raises:
        ConfigError: the name or version cannot be one, or Prefect's API does not answer.
        DatasetError: there is none, or this version of prefect-parallelrun cannot read it.
    """
    _check_name(name)
    if version != "latest" and (
        not isinstance(version, int) or isinstance(version, bool) or version < 1
    ):
        raise errors.refuse("version", version, 'give a number from 1 on, or "latest"')
    known: dict[int, Any] = import_module(BLOCKS).registered_versions(name)
    if not known:
        raise DatasetError(
            f"no dataset is registered as {name!r}: register it with dataset.register({name!r})"
        )
    wanted = max(known) if version == "latest" else int(version)
    if wanted not in known:
        raise DatasetError(
            f"dataset {name!r} has no version {wanted}; it is registered in {_listed(known)}"
        )
    try:
        if known[wanted]["format"] != _FORMAT:
            raise ValueError(f"its format is {known[wanted]['format']!r}")
        return Registered(wanted, _dataset(known[wanted]["dataset"]))
    # Whatever a definition of another version, or one that was edited by hand, may hold.
    except (LookupError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise DatasetError(
            f"version {wanted} of dataset {name!r} cannot be read by this version of "
            f"prefect-parallelrun ({type(error).__name__}: {error}): register it again"
        ) from error


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise errors.refuse(
            "name",
            name,
            "use lower-case letters, digits and dashes, beginning and ending with none of the dashes",
        )


def _listed(known: Mapping[int, Any]) -> str:
    plural = "s" if len(known) > 1 else ""
    return f"version{plural} {', '.join(map(str, sorted(known)))}"


def _written(value: Any) -> Any:
    """Return a value of a dataset as JSON, from which `_read` makes it again.

    Raises:
        ConfigError: there is a secret in it, or rows.
    """
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"a dataset with {value!r} cannot be registered, for this is not UTF-8: rename the file or "
                "folder, or register a folder above it, or a glob"
            ) from None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_written(one) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [_written(one) for one in value]}
    if isinstance(value, Mapping):
        return {"dict": {key: _written(one) for key, one in value.items()}}
    if isinstance(value, Storage) and not may_be_kept(value):
        raise ConfigError(
            "a dataset that is opened by storage_options, or by a password or signature in its URL, "
            f"cannot be registered, for these may be secret: {_NO_SECRETS}; give that instead"
        )
    kind = type(value)
    if not kind.__module__.startswith(_HERE):
        raise ConfigError(
            "a dataset that holds rows cannot be registered: write the DataFrame to files, and register a "
            "dataset of these"
            if kind.__name__ == "DataFrame"
            else f"a {kind.__name__} cannot be registered, for others may not have its class: register a "
            "FileDataset, or a TabularDataset"
        )
    return {
        "record": f"{kind.__module__.removeprefix(_HERE)}:{kind.__qualname__}",
        "fields": {key: _written(getattr(value, key)) for key in _attributes(kind)},
    }


def _attributes(kind: type) -> list[str]:
    """Return the names of all that is written down of a record: what it shows, and what is set later."""
    if is_dataclass(kind):
        return [field.name for field in fields(kind) if field.repr]
    return [
        name
        for base in kind.__mro__
        for name, annotation in get_annotations(base).items()
        if not str(annotation).startswith("ClassVar") and name != "version"
    ]


def _dataset(definition: Any) -> Dataset:
    """Return the dataset that a definition is of.

    Raises:
        Exception: it is of none, or of one that was another thing to the version that wrote it down.
    """
    from prefect_parallelrun.datasets.dataset import Dataset

    dataset = _read(definition)
    if not isinstance(dataset, Dataset):
        raise TypeError(f"it is of a {type(dataset).__name__}, which is no dataset")
    return dataset


def _read(value: Any) -> Any:
    """Return what `_written` has written down."""
    if isinstance(value, list):
        return [_read(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_read(one) for one in value["tuple"])
    if "dict" in value:
        return {key: _read(one) for key, one in value["dict"].items()}
    module, _, name = value["record"].partition(":")
    kind = getattr(import_module(_HERE + module), name)
    if not isinstance(kind, type):
        raise TypeError(f"{name} is no part of a dataset")
    attributes = {key: _read(one) for key, one in value["fields"].items()}
    if is_dataclass(kind):
        return kind(**attributes)
    known = set(_attributes(kind))
    if attributes.keys() != known:
        raise ValueError(
            f"what it has of a {name} and is unknown here: {sorted(attributes.keys() - known)}, what it "
            f"lacks: {sorted(known - attributes.keys())}"
        )
    made: Any = object.__new__(kind)
    vars(made).update(attributes, version=None)
    return made
