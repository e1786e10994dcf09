"""Decode what a point lacks, with smaller batches if memory runs out and the config allows it."""

from __future__ import annotations

import gc

import torch
from omegaconf import DictConfig, open_dict

from specdec.config.checks import is_serving
from specdec.config.identity import plain_copy
from specdec.config.reference import reference_key
from specdec.core.clock import Clock
from specdec.core.files import append_line
from specdec.core.prompts import Prompt
from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.equivalence.store import ReferenceStore
from specdec.equivalence.witness import Witness
from specdec.errors import is_out_of_memory
from specdec.models.memory import PeakMemory
from specdec.models.pair import Pair
from specdec.run.decode import Observer, decode
from specdec.run.distributed import Ranks
from specdec.run.factory import preserving_model_state
from specdec.run.folder import RunFolder
from specdec.run.forward_bound import BOUND, bound_counts
from specdec.run.forward_log import ForwardLog
from specdec.run.loggers.base import Logger
from specdec.run.loggers.meter import StepMeter
from specdec.run.progress import RoundProgress
from specdec.run.recorder import Recorder
from specdec.run.reference_outputs import complete_reference
from specdec.run.serving.figures import ServingLog


def decode_rows(
    cfg: DictConfig,
    folder: RunFolder,
    pair: Pair,
    prompts: list[Prompt],
    store: ReferenceStore | None,
    attempt: int,
    ranks: Ranks,
    logger: Logger,
) -> None:
    """Decode ``prompts``, writing rounds and finished rows down as they come.

    With ``runner.on_out_of_memory=shrink`` a batch that does not fit is halved, down to one row; rows that were
    finished before stay finished.
    """
    cfg = plain_copy(cfg)  # the batch of the caller's stays what was asked for

    def known_output(row: Sequence) -> list[int] | None:
        if store is None:
            return None
        key = reference_key(cfg, row.index, row.prompt_ids)
        if store.get(key) is None and is_serving(cfg):  # its history is not the reference's: an earlier turn differs
            with preserving_model_state(pair):
                complete_reference(cfg, pair, [Prompt(row.index, "", "", row.prompt_ids)], store)
        return store.get(key)

    finished: set[int] = set()
    with Recorder(folder, attempt, ranks, pair, prompts, known_output) as recorder:
        while todo := [prompt for prompt in prompts if prompt.index not in finished]:
            recorder.witness = Witness(known_output) if store else None
            serving = ServingLog() if is_serving(cfg) else None
            title = f"{cfg.scheduler.label} batch {cfg.batch}"
            with RoundProgress(title, len(todo), cfg.progress and ranks.is_main) as progress:
                meter = StepMeter(logger, PeakMemory(pair.target.device))
                observe = _all_of(recorder.observe, _noting(finished), progress.observe, meter.observe)
                try:
                    forwards = ForwardLog() if cfg.bound else None
                    _, _, clock, _ = decode(
                        cfg, pair, todo, observe, known_output, recorder.witness, serving, forwards=forwards
                    )
                    if forwards is not None:
                        counts = bound_counts(forwards, clock, pair.target.device)
                        append_line(folder.path / BOUND, {"attempt": attempt, "rank": ranks.rank, **counts})
                    if serving is not None:
                        serving.write(folder.path)
                    return
                except Exception as error:
                    if not is_out_of_memory(error) or cfg.runner.on_out_of_memory != "shrink" or cfg.batch == 1:
                        raise
            recorder.witness = None
            if serving is not None:  # a queue cannot be gone on with
                finished.clear()
            _halve(cfg)  # after the error and what its frames held are gone
            reason = f"out of memory: going on with batch={cfg.batch}"
            print(f"note: {reason}", flush=True)
            record = {"attempt": attempt, "rank": ranks.rank, "batch": cfg.batch, "reason": reason}
            append_line(folder.path / "attempts.jsonl", record)


def _noting(finished: set[int]) -> Observer:
    return lambda outcome, clock: finished.update(row.index for row in outcome.finished)


def _all_of(*observers: Observer) -> Observer:
    def observe(outcome: Round, clock: Clock) -> None:
        for each in observers:
            each(outcome, clock)

    return observe


def _halve(cfg: DictConfig) -> None:
    """Half the batch, and half the window of rows in flight; what the larger one held is given back."""
    with open_dict(cfg):
        cfg.batch = cfg.batch // 2
        if "window" in cfg.batching:
            cfg.batching.window = max(cfg.batching.window // 2, cfg.batch)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
