"""Decode prompts with an engine: rows in, rounds out, progress on the way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from omegaconf import DictConfig, open_dict

from specdec.build import build_batching, build_engine
from specdec.clock import Clock
from specdec.engine import Round
from specdec.equivalence import ReferenceStore
from specdec.memory import PeakMemory
from specdec.metrics import Tally
from specdec.pair import Pair
from specdec.prompts import Prompt
from specdec.results import plain_copy
from specdec.sequence import Sequence, SequencePool

WARMUP_ROWS, WARMUP_TOKENS = 2, 4
Observer = Callable[[Round, Clock], None]


def stop_ids(cfg: DictConfig, pair: Pair) -> frozenset[int]:
    """Tokens that end a row: the config's, or the model's own."""
    return pair.stop_ids if cfg.stop_tokens is None else frozenset(cfg.stop_tokens)


def make_rows(cfg: DictConfig, pair: Pair, prompts: list[Prompt], arrived_s: float = 0.0) -> list[Sequence]:
    """A fresh row for every prompt."""
    stops = stop_ids(cfg, pair)
    return [Sequence(p.index, p.ids, cfg.max_new_tokens, stops, arrived_s=arrived_s) for p in prompts]


def decode(
    cfg: DictConfig, pair: Pair, prompts: list[Prompt], observe: Observer | None = None
) -> tuple[list[Sequence], Tally, Clock, PeakMemory]:
    """Decode all prompts; returns the rows in prompt order, with what was counted and timed.

    ``observe`` is called after every round, outside the clock.
    """
    synchronize = torch.cuda.synchronize if pair.target.device.type == "cuda" else None
    if cfg.warmup:
        _warm_up(cfg, pair, prompts, synchronize)
    clock = Clock(synchronize)
    engine = build_engine(cfg, pair, clock)
    rows = make_rows(cfg, pair, prompts, arrived_s=clock.now())
    pool = SequencePool(build_batching(cfg).order(rows))
    tally, memory = Tally(), PeakMemory(pair.target.device)
    while not pool.done:
        outcome = engine.step(pool)
        tally.add(outcome)
        memory.sample()
        if observe is not None:
            observe(outcome, clock)
    return rows, tally, clock, memory


def _warm_up(cfg: DictConfig, pair: Pair, prompts: list[Prompt], synchronize: Callable[[], None] | None) -> None:
    """Let lazy initialisation happen before the clock starts."""
    engine = build_engine(cfg, pair, Clock(synchronize))
    rows = [Sequence(i, prompts[i].ids, WARMUP_TOKENS) for i in range(min(WARMUP_ROWS, len(prompts)))]
    pool = SequencePool(rows)
    while not pool.done:
        engine.step(pool)


def reference_settings(cfg: DictConfig, pair: Pair) -> dict[str, object]:
    """Everything that decides the reference outputs."""
    return {
        "pair": pair.fingerprint,
        "dtype": cfg.runner.dtype,
        "device": pair.target.device.type,
        "attention": cfg.pair.attention,
        "torch": torch.__version__,
        "max_new_tokens": cfg.max_new_tokens,
        "stop_ids": sorted(stop_ids(cfg, pair)),
    }


def complete_reference(
    cfg: DictConfig, pair: Pair, prompts: list[Prompt], store: ReferenceStore, observe: Observer | None = None
) -> None:
    """Decode what the store lacks: the target alone, one row at a time, nothing drafted, nothing padded."""
    missing = [prompt for prompt in prompts if store.get(prompt.ids) is None]
    if not missing:
        return
    alone = plain(cfg)
    with open_dict(alone):
        alone.update(batch=1, warmup=False, scheduler={"name": "static"}, batching={"name": "fifo"})
        alone.update(alignment={"name": "eqspec"}, verifier={"name": "greedy"})

    def keep(outcome: Round, clock: Clock) -> None:
        for row in outcome.finished:
            store.add(row.prompt_ids, row.output_ids)
        if observe is not None:
            observe(outcome, clock)

    decode(alone, pair, missing, keep)


def plain(cfg: DictConfig) -> DictConfig:
    """The same point with speculation off."""
    copy = plain_copy(cfg)
    with open_dict(copy):
        copy.drafter = {"name": "none"}
        copy.scheduler.label = "plain" if copy.scheduler.name == "static" else f"plain-{copy.scheduler.name}"
    return copy
