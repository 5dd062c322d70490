"""The entry script of every round: one row per item, a trace of its own, and faults to order.

The trace owes nothing to the product: each line is one write to a file opened with O_APPEND, made
before and after the work of a mini-batch, so that what ran, where, when and how it ended can be
compared afterwards with what the product claims.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TOKEN = os.urandom(6).hex()
"""Names this process in the trace; process ids may come again."""
_number = 0


def init():
    """Open the trace; find out who the parents are."""
    global args, trace, supervisor, worker
    parser = argparse.ArgumentParser()
    parser.add_argument("--trace", required=True)
    parser.add_argument("--orders", required=True, help="folder of orders: one file per process id")
    parser.add_argument("--isolates", action="store_true", help="mini-batches may be split")
    parser.add_argument("--least_s", type=float, required=True)
    parser.add_argument("--most_s", type=float, required=True)
    args, _ = parser.parse_known_args()
    trace = os.open(args.trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    supervisor = os.getppid()
    worker = int(Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1])


def run(mini_batch, mini_batch_context):
    """Return one row per item, unless an item is bad or an order came."""
    if isinstance(mini_batch, list):
        items = [Path(path).name for path in mini_batch]
        texts = [Path(path).read_text() for path in mini_batch]
    else:
        items = [int(key) for key in mini_batch["key"]]
        texts = list(mini_batch["text"])
    global _number
    _number += 1
    note(
        "start",
        pid=os.getpid(),
        supervisor=supervisor,
        worker=worker,
        index=mini_batch_context.minibatch_index,
        items=items,
    )
    if len(items) > 1 or not args.isolates:  # what an item alone does is held against it
        obey()
    chance = int.from_bytes(hashlib.sha256(str(items[0]).encode()).digest()[:4], "little") / 2**32
    if chance < 0.04:
        leave_behind()
    time.sleep(args.least_s + chance * (args.most_s - args.least_s))
    for item, text in zip(items, texts, strict=True):
        if text == "bad raise":
            note("raise")
            raise ValueError(f"{item} is bad")
        if text == "bad exit":
            note("bad_exit")
            os._exit(3)
    rows = [
        f"{item} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        for item, text in zip(items, texts, strict=True)
    ]
    note("end")
    return rows


def note(what, **more):
    """Add a line to the trace."""
    line = {"at": time.monotonic(), "do": what, "token": TOKEN, "number": _number, **more}
    os.write(trace, json.dumps(line).encode() + b"\n")


def obey():
    """Do what was ordered of this process, once."""
    order = Path(args.orders, str(os.getpid()))
    try:
        what = order.read_text()
        order.unlink()
    except FileNotFoundError:
        return
    note(what)
    if what == "exit":
        os._exit(5)
    if what == "sys_exit":
        sys.exit(5)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if what == "hang_in_c":
        ctypes.PyDLL(None).sleep(600)  # holds the interpreter's lock
    while True:
        time.sleep(600)


def leave_behind():
    """Start a grandchild that leaves the session and ignores SIGTERM, and do not wait for it."""
    subprocess.Popen(
        ["sh", "-c", "trap '' TERM; sleep 900 & wait; sleep 900"],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
