"""Profiles of worker processes."""

from __future__ import annotations

import pstats
import textwrap
from pathlib import Path

import pytest

MODULES = ["cProfile", "profile"]

SCRIPT = """
import time
def spin(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until: pass
def at_import(): spin(0.02)
def at_init(): spin(0.02)
def at_run(): spin(0.02)
def at_shutdown(): spin(0.02)
at_import()
def init(): at_init()
def run(mini_batch):
    at_run()
    return [1]
def shutdown(): at_shutdown()
"""


def profile(node, process: str = "process000") -> dict[str, tuple[int, float]]:
    """Return calls and cumulative seconds of each function of the script, as `pstats` reads them."""
    path = Path(node.paths.node_files("node000")["profile"].replace("{process}", process))
    stats = pstats.Stats(str(path)).stats
    assert not list(path.parent.glob("*.part"))
    return {
        function: (figures[1], figures[3])
        for (file, _line, function), figures in stats.items()
        if file.startswith(str(node.source))
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_profile_has_import_init_run_and_shutdown(node, module):
    """Each process leaves one profile of all that it did in the script (R81)."""
    node.script(SCRIPT)
    node.start(profiling_module=module, process_count=2)
    node.until(lambda: len(node.named("process_ready")) == 2)
    for other in ("process000", "process001"):
        assert node.run({"rank": 0}, {"rank": 1}, avoid=[other]).outcomes == ["succeeded"] * 2
    assert node.stop() == 0

    for process in ("process000", "process001"):
        found = profile(node, process)
        for name in ("at_import", "at_init", "at_run", "at_shutdown"):
            calls = 2 if name == "at_run" else 1
            assert found[name][0] == calls, (process, name)
            assert 0 < found[name][1] < 0.2 * calls
        assert found["run"][1] >= found["at_run"][1]
        assert found["spin"][0] == 5
    assert node.log("system_error") == ""


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "sys.exit(2)", "os._exit(0)"])
def test_a_process_that_is_killed_leaves_a_profile(node, module, ending):
    """What was done until the last time that it was saved is there after any death (R81)."""
    node.script(f"""
import os, sys
{SCRIPT.replace("return [1]", ending)}
    """)
    node.start(profiling_module=module)

    node.run({"rank": 0})
    node.event("process_ended")

    found = profile(node)
    assert found["at_import"][0] == found["at_init"][0] == 1
    assert ("at_run" in found) == (ending == "sys.exit(2)")


def test_a_profile_is_saved_while_the_process_works(node):
    """Now and then, at the end of a bundle: a process killed later leaves what it did before (R81)."""
    node.script(
        SCRIPT
        + textwrap.dedent("""
        from prefect_parallelrun_runtime import profiling
        profiling._SAVE_EVERY_S = 0.0
        """)
    )
    node.start(profiling_module="cProfile")

    node.run({"rank": 0}, {"rank": 1})
    path = Path(node.paths.node_files("node000")["profile"].replace("{process}", "process000"))
    node.wait_for(lambda: "at_run" in profile(node) and path.exists())

    assert profile(node)["at_run"][0] == 2


@pytest.mark.parametrize("module", MODULES)
def test_a_script_with_a_profiler_of_its_own_has_its_figures(node, module):
    """The script's profiler works as without ours (R81)."""
    node.script("""
        import cProfile, pstats
        def work(): return sum(range(10))
        def run(mini_batch):
            if mini_batch.task_id == 1:
                return [work()]
            within = cProfile.Profile()
            within.runcall(work)
            calls = [figures[1] for (_, _, name), figures in pstats.Stats(within).stats.items()
                     if name == "work"]
            return [calls]
    """)
    node.start(profiling_module=module)

    answer = node.run({"rank": 0}, {"rank": 0}, {"rank": 0})

    assert answer.rows == [b"[1]\n", b"45\n", b"[1]\n"], answer.results[-1].get("error")
    assert node.stop() == 0
    assert profile(node)["run"][0] == 3


@pytest.mark.parametrize("module", MODULES)
def test_a_profiler_that_the_script_leaves_on_stays_on(node, module):
    """One that init() begins sees every run(): ours does not end it (R81)."""
    node.script("""
        import cProfile, pstats
        mine = cProfile.Profile()
        def work(): pass
        def init(): mine.enable()
        def run(mini_batch):
            work()
            if mini_batch.task_id < 2:
                return [1]
            mine.disable()
            return [figures[1] for (_, _, name), figures in pstats.Stats(mine).stats.items()
                    if name == "work"]
    """)
    node.start(profiling_module=module)

    assert node.run({"rank": 0}, {"rank": 0}, {"rank": 0}).rows[-1] == b"3\n"
    assert node.stop() == 0


JOBS = {
    "threads": """
        import threading
        def run(mini_batch):
            found = []
            threads = [threading.Thread(target=lambda: found.append(sum(range(1000)))) for _ in range(8)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            return [len(found)]
    """,
    "a fork that comes back": """
        import os
        def run(mini_batch):
            if os.fork() == 0:
                return ["child"]
            os.wait()
            return [8]
    """,
    "processes": """
        import multiprocessing
        def run(mini_batch):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return [len(pool.map(abs, range(8)))]
    """,
    "generators and exceptions": """
        def inner():
            for number in range(8):
                try:
                    yield number
                except ValueError:
                    pass
        def run(mini_batch):
            found = inner()
            next(found)
            try:
                raise KeyError("x")
            except KeyError:
                found.throw(ValueError("y"))
            return [len(list(found)) + 2]
    """,
    "a profiler switched off and on": """
        import sys
        def deep(profiler):
            sys.setprofile(profiler)
        def run(mini_batch):
            profiler = sys.getprofile()
            def middle():
                sys.setprofile(None)
                deep(profiler if callable(profiler) else None)
            middle()
            return [sum(1 for _ in range(8))]
    """,
}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", JOBS)
def test_scripts_work_as_without_a_profile(node, module, name):
    """Threads, forks, child processes and what upsets a profiler cost no mini-batch (R81, R207)."""
    node.script(JOBS[name])
    node.start(profiling_module=module)

    answer = node.run({"rank": 0}, {"rank": 0})

    assert answer.rows == [b"8\n", b"8\n"], answer.results
    assert node.stop() == 0
    assert profile(node)["run"][0] >= 1


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", ["profile", "cProfile", "pstats"])
def test_a_script_of_that_name_is_not_taken_for_the_module(node, module, name):
    """Modules of the user's, entry script or helper, may have the profiler's name (R18, R81)."""
    node.script("WHO = 'the user'\ndef run(x): return [WHO]", f"{name}.py")
    node.script(f"import {name}\ndef run(x): return [{name}.WHO]")
    node.start(profiling_module=module)
    assert node.run({"rank": 0}).rows == [b"the user\n"]
    assert node.stop() == 0
    assert profile(node)["run"][0] == 1


@pytest.mark.parametrize("module", MODULES)
def test_an_entry_script_called_profile_is_profiled(node, module):
    """The entry script itself may have the profiler's name (R81)."""
    node.script("def run(x): return [__file__.endswith('deep/profile.py')]", "deep/profile.py")
    node.start(profiling_module=module, entry_script="deep/profile.py")

    assert node.run({"rank": 0}).rows == [b"True\n"]
    assert node.stop() == 0
    assert profile(node)["run"][0] == 1


def test_errors_of_a_profiled_script_show_no_frame_of_ours(node):
    """A stack trace begins in the script, with a profile too (R60)."""
    node.script("def run(x): raise ValueError('bad')")
    node.start(profiling_module="profile")

    (result,) = node.run({"rank": 0}).results

    assert result["error"]["where"] == "score.py:1 in run"
    assert result["error"]["traceback"].count("File ") == 1


def test_a_profile_that_cannot_be_written_fails_nobody(node):
    """A disk that refuses the profile costs the profile alone (R207)."""
    node.script(SCRIPT)
    (node.root / "file").write_text("")
    files = {**node.settings()["files"], "profile": str(node.root / "file" / "{process}")}
    node.start(profiling_module="cProfile", files=files)

    assert node.run({"rank": 0}).outcomes == ["succeeded"]
    assert node.stop() == 0
    assert not node.named("start_failed")


ODD_NAMES = """
class Name(str): pass
space = {}
exec(compile("def odd(): return caller()", Name("made up"), "exec"), space)
def caller(): return 1
space["caller"] = caller
def run(mini_batch):
    return [space["odd"]()]
"""


@pytest.mark.parametrize("module", MODULES)
def test_code_with_an_odd_file_name_is_in_the_profile(node, module):
    """Code may have been compiled with any kind of str for a file name: that costs nothing (R81, R207)."""
    node.script(ODD_NAMES)
    node.start(profiling_module=module)

    assert node.run({"rank": 0}, {"rank": 0}).rows == [b"1\n", b"1\n"]
    assert node.stop() == 0

    path = Path(node.paths.node_files("node000")["profile"].replace("{process}", "process000"))
    stats = pstats.Stats(str(path)).stats
    (odd,) = [function for function in stats if function[2] == "odd"]
    assert odd[0] == "made up"
    (callers,) = [figures[4] for function, figures in stats.items() if function[2] == "caller"]
    assert set(callers) == {odd}
    assert node.log("system_error") == ""


def test_a_profile_names_the_users_own_files(node):
    """As stack traces do: the snapshot is gone when somebody reads it (R81)."""
    node.script(SCRIPT)
    node.start(profiling_module="cProfile", source_directory="/home/me/scripts")

    node.run({"rank": 0})
    assert node.stop() == 0

    path = Path(node.paths.node_files("node000")["profile"].replace("{process}", "process000"))
    stats = pstats.Stats(str(path)).stats
    assert {file for file, _, function in stats if function == "at_run"} == {
        "/home/me/scripts/score.py"
    }
    assert not [file for file, _, _ in stats if file.startswith(str(node.source))]


def test_a_profile_that_cannot_be_put_together_fails_nobody(node):
    """Whatever the script did to the profiler costs the profile alone, and is told once (R80, R207)."""
    node.script("""
        import gc
        for found in gc.get_objects():
            if type(found).__name__ == "_CProfile":
                found._profiler.snapshot_stats = None
        def run(mini_batch): return [1]
    """)
    node.start(profiling_module="cProfile")

    assert node.run({"rank": 0}).outcomes == ["succeeded"]
    assert node.stop() == 0

    assert not node.named("start_failed")
    assert node.log("system_error").count("the profile ") == 1
