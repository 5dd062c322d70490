"""What is told of a run while it goes on, and when: with a clock of the test's own."""

from __future__ import annotations

import itertools
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest

from prefect_parallelrun.driver.pace import Pace
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import overview as overview_module
from prefect_parallelrun.report.overview import Overview
from prefect_parallelrun.report.progress import RUNNING, Standing, clock, pace

EVENING = datetime(2026, 11, 22, 22, 15, tzinfo=UTC)


class Telling:
    """An overview whose time passes when the test says so, and that has no thread."""

    def __init__(self, folder, *, at=EVENING, **more):
        self.paths = RunPaths(folder)
        self.at, self.now = at, 1000.0
        self.log = logging.getLogger("test-overview")
        self.overview = Overview(
            self.paths,
            step="score",
            run_id="run-1",
            log=self.log,
            monotonic=lambda: self.now,
            utc=lambda: self.at,
            **more,
        )

    def pass_s(self, seconds):
        """Let time pass; the thread would look several times a second."""
        for _ in range(round(seconds / 0.5)):
            self.now += 0.5
            self.at += timedelta(seconds=0.5)
            self.overview.beat()

    def lines(self, place=-1):
        return self.paths.progress_overviews()[place].read_text().splitlines()

    def role(self):
        return self.paths.master_log.read_text().splitlines()

    def progress(self):
        return json.loads(self.paths.progress.read_text())


@pytest.fixture
def telling(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    return Telling(tmp_path)


def standing(**changes):
    values = {
        "planned": 20000,
        "created": 4200,
        "succeeded": 4100,
        "failed": 17,
        "retried": 31,
        "running": 83,
        "items_succeeded": 41000,
        "items_failed": 170,
        "rows": 41000,
        "rate": 0.2271,
        "left_s": 69959.0,
        "elapsed_s": 18134.0,
    }
    return Standing(**{**values, **changes})


NOTHING = {"succeeded": 0, "failed": 0, "retried": 0, "running": 4, "created": 16, "rows": 0}


def test_where_a_run_stands_is_said_in_one_line():
    """R54: created, running, done, failed, retried, rows, rate and the time left, as Azure words it."""
    assert str(standing()) == (
        "Processed 4,117 of 20,000 mini-batches in 5:02:14. 4,200 created, 83 running, 4,100 done, "
        "17 failed, 31 retried, 41,000 rows written, 0.2 mini-batches/s. "
        "Estimated remaining time 19:25:59."
    )


def test_as_long_as_nothing_is_processed_it_is_said_what_the_nodes_do():
    """R54: the words for which people search, and why it is so."""
    doing = ("node000: 2 processes in import or init() for 31 s (since 11:02:03 UTC)",)
    assert str(standing(**NOTHING, doing=doing)) == (
        "No task has been processed yet. Of 20,000 mini-batches 16 created, 4 running, 0 retried. "
        + doing[0]
    )


@pytest.mark.parametrize(
    ("per_second", "said"),
    [(0.0, "0.0/s"), (1234.5, "1,234/s"), (7.26, "7.3/s"), (0.02, "1.2/min"), (0.001, "3.6/h")],
)
def test_a_rate_is_said_in_a_unit_in_which_it_is_a_number(per_second, said):
    """R54: a mini-batch an hour is not 0.0 a second."""
    assert pace(per_second) == said


def test_durations_are_said_as_clocks():
    """R54: hours, minutes and seconds; a day is said as one."""
    assert [clock(7), clock(18134), clock(183600)] == ["0:00:07", "5:02:14", "2 days, 3:00:00"]


def test_the_overview_is_never_silent_for_longer_than_the_interval(telling):
    """R54: not while nothing is known, nor while the driver's thread does something that takes long."""
    telling.overview.stage("planning")
    telling.pass_s(60)
    times = [datetime.fromisoformat(line.split()[0]) for line in telling.lines()]
    gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
    assert len(times) == 8  # two at once, then every ten seconds
    assert max(gaps) <= overview_module.PROGRESS_S
    assert telling.lines()[1].endswith("Z Planning.")
    assert "Z Planning for 0:00:5" in telling.lines()[-1]


def test_a_line_says_where_the_run_stands_as_soon_as_that_is_known(telling):
    """R54: and for how long the driver has said nothing more."""
    telling.overview.stage(RUNNING)
    telling.overview.show(standing())
    telling.pass_s(10)
    assert str(standing()) in telling.lines()[-1]
    telling.pass_s(10)
    assert "The driver was busy with something else for 0:00:19." in telling.lines()[-1]


def test_a_run_that_stands_still_says_what_its_nodes_do(telling):
    """R54: when nothing more was done since the last line, the reason is what people look for."""
    doing = ("node000: 2 running mini-batch 17 for 40 s",)
    for _ in range(2):
        telling.overview.show(standing(doing=doing))
        telling.pass_s(10)
    assert f"None more since the last line: {doing[0]}." in telling.lines()[-1]
    telling.overview.show(standing(succeeded=4101, doing=doing))
    telling.pass_s(10)
    assert doing[0] not in telling.lines()[-1]


def test_the_log_gets_fewer_lines_after_two_minutes(telling, caplog):
    """A night of lines every ten seconds would hide all others."""
    telling.overview.show(standing())
    telling.pass_s(120)
    assert len(caplog.messages) == len(telling.lines()) - 1 == 12
    telling.pass_s(600)
    assert 9 <= len(caplog.messages) - 12 <= 11
    assert len(telling.lines()) - 13 >= 60


def test_a_new_day_begins_a_new_overview(tmp_path):
    """R54: rotates daily; the largest name is the newest."""
    telling = Telling(tmp_path, at=EVENING + timedelta(minutes=102))
    telling.pass_s(600)
    names = [path.name for path in telling.paths.progress_overviews()]
    assert names == [
        "job_progress_overview.2026112223.txt",
        "job_progress_overview.2026112300.txt",
    ]
    assert all(line.startswith("2026-11-22T") for line in telling.lines(0))
    assert all(line.startswith("2026-11-23T00") for line in telling.lines())


def test_a_later_sitting_of_the_same_day_goes_on_with_its_overview(tmp_path):
    """R54: and one of another day begins one."""
    first = Telling(tmp_path)
    first.pass_s(1)
    later = Telling(tmp_path, at=EVENING + timedelta(hours=1))
    later.pass_s(1)
    assert len(later.paths.progress_overviews()) == 1
    assert len([line for line in later.lines() if "Started" in line]) == 2
    Telling(tmp_path, at=EVENING + timedelta(hours=2)).pass_s(1)
    assert len(later.paths.progress_overviews()) == 2


def test_the_driver_tells_of_creation_in_few_lines(telling):
    """R55: mini-batches created, nodes, progress and the result; twenty lines for a million."""
    for created in range(0, 1_000_001, 5000):
        telling.overview.show(standing(created=created, planned=1_000_000))
        telling.pass_s(0.5)
    telling.overview.note("node000 joined: tcp://x on host")
    telling.overview.end("Completed", "in 9 = out 9 + failed 0 (items)")
    telling.overview.beat(last=True)
    role = telling.role()
    assert sum("Created" in line for line in role) < 12
    assert any(
        "Scheduling finished. Created 1,000,000 mini-batches in 5:02:14." in line for line in role
    )
    assert "node000 joined: tcp://x on host" in role[-3]
    # However short the sitting was, one line has the counts (R54).
    assert "of 1,000,000 mini-batches" in role[-2]
    assert " retried" in role[-2]
    assert telling.lines()[-2] == role[-2]
    assert role[-1].endswith("Completed: in 9 = out 9 + failed 0 (items)")
    assert "Scheduling finished" in "\n".join(telling.lines())


def test_the_end_says_the_error_and_where_to_start(telling):
    """R79: in lines of its own, nothing after it."""
    telling.overview.end("Failed", "ValueError: unlucky\nStart looking in /run/logs/job_result.txt")
    telling.overview.beat(last=True)
    assert telling.lines()[-2:] == [
        "2026-11-22T22:15:00Z Failed: ValueError: unlucky",
        "Start looking in /run/logs/job_result.txt",
    ]
    assert telling.progress()["stage"] == "Failed"


def test_programs_read_where_the_run_stands(telling):
    """`parallelrun status` follows a run by this file, which is never half written."""
    telling.overview.beat()
    assert telling.progress()["standing"] is None
    telling.overview.stage(RUNNING)
    telling.overview.show(standing(doing=("node000: 1 ready",)))
    telling.pass_s(1)
    assert telling.progress()["stage"] == "starting"  # at most every two seconds
    telling.pass_s(1)
    told = telling.progress()
    assert (told["stage"], told["at"]) == (RUNNING, telling.at.timestamp())
    assert Standing(**{**told["standing"], "doing": tuple(told["standing"]["doing"])}) == standing(
        doing=("node000: 1 ready",)
    )


def test_a_stage_that_has_only_begun_is_no_news_for_the_log(telling, caplog):
    """Nothing has lasted for 0:00:00 that is worth a line (R54)."""
    telling.pass_s(9)
    telling.overview.stage("writing the reports")
    telling.pass_s(9)
    assert caplog.messages == []
    telling.pass_s(1)
    assert len(caplog.messages) == 1


def test_after_the_end_nothing_runs_any_more(telling):
    """R54: whatever the last line said, the driver is at nothing, and nothing is left to wait for."""
    telling.overview.stage(RUNNING)
    telling.overview.show(standing(doing=("node000: 1 ready",)))
    telling.overview.end("Cancelled", "by Ctrl-C")
    telling.overview.beat(last=True)
    told = telling.progress()["standing"]
    assert (told["running"], told["doing"], told["left_s"]) == (0, [], None)
    assert told["succeeded"] == standing().succeeded


def test_a_disk_that_takes_nothing_is_told_of_once(tmp_path, caplog):
    """What is only watched never costs the run."""
    caplog.set_level(logging.WARNING)
    telling = Telling(tmp_path / "file")
    telling.paths.root.write_text("not a folder")
    telling.pass_s(60)
    telling.overview.beat(last=True)
    assert [m for m in caplog.messages if "cannot be written down" in m] == caplog.messages
    assert len(caplog.messages) == 1


def test_a_sitting_that_touches_nothing_says_why(tmp_path):
    """A run that cannot be gone on with stays as it is; no program takes it for one that goes on."""
    telling = Telling(tmp_path)
    telling.overview.stage("planning")
    with pytest.raises(LookupError), telling.overview:
        raise LookupError("it is another run")
    assert telling.lines()[-1].endswith("Z Left as it was: it is another run")
    assert telling.progress()["stage"] == "Left as it was"


def test_a_driver_that_lost_the_run_writes_no_more(tmp_path):
    """R200: what another driver writes stays as it is."""
    lost = []

    def guard():
        if lost:
            raise OSError("lost")

    telling = Telling(tmp_path, guard=guard)
    telling.pass_s(1)
    before = telling.lines(), telling.progress()
    lost.append(True)
    telling.overview.end("Failed", "the lock is lost")
    telling.pass_s(30)
    telling.overview.beat(last=True)
    assert (telling.lines(), telling.progress()) == before


def paced(marks, processes=2):
    """Return the rate after some counts at some times."""
    made = Pace()
    made.begin(marks[0][0], 0)
    for now, settled in marks[1:]:
        made.note(now, settled, processes=processes)
    return made.rate(*marks[-1])


def test_the_rate_is_of_the_last_minute():
    """Of a run that got faster or slower the past says nothing."""
    slow = [(float(s), s) for s in range(600)]
    fast = [(600.0 + s, 600 + 10 * s) for s in range(100)]
    assert paced(slow) == pytest.approx(1.0)
    assert paced(slow + fast) == pytest.approx(10.0, rel=0.02)


def test_the_rate_does_not_count_the_time_before_the_first_mini_batch():
    """An init() of ten minutes is over once and for all."""
    assert paced([(600.0, 0), (610.0, 20), (620.0, 40)]) == pytest.approx(2.0)


def test_the_rate_of_long_mini_batches_is_of_more_than_a_minute():
    """Two processes that take ten minutes each: two in ten minutes, not none in the last one."""
    marks = [(0.0, 0)]
    for round_ in range(1, 20):
        marks += [(600.0 * round_, 2 * round_ - 1), (600.0 * round_ + 2, 2 * round_)]
    assert paced([*marks, (600.0 * 19 + 60, 38)]) == pytest.approx(2 / 600, rel=0.1)


def test_a_break_is_soon_forgotten():
    """After an hour without a node the estimate is right again within a minute or two."""
    before = [(float(s), s) for s in range(100)]
    after = [(3700.0 + s, 100 + s) for s in range(130)]
    assert paced(before + after) == pytest.approx(1.0, rel=0.05)
