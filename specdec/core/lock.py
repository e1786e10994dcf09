"""One writer per file: advisory locks of the operating system, which vanish with the process that holds them.

A process that is killed with -9 leaves no stale lock behind. The empty files stay where they are, in
``results_dir/.locks``: removing a lock file that somebody waits for would let two in.
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
        on_wait: called once if somebody else holds it. If it returns False the block runs at once, without the lock.
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
