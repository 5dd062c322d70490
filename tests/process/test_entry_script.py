"""What an entry script finds in its worker process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.planning import make_plan


def lines(answer):
    return [rows.decode().splitlines() for rows in answer.rows]


def test_each_returned_element_is_a_row_of_its_mini_batch(node, tmp_path):
    """run() gets the paths of its mini-batch in order and each element it returns is one line (R7, R11, R103)."""
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    for file in files:
        file.write_text("x")
    node.script("""
        import os
        def run(mini_batch):
            assert type(mini_batch).__mro__[-2] is list
            return [os.path.basename(path) for path in mini_batch] + [mini_batch.task_id]
    """)
    node.start()

    answer = node.run(
        {"files": [str(file) for file in files[:2]]}, {"files": [str(files[2])]}, index=7
    )

    assert answer.finished == 2
    assert lines(answer) == [["a.txt", "b.txt", "7"], ["c.txt", "8"]]
    assert [(result["items"], result["rows"]) for result in answer.results] == [(2, 3), (1, 2)]
    assert answer.outcomes == ["succeeded", "succeeded"]


def test_two_processes_work_at_the_same_time(node):
    """With process_count 2, two run() calls are under way at once (R34)."""
    node.script("""
        import os, time, pathlib
        def run(mini_batch):
            here = pathlib.Path(os.environ["AZUREML_BI_OUTPUT_PATH"])
            (here / str(os.getpid())).write_text("")
            deadline = time.monotonic() + 15
            while len(list(here.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.005)
            return [len(list(here.iterdir()))]
    """)
    node.start(process_count=2)

    answers = [node.answer(tag) for tag in (node.ranks(), node.ranks())]

    assert [lines(answer) for answer in answers] == [[["2"]], [["2"]]]
    assert {answer.results[0]["process"] for answer in answers} == {"process000", "process001"}


def test_init_once_run_per_mini_batch_shutdown_at_the_stop(node):
    """init() is called once per process, run() once per mini-batch, shutdown() at the end (R3-R6)."""
    node.script("""
        import os
        calls = []
        def init():
            calls.append("init")
        def run(mini_batch):
            calls.append("run")
            return [" ".join(calls)]
        def shutdown():
            with open(os.environ["AZUREML_BI_OUTPUT_PATH"] + "/calls", "w") as file:
                file.write(" ".join([*calls, "shutdown"]))
    """)
    node.start()

    answer = node.run({"rank": 0}, {"rank": 1})

    assert lines(answer) == [["init run"], ["init run run"]]
    assert node.stop() == 0
    assert (node.output / "calls").read_text() == "init run run shutdown"
    assert node.event("process_ended")["reason"] == "stopped"


def test_a_script_finds_itself_its_helpers_and_its_arguments(node):
    """argv is complete before the import; helpers beside the script and in the root win over our modules (R17, R18)."""
    node.script("NAME = 'channel of the user'", "channel.py")
    node.script("NAME = 'load beside the script'", "deep/load.py")
    node.script("NAME = 'package'", "tools/__init__.py")
    node.script(
        """
        import argparse, os, sys
        import channel, load, tools
        parser = argparse.ArgumentParser()
        parser.add_argument("--labels")
        arguments, unknown = parser.parse_known_args()
        def run(mini_batch):
            return [__file__, __name__, arguments.labels, unknown, sys.argv[0],
                    channel.NAME, load.NAME, tools.NAME]
        """,
        "deep/supervisor.py",
    )
    node.start(entry_script="deep/supervisor.py", arguments=["--labels", "/l", "--other", "1"])

    (found,) = lines(node.run({"rank": 0}))

    script = str(node.source / "deep" / "supervisor.py")
    assert found == [
        script,
        "supervisor",
        "/l",
        "['--other', '1']",
        script,
        "channel of the user",
        "load beside the script",
        "package",
    ]


def test_the_working_directory_is_private_and_shows_the_source(node):
    """Files of the snapshot can be opened by relative name; what is written there stays out of it (R107)."""
    node.script("cat\ndog\n", "labels.txt")
    node.script("1", "deep/er/model.bin")
    node.script("""
        import os
        def run(mini_batch):
            open("mine.txt", "w").close()
            return [open("labels.txt").read().split(), open("deep/er/model.bin").read(), os.getcwd()]
    """)
    node.start()

    (found,) = lines(node.run({"rank": 0}))

    assert found == ["['cat', 'dog']", "1", str(node.work / "process000")]
    assert not (node.source / "mine.txt").exists()


def test_entry_script_is_one_object_by_either_import(node):
    """EntryScript knows the process and its folders, and makes them (R67, R68, R72, R73)."""
    node.script("""
        import prefect_parallelrun
        from azureml_user.parallel_run import EntryScript
        def init():
            EntryScript().logger.info("from init")
        def run(mini_batch):
            script = EntryScript()
            script.logger.debug("too fine")
            script.logger.warning("to the log only")
            with open(script.log_dir + "/more.txt", "w") as file:
                file.write("kept")
            return [script is prefect_parallelrun.EntryScript(), script.agent_name, script.output_dir]
    """)
    node.start(environment={"PATH": "/usr/bin"}, output_folder=str(node.output / "made"))

    (found,) = lines(node.run({"rank": 0}))

    assert found == ["True", "process000", str(node.output / "made")]
    assert (node.output / "made").is_dir()
    written = [line.split("|") for line in node.log("entry_script_log").splitlines()]
    assert [(line[1], line[-1]) for line in written] == [
        ("INFO", "from init"),
        ("WARNING", "to the log only"),
    ]
    assert "to the log only" not in node.log("stdout")
    folder = node.paths.logs / "user" / "entry_script_log" / "node000"
    assert (folder / "more.txt").read_text() == "kept"


def test_all_output_of_a_process_and_its_children_is_in_its_files(node):
    """Descriptors 1 and 2 are the log files, for print, C code, child processes and logging (R57, R58, R69-R71)."""
    node.script("""
        import logging, os, subprocess, sys
        print("at import")
        def run(mini_batch):
            print("from print")
            os.write(1, b"from os.write\\n")
            print("to stderr", file=sys.stderr)
            subprocess.run(["sh", "-c", "echo from a child; echo child error >&2"], check=True)
            logging.getLogger("lib").warning("from logging")
            logging.getLogger("lib").info("below the level")
            print("\\ud800 cannot be encoded")
            return [sys.stdin.read()]
    """)
    node.start()

    answer = node.run({"rank": 0})

    assert answer.rows == [b"\n"]
    out = node.log("stdout").splitlines()
    assert out[:4] == ["at import", "from print", "from os.write", "from a child"]
    assert out[4].endswith("|WARNING|" + out[4].split("|")[2] + "|lib|from logging")
    assert out[5:] == ["\\ud800 cannot be encoded"]
    assert node.log("stderr").splitlines() == ["to stderr", "child error"]


def test_the_environment_is_in_force_before_the_interpreter_starts(node):
    """A variable that the interpreter itself reads works, and a native crash leaves its trace in stderr (R112)."""
    node.script("""
        import ctypes
        def run(mini_batch):
            ctypes.string_at(0)
    """)
    node.start(environment={"PATH": "/usr/bin", "PYTHONFAULTHANDLER": "1"})

    answer = node.run({"rank": 0})

    assert answer.outcomes == ["process_died"]
    assert "Fatal Python error: Segmentation fault" in node.log("stderr")
    assert 'score.py", line 4 in run' in node.log("stderr")
    error = answer.results[0]["error"]
    assert error["category"] == "signal"
    assert "SIGSEGV" in error["message"]
    assert 'score.py", line 4 in run' in error["traceback"]


def test_variables_of_the_process(node):
    """PYTHONPATH begins with ours and keeps the user's; the output folder is known (R107)."""
    folder = node.root / "mine"
    folder.mkdir()
    (folder / "only_there.py").write_text("X = 'found'")
    node.script("""
        import os, only_there
        def run(mini_batch):
            return [only_there.X, os.environ["AZUREML_BI_OUTPUT_PATH"], os.environ["COLOUR"]]
    """)
    node.start(environment={"PATH": "/usr/bin", "PYTHONPATH": str(folder), "COLOUR": "blue"})

    assert lines(node.run({"rank": 0})) == [["found", str(node.output), "blue"]]


def test_a_worker_process_imports_nothing_heavy(node):
    """A script that needs nothing gets a process of the standard library alone."""
    node.script("""
        import sys
        HEAVY = {"prefect", "dask", "distributed", "pydantic", "pandas", "numpy", "asyncio", "socket"}
        def run(mini_batch):
            return sorted(HEAVY & set(sys.modules))
    """)
    node.start()

    assert lines(node.run({"rank": 0})) == [[]]


def test_an_interpreter_without_any_of_our_packages(node):
    """Another interpreter, with nothing installed, runs scripts; both imports of EntryScript work there (R35, R67)."""
    venv = node.root / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    node.script("""
        import sys
        from azureml_user.parallel_run import EntryScript
        from prefect_parallelrun import EntryScript as Ours
        def run(mini_batch):
            return [sys.prefix, EntryScript() is Ours(), Ours().agent_name]
    """)
    node.start(python=str(venv / "bin" / "python"))

    assert lines(node.run({"rank": 0})) == [[str(venv), "True", "process000"]]


@pytest.mark.parametrize(
    "definition",
    [
        "def run(mini_batch, mini_batch_context): return _run(mini_batch, mini_batch_context)",
        "def run(mini_batch, context=None): return _run(mini_batch, context)",
        "class Runner:\n    def run(self, data, context): return _run(data, context)\nrun = Runner().run",
        "class Runner:\n    def __call__(self, data, context): return _run(data, context)\nrun = Runner()",
        "def wrap(f):\n    @functools.wraps(f)\n    def inner(*a, **k): return f(*a, **k)\n    return inner\n"
        "@wrap\ndef run(mini_batch, context): return _run(mini_batch, context)",
    ],
)
def test_a_second_positional_parameter_gets_the_context(node, definition):
    """However run is written, a second positional parameter is filled with the context (R101)."""
    node.script(f"import functools\n{definition}\n", "score.py")
    with (node.source / "score.py").open("a") as file:
        file.write(
            "def _run(data, context):\n"
            "    return [context.minibatch_index, context.partition_key_value]\n"
        )
    node.start(inputs=[{"kinds": {"user": "text"}}])
    song = node.root / "song.wav"
    song.touch()

    work = {"files": [str(song)], "key": {"user": "a"}}
    assert lines(node.run(work, index=5)) == [["5", "{'user': 'a'}"]]


@pytest.mark.parametrize(
    "definition",
    [
        "def run(mini_batch): return ['one']",
        "def run(mini_batch, *, strict=True): return ['one']",
        "def run(*arguments): return ['one'] * len(arguments)",
        "class Runner:\n    def run(self, data): return ['one']\nrun = Runner().run",
        "import functools\ndef f(a, data): return ['one']\nrun = functools.partial(f, 1)",
    ],
)
def test_a_run_with_one_parameter_gets_one_argument(node, definition):
    """A run without a second positional parameter is called with the mini-batch alone (R2)."""
    node.script(definition)
    node.start()

    assert lines(node.run({"rank": 0})) == [["one"]]


def test_the_next_rows_are_loaded_while_run_is_at_the_present_ones(node):
    """A tabular mini-batch is a DataFrame; the one after it is loaded in the background, across bundles too (R8)."""
    path = node.root / "table.csv"
    path.write_text("a,b\n" + "".join(f"{number},x\n" for number in range(6)))
    dataset = TabularDataset.from_delimited_files(str(path))
    plan = make_plan([dataset], [dataset.list_files()], mini_batch_size="8", scratch=node.root)
    works = [mini_batch.work for mini_batch in plan]
    assert len(works) > 3
    node.script("""
        import threading
        begun = []
        start = threading.Thread.start
        def noted(thread):
            begun.append(thread.name)
            start(thread)
        threading.Thread.start = noted
        def run(mini_batch):
            mini_batch["begun"] = begun.count("parallelrun-load")
            return mini_batch
    """)
    node.start(inputs=plan.readers)
    node.event("process_ready")

    tags = [node.bundle(*works[:2]), node.bundle(*works[2:])]
    answers = [node.answer(tag) for tag in tags]

    rows = [row.split() for answer in answers for batch in lines(answer) for row in batch]
    assert [row[:2] for row in rows] == [[str(number), "x"] for number in range(6)]
    assert int(rows[-1][2]) >= len(works) - 2
    assert sum(result["items"] for answer in answers for result in answer.results) == 6


def test_what_was_loaded_ahead_is_dropped_when_its_bundle_ends_early(node):
    """A failed attempt ends the bundle; its rest, sent again, comes with its own rows."""
    path = node.root / "table.csv"
    path.write_text("a,b\n" + "".join(f"{number},x\n" for number in range(6)))
    dataset = TabularDataset.from_delimited_files(str(path))
    plan = make_plan([dataset], [dataset.list_files()], mini_batch_size="8", scratch=node.root)
    works = [mini_batch.work for mini_batch in plan]
    node.script("""
        import gc, threading, time
        def loaded_ahead():
            return [one for one in gc.get_objects()
                    if isinstance(one, threading.Thread) and one.name == "parallelrun-load"]
        def run(mini_batch):
            if isinstance(mini_batch, list):
                until = time.monotonic() + 10
                while loaded_ahead() and time.monotonic() < until:
                    time.sleep(0.01)  # the thread may not have ended yet
                    gc.collect()
                return [len(loaded_ahead())]
            if mini_batch["a"][0] == 0:
                raise ValueError("the first row is bad")
            return mini_batch
    """)
    node.start(inputs=plan.readers)

    first = node.run(*works)
    between = node.run({"rank": 0})
    again = node.run(*works[1:])

    assert (first.outcomes, first.finished) == (["failed"], 1)
    assert lines(between) == [["0"]]
    assert again.finished == len(works) - 1
    rows = [row for batch in lines(again) for row in batch]
    assert rows == [f"{number} x" for number in range(6)][-len(rows) :]
    assert len(rows) >= 3
