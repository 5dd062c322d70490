"""The limits of a run as a whole, which a step's arguments set (R105)."""

from __future__ import annotations

import time
from pathlib import Path

import distributed
import pytest

from prefect_parallelrun.errors import ClusterError, NoProgress
from tests.dask.conftest import lines


@pytest.mark.timed
def test_news_that_are_no_finished_mini_batch_are_no_progress(run, numbers, tmp_path):
    """R105: --progress_update_timeout: attempts that only fail do not put the end off."""
    began = time.monotonic()
    with pytest.raises(NoProgress) as caught:
        run(
            """
            import time
            from pathlib import Path

            def run(mini_batch):
                if Path(mini_batch[0]).stem == "00":
                    return mini_batch
                time.sleep(0.3)
                raise ValueError("again")
            """,
            numbers,
            mini_batch_size=1,
            run_max_try=1000,
            arguments=("--progress_update_timeout", 2),
        )

    assert time.monotonic() - began < 8, "took longer"
    text = str(caught.value)
    assert "No progress update in 2 seconds (--progress_update_timeout 2)" in text
    assert "node000 had" in text
    assert "was at mini-batch" in text
    assert "1 of 100 mini-batches" in text


def test_mini_batches_that_go_on_ending_are_progress(run, numbers):
    """R105: a run may last longer than --progress_update_timeout."""
    result = run(
        """
        import time

        def run(mini_batch):
            time.sleep(0.25)
            return mini_batch
        """,
        numbers,
        process_count_per_node=1,
        arguments=("--progress_update_timeout", 1.5),
    )

    assert result.items.succeeded == 100


def test_without_a_node_a_run_ends_in_time_and_says_what_to_do(run, numbers):
    """R105: --first_task_creation_timeout."""
    with distributed.LocalCluster(
        n_workers=0, processes=False, dashboard_address="127.0.0.1:0"
    ) as empty:
        with pytest.raises(ClusterError) as caught:
            run(
                "def run(mini_batch): return mini_batch",
                numbers,
                compute_target=empty.scheduler_address,
                arguments=("--first_task_creation_timeout", 0.5),
            )

    assert "no node to work on" in str(caught.value)
    assert "Start Dask workers, see why they do not come, or give that limit more" in str(
        caught.value
    )


def test_encoding_that_hangs_costs_an_attempt_of_its_mini_batch_only(run, numbers):
    """R105, R205: --task_overhead_timeout limits what is not run(): here the text of an element."""
    result = run(
        """
        import time
        from pathlib import Path

        class Slow:
            def __str__(self):
                time.sleep(600)

        def run(mini_batch):
            return [Slow() if Path(p).stem == "07" else Path(p).name for p in mini_batch]
        """,
        numbers,
        run_max_try=1,
        error_threshold=10,
        arguments=("--task_overhead_timeout", 1),
    )

    assert len(lines(result)) == 90
    assert (result.mini_batches.failed, result.items.failed) == (1, 10)
    assert "score.py:7 in __str__" in (result_errors(result))


def result_errors(result):
    """The summary of the script's errors."""
    return Path(result.logs_directory, "user", "error.txt").read_text()
