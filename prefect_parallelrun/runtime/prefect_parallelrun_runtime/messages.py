"""The words that agent, supervisor and worker process exchange: plain typed dicts, in JSON.

Both ends come from one installation, except that a worker process may be another interpreter: so
only the standard library, and `PROTOCOL` counts up with every change that an older end would misread.
"""

from __future__ import annotations

from typing import Any, TypedDict

PROTOCOL = 3


class Files(TypedDict):
    """Log files of a node; `{process}` stands for the process name."""

    stdout: str
    stderr: str
    error: str
    entry_script_log: str
    process_log: str
    """Every mini-batch, as it is picked up and as it ends (R61)."""
    profile: str
    system_error: str


class Gpu(TypedDict):
    """A GPU of a node, or an instance of one."""

    visible: str
    """Its entry in `CUDA_VISIBLE_DEVICES`."""
    key: str
    """The same for all nodes of a host that see it: its UUID, where that is known."""


class AppendRow(TypedDict):
    """How rows become text (rules R11, R103)."""

    header: bool
    """Whether a DataFrame's column names are wanted once, at the top of the output."""
    to_csv: dict[str, Any]
    """Keywords for `DataFrame.to_csv`, from `parallel_run_step.settings.json`."""


class Settings(TypedDict):
    """All that a node's supervisor, and each worker process, must know of the run."""

    protocol: int
    run_id: str
    step: str
    node: str
    """`node000`"""
    process_count: int
    gpus: list[Gpu]
    """That the node sees, in the order in which its processes get them; empty for none."""
    gpu_count: int
    """So many of them are the node's at a time; the others are those of other nodes of its host."""
    gpus_per_process: float | None
    """How many each process gets; of a fraction, several share one. 0: none sees any. None: one, if there
    are any."""
    niceness: int
    """Added to that of the Dask worker, for the worker processes."""
    python: str
    """The interpreter of the worker processes. Of the driver: what the node is to find or make it with;
    empty: the Dask worker's own."""
    requirements: list[str]
    """What the node has to build an environment of; empty: `python` is used as it is."""
    environment_name: str
    """For people; empty for none."""
    environment: dict[str, str]
    """The whole environment of the worker processes, but for what differs per process."""
    runtime_folder: str
    source_folder: str
    """The source snapshot, unpacked on this node."""
    source_directory: str
    """The user's own folder that the snapshot was taken of; stack traces name it. Empty: they name
    the snapshot."""
    entry_script: str
    """Relative to the source folder."""
    arguments: list[str]
    """`sys.argv[1:]` of the script."""
    work_folder: str
    """Each process gets a private folder below it as its working directory. The supervisor removes it."""
    private_folder: str
    """What the agent keeps beyond the supervisor's end, to be taken home: the supervisor removes it where the
    agent's process has died. Empty: there is nothing of the kind."""
    output_folder: str
    files: Files
    logging_level: str
    profiling_module: str
    """`cProfile` or `profile` (R81); empty: no profile is taken."""
    monitor_interval_s: float
    """Between two samples of the node's resources (R62); 0 is off. The agent's, not the supervisor's."""
    run_timeout_s: float
    """Per `run()` call."""
    load_timeout_s: float
    """Per mini-batch: loading before `run()`, encoding after it."""
    init_timeout_s: float
    """Per process: import and `init()`."""
    shutdown_timeout_s: float
    bundle_limit_s: float
    """A bundle that has lasted longer ends early, with the mini-batch that is under way."""
    kill_grace_s: float
    """Between SIGTERM and SIGKILL."""
    init_failures_allowed: int
    """So many failed starts in a row without a success end the trying on this node (R87)."""
    output_action: str
    append_row: AppendRow
    output_format: str
    """`text` (for which `append_row` counts), `csv`, `jsonl` or `parquet` (R221)."""
    inputs: list[dict[str, Any]]
    """How to read each input; see `load`. Empty for files."""
    process: str
    """In the copy for a worker process: its name. For the supervisor: empty."""
    address: str
    """In the copy for a worker process: the IP address of its host. For the supervisor: empty."""


Task = list[Any]
"""One mini-batch of a bundle: [index, attempt, input index, work]."""


class BundleHeader(TypedDict):
    """What the supervisor reads of a bundle; the mini-batches themselves pass unopened."""

    count: int
    """Number of mini-batches."""
    avoid: list[str]
    """Names of processes that had an earlier attempt: not these, where there is another."""


class Error(TypedDict):
    """See `models.AttemptError`."""

    category: str
    type: str
    message: str
    where: str
    traceback: str
    stage: str


class Result(TypedDict, total=False):
    """One attempt ended. `error` only for a failure; the times where they are known."""

    position: int
    """Place in the bundle, from 0."""
    process: str
    outcome: str
    """A value of `models.Outcome`."""
    items: int
    """Items of the mini-batch; -1 where it is not known (it was never loaded)."""
    rows: int
    """Elements that `run()` returned."""
    started_at: float
    elapsed_s: float
    cpu_s: float
    load_s: float
    """How long its data were waited for: near 0 where they had been loaded ahead."""
    run_s: float
    error: Error
    columns: str
    """What comes once for the whole output. For `text` with `append_row.header`, and for `csv`: the
    header line, newline included. For `parquet`: the Arrow schema, serialised, in base 64; the fields'
    metadata are those of `arrow_types`."""


class BundleEnd(TypedDict):
    """The bundle is over. Mini-batches at `finished` and after were not started: no attempt of theirs.

    That is so when the process died or the bundle was cancelled, but also of a process that lives on:
    it ends a bundle early that lasts too long, and after a failed attempt, so that the results are
    told soon.
    """

    finished: int
    process: str
    """The process that had it; empty where none did."""


class Event(TypedDict, total=False):
    """`name` is one of:

    `supervisor_ready`; `process_started`, `process_ready`, `start_failed` (with `error`),
    `shutdown_failed` (with `error`; `shutdown()` raised, took too long or was killed),
    `process_ended`; `bundle_started` (with `bundle`); `gave_up` (start_failed too often in a row);
    `logs_lost` (once per node, with `reason`: log files cannot be written, and are not);
    `gpus_lacking` (with `reason`: which processes have no GPU, or what else is wrong with GPUs);
    and, of the agent: `monitor_trouble` (each once, with `reason`: what cannot be sampled); `fetching` (it gets on with its side inputs, as `reason` tells), `wants` (with
    `request` and `wanted`: what it asks of the driver), `bundle_fetched` (with `bundle` and `seconds`: the data of its mini-batches is there, or known not to come).
    """

    name: str
    node: str
    request: int
    """Of `wants`: its number."""
    wanted: dict[str, Any]
    """Of `wants`: see `driver.serving`."""
    process: str
    pid: int
    reason: str
    """For `process_ended`: `stopped`, `timeout`, `exit`, `signal`, `memory`, `cancelled`, or `garbage`
    (it was killed for what it had written into its channel)."""
    bundle: int
    seconds: float
    """Of `bundle_fetched`: how long that took; of `process_ready`: how long `init()` took."""
    at: float
    """When it happened, in seconds since the epoch; of what a supervisor or worker process says."""
    error: Error
