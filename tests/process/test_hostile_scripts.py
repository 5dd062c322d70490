"""Scripts that do to their process what no script should, and what it costs the others: nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)

REPLACED_WITHIN_S = 1.0
"""From a process's end until another is ready in its place."""

# What a script does in run() that it gets away with: the attempt succeeds, and so does the next one,
# in the same process.
HARMLESS = {
    "closes its standard descriptors": "os.close(0); os.close(1); os.close(2); print('x'); print('y', file=sys.stderr)",
    "starts a daemon thread that never ends": "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "changes its working directory": "os.chdir('/')",
    "deletes its working directory": "shutil.rmtree(os.getcwd())",
    "clears its environment": "os.environ.clear()",
    "has no stdout any more": "sys.stdout = sys.stderr = sys.__stdout__ = None; print('x')",
    "has closed its stdout": "sys.stdout.close(); logging.warning('x')",
    "prints to a full disk": "os.dup2(os.open('/dev/full', 1), 1); print('x'); logging.warning('x')",
    "ignores signals": "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 10, 12, 13, 15)]",
    "disables the fault handler": "faulthandler.disable()",
    "has its own import path": "sys.path.clear(); sys.argv.clear()",
    "lowers its limit of descriptors": "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))",
    "lowers its limit of file sizes": "resource.setrlimit(resource.RLIMIT_FSIZE, (0, -1)); print('x')",
    "leaves a child that holds everything": "os.fork() or (os.setsid(), time.sleep(600))",
    "leaves a daemon": "os.fork() or (os.setsid(), os.fork() or time.sleep(600), os._exit(0))",
    "leaves a thread pool": "concurrent.futures.ThreadPoolExecutor().submit(int)",
    "uses processes of its own": "POOL = concurrent.futures.ProcessPoolExecutor(2); assert list(POOL.map(abs, [-1])) == [1]",
    "uses spawned processes": "multiprocessing.get_context('spawn').Pool(1).map(double, [1])",
    "gets an alarm": "signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01); time.sleep(0.05)",
    "traces": "sys.settrace(lambda *_: None); threading.setprofile(lambda *_: None)",
    "turns the garbage collector off": "gc.disable(); gc.freeze()",
    "has a low recursion limit": "sys.setrecursionlimit(60)",
    "forgets all modules": "sys.modules.clear()",
}  # fmt: skip

# What ends in a failed attempt, and the process goes on: category, type, a word of the message.
RAISING = {
    "cannot be shown": ("raise Unshowable()", "exception", "Unshowable", "cannot be shown"),
    "exits while it is shown": ("raise Exiting()", "exception", "Exiting", "SystemExit in __str__"),
    "is 100 MB long": ("raise ValueError('x' * 100_000_000)", "exception", "ValueError", "99992000 characters left out"),
    "cannot be pickled": ("raise Unpicklable()", "exception", "Unpicklable", "lock"),
    "is a group": ("raise ExceptionGroup('two', [ValueError('a'), KeyError('b')])", "exception", "ExceptionGroup", "two (2 sub-exceptions)"),
    "is no Exception": ("raise Odd('odd')", "exception", "Odd", "odd"),
    "is an asyncio cancellation": ("import asyncio; raise asyncio.CancelledError('late')", "exception", "CancelledError", "late"),
    "has no legal text": ("raise ValueError('\\udcff.png\\0')", "exception", "ValueError", "\\udcff.png"),
    "calls setsid": ("os.setsid()", "exception", "PermissionError", "not permitted"),
    "is a StopIteration": ("next(iter([]))", "exception", "StopIteration", ""),
    "comes of a broken pool": ("concurrent.futures.ProcessPoolExecutor(1).submit(os._exit, 3).result()", "exception", "BrokenProcessPool", "terminated abruptly"),
    "is chained to itself": ("e = ValueError('me'); e.__cause__ = e; raise e", "exception", "ValueError", "me"),
    "has lost its text": ("raise Textless", "exception", "Textless", "TypeError in __str__"),
    "leaves no descriptors": ("resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096)); open('/etc/hostname')", "exception", "OSError", "Too many open files"),
    "leaves no working directory": ("shutil.rmtree(os.getcwd()); os.getcwd()", "exception", "FileNotFoundError", "No such file"),
}  # fmt: skip

# What ends the process: category, a word of the message.
FATAL = {
    "aborts": ("os.abort()", "signal", "SIGABRT"),
    "divides by zero in C": ("os.kill(os.getpid(), signal.SIGFPE)", "signal", "SIGFPE"),
    "writes beyond its limit": ("signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_FSIZE, (0, -1)); os.write(1, b'x')", "signal", "SIGXFSZ"),
    "uses up its CPU time": ("resource.setrlimit(resource.RLIMIT_CPU, (1, -1)); exec('while True: pass')", "signal", "SIGXCPU"),
    "overflows the C stack": ("import ctypes; sys.setrecursionlimit(10**9); ctypes.memset(ctypes.addressof(ctypes.c_int()) - (1 << 16), 0, 1 << 30)", "signal", "SIG"),
    "exits in a handler of atexit": ("atexit.register(os._exit, 9); sys.exit('enough')", "exit", "enough"),
    "is interrupted": ("raise KeyboardInterrupt('c')", "exit", "c"),
    "closes the channel": ("os.closerange(3, 1024)", "exit", "closed file descriptors that it did not open"),
    "closes everything": ("os.closerange(0, 1024)", "exit", "closed file descriptors that it did not open"),
    "opens files in place of the channel": ("os.closerange(0, 1024); [open(f'own{n}', 'wb') for n in range(20)]; keep.extend(range(20))", "exit", "closed file descriptors"),
    "dies with a child that holds everything": ("os.fork() or (os.setsid(), time.sleep(600)); os._exit(5)", "exit", "exit code 5"),
    "dies with a daemon": ("os.fork() or (os.setsid(), os.fork() or (os.setsid(), time.sleep(600)), os._exit(0)); os._exit(5)", "exit", "exit code 5"),
    "exits in a thread": ("threading.Thread(target=os._exit, args=(4,)).start(); time.sleep(600)", "exit", "exit code 4"),
}  # fmt: skip

SCRIPT = """
import atexit, concurrent.futures, ctypes, faulthandler, gc, logging, multiprocessing, os, resource
import shutil, signal, subprocess, sys, threading, time
keep = []
class Unshowable(Exception):
    def __str__(self): raise RuntimeError("no")
class Exiting(Exception):
    def __str__(self): sys.exit(1)
class Textless(Exception):
    def __str__(self): return None
class Odd(BaseException): pass
class Unpicklable(Exception):
    def __init__(self): super().__init__(threading.Lock())
def double(x): return 2 * x
def swallow():
    while True:
        try:
            while True: time.sleep(0.01)
        except BaseException: pass
def run(mini_batch):
    if mini_batch.task_id == 11:
        JOB
    return [os.getpid()]
"""

NEIGHBOUR = """
import pathlib, time
OUT = pathlib.Path("OUTPUT")
_run = run
def run(mini_batch):
    if mini_batch.task_id != 99:
        return _run(mini_batch)
    (OUT / "began").write_text("\\n")
    while not (OUT / "go").exists():
        time.sleep(0.002)
    return ["neighbour"]
"""


def hostile(node, job: str, **changes):
    """Start two processes of which one is at a mini-batch, and return the answer of the other to `job`."""
    script = SCRIPT.replace("JOB", job) + NEIGHBOUR.replace("OUTPUT", str(node.output))
    node.script(script)
    node.start(process_count=2, **changes)
    node.event("process_ready", process="process000")
    node.event("process_ready", process="process001")
    node.neighbour = node.ranks(index=99)
    node.read_when_there("began")
    return node.run(*({"rank": place} for place in range(3)), index=10)


def check_the_others(node, *, dead: int):
    """The neighbour finishes what it was at, once; so many processes were replaced; nothing is left running."""
    (node.output / "go").write_text("")
    neighbour = node.answer(node.neighbour)
    assert (neighbour.outcomes, neighbour.rows) == (["succeeded"], [b"neighbour\n"])
    assert len(node.named("process_ended")) == dead
    assert (
        len(node.named("bundle_started")) == 3
    )  # its own, the hostile one, and the one after that
    assert not node.named("start_failed")
    node.close()
    assert left_running(node) == []


def left_running(node) -> list[str]:
    """Return the command lines of all processes that came out of the node's run."""
    marker = f"PARALLELRUN_PROCESS={node.settings()['run_id']}/".encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and marker in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_script_does_to_its_process_costs_nothing(node, name):
    """A script may spoil its process as it likes: as long as that lives, its mini-batches succeed (R38, R207)."""
    answer = hostile(node, HARMLESS[name])

    assert answer.outcomes == ["succeeded"] * 3, answer.results
    after = node.run({"rank": 0}, index=20)
    assert after.outcomes == ["succeeded"]
    assert {*answer.rows, *after.rows} == {answer.rows[0]}
    check_the_others(node, dead=0)


@pytest.mark.parametrize("name", RAISING)
def test_an_exception_of_any_kind_fails_its_own_attempt(node, name):
    """Whatever is raised, the attempt fails with type and text, and the process goes on (R38, R206)."""
    job, category, type_, word = RAISING[name]
    answer = hostile(node, job)

    assert answer.outcomes == ["succeeded", "failed"]
    error = answer.results[1]["error"]
    assert (error["category"], error["type"], error["stage"]) == (category, type_, "run")
    assert word in error["message"]
    assert error["where"].startswith("score.py:")
    assert len(error["message"]) < 10_000
    (error["message"] + error["traceback"]).encode()
    after = node.run({"rank": 0}, index=20)
    assert (after.outcomes, after.rows) == (["succeeded"], [answer.rows[0]])
    check_the_others(node, dead=0)


@pytest.mark.timed
@pytest.mark.parametrize("name", FATAL)
def test_a_death_of_any_kind_costs_its_own_attempt(node, name):
    """The attempt fails with what killed it, and another process is ready within a second (R38, R207)."""
    job, category, word = FATAL[name]
    answer = hostile(node, job)

    assert answer.outcomes[0] == "succeeded"
    assert answer.outcomes[1] in ("process_died", "failed")
    assert answer.finished == 2
    error = answer.results[1]["error"]
    assert (error["category"], error["stage"]) == (category, "run")
    assert word in error["message"]
    node.event("process_ended")
    began = time.monotonic()
    node.event("process_ready", process="process002")
    assert time.monotonic() - began < REPLACED_WITHIN_S, "took longer"
    assert node.run({"rank": 0}, index=20).results[0]["process"] == "process002"
    check_the_others(node, dead=1)


# How a script gets stuck, and whether it can still say where.
STUCK = {
    "in C, SIGTERM blocked": ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); ctypes.CDLL(None).pause()", True),
    "in C with the interpreter lock, SIGTERM blocked": ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); ctypes.PyDLL(None).pause()", True),
    "behind a thread that keeps the interpreter lock": ("threading.Thread(target=ctypes.PyDLL(None).pause).start(); time.sleep(600)", True),
    "in a deadlock": ("L = threading.Lock(); L.acquire(); L.acquire()", True),
    "in a loop that swallows everything": ("signal.signal(signal.SIGTERM, lambda *_: sys.exit()); swallow()", True),
    "waiting for a child that is deaf": ("subprocess.run(['/bin/sh', '-c', 'trap \"\" TERM; sleep 600 & sleep 600'])", True),
    "with all signals blocked": ("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(600)", False),
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", False),
}  # fmt: skip


@pytest.mark.timed
@pytest.mark.parametrize("name", STUCK)
def test_what_is_stuck_is_killed_and_says_where_it_was(node, name):
    """No way of being stuck outlasts its limit by more than a second, and the error says where it was (R37, R205)."""
    job, can_tell = STUCK[name]
    node.script(SCRIPT.replace("JOB", job))
    node.start(process_count=2, run_timeout_s=0.5, kill_grace_s=0.2)
    node.event("process_ready", process="process000")
    node.event("process_ready", process="process001")

    began = time.monotonic()
    tag = node.ranks(3, index=10)
    others = []
    while node.answers.get(tag) is None or node.answers[tag].finished is None:
        others.append(node.run({"rank": 0}, index=50))
    node.event("process_ready", process="process002")
    took = time.monotonic() - began

    answer = node.answer(tag)
    assert answer.outcomes == ["succeeded", "timed_out"]
    # 0.5 to hear the stacks, 0.2 to end by itself
    assert took < 0.5 + REPLACED_WITHIN_S + 0.7, "took longer"
    error = answer.results[1]["error"]
    assert (error["category"], error["stage"]) == ("timeout", "run")
    assert "run_invocation_timeout=0.5 " in error["message"]
    if can_tell:
        assert error["where"].startswith("score.py:")
        assert "Stacks of all threads at that moment" in error["traceback"]
        assert "in run" in error["traceback"]
    else:
        assert "did not answer the signal" in error["traceback"]
        assert "The kernel says: " in error["traceback"]
    assert {other.outcomes[0] for other in others} == {"succeeded"}
    assert len({other.rows[0] for other in others}) == 1
    assert len(node.named("process_ended")) == 1
    node.close()
    assert left_running(node) == []


@pytest.mark.timed
def test_a_replacement_is_ready_within_a_second_of_the_kill(node):
    """Measured from the signal to the word of the next process, with a trivial init() (R91)."""
    node.script("import os\ndef init(): pass\ndef run(mini_batch): return [os.getpid()]")
    node.start()
    pid = node.event("process_ready")["pid"]

    for number in range(1, 6):
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        pid = node.event("process_ready", process=f"process{number:03d}")["pid"]
        assert time.monotonic() - began < REPLACED_WITHIN_S, "took longer"
        assert node.run({"rank": 0}).rows == [f"{pid}\n".encode()]


def test_a_flood_of_output_is_in_the_files(node):
    """100 MB to stdout and as many to stderr, returned from at once, are whole in the log files (R57)."""
    node.script("""
        import os
        LINE = "x" * 99_999
        def run(mini_batch):
            for _ in range(1000):
                print(LINE)
                os.write(2, LINE.encode() + b"\\n")
            return ["flooded"]
    """)
    node.start()

    assert node.run({"rank": 0}).rows == [b"flooded\n"]

    for kind in ("stdout", "stderr"):
        file = node.paths.node_files("node000")[kind].replace("{process}", "process000")
        assert os.path.getsize(file) == 100_000_000
        os.unlink(file)


def test_what_is_opened_in_place_of_the_channel_is_not_written_into(node):
    """A result is lost rather than written into a file of the script's (R200)."""
    node.script(f"""
        import os
        def run(mini_batch):
            os.closerange(3, 1024)
            for number in range(20):
                os.open(f"{node.output}/own{{number}}", os.O_WRONLY | os.O_CREAT)
            return ["secret"]
    """)
    node.start()

    assert node.run({"rank": 0}).outcomes == ["process_died"]

    sizes = {os.path.getsize(node.output / f"own{number}") for number in range(20)}
    assert sizes == {0}


def test_an_init_that_closes_the_channel_is_a_failed_start(node):
    """Nothing waits for a process that can no longer say that it is ready (R87, R205)."""
    node.script("import os\ndef init(): os.closerange(3, 1024)\ndef run(mini_batch): return [1]")
    node.start(init_failures_allowed=2)

    node.event("gave_up")

    for event in node.named("start_failed"):
        assert "closed file descriptors that it did not open" in event["error"]["message"]


THREADS = {
    "a thread that is no daemon": "threading.Thread(target=time.sleep, args=(600,)).start()",
    "a function of atexit": "atexit.register(lambda: time.sleep(600))",
    "a thread pool at work": "concurrent.futures.ThreadPoolExecutor().submit(time.sleep, 600)",
}


@pytest.mark.parametrize("name", THREADS)
def test_a_process_that_does_not_end_is_ended(node, name):
    """What keeps a process from ending costs no mini-batch; a stop waits its time, and says what it was (R205)."""
    node.script(SCRIPT.replace("JOB", THREADS[name]))
    node.start(shutdown_timeout_s=0.3)

    answer = node.run(*({"rank": place} for place in range(3)), index=10)
    assert node.stop() == 0

    assert answer.outcomes == ["succeeded"] * 3
    error = node.event("shutdown_failed")["error"]
    assert "did not end within 0.3 seconds: a thread" in error["message"]
    assert "Stacks of all threads" in error["traceback"]
    assert node.named("process_ended")[0]["reason"] == "timeout"


def test_an_exit_code_at_the_end_is_nobodys_business(node):
    """A process that was told to stop may end as it likes."""
    node.script(SCRIPT.replace("JOB", "atexit.register(os._exit, 3)"))
    node.start()
    node.run({"rank": 0}, index=11)

    assert node.stop() == 0

    assert node.event("process_ended")["reason"] == "stopped"
    assert not node.named("shutdown_failed")


# What a thread of the script does, so that the process comes to no more work between two mini-batches.
FROZEN = {
    "by a thread that keeps the interpreter lock": "ctypes.PyDLL(None).pause()",
    "by a signal": "os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.mark.parametrize("name", FROZEN)
def test_a_process_that_takes_nothing_up_is_replaced(node, name):
    """A mini-batch that lies with a frozen process is run by another one, and that is no attempt (R205, R207)."""
    node.script(
        SCRIPT.replace("JOB", "threading.Thread(target=freeze).start()")
        + f"""
def freeze():
    while not os.path.exists("{node.output}/go"):
        time.sleep(0.005)
    with open("{node.output}/frozen", "w") as file:
        file.write("\\n")
    {FROZEN[name]}
"""
    )
    node.start(load_timeout_s=0.5)
    frozen = node.run({"rank": 0}, index=11)
    (node.output / "go").write_text("")
    node.read_when_there("frozen")

    answer = node.run({"rank": 0}, index=20)

    assert frozen.outcomes == ["succeeded"]
    assert (answer.outcomes, answer.finished) == ([], 0)
    assert node.event("process_ended")["reason"] == "timeout"
    assert "between mini-batches | TimedOut" in node.log("error")
    assert "task_overhead_timeout=0.5 seconds" in node.log("error")
    assert node.run({"rank": 0}, index=20).results[0]["process"] == "process001"
    assert not node.named("start_failed")


# What a script writes into the first socket that it finds, which is the channel.
GARBAGE = {
    "text": "b'hello, is anybody there?'",
    "a word": "b'hello'",
    "a frame of a kind that is not its to send": "frame(3, 0, b'')",
    "an end of somebody else's bundle": "frame(6, 12345, b'{\"finished\": 1}')",
    "a result of somebody else's": "frame(5, 12345, b'{}')",
    "an event that is no JSON": "frame(7, 0, b'abc')",
    "an event that is a list": "frame(7, 0, b'[]')",
    "a header of 4 GB that is only announced": "struct.pack('<BIIQ', 5, 1, 2**32 - 1, 0)",
    "a header of 100 MB": "frame(5, 1, b' ' * 100_000_000)",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_in_the_channel_costs_its_own_attempt(node, name):
    """A process that sends what is no message is killed and replaced; its attempt fails, and that is all (R207)."""
    node.script(f"""
        import os, stat, struct
        def frame(kind, tag, header):
            return struct.pack("<BIIQ", kind, tag, len(header), 0) + header
        def run(mini_batch):
            if mini_batch.task_id == 11:
                sockets = [fd for fd in range(3, 64) if is_socket(fd)]
                data = {GARBAGE[name]}
                while data:
                    data = data[os.write(sockets[0], data):]
            return [os.getpid()]
        def is_socket(fd):
            try:
                return stat.S_ISSOCK(os.fstat(fd).st_mode)
            except OSError:
                return False
    """)
    node.start(kill_grace_s=0.1)

    answer = node.run(*({"rank": place} for place in range(3)), index=10)

    assert answer.finished in (1, 2)
    if answer.finished == 2:
        assert answer.outcomes == ["succeeded", "process_died"]
        error = answer.results[1]["error"]
        assert (error["type"], error["category"]) == ("ChannelBroken", "exit")
        assert "has written to a file descriptor that it did not open" in error["message"]
    assert node.event("process_ended")["reason"] == "garbage"
    assert node.run({"rank": 0}, index=20).results[0]["process"] == "process001"
