"""One round: a run that is disturbed, started again as often as its driver ends, and judged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.chaos import disk, judge, leaks
from tests.chaos.cluster import ChaosCluster
from tests.chaos.driver import FAILED
from tests.chaos.faults import END_OF_SITTING, OBEYED, Fault, Injector, Kind
from tests.chaos.job import Job, Report
from tests.chaos.plan import AT_THE_END, LEAST_S, MOST_S, SILENT_S, Plan, Planned
from tests.chaos.server import PrefectServer
from tests.chaos.trace import Trace

PATIENCE_S = 3.0
"""How long a fault waits for somebody whom it could hit."""
TAIL = 2_500
"""Characters shown of a log."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """A round that is over."""

    plan: Plan
    faults: list[Fault] = field(default_factory=list)
    """Those that hit."""
    missed: Counter[Kind] = field(default_factory=Counter)
    """Those that found nobody to hit."""
    verdict: judge.Verdict = field(default_factory=judge.Verdict)
    sittings: int = 0
    seconds: float = 0.0


class _HungError(Exception):
    """The round's limit is reached."""


class Round:
    """Runs one plan in a folder of its own."""

    def __init__(
        self, plan: Plan, cluster: ChaosCluster, folder: Path, server: PrefectServer
    ) -> None:
        self._plan = plan
        self._cluster = cluster
        self._folder = folder
        self._server = server
        self._rng = random.Random(f"{plan.seed}-when")
        self._outcome = Outcome(plan=plan)
        self._ahead = list(plan.faults)
        self._run_id = f"{plan.name}-{uuid.uuid4().hex[:6]}"
        self._trace = Trace(folder / "trace.jsonl")
        self._due_since: float | None = None
        self._not_before = 0.0
        self._on_disk: Fault | None = None
        """The fault that the disk is full of."""
        self._disk: disk.SmallDisk | None = None

    def run(self) -> Outcome:
        """Run it to its end; return what was found."""
        began = time.monotonic()
        self._deadline = began + self._plan.limit_s
        self._folder.mkdir(parents=True)
        (self._folder / "orders").mkdir()
        self._data = self._plan.make_data(self._folder / "data")
        try:
            if self._plan.on_small_disk:
                self._disk = disk.SmallDisk(self._folder / "disk")
            self._job = self._make_job()
            report = self._until_it_ends()
            if report is not None:
                self._judge(report)
        except _HungError:
            self._outcome.verdict.hung = 1
        finally:
            self._let_go_of_disk()
        faults = [asdict(fault) for fault in self._outcome.faults]
        (self._folder / "faults.json").write_text(json.dumps(faults, indent=1))
        hit = Counter(fault.kind for fault in self._outcome.faults)
        self._outcome.missed = Counter(planned.kind for planned in self._plan.faults) - hit
        self._outcome.seconds = time.monotonic() - began
        return self._outcome

    # -- sittings ----------------------------------------------------------------------------

    def _until_it_ends(self) -> Report | None:
        while True:
            self._outcome.sittings += 1
            code, report = self._sit()
            killed = self._outcome.faults and self._outcome.faults[-1].kind == Kind.DRIVER_KILL
            if code == 0 and report is not None:
                return report
            if code == -signal.SIGKILL and killed:
                continue
            if code == FAILED and report is not None and self._on_disk is not None:
                self._full(report)
                continue
            said = f"{report.error}: {report.text}" if report else _end_of(self._log)
            self._outcome.verdict.complaints.append(f"the driver ended with {code}: {said}")
            return None

    def _sit(self) -> tuple[int, Report | None]:
        """Run one driver to its end, and do to it what is due."""
        result = Path(self._job.result)
        result.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", str(self._folder / "job.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )
        orders = self._folder / "orders"
        injector = Injector(
            self._trace,
            self._cluster,
            orders,
            self._job.silent_s,
            self._rng,
            spares_alone=self._plan.shape.isolates,
        )
        try:
            while (code := driver.poll()) is None:
                self._trace.read()
                injector.release()
                self._disturb(driver, injector)
                if time.monotonic() > self._deadline:
                    self._show(driver)
                    raise _HungError
                time.sleep(0.005)
        finally:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
            while injector.stopped:
                injector.release(at_last=True)
                time.sleep(0.01)
        self._trace.read()
        return code, Report.read(result)

    def _disturb(self, driver: subprocess.Popen[bytes], injector: Injector) -> None:
        """Do the next fault, if it is time for it."""
        now = time.monotonic()
        if not self._ahead or self._on_disk is not None or now < self._not_before:
            return
        planned = self._ahead[0]
        if len(self._trace.done) < planned.progress * self._good_items:
            return
        if self._due_since is None:
            self._due_since = now
            late = 0.4 if planned.progress == AT_THE_END else 0.1
            self._not_before = now + self._rng.uniform(0, late)
            return
        fault = self._hit(planned, driver, injector)
        if fault is None and now - self._due_since < PATIENCE_S:
            return
        self._due_since = None
        self._ahead.pop(0)
        self._not_before = time.monotonic() + self._rng.uniform(0.05, 0.4)
        # Of orders that the script is given, the trace tells whether they were followed.
        if fault is not None and fault.kind not in OBEYED.values():
            self._outcome.faults.append(fault)

    def _hit(
        self, planned: Planned, driver: subprocess.Popen[bytes], injector: Injector
    ) -> Fault | None:
        if planned.kind not in END_OF_SITTING:
            return injector.hit(planned.kind)
        at = time.monotonic()
        fault = Fault(kind=planned.kind, at=at, until=at, pid=driver.pid)
        if planned.kind == Kind.DRIVER_KILL:
            driver.kill()
            if driver.wait() != -signal.SIGKILL:
                return None
        elif planned.kind == Kind.DISK_FULL:
            assert self._disk is not None
            self._disk.fill()
            self._on_disk = fault
        else:
            assert self._job.run_folder is not None
            disk.limit_files(driver.pid, Path(self._job.run_folder))
            self._on_disk = fault
        return fault

    def _full(self, report: Report) -> None:
        """The driver ended for want of space: as it should? Then there is space again."""
        assert self._on_disk is not None
        self._on_disk.until = time.monotonic()
        self._on_disk = None
        if self._disk is not None:
            self._disk.free()
        if report.error != "OutputError" or "run the step again" not in report.text:
            self._outcome.verdict.complaints.append(
                f"an error that does not say how to go on: {report.error}: {report.text}"
            )

    # -- before and after --------------------------------------------------------------------

    def _make_job(self) -> Job:
        folder = self._folder
        self._run_folder = str((folder / "disk" if self._disk else folder) / "runs" / self._run_id)
        mark = {"PARALLELRUN_CHAOS_ROUND": self._run_id}
        job = Job(
            name=self._plan.name,
            kind=self._plan.shape.kind,
            data=str(self._data.folder),
            config=self._plan.settings(self._cluster.address, mark),
            arguments=[
                f"--trace={folder / 'trace.jsonl'}",
                f"--orders={folder / 'orders'}",
                f"--least_s={LEAST_S}",
                f"--most_s={MOST_S}",
                *(["--isolates"] if self._plan.shape.isolates else []),
            ],
            run_folder=None if self._plan.in_flow else self._run_folder,
            output=str(folder / "output"),
            result=str(folder / "result.json"),
            stacks=str(folder / "stacks.txt"),
            silent_s=SILENT_S,
        )
        job.write(folder / "job.json")
        return job

    def _environment(self) -> dict[str, str]:
        if not self._plan.in_flow:
            return dict(os.environ)
        return {**os.environ, **self._server.environment(self._folder / "runs")}

    def _judge(self, report: Report) -> None:
        outcome, verdict = self._outcome, self._outcome.verdict
        executions = self._trace.executions
        if self._on_disk is not None:  # it was full too late to matter
            outcome.faults.remove(self._on_disk)
        outcome.faults += [
            Fault(kind=OBEYED[e.how], at=e.ended or 0.0, until=e.ended or 0.0, pid=e.pid)
            for e in executions
            if e.how in OBEYED
        ]
        run_folder = Path(report.run_folder)
        judge.check_output(verdict, report, self._data)
        judge.check_executions(verdict, executions, outcome.faults, self._data)
        judge.check_attempts(
            verdict, run_folder / "journal.sqlite", executions, outcome.faults, self._data
        )
        judge.check_failed_items(verdict, run_folder, self._data)
        left = leaks.find(self._cluster, run_folder.name)
        verdict.leaked += len(left)
        verdict.complaints += [f"left behind: {what}" for what in left]

    def _let_go_of_disk(self) -> None:
        if self._disk is None:
            return
        if not self._outcome.verdict.good:
            self._disk.free()
            shutil.copytree(self._disk.folder, self._folder / "kept")
        self._disk.close()

    @property
    def _good_items(self) -> int:
        return len(self._data.items) - len(self._data.bad)

    @property
    def _log(self) -> Path:
        return self._folder / "driver.log"

    def _show(self, driver: subprocess.Popen[bytes]) -> None:
        """Show what a run that hangs is doing."""
        driver.send_signal(signal.SIGUSR1)
        for worker in self._trace.latest.values():
            if worker.ended is None:
                self._outcome.verdict.complaints.append(f"not ended: {worker}")
        time.sleep(0.5)
        self._outcome.verdict.complaints += [
            f"no end after {self._plan.limit_s:.0f} s; the driver's log:\n{_end_of(self._log)}",
            f"the stacks of the driver:\n{_end_of(Path(self._job.stacks))}",
        ]


def _end_of(path: Path) -> str:
    return path.read_text(errors="replace")[-TAIL:] if path.exists() else ""
