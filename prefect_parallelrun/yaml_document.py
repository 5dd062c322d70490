"""A YAML file that a person wrote: what it says, or an error that names file, key and value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_parallelrun.errors import ConfigError, ParallelRunError, refuse

_SECRET = ("storage_options", "connection", "credentials", "environment_variables")
"""Keys whose values no error shows."""
_MOST_NODES = 1_000_000
_DEEPEST = 100
_NAMED = re.compile(r"""\b(alias|anchor|tag|tag handle) ['"].*['"]""")
"""What errors of YAML's quote of a file."""

Model = TypeVar("Model", bound="Part")


class Part(BaseModel):
    """A mapping in a file. The docstring of each field says what its value is to be, also in errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A value's place in a file, as errors name it: `step.yaml: inputs[0].files`."""

    file: str
    keys: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.keys}" if self.keys else self.file

    def at(self, key: object) -> Place:
        """Return the place of what is below a key, or in a list at a number."""
        if isinstance(key, int):
            return Place(self.file, f"{self.keys}[{key}]")
        return Place(self.file, f"{self.keys}.{key}" if self.keys else str(key))

    def refuse(self, value: object, expected: str) -> ConfigError:
        """Build the error for the value that stands here."""
        return refuse(str(self), value, expected)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Let errors of what is made from the value here name the file as well."""
        try:
            yield
        except ParallelRunError as error:
            raise type(error)(f"{self}: {error}") from None


def read(file: Path, place: Place) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: the file cannot be read, is no mapping, or says something twice.
    """
    try:
        loaded = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        # Not with its cause: YAML's own error quotes the line.
        raise ConfigError(f"{place} cannot be read as YAML: {_told(error)}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{place} must be a mapping of keys to values, such as `name: score-files`"
        )
    return loaded


def fitted(model: type[Model], value: Any, place: Place) -> Model:
    """Return what a mapping says, if that is as the model wants it.

    Raises:
        ConfigError: it is no mapping, lacks a key, has one too many, or a value of another kind.
    """
    if not isinstance(value, dict):
        # Not the value: where a mapping belongs, people write URLs with passwords.
        raise ConfigError(f"{place} must be a mapping of keys to values")
    for key in value:
        if not isinstance(key, str):
            raise place.refuse(key, "keys are words: put it into quotes if it is meant as one")
    names = [field.alias or name for name, field in model.model_fields.items()]
    complaint = None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # Of a key that is misspelt, the right one is missing too.
        first = min(error.errors(), key=lambda one: one["type"] == "missing")
        key = str(first["loc"][0])
        if first["type"] == "missing":
            complaint = ConfigError(f"{place.at(key)} is missing: {_wanted(model, key)}")
        elif first["type"] == "extra_forbidden":
            complaint = ConfigError(f"{place.at(key)} is no key here: {suggestion(key, names)}")
        else:
            shown = "…" if key in _SECRET else value[key]
            complaint = place.at(key).refuse(shown, f"it must be {_wanted(model, key)}")
    raise complaint


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return what a person may have meant by a word that is not among the known ones."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return "there is " + (", ".join(known) or "none")


def references(what: str, names: Iterable[str]) -> list[str]:
    """Return how a file refers to inputs or outputs: `${{inputs.labels}}`."""
    return [f"${{{{{what}.{name}}}}}" for name in names]


def _wanted(model: type[Part], key: str) -> str:
    for name, field in model.model_fields.items():
        if key in (name, field.alias):
            return (field.description or "").rstrip(".")
    raise KeyError(key)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML's own loader would keep the last, and aliases without end."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the document, of a size that what reads it can go through, with its aliases written out."""
        try:
            document: yaml.Node | None = super().get_single_node()
        except RecursionError:
            raise yaml.YAMLError("it is nested too deeply") from None
        ahead, count = [(document, 0)] if document is not None else [], 0
        while ahead:
            node, depth = ahead.pop()
            count += 1
            if depth > _DEEPEST:
                raise _wrong(node, f"it is nested in more than {_DEEPEST} levels, or in itself")
            if count > _MOST_NODES:
                raise _wrong(node, f"with its aliases it has more than {_MOST_NODES:,} values")
            ahead += [(below, depth + 1) for below in _children(node)]
            _refuse_twins(node)
        return document

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return what a node says."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError):  # a 13th month, or `!!bool 7`
            kind = node.tag.rpartition(":")[2]
            raise _wrong(node, f"it is no {kind}: put it into quotes if it is a text") from None


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return chain.from_iterable(node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _refuse_twins(node: yaml.Node) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise _wrong(key, f"the key {key.value!r} is there twice")
            seen.add((key.tag, key.value))


def _wrong(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _told(error: Exception) -> str:
    """Return what is wrong with a file, and where, without its text, which may be a secret (R78)."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return where + _NAMED.sub(r"\1", ", ".join(filter(None, (error.context, error.problem))))
