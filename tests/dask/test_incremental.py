"""With some of the input changed, only what that touches runs again, and the rows are those of a whole run (R202)."""

from __future__ import annotations

import errno
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_parallelrun import reasons, settings
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig, TabularDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.mini_batches import MiniBatches
from prefect_parallelrun.driver.replay import replay
from prefect_parallelrun.driver.retry_failed import retry_failed
from prefect_parallelrun.driver.run import run_step
from prefect_parallelrun.driver.sitting import Sitting
from prefect_parallelrun.errors import OutputError, ParallelRunError
from prefect_parallelrun.housekeeping import Rules, judge
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.report_again import report_of
from prefect_parallelrun.report.verify import verify
from prefect_parallelrun.run_record import RunRecord
from prefect_parallelrun.work import Work

FILES = """
import argparse
import os
from pathlib import Path

def init():
    global calls, bad
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls")
    calls = Path(parser.parse_known_args()[0].calls)
    bad = calls.with_name("bad")

def run(mini_batch):
    names = [os.path.basename(path) for path in mini_batch]
    with calls.open("a") as file:
        file.write(",".join(names) + "\\n")
    if bad.exists() and bad.read_text() in names:
        raise ValueError("bad file")
    return [f"{name}={Path(path).read_text()}" for name, path in zip(names, mini_batch)]
"""
TABLE = """
import argparse
from pathlib import Path

def init():
    global calls
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls")
    calls = Path(parser.parse_known_args()[0].calls)

def run(mini_batch):
    with calls.open("a") as file:
        file.write(f"{mini_batch['n'].iloc[0]}-{mini_batch['n'].iloc[-1]}\\n")
    return mini_batch.assign(twice=mini_batch["n"] * 2)
"""


class Step:
    """A step that runs as a task of a flow would, and tells which mini-batches it ran."""

    def __init__(self, folder: Path, script: str = FILES, **config) -> None:
        self.folder, self.data = folder, folder / "data"
        self.calls, self.bad = folder / "calls", folder / "bad"
        self.script = folder / "scripts" / "score.py"
        for made in (self.data, self.script.parent):
            made.mkdir()
        self.script.write_text(script)
        self.config = {
            "mini_batch_size": 2,
            "process_count_per_node": 1,
            "run_max_try": 1,
            **config,
        }
        self.inputs = (FileDataset.from_files(str(self.data)),)
        self.changes: dict[str, object] = {}

    def put(self, **files: str) -> None:
        for name, text in files.items():
            (self.data / name).write_text(text)

    def work(self) -> Work:
        definition = StepDefinition(
            **{
                "name": "score-files",
                "config": ParallelRunConfig(str(self.script), **self.config),
                "inputs": self.inputs,
                "arguments": ("--calls", str(self.calls)),
                "output": OutputFileDatasetConfig(destination=str(self.folder / "out")),
                **self.changes,
            }
        )
        return Work.of_step(definition)

    def run(self, **options):
        """Run it; the result, and what ran: one text for each mini-batch, sorted."""
        self.calls.write_text("")
        work = self.work()
        runs = settings.step_folder("score-files")
        told = self.told = work.reuse()
        record, _ = reasons.earlier_run(work.wanted, runs)
        run_id = record.run_id if record else settings.new_run_id(work.fingerprint)
        try:
            result = run_step(
                work.definition,
                run_folder=runs / run_id,
                run_id=run_id,
                fingerprint=work.fingerprint,
                source_sha256=work.source_sha256,
                bases=() if record else reasons.bases(work.wanted, runs),
                log=logging.getLogger("test"),
                **options,
            )
        finally:
            self.record = RunRecord.read(RunPaths(runs / run_id))
            self.ran = sorted(self.calls.read_text().split())
        # What is told before a run is what then happens.
        assert result.mini_batches.total - result.mini_batches.reused == len(self.ran)
        assert told.mini_batches == result.mini_batches.reused
        assert told.whole == (not self.ran)
        if not record:
            assert told.base == self.record.base
        if told.base:
            assert told.reasons == self.record.reuse
        assert verify(RunPaths(runs / run_id)).findings == ()
        return result

    def check(self, *ran: str) -> None:
        """Run it: just these mini-batches must run, and the rows be those of all files."""
        result = self.run()
        assert self.ran == sorted(ran)
        files = sorted(path for path in self.data.rglob("*") if path.is_file())
        rows = [f"{path.name}={path.read_text()}" for path in files]
        assert Path(result.append_row_file).read_text().split() == rows
        assert result.reused == (not ran)


@pytest.fixture(autouse=True)
def _run_root(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))


def whole(paths: RunPaths) -> str:
    return paths.driver_log.read_text()


def test_files_that_come_change_and_go(tmp_path):
    """A mini-batch runs again exactly if one of its files is another, or a new one sorts inside of it (R202, R210)."""
    step = Step(tmp_path)
    step.put(b="1", d="1", f="1", h="1", k="1")
    step.check("b,d", "f,h", "k")

    step.put(m="1")  # behind all others
    step.check("m")
    assert "since then files of input 0: 1 new" in step.record.reuse[0]
    assert step.record.reuse[0].endswith("1 of 4 mini-batches run")

    step.put(e="1", f="22")  # between two, and the next one changed
    step.check("e,f", "h")

    (step.data / "k").rename(
        step.data / "a"
    )  # the last of three of one: renamed, it is the first of all
    step.check("a")

    (step.data / "d").unlink()
    step.check("b")

    (step.data / "m").unlink()  # it was one of its own
    step.check()
    assert step.record.reuse[0].endswith("0 of 4 mini-batches run")

    step.put(b="333")
    step.check("b")

    # Whoever looks at the run sees the mini-batches that it had.
    paths, said = settings.run_paths("score-files"), []
    report_of(paths)
    for index, names in enumerate(["a", "b", "e,f", "h"]):
        rows = replay(paths, index, tell=said.append)
        assert [row.partition("=")[0] for row in rows] == names.split(",")
    paths.cuts.write_text("[[[2, 2]]]")
    with pytest.raises(OutputError, match="its mini-batches are too"):
        replay(paths, 0, tell=said.append)
    assert not said


def test_a_base_that_failed_and_inputs_that_alternate(tmp_path):
    """Of a run that failed, what is done is taken over; an input as it once was goes on with its own run (R201, R202)."""
    step = Step(tmp_path, error_threshold=0)
    step.put(a="1", b="1", c="1", d="1", e="1")
    step.bad.write_text("c")
    with pytest.raises(ParallelRunError, match="bad file"):
        step.run()
    failed = step.record
    with Journal(settings.run_paths(failed.run_id).journal) as journal:
        done = {["a,b", "c,d", "e"][index] for index in journal.done()}
    step.bad.unlink()

    step.put(f="1")
    step.check(*{"a,b", "c,d", "e", "f"} - done)
    taken, again = step.record.reuse
    assert step.record.base == failed.run_id
    assert taken.startswith(f"run {failed.run_id} (Failed) is taken over, since then files of")
    assert "1 failed there" in again

    # Without the new file it is the failed run's own input: that one goes on.
    (step.data / "f").unlink()
    step.check(*{"a,b", "c,d", "e"} - done)
    assert step.record.run_id == failed.run_id
    step.put(f="1")
    os.utime(step.data / "f", ns=(1, 1))
    step.check("f")
    assert step.record.base != failed.run_id, "the newest run with the same settings is the base"


def test_an_incremental_run_that_is_stopped_goes_on(tmp_path):
    """What it took over stays taken over, and its mini-batches stay the same ones, for it and those after it (R201)."""
    step = Step(tmp_path, mini_batch_size=3)
    step.put(**{f"f{n:02}": "1" for n in range(30)})
    step.run()
    for n in range(4, 30, 5):  # breaks six of the ten
        (step.data / f"f{n:02}a").write_text("2")

    class Killed(BaseException):
        pass

    def killed():
        if len(step.calls.read_text().split()) >= 2:
            raise Killed

    with pytest.raises(Killed):
        step.run(watch=killed)
    stopped, paths = step.record, settings.run_paths("score-files")
    stopped.model_copy(update={"state": "Running"}).write(paths)
    cuts = paths.cuts.read_text()

    result = step.run()
    assert step.record.run_id == stopped.run_id
    assert (step.record.base, paths.cuts.read_text()) == (stopped.base, cuts)
    assert step.record.reuse == stopped.reuse
    assert step.record.reuse
    assert len(Path(result.append_row_file).read_text().split()) == 36
    assert result.mini_batches.reused >= 4 + 2 - 1

    (step.data / "f00").write_text("3")
    step.run()
    assert step.ran == ["f00,f01,f02"]
    assert step.record.base == stopped.run_id


def table(folder: Path, name: str, first: int, count: int, form: str) -> None:
    import pandas as pd

    frame = pd.DataFrame({"n": range(first, first + count), "text": "x"})
    if form == "csv":
        frame.to_csv(folder / f"{name}.csv", index=False)
    else:
        frame.to_parquet(folder / f"{name}.parquet", index=False, row_group_size=5)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables(tmp_path, form):
    """Of a table the files that changed run again, with all their mini-batches, and no others (R202)."""
    step = Step(tmp_path, TABLE, mini_batch_size=20, output_format=form)
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        table(step.data, name, first, 10, form)
    read = (
        TabularDataset.from_delimited_files if form == "csv" else TabularDataset.from_parquet_files
    )
    step.inputs = (read(str(step.data)),)
    before = len(step.run().to_pandas())
    assert before == 30
    all_ran = step.ran
    assert len(all_ran) > 3

    table(step.data, "b", 500, 12, form)
    table(step.data, "d", 700, 1, form)
    result = step.run()

    assert step.ran
    assert all(one[0] in "57" for one in step.ran), step.ran
    assert result.mini_batches.reused == len([one for one in all_ran if one[0] != "1"])
    rows = result.to_pandas()
    expected = [*range(10), *range(500, 512), *range(200, 210), 700]
    assert rows["n"].tolist() == expected
    assert rows["twice"].tolist() == [2 * n for n in expected]


def test_partition_keys_and_two_inputs(tmp_path):
    """A combination of keys runs again if one of its files is another; so does each of two inputs by itself (R102)."""
    step = Step(tmp_path, mini_batch_size=None, partition_keys=["day"])
    other = tmp_path / "other"
    for folder in (step.data / "mon", step.data / "tue", other / "mon"):
        folder.mkdir(parents=True)
        for name in "ab":
            (folder / f"{folder.parent.name[0]}{folder.name[0]}{name}.txt").write_text("1")
    both = (step.data, other)
    form = "{day}/*.txt"
    step.inputs = tuple(FileDataset.from_files(str(one), partition_format=form) for one in both)
    step.run()
    assert len(step.ran) == 3

    (step.data / "tue" / "dtc.txt").write_text("1")
    (step.data / "wed").mkdir()
    (step.data / "wed" / "dw.txt").write_text("1")
    step.run()
    assert step.ran == ["dta.txt,dtb.txt,dtc.txt", "dw.txt"]

    step.config |= {"partition_keys": None, "mini_batch_size": 2}
    step.run()
    assert (len(step.ran), step.record.base) == (4, None)
    assert "partition_keys was" in step.told.reasons[0]
    (other / "mon" / "oma.txt").write_text("22")
    result = step.run()
    assert step.ran == ["oma.txt,omb.txt"]
    assert Path(result.append_row_file).read_text().split()[-2:] == ["oma.txt=22", "omb.txt=1"]


def test_summary_only(tmp_path):
    """What a script wrote by itself is taken over only if new items came behind all others (R202, R50)."""
    script = FILES.replace(
        'parser.add_argument("--calls")',
        'parser.add_argument("--calls"); parser.add_argument("--out")',
    ).replace("    return [", "    (calls.parent / 'out' / names[0]).write_text('x')\n    return [")
    step = Step(tmp_path, script, output_action="summary_only")
    step.put(a="1", b="1", c="1", d="1")
    step.run()

    step.put(e="1")
    step.run()
    assert step.ran == ["e"]

    (tmp_path / "out" / "a").write_text("other")
    step.put(f="1")
    step.run()
    assert len(step.ran) == 3
    assert "was deleted or changed" in " ".join(step.record.reuse)

    step.put(a="22")
    step.run()
    assert len(step.ran) == 3
    assert "writes by itself" in " ".join(step.record.reuse)

    (step.data / "c").unlink()
    step.run()
    assert len(step.ran) == 3
    assert (tmp_path / "out" / "c").exists()


def test_content_decides(tmp_path):
    """With content=True a file is another exactly if what is in it is (R52)."""
    step = Step(tmp_path)
    step.inputs = (FileDataset.from_files(str(step.data), content=True),)
    step.put(a="1", b="1", c="1")
    step.check("a,b", "c")

    state = (step.data / "c").stat()
    step.put(c="2")
    os.utime(step.data / "c", ns=(state.st_atime_ns, state.st_mtime_ns))
    os.utime(step.data / "a", ns=(1, 1))
    step.check("c")


def test_a_retry_that_cannot_be_written_down(tmp_path, monkeypatch):
    """A full disk, or a kill, as a run goes on with other contents leaves no run that vouches for rows
    of a listing that is not theirs (R200, R202, R204)."""
    step = Step(tmp_path, mini_batch_size=1, error_threshold=-1)
    step.put(a="1", b="1", c="1")
    step.bad.write_text("c")
    step.run()
    step.bad.unlink()
    step.put(a="22")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(RunRecord, "write", full)
        with pytest.raises(OutputError, match="No space left"):
            retry_failed(settings.run_paths("score-files"), log=logging.getLogger("test"))

    step.check("a", "c")
    assert step.record.base is not None


def test_a_retry_with_other_contents(tmp_path):
    """What a run has written down of its mini-batches is of the rows that stand for it (R202, R204)."""
    step = Step(tmp_path, mini_batch_size=None, partition_keys=["key"], error_threshold=-1)
    step.inputs = (FileDataset.from_files(str(step.data), partition_format="{key}.txt"),)
    step.put(**{"a.txt": "1", "b.txt": "1"})
    step.bad.write_text("b.txt")
    step.run()
    paths = settings.run_paths("score-files")
    paths.identities.write_bytes(b"")  # as where the disk was full
    listings = paths.listings.read_bytes()

    step.put(**{"a.txt": "22"})
    assert retry_failed(paths, log=logging.getLogger("test")).mini_batches.failed == 1

    assert RunRecord.read(paths).fingerprint == ""
    assert (paths.identities.read_bytes(), paths.listings.read_bytes()) == (b"", listings)


def test_a_base_that_cannot_be_read(tmp_path):
    """It is passed over, and why is told; the next one takes its place (R202, R210)."""
    step = Step(tmp_path)
    step.put(a="1", b="1", c="1")
    step.run()
    first = step.record.run_id
    step.put(d="1")
    step.check("d")
    newest = settings.run_paths("score-files")
    newest.journal.write_bytes(b"no journal" * 1000)

    step.put(e="1")
    step.check("d,e")
    passed, taken = step.record.reuse
    assert passed.startswith(f"nothing reused of run {newest.root.name}: ")
    assert taken.startswith(f"run {first} (Completed) is taken over, since then files of input 0")


def test_rows_of_a_base_that_are_lost(tmp_path):
    """It is seen before the run begins, so that the next base takes its place, and what is told is what is
    wrong with it and no advice for it (R202, R210)."""
    step = Step(tmp_path)
    step.put(a="1", b="1")
    step.run()
    first = step.record.run_id
    step.put(c="1")
    step.run()
    newest = settings.run_paths("score-files")
    os.truncate(newest.partial, 3)

    step.put(d="1")
    step.check("c,d")
    assert step.record.base == first
    passed, taken = step.record.reuse
    assert passed.startswith(f"nothing reused of run {newest.root.name}: ")
    assert passed.endswith("rows of mini-batches that are done are lost")
    assert taken.startswith(f"run {first} (Completed) is taken over")


def test_a_table_whose_columns_have_other_types(tmp_path):
    """It is told why nothing holds of a table with files that did not change, and when a run has not
    written down what its mini-batches were (R210)."""
    step = Step(tmp_path, TABLE, mini_batch_size=1000, output_format="jsonl")
    for name, value in (("a", "1"), ("b", "2")):
        (step.data / f"{name}.csv").write_text(f"n,v\n1,{value}\n")
    step.inputs = (TabularDataset.from_delimited_files(str(step.data)),)
    step.run()

    (step.data / "a.csv").write_text("n,v\n1,text\n")
    step.run()
    assert len(step.ran) == 2
    (told,) = step.record.reuse
    assert "the columns of input 0 have other names or types" in told

    settings.run_paths("score-files").identities.unlink()
    (step.data / "a.csv").write_text("n,v\n1,texts\n")
    step.run()
    assert "what its mini-batches consist of cannot be read: " in step.record.reuse[0]


def test_of_many_bases_the_likeliest_come_first(tmp_path, monkeypatch):
    """A base that shares files is found behind any number of others, and those that are of no use are told
    in a line or two (R202, R210)."""
    monkeypatch.setattr(reasons, "_BASES", 3)
    step = Step(tmp_path)
    for day in range(5):
        folder = tmp_path / f"day{day}"
        folder.mkdir()
        (folder / "a").write_text("1")
        (folder / "b").write_text("1")
        step.inputs = (FileDataset.from_files(str(folder)),)
        step.run()
        if day == 0:
            first = step.record.run_id
    passed, others = step.record.reuse
    assert (
        "none of its mini-batches has the same items, unchanged; files of input 0: 2 new" in passed
    )
    assert others == (
        "nothing reused of 2 other runs: none of its mini-batches has the same items, unchanged"
    )

    (tmp_path / "day0" / "c").write_text("1")
    step.inputs = (FileDataset.from_files(str(tmp_path / "day0")),)
    step.run()
    assert step.ran == ["c"]
    assert step.record.base == first
    assert len(step.record.reuse) == 1


def test_rows_of_a_run_that_does_not_say_their_age(tmp_path, monkeypatch):
    """Neither one that goes on with them nor one that takes them over makes them younger, whatever fails
    (R52, R202)."""
    step = Step(tmp_path, error_threshold=0)
    step.put(a="1", b="1", c="1")
    step.bad.write_text("c")
    with pytest.raises(ParallelRunError):
        step.run()
    paths, began = settings.run_paths("score-files"), datetime.now(UTC) - timedelta(hours=2)

    def forget() -> None:
        record = RunRecord.read(paths)
        record.model_copy(update={"rows_since": None, "started_at": began}).write(paths)

    forget()
    with monkeypatch.context() as patched:
        patched.setattr(MiniBatches, "write_down", _no_room)
        with pytest.raises(RuntimeError, match="no room"):
            step.run()
    assert RunRecord.read(paths).rows_since == began

    step.bad.unlink()
    forget()
    assert step.run().mini_batches.reused == 1
    assert step.record.rows_since == began

    forget()
    step.put(d="1")
    step.check("d")
    assert step.record.run_id != paths.root.name
    assert step.record.rows_since == began


def _no_room(_: MiniBatches) -> None:
    raise RuntimeError("no room")


def test_a_run_that_was_killed_as_it_took_over(tmp_path, monkeypatch):
    """Its copy belongs to no run: `clean` removes it, and commands say what it is (R202)."""
    step = Step(tmp_path)
    step.put(a="1", b="1", c="1")
    step.run()

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    step.put(d="1")
    with monkeypatch.context() as patched:
        patched.setattr(Sitting, "_begin", killed)
        patched.setattr(Sitting, "fail", killed)
        with pytest.raises(OutputError, match="its driver is still planning, or was killed"):
            step.run()
    left = settings.run_paths("score-files")
    assert left.partial.stat().st_size
    step.check("d")

    verdicts = {one.folder: one for one in judge(Rules(keep=0))}
    assert (verdicts[left.root].state, verdicts[left.root].kept) == ("never begun", None)
