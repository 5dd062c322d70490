"""A query of any size passes through a node in memory that does not grow with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

ROWS = 1_000_000
QUERY = """
SELECT n, n % 7 AS a, n * 0.5::float8 AS b, n / 3.0 AS c, md5(n::text) AS d, md5((n + 1)::text) AS e,
       repeat('x', 40) AS f, n % 2 = 0 AS g, CASE WHEN n > 999000 THEN n END AS h, n::float8 AS i
FROM generate_series(1, {rows}) AS n
"""

FETCH = """
import resource, sys
from pathlib import Path
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.node import sql_rows
from prefect_parallelrun.node.sources import Query

url, few, many, folder = sys.argv[1:]
reader = {"columns": None, "column_types": {}}
for name, query in (("few", few), ("many", many)):
    work = {"path": "here", "sql": {}}
    sql_rows.fetch(Query(database=Hidden({"url": url}), query=query), reader, work, Path(folder, name))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_large_query_is_never_in_memory(postgresql, tmp_path):
    """R25: of a million rows with ten columns, a node holds a small part at a time."""
    import pyarrow.parquet as pq

    texts = [QUERY.format(rows=rows) for rows in (20_000, ROWS)]
    command = [sys.executable, "-c", FETCH, postgresql.url, *texts, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    few, many = (int(line) << 10 for line in done.stdout.split())
    table = pq.read_table(tmp_path / "many")
    assert table.num_rows == ROWS
    assert table["h"].null_count == 999_000
    assert many - few < table.nbytes / 3
