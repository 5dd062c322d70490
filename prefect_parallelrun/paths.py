"""Every file name of a run folder, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

RUNTIME_FOLDER = Path(__file__).parent / "runtime"
"""The folder on the PYTHONPATH of worker processes."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one run, below its run folder. Nothing is created by asking."""

    root: Path

    @property
    def record(self) -> Path:
        """JSON: what the run is, and its state; see `run_record`."""
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        """JSON: which driver owns the run folder; its modification time is the driver's heartbeat."""
        return self.root / "lock"

    @property
    def definition(self) -> Path:
        """Pickle: the step's definition, to run it again without the flow."""
        return self.root / "definition.pickle"

    @property
    def journal(self) -> Path:
        """SQLite: every attempt, and where its rows are in the partial file."""
        return self.root / "journal.sqlite"

    @property
    def partial(self) -> Path:
        """Rows of succeeded mini-batches, in order of completion."""
        return self.root / "output.partial"

    @property
    def source(self) -> Path:
        """Zip of the source snapshot."""
        return self.root / "source.zip"

    @property
    def listings(self) -> Path:
        """JSON lines: the files of inputs and side inputs as they were; see `reasons`."""
        return self.root / "listings.jsonl"

    @property
    def cuts(self) -> Path:
        """JSON: how many files each mini-batch has, where an earlier run's grouping is kept (R202)."""
        return self.root / "cuts.json"

    @property
    def identities(self) -> Path:
        """What each mini-batch of tables was made of, as digests of equal length, in the order of the plan."""
        return self.root / "identities"

    @property
    def inputs(self) -> Path:
        """Folder for DataFrames given as inputs, written as Parquet."""
        return self.root / "inputs"

    @property
    def output(self) -> Path:
        """The step's output folder where the user named none."""
        return self.root / "output"

    @property
    def token(self) -> Path:
        """A file by which a node sees that it shares this folder with the driver."""
        return self.root / "token"

    @property
    def failed_items(self) -> Path:
        """One JSON record per failed item."""
        return self.root / "failed_items.jsonl"

    @property
    def manifest(self) -> Path:
        """JSON: how the output looked at the end of the run."""
        return self.root / "output_manifest.json"

    @property
    def logs(self) -> Path:
        """The log tree."""
        return self.root / "logs"

    @property
    def driver_log(self) -> Path:
        """The controller's log."""
        return self.logs / "70_driver_log.txt"

    @property
    def job_result(self) -> Path:
        """The result, and on failure the cause and which file to open."""
        return self.logs / "job_result.txt"

    @property
    def readme(self) -> Path:
        """What is where in the log tree."""
        return self.logs / "readme.txt"

    @property
    def master_log(self) -> Path:
        """Creation of mini-batches, progress and result, as the driver sees them."""
        return self.logs / "sys" / "master_role.txt"

    @property
    def driver_error(self) -> Path:
        """Exceptions of the product's own code in the driver."""
        return self.logs / "sys" / "error" / "driver.txt"

    @property
    def processed_mini_batches(self) -> Path:
        """CSV: one row per attempt."""
        return self.logs / "sys" / "job_report" / "processed_mini-batches.csv"

    @property
    def process_summary(self) -> Path:
        """CSV: one row per worker process."""
        return self.logs / "sys" / "job_report" / "process_summary.csv"

    @property
    def node_summary(self) -> Path:
        """CSV: one row per node."""
        return self.logs / "sys" / "job_report" / "node_summary.csv"

    @property
    def progress(self) -> Path:
        """JSON: where the run stands, written again every few seconds while it goes on."""
        return self.root / "progress.json"

    @property
    def report(self) -> Path:
        """The HTML report, one self-contained file."""
        return self.root / "report.html"

    @property
    def claims(self) -> Path:
        """Folder of the run root: which places runs write to just now. No step is called so."""
        return self.root.parent.parent / ".claims"

    def progress_overview(self, moment: datetime) -> Path:
        """Return the overview of progress that begins at a moment, UTC; the largest name is the newest."""
        return self.logs / f"job_progress_overview.{moment:%Y%m%d%H}.txt"

    def progress_overviews(self) -> list[Path]:
        """Return the overviews of progress that are there, the oldest first."""
        return sorted(self.logs.glob("job_progress_overview.*.txt"))

    def node_performance(self, node: str) -> Path:
        """Return the folder of what a node's monitor samples."""
        return self.logs / "perf" / node

    def node_usage(self, node: str) -> Path:
        """Return the CSV of the resources in use on a node's host, by whomever."""
        return self.node_performance(node) / "node_resource_usage.csv"

    def disk_usage(self, node: str) -> Path:
        """Return the CSV of the file systems that a node needs."""
        return self.node_performance(node) / "node_disk_usage.csv"

    def process_usage(self, node: str) -> Path:
        """Return the CSV of a node's own processes."""
        return self.node_performance(node) / "processes_resource_usage.csv"

    def process_list(self, node: str, moment: datetime) -> Path:
        """Return the file with all processes of a node's host in one minute, UTC."""
        folder = self.node_performance(node) / "os" / f"{moment:%Y%m%d%H}"
        return folder / f"processes_{moment:%M}"

    @property
    def error_summary(self) -> Path:
        """Each distinct error of the script, once."""
        return self.logs / "user" / "error.txt"

    @property
    def process_errors(self) -> Path:
        """JSON: errors of import, `init()` and `shutdown()` in the last sitting, which the journal has not."""
        return self.root / "process_errors.json"

    def next_node(self) -> int:
        """Return the number of the first node that has no log files here yet."""
        names = [path.stem for path in self.logs.glob("*/*/node*")]
        return max((int(name[4:]) + 1 for name in names if name[4:].isdecimal()), default=0)

    def environment_log(self, node: str) -> Path:
        """Return the file with what was said while a node's Python environment was built."""
        return self.logs / "sys" / "environment" / f"{node}.txt"

    def process_error(self, node: str, process: str) -> str:
        """Return the file with the full stack traces of one worker process."""
        return self.node_files(node)["error"].replace("{process}", process)

    def node_files(self, node: str) -> dict[str, str]:
        """Return the files that one node writes; `{process}` stands for the process name."""
        user = self.logs / "user"
        return {
            "stdout": str(user / "stdout" / node / "{process}.stdout.txt"),
            "stderr": str(user / "stderr" / node / "{process}.stderr.txt"),
            "error": str(user / "error" / node / "{process}.txt"),
            "entry_script_log": str(user / "entry_script_log" / node / "{process}.log.txt"),
            "process_log": str(self.logs / "sys" / "node" / node / "{process}.txt"),
            "profile": str(self.logs / "sys" / "node" / node / "{process}.profile"),
            "system_error": str(self.logs / "sys" / "error" / f"{node}.txt"),
        }
