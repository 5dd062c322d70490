"""The settings of a run as people may see them: never a secret (R78)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from prefect_parallelrun.datasets import Dataset
from prefect_parallelrun.definition import StepDefinition

HIDDEN = "***"

_SECRET = re.compile(
    r"\w*(pass(word|wd|phrase|code)|secret)s?|\w*token|pass|pw|pwd|pat|credentials?|"
    r"auth|authori[sz]ation|bearer|cookies?|jwt|sas|sig(nature)?|dsn|"
    r"(api|access|account|private|shared|storage|encryption|subscription)?_?keys?|"
    r"connection_?str(ing)?|conn_?str",
    re.IGNORECASE,
)
"""A word of an option's name, or two of them, that says that its value is a secret."""
_IN_URL = re.compile(
    r"""(?P<before>[A-Za-z][A-Za-z0-9+.-]*://)([^/?#\s:"']*:[^\s"']*@|[^/?#\s"']*@)?"""
)
"""The password may have any character, of which some should have been escaped."""
_NAME = re.compile(r"""(?P<name>[A-Za-z][A-Za-z0-9_.-]*)["']?\s*(?P<sign>=|:(?!//))\s*""")
_QUOTED = r""""(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|\{[^}]*\}?"""
_VALUES = {"=": re.compile(rf"{_QUOTED}|[^&;\n]*"), ":": re.compile(rf"{_QUOTED}|[^\n]*")}
"""What is a secret after such a name: in quotes, else to the end of the setting, or of the header."""
_SCHEME = re.compile(r"\b(?P<scheme>Bearer|Basic)\s+[^\s\"']+", re.IGNORECASE)
_LONG = 400
"""Characters."""
_WIDE = 100
"""Values of one setting."""


def shown_settings(definition: StepDefinition) -> list[tuple[str, str]]:
    """Return name and value of each setting in force, in the order of the documentation."""
    config = definition.config
    found = [(name, _value(name, getattr(config, name))) for name in type(config).model_fields]
    found += [("inputs", _listed([_dataset(one) for one in definition.inputs]))]
    if definition.side_inputs:
        found.append(("side_inputs", _listed([_dataset(one) for one in definition.side_inputs])))
    found.append(("output", shown_text(str(definition.output_place or "a folder of the run"))))
    if definition.output is not None and definition.output.storage.credentials:
        found.append(("output credentials", definition.output.storage.credentials))
    found.append(("arguments", _listed(shown_arguments(definition.script_arguments("{output}")))))
    options = definition.options
    found += [(f"--{name}", str(getattr(options, name))) for name in options.__slots__]
    return found


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a script's arguments, with `***` for what looks like a secret.

    That is values of options such as `--password`, `--api-key`, `--db_token`; and see `shown_text`.
    """
    shown: list[str] = []
    follows, first = False, False
    for text in arguments:
        option, equals, _ = text.partition("=")
        is_option = text.startswith("-") and not _is_number(text)
        # A secret may begin with a dash; what comes right after its option is no other short one.
        if follows and (not is_option or (first and not text.startswith("--"))):
            shown.append(HIDDEN)
            first = False
            continue  # all values of that option
        secret = is_option and _names_secret(option)
        follows = first = secret and not equals
        shown.append(f"{option}={HIDDEN}" if secret and equals else shown_text(text))
    return shown


def shown_text(text: str) -> str:
    """Return a text without what looks like a secret in it.

    Such as in `AccountKey=…`, `{"password": "…"}`, `Authorization: …`, `Bearer …` or `https://me:…@host`.
    """
    text = _without_logins(text)
    shown, at = "", 0
    for found in _NAME.finditer(text):
        if found.start() < at or not _names_secret(found["name"]):
            continue
        value = _VALUES[found["sign"]].match(text, found.end())
        if value is not None and value[0]:
            shown += text[at : found.end()] + HIDDEN
            at = value.end()
    return _SCHEME.sub(rf"\g<scheme> {HIDDEN}", shown + text[at:])


def _without_logins(text: str) -> str:
    def shown(found: re.Match[str]) -> str:
        return found[0] if found[0] == found["before"] else f"{found['before']}{HIDDEN}@"

    return _IN_URL.sub(shown, text)


def _names_secret(option: str) -> bool:
    # `AccountKey` has two words as well as `account-key`.
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", option.lstrip("-"))
    words = [word for word in re.split(r"[^A-Za-z0-9]+", name) if word]
    pairs = ["_".join(pair) for pair in pairwise(words)]
    return any(_SECRET.fullmatch(word) for word in [*words, *pairs])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-[0-9.]+(e[-+]?[0-9]+)?", text, re.IGNORECASE) is not None


def _value(name: str, value: object) -> str:
    if value is None:
        return "None"
    if name == "environment_variables" and isinstance(value, dict):
        return _listed([f"{key}={HIDDEN}" for key in value])
    if name == "compute_target" and not isinstance(value, str):
        return f"a {type(value).__name__}"
    if isinstance(value, tuple):
        return _listed([str(one) for one in value])
    return shown_text(str(value))


def _dataset(dataset: Dataset) -> str:
    # Datasets keep signatures out of their URLs themselves, and `key=5` in a path is no secret.
    text = _without_logins(repr(dataset))
    credentials = dataset.storage.credentials
    return f"{text}, credentials {credentials}" if credentials else text


def _listed(values: Sequence[str]) -> str:
    short = [value if len(value) <= _LONG else value[:_LONG] + "…" for value in values[:_WIDE]]
    more = [f"and {len(values) - _WIDE:,} more"] if len(values) > _WIDE else []
    return ", ".join([*short, *more]) or "none"
