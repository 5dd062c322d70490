"""The file beside an entry script that says how its DataFrames are written (R103)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect_parallelrun.errors import ConfigError

FILE_NAME = "parallel_run_step.settings.json"
_KEYWORDS = frozenset(
    {
        "sep",
        "na_rep",
        "float_format",
        "columns",
        "header",
        "index",
        "index_label",
        "quoting",
        "quotechar",
        "lineterminator",
        "date_format",
        "doublequote",
        "escapechar",
        "decimal",
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
    form = '{"append_row": {"pandas.DataFrame.to_csv": {"sep": ","}}}'
    try:
        keywords = json.loads(path.read_text())["append_row"]["pandas.DataFrame.to_csv"]
        unknown = sorted(keywords.keys() - _KEYWORDS)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be used ({type(error).__name__}: {error}): it must look like {form}"
        ) from error
    if unknown:
        raise ConfigError(
            f"{path}: {', '.join(unknown)} cannot be used; the keywords of to_csv are "
            f"{', '.join(sorted(_KEYWORDS))}"
        )
    return dict(keywords)
