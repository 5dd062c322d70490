"""The file beside an entry script that says how its DataFrames are written as text (R103)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect_parallelrun.errors import ConfigError

FILE_NAME = "parallel_run_step.settings.json"
_FORM = '{"append_row": {"pandas.DataFrame.to_csv": {"sep": ","}}}'
_FORMS = {
    "columns": "a list of the names of columns",
    "header": "true, false, or a list of names",
    "index": "true or false",
    "index_label": "a text, or a list of texts",
    "date_format": "a text such as '%Y-%m-%d'",
    "decimal": "one character",
}
"""Keywords that `to_csv` does not check itself, or only with the rows of the script, and what they must be."""
_KEYWORDS = frozenset(
    {
        *_FORMS,
        "sep",
        "na_rep",
        "float_format",
        "quoting",
        "quotechar",
        "lineterminator",
        "doublequote",
        "escapechar",
    }
)
"""What `DataFrame.to_csv` understands, but for where to write to."""


def to_csv_keywords(script_folder: Path) -> dict[str, Any]:
    """Return the keywords for `DataFrame.to_csv` that the settings file gives; none without a file.

    Azure's form: `{"append_row": {"pandas.DataFrame.to_csv": {"sep": ","}}}`.

    Raises:
        ConfigError: the file is no JSON of that form, or names something else than such a keyword.
    """
    path = script_folder / FILE_NAME
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        keywords = settings["append_row"]["pandas.DataFrame.to_csv"]
        unknown = sorted(keywords.keys() - _KEYWORDS)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be used ({type(error).__name__}: {error}): it must look like {_FORM}"
        ) from error
    if unknown:
        raise ConfigError(
            f"{path}: {', '.join(unknown)} cannot be used; the keywords of to_csv are "
            f"{', '.join(sorted(_KEYWORDS))}"
        )
    return dict(keywords)


def check(script_folder: Path, output_format: str) -> None:
    """Refuse a settings file that cannot work, rather than have it fail every mini-batch.

    Raises:
        ConfigError: a keyword has a value that `to_csv` does not take, or the output is no text.
    """
    keywords = to_csv_keywords(script_folder)
    path = script_folder / FILE_NAME
    if keywords and output_format != "text":
        raise ConfigError(
            f"output_format={output_format!r} cannot be used with {path}, which says how text is "
            "written: remove the file, or choose output_format='text' (with its keywords sep and "
            "header a DataFrame's text is CSV as well)"
        )
    for name, wanted in _FORMS.items():
        if name in keywords and not _is_plausible(name, keywords[name]):
            raise _refused(path, name, keywords[name], f"it must be {wanted}")
    header, columns = keywords.get("header"), keywords.get("columns")
    if isinstance(header, list) and columns is not None and len(header) != len(columns):
        raise _refused(
            path, "header", header, f"it must have as many names as columns, {len(columns)}"
        )
    tried = {name: value for name, value in keywords.items() if name not in _FORMS}
    if tried and (why := _complaint(tried)):
        for name, value in tried.items():
            if alone := _complaint({name: value}):
                raise _refused(path, name, value, alone)
        raise ConfigError(f"{path}: its keywords cannot be used together: {why}")


def _is_plausible(name: str, value: Any) -> bool:
    texts = isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
    match name:
        case "columns":
            return texts
        case "header":
            return texts or isinstance(value, bool)
        case "index":
            return isinstance(value, bool)
        case "index_label":
            return texts or isinstance(value, str)
        case "decimal":
            return isinstance(value, str) and len(value) == 1
        case _:
            return isinstance(value, str)


def _complaint(keywords: Mapping[str, Any]) -> str:
    """Return what `to_csv` has against these keywords; nothing if it takes them."""
    import pandas

    frame = pandas.DataFrame({"text": ["a", None], "number": [0.5, None], "truth": [True, False]})
    try:
        frame.to_csv(None, index=False, header=False, **{"sep": " ", **keywords})
    # Whatever pandas, csv and the format of a number raise.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _refused(path: Path, name: str, value: Any, why: str) -> ConfigError:
    return ConfigError(f"{path}: {name}={value!r:.100} cannot be used: {why}")
