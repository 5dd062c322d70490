"""The settings file beside an entry script."""

from __future__ import annotations

import pytest

from prefect_parallelrun import append_row
from prefect_parallelrun.errors import ConfigError


def test_without_a_file_nothing_is_overridden(tmp_path):
    """R103: the settings file is optional."""
    assert append_row.to_csv_keywords(tmp_path) == {}


def test_the_file_gives_to_csv_keywords(tmp_path):
    """R103: Azure's form of the file is read."""
    (tmp_path / append_row.FILE_NAME).write_text(
        '{"append_row": {"pandas.DataFrame.to_csv": {"sep": ",", "index": true}}}'
    )

    assert append_row.to_csv_keywords(tmp_path) == {"sep": ",", "index": True}


@pytest.mark.parametrize(
    "text",
    [
        "{",  # no JSON
        '{"append_row": {}}',  # another form
        '{"append_row": {"pandas.DataFrame.to_csv": [1]}}',
        '{"append_row": {"pandas.DataFrame.to_csv": {"path_or_buf": "/etc/passwd"}}}',
        '{"append_row": {"pandas.DataFrame.to_csv": {"seperator": ","}}}',  # a slip of the pen
    ],
)
def test_a_file_that_cannot_work_is_refused_by_name(tmp_path, text):
    """R103: a wrong settings file is refused before any worker starts, and named."""
    (tmp_path / append_row.FILE_NAME).write_text(text)

    with pytest.raises(ConfigError, match=append_row.FILE_NAME):
        append_row.to_csv_keywords(tmp_path)
