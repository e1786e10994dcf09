"""How far a fit has come, how fast it is, and how long it will take: a bar, or lines in a log.

Lightning's RichProgressBar counts batches of an epoch. Here a stage ends by steps or by the clock, whichever is first.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from specdec.training.config import LINE_EVERY_S
from specdec.training.module import TrainingModule


class FitProgress(Callback):
    """A bar where stderr is a terminal, otherwise a line every half minute."""

    def __init__(self, name: str) -> None:
        self.name = name
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        console, is_terminal = Console(stderr=True), sys.stderr.isatty()
        self._bar = Progress(*columns, console=console, disable=not is_terminal, transient=True)
        self._task = self._bar.add_task(name, total=1.0, figures="")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here: steps before a resume had another speed."""
        assert isinstance(pl_module, TrainingModule)
        self._start_s = self._printed_s = time.monotonic()
        self._start_tokens, self._start_fraction = pl_module.num_tokens, pl_module.budget.fraction
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        budget, now_s = pl_module.budget, time.monotonic()
        passed_s, done = now_s - self._start_s, budget.fraction - self._start_fraction
        left = f"{passed_s * (1 - budget.fraction) / done / 60:.1f} min left" if done > 0 else ""
        speed = f"{(pl_module.num_tokens - self._start_tokens) / max(passed_s, 1e-9):,.0f} tokens/s"
        loss = f"loss {pl_module.losses[-1]:.4f}" if pl_module.losses else ""
        figures = f"step {trainer.global_step}/{budget.stage.steps}  {loss}  {speed}  {left}"
        self._bar.update(self._task, completed=budget.fraction, figures=figures)
        if self._bar.disable and now_s - self._printed_s > LINE_EVERY_S:
            self._printed_s = now_s
            print(f"[{self.name}] {figures}", flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._bar.stop()
