"""A table as Azure's file MLTable describes it, said as a dataset of a step file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect_parallelrun import yaml_document
from prefect_parallelrun.azure_yaml.schema import Data, check_path
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.yaml_document import Place

_TABLES = {
    "read_delimited": "delimited",
    "read_parquet": "parquet",
    "read_json_lines": "json_lines",
}
_RENAMED = {
    "delimiter": "separator",
    "encoding": "encoding",
    "support_multi_line": "support_multi_line",
}
_HEADERS = {"all_files_same_headers": True, "all_files_different_headers": True, "no_header": False}


def as_dataset(data: Data, folder: Path, place: Place) -> dict[str, Any]:
    """Return the dataset that an MLTable file describes."""
    path = str(data.path)
    if "://" in path:
        raise place.refuse(
            path, "an mltable must be on this machine: its file MLTable says how it is read"
        )
    here = Path(folder, path).expanduser()
    if not (here / "MLTable").is_file():
        raise place.refuse(path, f"{here} has no file MLTable, which says how the table is read")
    inside = Place(str(here / "MLTable"))
    document = yaml_document.read(here / "MLTable", inside)
    paths = [_table_path(one, here, inside) for one in _listed(document, "paths", inside)]
    table: dict[str, Any] = {}
    for number, one in enumerate(_listed(document, "transformations", inside)):
        at = inside.at("transformations").at(number)
        steps = list(one.items()) if isinstance(one, dict) else [(str(one), None)]
        name, options = steps[0] if len(steps) == 1 else ("", None)
        if (name in _TABLES) == bool(table):
            raise at.refuse(one, "one way of reading is known here, then the columns of the paths")
        if name in _TABLES:
            table = {_TABLES[name]: paths, **_table_options(options or {}, at)}
        elif name == "extract_columns_from_partition_format" and isinstance(options, dict):
            table["partition_format"] = options.get("partition_format")
        else:
            raise at.refuse(name, "it is not known here: describe the table in a step file of ours")
    if not table:
        raise ConfigError(f"{inside} says no way of reading: " + ", ".join(_TABLES))
    return table


def _listed(document: dict[str, Any], key: str, place: Place) -> list[Any]:
    found = document.get(key) or []
    if not isinstance(found, list):
        raise place.at(key).refuse(found, "it must be a list")
    return found


def _table_path(given: Any, folder: Path, place: Place) -> str:
    path = (
        next((given[key] for key in ("file", "folder", "pattern") if key in given), None)
        if isinstance(given, dict)
        else None
    )
    if not isinstance(path, str):
        raise place.at("paths").refuse(given, "each of the paths is a file, a folder or a pattern")
    check_path(path, place.at("paths"), required=True)
    return path if "://" in path else str(folder / path)


def _table_options(options: Any, place: Place) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items() if isinstance(options, dict) else ():
        if name == "header" and str(value) in _HEADERS:
            found["header"] = _HEADERS[str(value)]
        elif name in _RENAMED:
            found[_RENAMED[name]] = value
        elif value not in (False, None) and name != "infer_column_types":
            raise place.refuse({name: value}, "this option is not known here")
    return found
