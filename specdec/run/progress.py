"""How far a run is: a bar with tokens/s and acceptance on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specdec.core.clock import Clock
from specdec.core.metrics import Tally
from specdec.core.round import Round

INTERVAL_S = 30.0


@contextmanager
def reporting(line: Callable[[float], str], enabled: bool = True) -> Iterator[None]:
    """Print ``line(seconds so far)`` to stderr every `INTERVAL_S` seconds of the block, from a thread of its own."""
    ended, start = threading.Event(), time.monotonic()

    def report() -> None:
        while not ended.wait(INTERVAL_S):
            print(f"specdec: {line(time.monotonic() - start)}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=report, name="progress", daemon=True)
    if enabled:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if enabled:
            thread.join()


class RoundProgress:
    """Counts finished rows; pass its ``observe`` to the decoding loop."""

    def __init__(self, title: str, num_rows: int, enabled: bool) -> None:
        self._title, self._num_rows, self._num_done = title, num_rows, 0
        self._tally = Tally()
        self._tokens, self._seconds = 0, 0.0  # of rows that were decoded alone
        on_terminal = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (enabled and on_terminal),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=num_rows, speed="")
        self._lines = reporting(self.line, enabled and not on_terminal)

    def __enter__(self) -> RoundProgress:
        self._bar.start()
        self._lines.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(None, None, None)
        self._bar.stop()

    def observe(self, outcome: Round, clock: Clock) -> None:
        """Advance by one round."""
        self._tally.add(outcome)
        self._seconds = sum(clock.seconds.values())
        self._tokens = self._tally.num_output_tokens
        self._advance(len(outcome.finished))

    def observe_row(self, num_tokens: int, seconds: float) -> None:
        """Advance by one row that was decoded alone."""
        self._tokens += num_tokens
        self._seconds += seconds
        self._advance(1)

    def line(self, seconds: float) -> str:
        """How far it is after ``seconds``, and how long it will take if it goes on like this."""
        done = f"{self._title}: {self._num_done} of {self._num_rows} rows after {seconds:,.0f} s"
        if not self._tokens:
            return f"{done}, reading prompts"
        left = seconds * (self._num_rows - self._num_done) / self._num_done if self._num_done else None
        return f"{done}, {self._speed()}" + ("" if left is None else f", about {left:,.0f} s left")

    def _advance(self, num_rows: int) -> None:
        self._num_done += num_rows
        if not self._bar.disable:
            self._bar.update(self._task, advance=num_rows, speed=self._speed())

    def _speed(self) -> str:
        speed = f"{self._tokens / self._seconds:,.0f} tok/s" if self._seconds else ""
        rate = self._tally.acceptance_rate
        return speed + (f", acceptance {rate:.2f}" if rate is not None else "")
