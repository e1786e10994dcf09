"""Decode prompts with an engine: rows in, rounds out, progress on the way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from omegaconf import DictConfig

from specdec.build import build_batching, build_engine
from specdec.clock import Clock
from specdec.engine import Round
from specdec.equivalence import ReferenceStore
from specdec.memory import PeakMemory
from specdec.metrics import Tally
from specdec.oracle import Witness
from specdec.pair import Pair
from specdec.prompts import Prompt
from specdec.reference import method_settings, reference_key, reference_run, sampling_params
from specdec.sampling import SamplingParams
from specdec.sequence import Sequence, SequencePool
from specdec.stop_strings import StopText

WARMUP_ROWS, WARMUP_TOKENS = 2, 4
Observer = Callable[[Round, Clock], None]
Known = Callable[[Sequence], list[int] | None]


def stop_ids(cfg: DictConfig, pair: Pair) -> frozenset[int]:
    """Tokens that end a row: the config's, or the model's own."""
    return pair.stop_ids if cfg.stop_tokens is None else frozenset(cfg.stop_tokens)


def make_rows(cfg: DictConfig, pair: Pair, prompts: list[Prompt], arrived_s: float = 0.0) -> list[Sequence]:
    """A fresh row for every prompt."""
    stops, params = stop_ids(cfg, pair), row_sampling(cfg)
    rows = [Sequence(p.index, p.ids, cfg.max_new_tokens, stops, params, arrived_s=arrived_s) for p in prompts]
    if cfg.stop_strings:
        for row in rows:
            row.stop_text = StopText(tuple(cfg.stop_strings), pair.decode)
    return rows


def row_sampling(cfg: DictConfig) -> SamplingParams | None:
    """The rows' settings; None for greedy decoding of the bare logits, which then costs nothing extra."""
    params = sampling_params(cfg)
    return None if params.greedy and not params.penalizes else params


def decode(
    cfg: DictConfig,
    pair: Pair,
    prompts: list[Prompt],
    observe: Observer | None = None,
    known_output: Known | None = None,
    witness: Witness | None = None,
) -> tuple[list[Sequence], Tally, Clock, PeakMemory]:
    """Decode all prompts; returns the rows in prompt order, with what was counted and timed.

    ``observe`` is called after every round, outside the clock. ``known_output`` is for a drafter that replays.
    ``witness`` keeps what an explanation of a divergence needs.
    """
    synchronize = torch.cuda.synchronize if pair.target.device.type == "cuda" else None
    if cfg.warmup:
        _warm_up(cfg, pair, prompts, synchronize, known_output)
    clock = Clock(synchronize)
    engine = build_engine(cfg, pair, clock, known_output)
    if witness is not None:
        engine.verifier = witness.before(engine.verifier)
    rows = make_rows(cfg, pair, prompts, arrived_s=clock.now())
    pool = SequencePool(build_batching(cfg).order(rows))
    tally, memory = Tally(), PeakMemory(pair.target.device)
    while not pool.done:
        outcome = engine.step(pool)
        tally.add(outcome)
        memory.sample()
        if witness is not None:
            witness.observe(outcome)
        if observe is not None:
            observe(outcome, clock)
    return rows, tally, clock, memory


def _warm_up(
    cfg: DictConfig,
    pair: Pair,
    prompts: list[Prompt],
    synchronize: Callable[[], None] | None,
    known_output: Known | None,
) -> None:
    """Let lazy initialisation happen before the clock starts."""
    engine = build_engine(cfg, pair, Clock(synchronize), known_output)
    rows = [Sequence(p.index, p.ids, WARMUP_TOKENS, sampling=row_sampling(cfg)) for p in prompts[:WARMUP_ROWS]]
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
        **method_settings(cfg),
    }


def complete_reference(
    cfg: DictConfig, pair: Pair, prompts: list[Prompt], store: ReferenceStore, observe: Observer | None = None
) -> None:
    """Decode what the store lacks, one row at a time, nothing padded: see specdec.reference for what."""
    missing = [prompt for prompt in prompts if store.get(reference_key(cfg, prompt.index, prompt.ids)) is None]
    if not missing:
        return

    def keep(outcome: Round, clock: Clock) -> None:
        for row in outcome.finished:
            store.add(reference_key(cfg, row.index, row.prompt_ids), row.output_ids)
        if observe is not None:
            observe(outcome, clock)

    decode(reference_run(cfg), pair, missing, keep)
