"""What the report shows of a run is what its journal, monitor and step say (R241)."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import synthetic

from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.models import Counts, RunSummary
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.schema import open_for_writing
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import distributions, timeline, usage
from prefect_parallelrun.report import gather as gather_module
from prefect_parallelrun.report.gather import gather
from prefect_parallelrun.report.report_again import report_of
from prefect_parallelrun.report.shown_settings import shown_arguments, shown_text
from prefect_parallelrun.report.summary import summarise
from prefect_parallelrun.run_record import RunRecord, kept_definition

NO_SUMMARY = RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0)


def data_of(paths, **keywords):
    return gather(paths, RunRecord.read(paths), NO_SUMMARY, **keywords)


def attempts_of(paths):
    with closing(Journal(paths.journal)) as journal:
        return list(journal.attempts())


def processes_of(paths):
    with closing(Journal(paths.journal)) as journal:
        return journal.processes()


def change(paths, *statements):
    with closing(open_for_writing(paths.journal)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of 300 mini-batches in which much fails."""
    root = tmp_path_factory.mktemp("small") / "run"
    return synthetic.write_run(root, mini_batches=300, failing=0.2)


def test_blocks_of_a_row_follow_each_other(small):
    """No process is at two things at once, and nothing lies outside of the run."""
    data = data_of(small)
    assert not data.blocks_are_shares
    rows = defaultdict(list)
    for block in data.blocks:
        rows[block.lane].append(block)
    assert len(rows) == len(data.lanes) == 8
    for blocks in rows.values():
        blocks.sort(key=lambda block: (block.start, block.end))
        assert blocks[0].start >= 0
        assert blocks[-1].end <= data.duration_s + 1e-6
        for before, after in pairwise(blocks):
            assert before.start <= before.end <= after.start + 1e-9
            assert (before.start == before.end) == (before.kind == "killed")


def test_each_attempt_start_and_death_has_its_block(small):
    """A block for each attempt, start, init() and process that was killed, at the time when it was."""
    data = data_of(small)
    found = Counter(block.kind for block in data.blocks)
    processes = processes_of(small)
    killed = [one for one in processes if one.reason in timeline.KILLED]
    assert len(killed) > 10
    assert found["start"] == found["init"] == len(processes)
    assert found["run"] == len(attempts_of(small))
    assert found["killed"] == len(killed)
    ends = {b.process: data.origin + b.end for b in data.blocks if b.kind == "killed"}
    for one in killed:
        assert ends[f"{one.node} {one.process}"] == pytest.approx(one.ended_at, abs=1e-3)
    assert dict(data.ends) == Counter(one.reason for one in killed)
    assert data.processes_started == len(processes)


def test_a_replacement_is_in_the_row_of_its_predecessor(small):
    """Who follows a killed process stands in its row."""
    rows = {block.process: block.lane for block in data_of(small).blocks}
    processes = processes_of(small)
    followed = 0
    for one in processes:
        for other in processes:
            # The made-up node replaces a process 20 ms after its end.
            if other.node == one.node and abs(other.started_at - one.ended_at - 0.02) < 1e-6:
                assert rows[f"{other.node} {other.process}"] == rows[f"{one.node} {one.process}"]
                followed += 1
    assert followed > 10


def test_bins_add_up_to_the_journal(small):
    """Throughput, durations and CPU time leave nothing out and count nothing twice."""
    data, attempts = data_of(small), attempts_of(small)
    settled = [one for one in attempts if one.final and one.outcome == "succeeded"]
    assert sum(data.succeeded) == len(settled)
    assert sum(data.failed) == len(attempts) - len(settled)
    assert sum(data.items) == sum(one.items_succeeded for one in settled)
    assert len(data.succeeded) == len(data.failed) == len(data.items) <= 300
    first = [
        one for one in settled if one.started_at + one.elapsed_s - data.origin < data.bin_s * 9
    ]
    assert sum(data.succeeded[:9]) == len(first)
    assert sum(data.duration_counts) == sum(one.count for one in data.cpu_cells) == len(attempts)
    assert data.elapsed_total_s == pytest.approx(sum(one.elapsed_s for one in attempts), rel=1e-4)
    assert data.cpu_total_s == pytest.approx(sum(one.cpu_s for one in attempts), rel=1e-4)


def test_durations_are_where_they_are_said_to_be(small):
    """Edges grow by equal factors, bars count what lies between them, quantiles are right to 2 %."""
    data = data_of(small)
    elapsed = np.array([one.elapsed_s for one in attempts_of(small)])
    edges = np.array(data.duration_edges)
    assert len(edges) == len(data.duration_counts) + 1
    assert np.ptp(edges[1:] / edges[:-1]) < 1e-6
    # The journal's microseconds may fall on the other side of an edge.
    assert np.abs(np.histogram(elapsed, edges)[0] - data.duration_counts).max() <= 2
    quantiles = dict(data.duration_quantiles)
    assert quantiles["median"] == pytest.approx(np.quantile(elapsed, 0.5), rel=0.02)
    assert quantiles["95 %"] == pytest.approx(np.quantile(elapsed, 0.95), rel=0.05)
    assert quantiles["longest"] == pytest.approx(elapsed.max(), abs=1e-5)


def test_cells_hold_their_attempts(small):
    """Each cell of CPU against elapsed time has as many attempts as lie in it; at most 60 by 60."""
    data, attempts = data_of(small), attempts_of(small)
    assert len({one.elapsed_from for one in data.cpu_cells}) <= 60
    assert len({one.cpu_from for one in data.cpu_cells}) <= 60
    for cell in data.cpu_cells:
        inside = [
            one
            for one in attempts
            if cell.elapsed_from * 0.999 <= one.elapsed_s < cell.elapsed_to * 1.001
            and cell.cpu_from * 0.999 <= one.cpu_s < cell.cpu_to * 1.001
        ]
        assert 0 < cell.count <= len(inside)


def test_the_slowest_come_with_their_items(small):
    """The 20 slowest that settled something, slowest first, with the first of their items."""
    data = data_of(small, items_of=synthetic.items_of)
    settled = [one for one in attempts_of(small) if one.final]
    settled.sort(key=lambda one: -one.elapsed_s)
    assert [one.mini_batch for one in data.slowest] == [one.mini_batch for one in settled[:20]]
    for one in data.slowest:
        ((_, items),) = synthetic.items_of([one.mini_batch])
        assert one.items == tuple(items[:3])


def test_shares_of_a_long_run(small, monkeypatch):
    """Of many attempts, blocks are shares that fit into their row and add up to the time that was spent."""
    monkeypatch.setattr(timeline, "SINGLE", 10)
    data = data_of(small)
    assert data.blocks_are_shares
    tops = defaultdict(list)
    for block in data.blocks:
        assert 0 <= block.bottom < block.top <= 1 + 1e-9
        if block.kind != "killed":
            tops[block.lane, block.start].append((block.bottom, block.top, block.kind))
    for stack in tops.values():
        stack.sort()
        for (_, top, _), (bottom, _, _) in pairwise(stack):
            assert bottom >= top - 1e-9
        assert all(kind != "run" or bottom == 0 for bottom, _, kind in stack)
    spent = Counter()
    for block in data.blocks:
        spent[block.kind] += (block.end - block.start) * (block.top - block.bottom)
    attempts, processes = attempts_of(small), processes_of(small)
    wanted = {
        "run": sum(one.elapsed_s - one.load_s for one in attempts),
        "load": sum(one.load_s for one in attempts),
        "init": sum(one.init_s for one in processes),
    }
    for kind, seconds in wanted.items():
        assert spent[kind] == pytest.approx(seconds, rel=0.03)


def test_many_places_are_drawn_by_node(tmp_path):
    """With more than 150 places for processes, a row is a whole node, and its shares still fit."""
    paths = synthetic.write_run(
        tmp_path / "run", mini_batches=2000, nodes=20, processes=8, samples=2
    )
    data = data_of(paths)
    assert len(data.lanes) == 20
    assert data.lanes[3] == "node003 (8 processes)"
    assert data.blocks_are_shares
    assert data.lanes_left_out == 0
    assert all(block.top <= 1 + 1e-9 for block in data.blocks)
    busy = sum((b.end - b.start) * (b.top - b.bottom) * 8 for b in data.blocks if b.kind == "run")
    attempts = attempts_of(paths)
    assert busy == pytest.approx(sum(one.elapsed_s - one.load_s for one in attempts), rel=0.03)


def test_hours_between_sittings_are_left_out(tmp_path):
    """What lies between two sittings takes no room; with it, every time of day is right again."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=200, sittings=2)
    data = data_of(paths)
    ((place, left_out),) = data.gaps
    assert left_out == pytest.approx(synthetic.GAP_S, abs=1)
    assert 0 < place < data.duration_s < 600
    assert data.origin == synthetic.BEGAN
    starts = sorted(block.start for block in data.blocks if block.kind == "start")
    told = sorted(one.started_at for one in processes_of(paths))
    for at, moment in zip(starts, told, strict=True):
        shown = data.origin + at + (left_out if at > place else 0)
        assert shown == pytest.approx(moment, abs=0.01)
    assert sum(data.succeeded) == 200


def test_what_ran_again_has_a_reason(tmp_path):
    """Of a run in several sittings it is said what was done, what had failed, and what was new (R210)."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=200, sittings=2, failing=0)
    failed = attempts_of(paths)[7].mini_batch
    change(
        paths,
        "UPDATE attempts SET final = 0, outcome = 'failed', items_succeeded = 0 WHERE id = 8",
        f"UPDATE attempts SET mini_batch = {failed}, attempt = 2 WHERE id = 150",
    )
    with closing(Journal(paths.journal)) as journal:
        summary = summarise(journal, mini_batches=200)
    record = RunRecord.read(paths)
    assert gather(paths, record, summary).reuse == [
        "99 of the mini-batches were done in earlier sittings, and not run again",
        "1 of the mini-batches were run again, as they had failed in earlier sittings",
        "99 of the mini-batches were run for the first time",
    ]
    told = record.model_copy(update={"reuse": ("nothing reused: another script",)})
    assert gather(paths, told, summary).reuse == ("nothing reused: another script",)


def test_attempts_without_a_time_are_counted_where_others_ended(tmp_path):
    """What was lost with its node has no start; it is counted as failed when its neighbours ended."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=100, failing=0)
    change(
        paths,
        "UPDATE attempts SET started_at = 0, elapsed_s = 0, cpu_s = 0, process = '', "
        "outcome = 'node_lost', final = 0 WHERE id IN (40, 41, 100)",
    )
    data = data_of(paths)
    assert (sum(data.succeeded), sum(data.failed)) == (97, 3)
    assert data.failed[0] == 0
    assert sum(data.duration_counts) == 97
    ended = {n: one.started_at + one.elapsed_s for n, one in enumerate(attempts_of(paths), 1)}
    at = int((ended[39] - data.origin) / data.bin_s)
    assert data.failed[at] == 2


def test_what_was_never_started_has_no_row(tmp_path):
    """A process that the system refused to start is counted among the ends, and is no process."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=50, failing=0)
    before = data_of(paths)
    change(
        paths,
        "INSERT INTO processes SELECT node, '', 0, started_at, NULL, 0, started_at, 'not started' "
        "FROM processes LIMIT 1",
    )
    data = data_of(paths)
    assert data.ends == [("not started", 1)]
    assert data.processes_started == before.processes_started == 8
    assert data.blocks == before.blocks


def test_a_run_whose_driver_was_killed_lasted_as_long_as_was_seen_of_it(tmp_path):
    """Without any end of nodes and processes, the last thing that was heard of ends the report (R241)."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=100, state="Running")
    report = report_of(paths)
    assert report == paths.report
    assert "Interrupted" in report.read_text(encoding="utf-8")
    record = RunRecord.read(paths).model_copy(update={"state": "Failed"})
    data = gather(paths, record, NO_SUMMARY)
    last = max(one.started_at + one.elapsed_s for one in attempts_of(paths))
    assert data.duration_s == pytest.approx(last - data.origin, abs=0.01)
    assert max(block.end for block in data.blocks) <= data.duration_s + 1e-6


def test_a_run_that_goes_on_lasts_until_now(tmp_path):
    """A process that nobody saw end is there until now, as far as it is of this sitting."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=100, state="Running")
    data = data_of(paths)
    assert data.origin + data.duration_s == pytest.approx(time.time(), abs=30)
    assert max(block.end for block in data.blocks) == pytest.approx(data.duration_s)


def test_a_killed_sitting_does_not_go_on_in_the_next(tmp_path):
    """Nodes of a driver that was killed are gone when its run is gone on with, though nobody said so."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=100, sittings=2, state="Running")
    blocks = data_of(paths).blocks
    first = [block for block in blocks if block.process[:7] in ("node000", "node001")]
    second = [block for block in blocks if block.process[:7] in ("node002", "node003")]
    assert first
    assert second
    assert max(block.end for block in first) < min(block.start for block in second)


def test_a_run_without_a_journal_has_a_report(small, tmp_path):
    """What failed before anything ran says why, and has nothing else."""
    paths = RunPaths(tmp_path)
    RunRecord(
        step="early", run_id="x", fingerprint="", started_at=datetime.now(UTC), output="o"
    ).write(paths)
    definition = kept_definition(small)
    data = data_of(paths, failure="the input is not there", definition=definition)
    assert dict(data.settings)["mini_batch_size"] == "10"
    assert data.failure == "the input is not there"
    assert not data.blocks
    assert not sum(data.succeeded)


def test_usage_is_thinned(tmp_path):
    """Of thousands of samples at most 300 points are left, and the largest memory is among them."""
    paths = synthetic.write_run(
        tmp_path / "run", mini_batches=100, nodes=1, processes=2, samples=2000, failing=0
    )
    node, processes = data_of(paths).node_usage, data_of(paths).process_usage
    assert [one.name for one in node] == ["node000"]
    assert {one.name for one in processes} == {
        "node000 supervisor",
        "node000 process000",
        "node000 process001",
    }
    for one in (*node, *processes):
        assert 100 < len(one.times) == len(one.cpu_percent) == len(one.memory_bytes) <= 300
        assert list(one.times) == sorted(one.times)
    lines = paths.node_usage("node000").read_text().splitlines()[1:]
    used = [int(line.split(",")[4]) for line in lines]
    assert max(node[0].memory_bytes) == max(used)
    assert np.mean(node[0].cpu_percent) == pytest.approx(
        np.mean([float(line.split(",")[1]) for line in lines]), rel=0.02
    )


def test_a_process_is_charged_for_its_children(tmp_path):
    """What a worker process started counts as its own; a line that was cut off by a kill does not."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=10, nodes=1, processes=1, samples=1)
    stamp = datetime.fromtimestamp(synthetic.BEGAN + 1, UTC).isoformat().replace("+00:00", "Z")
    paths.process_usage("node000").write_text(
        "time,process,pid,name,cpu_percent,cpu_seconds,memory_bytes,threads,read_bytes,written_bytes,status\n"
        f"{stamp},process000,7,python3,150.0,1,1000,4,0,0,running\n"
        f"{stamp},supervisor,6,python3,1.0,1,10,4,0,0,running\n"
        f'{stamp},process000,8,"a, ""name""",50.0,1,500,4,0,0,running\n'
        f"{stamp},process000,9,python3,33"
    )
    used = {one.name: one for one in data_of(paths).process_usage}
    assert list(used["node000 process000"].cpu_percent) == [200.0]
    assert list(used["node000 process000"].memory_bytes) == [1500.0]
    assert list(used["node000 process000"].times) == [1.0]


def test_a_long_monitor_file_is_read_in_parts(tmp_path):
    """A file of many megabytes costs no more than a small one, and its parts are from all over the run."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=2000, nodes=1, samples=1)
    header = paths.node_usage("node000").read_text().splitlines()[0]
    length = data_of(paths).duration_s
    with paths.node_usage("node000").open("w") as file:
        print(header, file=file)
        for number in range(60_000):
            at = datetime.fromtimestamp(synthetic.BEGAN + length * number / 60_000, UTC)
            print(f"{at:%Y-%m-%dT%H:%M:%S.%f}Z,50,1,9,{number},1,0,0,0", file=file)
    assert paths.node_usage("node000").stat().st_size > 2 << 20
    (node,) = data_of(paths).node_usage
    assert len(node.times) <= 300
    assert node.times[0] < length * 0.02
    assert node.times[-1] > length * 0.98
    assert max(np.diff(node.times)) < length * 0.05


def test_what_a_monitor_left_empty_costs_only_its_row(tmp_path):
    """A blank value, a row of bare commas, half a time: the rows around them are shown (R241)."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=50, nodes=2, samples=5)
    before = data_of(paths)
    for file in (paths.node_usage("node000"), paths.process_usage("node000")):
        lines = file.read_text().splitlines()
        values = lines[1].split(",")
        column = lines[0].split(",").index("cpu_percent")
        blank = [*values[:column], "", *values[column + 1 :]]
        commas = "," * (len(values) - 1)
        bad_time = ["2026-03-14T", *values[1:]]
        odd = [",".join(blank), commas, ",".join(bad_time), "nan" + commas, "\0", ""]
        file.write_text("\n".join([lines[0], *odd, *lines[1:]]) + "\n")
    data = data_of(paths)
    assert data.node_usage == before.node_usage
    assert data.process_usage == before.process_usage


def test_a_monitor_file_that_cannot_be_read_costs_only_its_node(tmp_path):
    """A directory in the place of a file, or a file of something else: the other nodes are shown (R241)."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=50, nodes=3, samples=5)
    paths.node_usage("node000").unlink()
    paths.node_usage("node000").mkdir()
    paths.node_usage("node001").write_bytes(b"\xff\x00not,ours\n1,2\n")
    data = data_of(paths)
    assert [one.name for one in data.node_usage] == ["node002"]
    assert not data.unmade
    assert report_of(paths).stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("broken", "section"),
    [
        ("timeline.single_blocks", "timeline"),
        ("usage.process_usage", "resources"),
        ("attempt_arrays.pages", "throughput"),
        ("_slowest", "slowest"),
        ("_reuse", "reuse"),
        ("shown_settings", "settings"),
        ("Durations.add", "durations"),
    ],
)
def test_a_part_that_fails_does_not_cost_the_page(small, monkeypatch, broken, section):
    """Its section says that it could not be made, and why; all others are there (R241)."""

    def fail(*_, **__):
        raise RuntimeError("a bad day")

    owner = gather_module
    *path, name = broken.split(".")
    for part in path:
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, name, fail)
    data = data_of(small)
    assert data.unmade[section] == "RuntimeError: a bad day"
    page = report_of(small).read_text(encoding="utf-8")
    assert "This part could not be made: RuntimeError: a bad day" in page
    assert page.count("<h2 id=") == 10


def test_a_chart_that_fails_does_not_cost_the_page(small, monkeypatch):
    """Where it would be stands why it could not be drawn; all others are drawn (R241)."""

    def fail(*_):
        raise RuntimeError("no colours left")

    monkeypatch.setattr(distributions, "cpu_against_elapsed", fail)
    page = report_of(small).read_text(encoding="utf-8")
    assert page.count("This part could not be made: RuntimeError: no colours left") == 1
    assert 'id="chart-timeline"' in page
    assert 'id="chart-cpu"' not in page


def test_a_node_whose_clock_is_off_is_shown(tmp_path):
    """Before the run began, or after it ended, by the driver's clock: all its blocks are there (R241)."""
    for number, shift in enumerate((-7200.0, 7200.0)):
        paths = synthetic.write_run(tmp_path / str(number), mini_batches=100, nodes=1)
        before = data_of(paths)
        change(
            paths,
            f"UPDATE attempts SET started_at = started_at + {shift}",
            f"UPDATE processes SET started_at = started_at + {shift}, ready_at = ready_at + {shift},"
            f" ended_at = ended_at + {shift}",
        )
        data = data_of(paths)
        kinds = Counter(block.kind for block in data.blocks)
        assert (
            kinds["run"]
            == Counter(block.kind for block in before.blocks)["run"]
            == len(attempts_of(paths))
        )
        first = min(one.started_at for one in processes_of(paths))
        last = max(one.started_at + one.elapsed_s for one in attempts_of(paths))
        assert data.origin == min(first, synthetic.BEGAN)
        assert data.origin + data.duration_s >= last
        assert data.started_at == synthetic.BEGAN


def test_monitor_files_of_many_nodes_are_read_within_a_budget(tmp_path, monkeypatch):
    """What is read does not grow with the nodes: of each file there are parts, from all over the run."""
    paths = synthetic.write_run(
        tmp_path / "run", mini_batches=400, nodes=40, processes=2, samples=600, failing=0
    )
    whole = data_of(paths)
    monkeypatch.setattr(usage, "_ALL_BYTES", 1 << 20)
    read = []
    parts = usage._parts

    def counted(path, share):
        for names, lines, all_of_it in parts(path, share):
            read.append(sum(map(len, lines)))
            yield names, lines, all_of_it

    monkeypatch.setattr(usage, "_parts", counted)
    data = data_of(paths)
    assert sum(len(paths.process_usage(node.node).read_bytes()) for node in data.nodes) > 4 << 20
    # The processes' files of the nodes that are shown are read twice.
    assert sum(read) < 5 << 20
    assert len(data.node_usage) == len(whole.node_usage) == 40
    for one, all_of_it in zip(data.node_usage, whole.node_usage, strict=True):
        assert one.times[0] == pytest.approx(all_of_it.times[0], abs=data.duration_s * 0.1)
        assert one.times[-1] == pytest.approx(all_of_it.times[-1], abs=data.duration_s * 0.1)
    assert len(data.process_usage) <= 24


def test_cpu_time_that_is_not_known_is_not_counted(tmp_path):
    """Such attempts are in the histogram, but in no cell; what a core was busy is of the others."""
    paths = synthetic.write_run(tmp_path / "run", mini_batches=100, failing=0)
    change(
        paths,
        "UPDATE attempts SET elapsed_s = 99 WHERE mini_batch = 7",
        "UPDATE attempts SET cpu_s = -1 WHERE mini_batch < 10",
    )
    data = data_of(paths)
    assert sum(data.duration_counts) == 100
    assert sum(one.count for one in data.cpu_cells) == 90
    known = [one for one in attempts_of(paths) if one.mini_batch >= 10]
    assert data.cpu_total_s == pytest.approx(sum(one.cpu_s for one in known), rel=1e-4)
    assert data.elapsed_total_s == pytest.approx(sum(one.elapsed_s for one in known), rel=1e-4)
    assert (data.slowest[0].mini_batch, data.slowest[0].cpu_s) == (7, None)
    assert "unknown" in report_of(paths).read_text(encoding="utf-8")


def test_secrets_are_in_no_report(small):
    """Values of environment variables, and of arguments that look like secrets, are hidden (R78)."""
    data = data_of(small)
    settings = dict(data.settings)
    assert settings["environment_variables"] == "API_KEY=***"
    assert settings["arguments"] == "--model, resnet50, --token, ***"
    assert settings["mini_batch_size"] == "10"
    assert "very-secret" not in repr(data)
    assert "very-secret" not in report_of(small).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--password", "hunter2"], ["--password", "***"]),
        (["--db-password=hunter2"], ["--db-password=***"]),
        (["--apiKey", "k", "--model", "m"], ["--apiKey", "***", "--model", "m"]),
        (["--api_keys", "k1", "k2", "-v"], ["--api_keys", "***", "***", "-v"]),
        (["-token", "-5"], ["-token", "***"]),
        (["--connection-string", "x"], ["--connection-string", "***"]),
        (["--url", "https://me:pw@host/a?sig=abc&b=1"], ["--url", "https://***@host/a?sig=***&b=1"]),
        (["--store", "AccountName=a;AccountKey=k=="], ["--store", "AccountName=a;AccountKey=***"]),
        (["--keyboard", "us", "--tokens_per_batch", "8"], ["--keyboard", "us", "--tokens_per_batch", "8"]),
        (["--authorization", "Bearer S"], ["--authorization", "***"]),
        (["--header", "Authorization: Bearer S"], ["--header", "Authorization: ***"]),
        (["--header", "Cookie: a=S; b=S"], ["--header", "Cookie: ***"]),
        (["--header", "X-Api-Key:S"], ["--header", "X-Api-Key:***"]),
        (["--send", "Bearer S"], ["--send", "Bearer ***"]),
        (["--cfg", '{"password": "S", "a": 1}'], ["--cfg", '{"password": ***, "a": 1}']),
        (["--cfg", '{"a": "password: S"}'], ["--cfg", '{"a": "password: ***']),
        (["--conn", "Server=x;Password=a S;b=c"], ["--conn", "Server=x;Password=***;b=c"]),
        (["--conn", "Server=x Password=a'S"], ["--conn", "Server=x Password=***"]),
        (["--conn", 'Password="a;S";Server=x'], ["--conn", "Password=***;Server=x"]),
        (["--conn", "PWD={a;S};Server=x"], ["--conn", "PWD=***;Server=x"]),
        (["--set", "Password = S"], ["--set", "Password = ***"]),
        (["--set", "password: S"], ["--set", "password: ***"]),
        (["PGPASSWORD=S", "authtoken=S"], ["PGPASSWORD=***", "authtoken=***"]),
        (["--token", "-S", "-v"], ["--token", "***", "-v"]),
        (["--token", "--verbose"], ["--token", "--verbose"]),
        *(([f"--{name}", "S"], [f"--{name}", "***"]) for name in ("pw", "bearer", "passcode", "cookie")),
        (["--db", "mysql://u:p/S@h/x"], ["--db", "mysql://***@h/x"]),
        (["--db", "mysql://u:p@S@h/x"], ["--db", "mysql://***@h/x"]),
        (["--file", "https://host/a@b.csv", "k=v"], ["--file", "https://host/a@b.csv", "k=v"]),
        (["--file", "abfss://box@host/a"], ["--file", "abfss://***@host/a"]),
        (["--when", "2026-01-01 10:30", "C:/data"], ["--when", "2026-01-01 10:30", "C:/data"]),
        (["--primary-column", "id"], ["--primary-column", "id"]),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_hidden(arguments, shown):
    """Options that name a secret lose their values, others keep them (R78)."""
    assert shown_arguments(arguments) == shown


def test_texts_lose_what_opens_something():
    """A URL keeps its host and path, but neither user nor signature (R78)."""
    assert shown_text("postgresql://u:p@db/x") == "postgresql://***@db/x"
    assert shown_text("/data/a@b.csv?x=1") == "/data/a@b.csv?x=1"


SCRIPT = """
import os, time
def run(mini_batch):
    time.sleep(0.5 if "-slow" in mini_batch[0] else 0.005)
    if "-bad" in mini_batch[0]:
        raise ValueError("no")
    if "-deadly" in mini_batch[0]:
        os._exit(3)
    return mini_batch
"""


def test_the_report_of_a_run_with_deaths(run, tmp_path):
    """A sitting ends with a report that its result names, and that shows what really happened (R241)."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("00-bad", "01-deadly", "02-slow", *(f"{n:02}" for n in range(3, 30))):
        (folder / f"{name}.txt").write_text("x")
    result = run(SCRIPT, folder, mini_batch_size=1, error_threshold=-1)
    paths = RunPaths(Path(result.run_directory))
    assert result.report == str(paths.report)
    assert f"report: {paths.report}" in paths.job_result.read_text()
    assert str(folder / "02-slow.txt") in paths.report.read_text(encoding="utf-8")

    record = RunRecord.read(paths)
    data = gather(paths, record, NO_SUMMARY)
    assert (sum(data.succeeded), sum(data.failed), sum(data.items)) == (28, 6, 28)
    assert data.ends == [("exit", 3)]
    assert data.lanes == ["node000 #0", "node000 #1"]
    kinds = Counter(block.kind for block in data.blocks)
    assert (kinds["run"], kinds["killed"], data.processes_started) == (34, 3, 5)
    assert {block.process for block in data.blocks} == {f"node000 process{n:03}" for n in range(5)}
    assert data.slowest[0].mini_batch == 2
    assert 0 < data.duration_s < 60
    before = paths.report.read_bytes()
    assert report_of(paths) == paths.report
    assert paths.report.read_bytes() != before
    assert str(folder / "02-slow.txt") in paths.report.read_text(encoding="utf-8")


def test_a_run_that_fails_before_anything_ran_shows_its_settings(run, tmp_path):
    """The settings in force are known before the run folder has them written down (R241)."""
    folder = tmp_path / "run"
    with pytest.raises(ParallelRunError):
        run(SCRIPT, tmp_path / "missing", run_folder=folder, mini_batch_size=7)
    page = RunPaths(folder).report.read_text(encoding="utf-8")
    assert "They are not known" not in page
    assert "<code>mini_batch_size</code></td><td><code>7</code>" in page


def test_a_report_that_fails_costs_nothing(run, tmp_path, monkeypatch, caplog):
    """Where the report cannot be written, the run completes, and the log says why (R241)."""
    from prefect_parallelrun.driver import accounts

    def no_report(*_, **__):
        raise RuntimeError("no report today")

    monkeypatch.setattr(accounts, "write_report", no_report)
    (tmp_path / "in.txt").write_text("x")
    result = run("def run(mini_batch): return mini_batch", tmp_path / "in.txt")
    assert (result.state, result.report) == ("Completed", None)
    paths = RunPaths(Path(result.run_directory))
    assert "no report today" in caplog.text
    assert "no_report" in paths.driver_error.read_text()
    assert f"report: {paths.report}" not in paths.job_result.read_text()


@pytest.mark.slow
def test_a_million_mini_batches(tmp_path):
    """A million cost seconds and little memory, and what is shown has a bound (R241)."""
    paths = synthetic.write_run(
        tmp_path / "run", mini_batches=1_000_000, nodes=16, processes=8, failing=0.004
    )
    before = _rss()
    began = time.process_time()
    data = data_of(paths, items_of=synthetic.items_of)
    assert time.process_time() - began < 10
    assert _rss() - before < 150 << 20
    assert sum(data.succeeded) == 1_000_000
    assert sum(data.items) == 10_000_000
    assert len(data.lanes) == 128
    assert len(data.blocks) <= 20_000
    assert len(data.succeeded) <= 300
    assert len(data.cpu_cells) <= 3600
    assert math.isclose(sum(data.duration_counts), sum(one.count for one in data.cpu_cells))
    assert len(data.process_usage) <= 24
    assert json.dumps(data.settings)


def _rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
