"""The cores that everything is measured on. Imports no torch: cores must be chosen before it starts its threads."""

from __future__ import annotations

import os
import sys


def pin(num_threads: int) -> list[int]:
    """Pin this process, and those it starts, to some of its cores; returns them (none where the system cannot pin).

    The last cores are taken, because the first one serves most interrupts. Every library's thread count is set in
    the environment, which torch, OpenMP and the peers read when they start.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(num_threads)
    if sys.platform != "linux":
        return []
    cores = sorted(os.sched_getaffinity(0))[-num_threads:]
    os.sched_setaffinity(0, cores)
    return cores


def load_average() -> float | None:
    """Processes that wanted a core over the last minute: more than one's own makes a speed figure doubtful."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
