"""Decode a point's missing rows, with smaller batches if memory runs out and the config allows it."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from specdec.config.checks import is_serving
from specdec.config.schema import RunConfig
from specdec.core.files import append_line
from specdec.core.prompts import Prompt
from specdec.core.sequence import KnownOutput, Sequence
from specdec.equivalence.witness import Witness
from specdec.errors import is_out_of_memory
from specdec.models.memory import PeakMemory
from specdec.run.decode import Observer, Watch, decode
from specdec.run.factory import preserving_model_state
from specdec.run.forward_bound import BOUND, bound_counts
from specdec.run.forward_log import ForwardLog
from specdec.run.loggers.base import Logger
from specdec.run.loggers.meter import StepMeter
from specdec.run.progress import RoundProgress
from specdec.run.recorder import Recorder
from specdec.run.reference_outputs import complete_reference
from specdec.run.resume import Attempt
from specdec.run.run import Run
from specdec.run.serving.figures import ServingLog


def decode_rows(run: Run, attempt: Attempt, logger: Logger) -> None:
    """Decode this process's share of the unfinished rows; writes every round and every finished row at once.

    With ``runner.on_out_of_memory=shrink`` a batch that does not fit is halved, down to one row; finished rows stay.
    """
    missing = [prompt for prompt in run.prompts if prompt.index in attempt.todo]
    mine = run.ranks.share(missing, run.config.max_new_tokens)
    config, known_output = run.config, _known_output(run)
    finished: set[int] = set()
    with Recorder(run, attempt.number, known_output) as recorder:
        while todo := [prompt for prompt in mine if prompt.index not in finished]:
            recorder.witness = Witness(known_output) if run.store else None
            serving = is_serving(config)
            try:
                _decode(run, config, todo, recorder, logger, finished)
                return
            except Exception as error:
                if not is_out_of_memory(error) or config.runner.on_out_of_memory != "shrink" or config.batch == 1:
                    raise
            recorder.witness = None
            if serving:  # a serving run cannot resume
                finished.clear()
            config = _halved(config)  # only now is the error freed, and what its frames held
            reason = f"out of memory: resumed with batch={config.batch}"
            print(f"note: {reason}", flush=True)
            record = {"attempt": attempt.number, "rank": run.ranks.rank, "batch": config.batch, "reason": reason}
            append_line(run.folder.path / "attempts.jsonl", record)


def _decode(
    run: Run, config: RunConfig, todo: list[Prompt], recorder: Recorder, logger: Logger, finished: set[int]
) -> None:
    """One try; adds the indices of the rows that it writes to ``finished``."""
    title = f"{config.scheduler.label} batch {config.batch}"
    meter = StepMeter(logger, PeakMemory(run.pair.target.device))
    with RoundProgress(title, len(todo), config.progress and run.ranks.is_main) as progress:
        watch = Watch(
            observers=(recorder.observe, _collecting(finished), progress.observe, meter.observe),
            witness=recorder.witness,
            serving=ServingLog() if is_serving(config) else None,
            forwards=ForwardLog() if config.bound else None,
        )
        decoded = decode(config, run.pair, todo, recorder.known_output, watch)
    if watch.forwards is not None:
        counts = bound_counts(watch.forwards, decoded.clock, run.pair.target.device)
        append_line(run.folder.path / BOUND, {"attempt": recorder.attempt, "rank": run.ranks.rank, **counts})
    if watch.serving is not None:
        watch.serving.write(run.folder.path)


def _known_output(run: Run) -> KnownOutput:
    """The reference output of a row; of a serving run it is computed when it is first needed."""

    def known_output(row: Sequence) -> list[int] | None:
        if run.store is None:
            return None
        if run.reference_of(row) is None and is_serving(run.config):  # its history differs from the reference's
            with preserving_model_state(run.pair):
                complete_reference(run.config, run.pair, [Prompt(row.index, "", "", row.prompt_ids)], run.store)
        return run.reference_of(row)

    return known_output


def _collecting(finished: set[int]) -> Observer:
    return lambda outcome, clock: finished.update(row.index for row in outcome.finished)


def _halved(config: RunConfig) -> RunConfig:
    """The config with half the batch and half the window of rows in flight; frees the memory of the larger batch."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    batch, batching = config.batch // 2, config.batching
    if hasattr(batching, "window"):
        batching = replace(batching, window=max(batching.window // 2, batch))
    return replace(config, batch=batch, batching=batching)
