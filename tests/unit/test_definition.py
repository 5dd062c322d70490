from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig, TabularDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import ConfigError, EntryScriptError
from prefect_parallelrun.options import RunOptions

GOOD_SCRIPT = "def run(mini_batch):\n    return mini_batch\n"


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a definition that can work, but for what it is told."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "score.py").write_text(GOOD_SCRIPT)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")

    def make(config=None, **changes):
        settings = {"entry_script": str(tmp_path / "scripts" / "score.py"), **(config or {})}
        return StepDefinition(
            **{
                "name": "score-files",
                "config": ParallelRunConfig(**settings),
                "inputs": (FileDataset.from_files(str(tmp_path / "data")),),
                **changes,
            }
        )

    return make


def test_a_good_definition_is_accepted(make):
    """A definition in which every value can work is not refused."""
    make().validate()


@pytest.mark.parametrize("name", ["abc", "a1-b", "predict-digits", "a" * 32])
def test_good_names(make, name):
    """A step's name is 3 to 32 lower-case letters, digits and dashes (R46)."""
    make(name=name).validate()


@pytest.mark.parametrize(
    "name", ["ab", "a" * 33, "1ab", "Abc", "a_b", "abc-", "-abc", "a b", "abc\n"]
)
def test_bad_names(make, name):
    """Any other name is refused (R46)."""
    with pytest.raises(ConfigError, match="name="):
        make(name=name).validate()


def test_linux_only(make, monkeypatch):
    """Another system than Linux is refused with its name."""
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(ConfigError, match="darwin"):
        make().validate()


SCRIPTS = [
    ("def run(mini_batch): ...", True, "a function"),
    ("@wrap\nasync def run(mini_batch): ...", True, "what a decorator makes of it is not known"),
    ("run = 5", False, "a constant is no function"),
    ("run = print", True, "an assignment"),
    ("run, other = print, len", True, "one of several"),
    ("run: object = print", True, "an annotated assignment"),
    ("from helper import run", True, "an import"),
    ("from helper import go as run", True, "an import under this name"),
    ("from helper import *", True, "any name may come in"),
    ("if True:\n    pass\nelse:\n    def run(b): ...", True, "in a branch"),
    ("try:\n    pass\nexcept ImportError:\n    def run(b): ...", True, "in a handler"),
    ("import warnings\nwith warnings.catch_warnings():\n    def run(b): ...", True, "in a with"),
    ("match 1:\n    case 1:\n        def run(b): ...", True, "in a case"),
    ("path = '\\d'\ndef run(b): ...", True, "a script that Python warns of"),
    ("def init(): ...", False, "no run"),
    ("run: object", False, "an annotation alone binds nothing"),
    ("def main():\n    def run(b): ...", False, "a function inside a function"),
    ("class A:\n    def run(self): ...", False, "a method"),
    ("import run_it", False, "another name"),
    ("", False, "an empty file"),
]


@pytest.mark.parametrize(("source", "accepted", "reason"), SCRIPTS, ids=[row[2] for row in SCRIPTS])
def test_scripts_need_run(make, tmp_path, source, accepted, reason):
    """A script that cannot have `run` at its top level is refused before anything starts (R2)."""
    (tmp_path / "scripts" / "score.py").write_text(source)

    if accepted:
        make().validate()
        return
    with pytest.raises(EntryScriptError, match=r"score\.py defines no run\(\)"):
        make().validate()


def test_an_async_run_is_refused(make, tmp_path):
    """An async `run` would return a coroutine for every mini-batch: refused before anything starts (R2, R10)."""
    (tmp_path / "scripts" / "score.py").write_text("async def run(mini_batch): ...")

    with pytest.raises(EntryScriptError, match="async"):
        make().validate()


def test_script_with_a_syntax_error(make, tmp_path):
    """A script that is no Python is refused with the line."""
    (tmp_path / "scripts" / "score.py").write_text("def run(b):\n    return (b\n\nx = 1 1\n")

    with pytest.raises(EntryScriptError, match=r"score\.py, line \d"):
        make().validate()

    (tmp_path / "scripts" / "score.py").write_bytes(b"run = '\0'")
    with pytest.raises(EntryScriptError, match=r"score\.py"):
        make().validate()


def test_where_the_script_is(make, tmp_path):
    """A script that is missing, a folder, or outside of its source is refused by its path (R19, R20)."""
    source = str(tmp_path / "scripts")
    for settings, complaint in [
        ({"entry_script": str(tmp_path / "none.py")}, "does not exist"),
        ({"entry_script": source}, "is not a file"),
        ({"entry_script": "score.py", "source_directory": str(tmp_path / "no")}, "is not a folder"),
        ({"entry_script": "../data/a.txt", "source_directory": source}, "outside source_directory"),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            make(settings).validate()

    make({"entry_script": "score.py", "source_directory": source}).validate()


RESERVED = [
    "mini_batch_size",
    "error_threshold",
    "allowed_failed_count",
    "allowed_failed_percent",
    "output",
    "output_action",
    "logging_level",
    "process_count_per_node",
    "run_invocation_timeout",
    "run_max_try",
    "append_row_file_name",
    "partition_keys",
]


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_arguments(make, name):
    """A name that Azure's driver uses itself is refused, in both ways of writing it (R106)."""
    for arguments in ([f"--{name}", "1"], ["--model", "m", f"--{name}=1"]):
        with pytest.raises(ConfigError, match=f"--{name} is reserved"):
            make(arguments=tuple(arguments)).validate()


def test_arguments_that_only_look_reserved(make):
    """Values, and longer names, are not reserved (R106)."""
    make(arguments=("--output_dir", "output", "--out", "mini_batch_size")).validate()


def test_first_argument_begins_with_a_dash(make):
    """A positional argument first is refused (R106)."""
    with pytest.raises(ConfigError, match="must begin with '-'"):
        make(arguments=("model.pkl",)).validate()

    make(arguments=("-m", "model.pkl")).validate()


def test_options_defaults(make):
    """Without arguments the product's own options have their documented values (R105)."""
    assert make().options == RunOptions(
        task_overhead_timeout=600,
        first_task_creation_timeout=600,
        progress_update_timeout=None,
        append_row_dataframe_header=False,
        rank_mini_batch_count=None,
        resource_monitor_interval=600,
        profiling_module=None,
    )


def test_options_are_read_from_arguments(make):
    """Options are read in both forms, of any type, and stay visible to the script (R105)."""
    arguments = (
        "--task_overhead_timeout=30",
        "--first_task_creation_timeout",
        90.5,
        "--progress_update_timeout",
        "7",
        "--append_row_dataframe_header",
        True,
        "--resource_monitor_interval",
        0,
        "--unknown",
        "--rank_mini_batch_count",
        3,
    )
    step = make(arguments=arguments, inputs=())
    step.validate()

    assert step.options == RunOptions(
        task_overhead_timeout=30,
        first_task_creation_timeout=90.5,
        progress_update_timeout=7,
        append_row_dataframe_header=True,
        rank_mini_batch_count=3,
        resource_monitor_interval=0,
    )
    assert step.script_arguments("out") == [str(one) for one in arguments]


@pytest.mark.parametrize("count", [0, -1])
def test_no_rank_mini_batches(make, count):
    """A count that is not above 0 means that there is input, as with Azure (R105)."""
    arguments = ("--rank_mini_batch_count", count)

    assert make(arguments=arguments).options.rank_mini_batch_count is None
    with pytest.raises(ConfigError, match="inputs="):
        make(arguments=arguments, inputs=()).validate()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--task_overhead_timeout", 0),
        ("--task_overhead_timeout", 259_201),
        ("--task_overhead_timeout", "soon"),
        ("--first_task_creation_timeout", "nan"),
        ("--progress_update_timeout", -1),
        ("--progress_update_timeout",),
        ("--resource_monitor_interval", -1),
        ("--resource_monitor_interval", "1e10"),
        ("--resource_monitor_interval", "--other"),
        ("--append_row_dataframe_header", "maybe"),
        ("--rank_mini_batch_count", "many"),
        ("--rank_mini_batch_count", 2.5),
        ("--profiling_module", "perf"),
    ],
)
def test_bad_options(make, arguments):
    """An option outside its range, or without a value, is refused by name (R105)."""
    with pytest.raises(ConfigError, match=arguments[0]):
        make(arguments=arguments).validate()


def test_script_arguments_hold_paths(make, tmp_path):
    """A dataset, side input or output among the arguments becomes its path (R51)."""
    labels = FileDataset.from_files(str(tmp_path / "data")).as_named_input("labels").as_mount()
    output = OutputFileDatasetConfig("scores", destination=str(tmp_path / "out"))
    step = make(
        arguments=("--labels", labels, "--out", output, "--n", 3, "--p", Path("/x")),
        side_inputs=(labels,),
        output=output,
    )
    step.validate()

    assert step.script_arguments("/the/output") == [
        "--labels",
        str(tmp_path / "data"),
        "--out",
        "/the/output",
        "--n",
        "3",
        "--p",
        "/x",
    ]


def test_arguments_without_a_path(make, tmp_path):
    """A table, and the output of another step, have no path here (R51)."""
    table = TabularDataset.from_delimited_files(str(tmp_path / "data" / "a.txt"))
    other = OutputFileDatasetConfig("other", destination=str(tmp_path / "out"))

    with pytest.raises(ConfigError, match="a table has no path"):
        make(arguments=("--t", table)).validate()
    with pytest.raises(ConfigError, match="output of this same step"):
        make(arguments=("--o", other)).validate()


def test_inputs(make, tmp_path):
    """Inputs are datasets, at least one, of one kind (R47, R48)."""
    files = FileDataset.from_files(str(tmp_path / "data"))
    table = TabularDataset.from_delimited_files(str(tmp_path / "data" / "a.txt"))

    for inputs, complaint in [
        ((), "at least one dataset"),
        ((files, table), "of one kind"),
        (("data/*.png",), "must be a list of FileDatasets or TabularDatasets"),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            make(inputs=inputs).validate()
    make(inputs=(files, files)).validate()
    make(inputs=(table, table)).validate()
    make(inputs=()).validate(inputs_pending=True)


def test_side_inputs_are_files(make, tmp_path):
    """Only a FileDataset has a path for the script (R49, R74)."""
    table = TabularDataset.from_delimited_files(str(tmp_path / "data" / "a.txt"))

    with pytest.raises(ConfigError, match="side_inputs="):
        make(side_inputs=(table,)).validate()


def test_mini_batch_size_fits_the_inputs(make, tmp_path):
    """A size with a unit is for tables; files are counted (R21, R23)."""
    table = TabularDataset.from_delimited_files(str(tmp_path / "data" / "a.txt"))

    with pytest.raises(ConfigError, match="mini_batch_size='10MB'"):
        make({"mini_batch_size": "10MB"}).validate()
    make({"mini_batch_size": "10"}).validate()
    make({"mini_batch_size": "10MB"}, inputs=(table,)).validate()


def test_what_is_not_supported_yet(make):
    """A setting that would do nothing is refused rather than ignored."""
    with pytest.raises(ConfigError, match=r"speculative_copies=.*not supported yet"):
        make({"speculative_copies": True}).validate()


def test_output_in_completion_order_is_supported(make):
    """The order of rows can be chosen (R220)."""
    make({"output_order": "completion"}).validate()


def test_what_is_left_out_of_the_source(make, tmp_path):
    """The output, and what the caller names, are no part of the source (R30)."""
    output = OutputFileDatasetConfig(destination=str(tmp_path / "scripts" / "out"))
    step = make(output=output, never_shipped=(tmp_path / "home",))

    assert tmp_path / "home" in step.left_out
    assert tmp_path / "scripts" / "out" in step.left_out
    assert step.output_folder == tmp_path / "scripts" / "out"
    assert make().output_folder is None
