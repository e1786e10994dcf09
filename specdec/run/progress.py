"""A progress bar with tokens/s and acceptance so far; not shown unless stderr is a terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specdec.core.clock import Clock
from specdec.core.metrics import Tally
from specdec.core.round import Round


class RoundProgress:
    """Counts finished rows on a bar; pass its ``observe`` to the decoding loop."""

    def __init__(self, title: str, num_rows: int, enabled: bool) -> None:
        self._tally = Tally()
        self._tokens, self._seconds = 0, 0.0  # of rows that were decoded alone
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (enabled and sys.stderr.isatty()),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=num_rows, speed="")

    def __enter__(self) -> RoundProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def observe(self, outcome: Round, clock: Clock) -> None:
        """Advance by one round."""
        self._tally.add(outcome)
        if self._bar.disable:
            return
        seconds = sum(clock.seconds.values())
        speed = f"{self._tally.num_output_tokens / seconds:,.0f} tok/s" if seconds else ""
        rate = self._tally.acceptance_rate
        accepted = f", acceptance {rate:.2f}" if rate is not None else ""
        self._bar.update(self._task, advance=len(outcome.finished), speed=speed + accepted)

    def observe_row(self, num_tokens: int, seconds: float) -> None:
        """Advance by one row that was decoded alone."""
        self._tokens += num_tokens
        self._seconds += seconds
        speed = f"{self._tokens / self._seconds:,.0f} tok/s" if self._seconds else ""
        self._bar.update(self._task, advance=1, speed=speed)
