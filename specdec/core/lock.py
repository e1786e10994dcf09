"""One writer per file: advisory locks of the operating system, which are released when their process ends or is killed.

The empty lock files stay in ``results_dir/.locks``: if one were removed while a process waits for it, two processes
could hold the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

POLL_S = 0.1


@contextmanager
def locked(results_dir: str | Path, name: str, on_wait: Callable[[], bool] | None = None) -> Iterator[bool]:
    """Hold the lock ``name`` of a results folder for the block; yields whether it is held.

    Args:
        on_wait: called once if another process holds the lock. If it returns False, the block runs at once, without it.
    """
    path = Path(results_dir) / ".locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait is not None and not on_wait():
            yield False
            return
        lock.acquire(poll_interval=POLL_S)
    try:
        yield True
    finally:
        lock.release()
