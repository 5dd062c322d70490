"""Preloaded by the Dask workers: at SIGUSR1 they show the stacks of all their threads."""

from __future__ import annotations

import faulthandler
import signal

faulthandler.register(signal.SIGUSR1, all_threads=True)
