"""How a command ends: an error or signal becomes one line on stderr and the exit code that a shell expects."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from specdec.config.explain import explain

_INTERRUPTED = "what is finished is kept, run the same command again to resume"


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn an error or signal in the block into one line on stderr and the exit code that a shell expects."""
    in_main = threading.current_thread() is threading.main_thread()
    signals: list[int] = []  # remembers SIGTERM even if a library swallows the exception

    def terminate(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate) if in_main else None
    try:
        yield
        if signals:
            raise _Terminated
    except _Terminated:
        _fail(f"terminated; {_INTERRUPTED}", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        _fail(f"interrupted; {_INTERRUPTED}", 128 + signal.SIGINT)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if signals:
            _fail(f"terminated; {_INTERRUPTED}", 128 + signal.SIGTERM)
        if os.environ.get("SPECDEC_TRACEBACK"):
            raise
        _fail(explain(error), 1)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send; it ends a run like Ctrl-C."""


def _fail(message: str, code: int) -> None:
    print(f"specdec: {message}", file=sys.stderr)
    sys.exit(code)
