"""The driver's mailbox, under signals that come at any moment (design 5)."""

from __future__ import annotations

import signal
import threading
import time

from prefect_parallelrun.driver.mailbox import Mailbox


def test_events_come_in_order_and_the_first_ends_the_waiting():
    box = Mailbox()
    began = time.monotonic()

    threading.Timer(0.1, lambda: [box.put(n) for n in range(3)]).start()
    found = box.collect(60)
    while len(found) < 3:
        found += box.collect(60)

    assert found == [0, 1, 2]
    assert time.monotonic() - began < 50
    assert box.collect(0) == []


def test_signals_that_raise_lock_nothing_up():
    """Wherever one breaks in while another thread puts in, both go on; what comes later comes."""

    class Broken(Exception):
        pass

    def handle(*_):
        nonlocal armed
        if armed:
            armed = False  # a second one would break into what catches the first
            raise Broken

    def put_all():
        for n in range(count):
            box.put(n)
            if n % 10 == 0:
                time.sleep(0.0001)

    def disturb():
        while writer.is_alive():
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0.0005)

    box, count = Mailbox(), 20_000
    armed, broken, found = False, 0, []
    main = threading.main_thread().ident
    # Daemons: one that hangs is to fail the test, and no more.
    writer = threading.Thread(target=put_all, daemon=True)
    disturber = threading.Thread(target=disturb, daemon=True)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        writer.start()
        disturber.start()
        while writer.is_alive():
            try:
                armed = True
                found += box.collect(0.001)
                armed = False
            except Broken:
                broken += 1
    finally:
        armed = False
        disturber.join(30)
        signal.signal(signal.SIGUSR1, before)

    assert broken > 20
    box.put(count)
    found += box.collect(60)
    assert found[-1] == count
    assert found == sorted(set(found))
