"""Engines over small models."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from conftest import small_llama

from specdec.alignment.base import Alignment
from specdec.alignment.eqspec import EqspecAlignment
from specdec.alignment.expansion import ExpansionAlignment
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.masked import MaskedAlignment
from specdec.alignment.rollback import RollbackAlignment
from specdec.core.clock import Clock
from specdec.core.round import Round
from specdec.core.sequence import Sequence, SequencePool
from specdec.draft_lengths.fixed import FixedLength
from specdec.draft_lengths.lockstep import LockstepLength
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.model import ModelDrafter
from specdec.drafters.none import NoDrafter
from specdec.engine.loop import RoundLoop
from specdec.models.cache_argument import returned_cache
from specdec.models.causal_lm import CausalLM
from specdec.schedulers.continuous import ContinuousScheduler
from specdec.schedulers.exspec import ExspecScheduler
from specdec.schedulers.lockstep import LockstepScheduler
from specdec.schedulers.static import StaticScheduler
from specdec.verifiers.base import Verifier
from specdec.verifiers.greedy import GreedyVerifier

SCHEDULERS = {
    "static": StaticScheduler,
    "continuous": ContinuousScheduler,
    "exspec": ExspecScheduler,
    "lockstep": LockstepScheduler,
}
DRAFT_LENGTHS = {"fixed": FixedLength, "lockstep": LockstepLength}
ALIGNMENTS: dict[str, Callable[[CausalLM, Clock], Alignment]] = {
    "eqspec": EqspecAlignment,
    "inplace": InplaceAlignment,
    "masked": MaskedAlignment,
    "rollback": RollbackAlignment,
    "expansion": ExpansionAlignment,
}
"""Those that are correct."""
TREES = {
    "chain": {},
    "paths": {"num_paths": 3},
    "delayed": {"num_paths": 3, "trunk": 1},
    "gumbel": {"branches": [3, 2, 1]},
    "beam": {"width": 3},
    "confidence": {"top_k": 3, "num_nodes": 7},
    "static": {"num_nodes": 7},
}
"""Settings of every tree."""


def context_for(model: CausalLM, alignment: str = "inplace", **tools) -> DrafterContext:
    clock = Clock()
    return DrafterContext(model, None, lambda other: ALIGNMENTS[alignment](other, clock), clock, **tools)


def make_engine(
    target: CausalLM,
    draft: CausalLM | None = None,
    *,
    drafter: Drafter | None = None,
    scheduler: str = "static",
    batch: int = 4,
    window: int = 8,
    gamma: int = 5,
    alignment: Callable[[CausalLM, Clock], Alignment] = EqspecAlignment,
    verifier: Verifier | None = None,
    draft_length: str = "fixed",
    clock: Clock | None = None,
    prefill_chunk: int | None = None,
    **settings: object,
) -> RoundLoop:
    """An engine; ``settings`` are the scheduler's own."""
    clock = clock or Clock()
    context = DrafterContext(target, draft, lambda model: alignment(model, clock), clock)
    if drafter is None:
        drafter = ModelDrafter(context) if draft is not None else NoDrafter(context)
    return RoundLoop(
        alignment(target, clock),
        drafter,
        verifier or GreedyVerifier(),
        SCHEDULERS[scheduler](batch, max(window, batch), **settings),
        DRAFT_LENGTHS[draft_length](gamma=gamma),
        clock,
        prefill_chunk=prefill_chunk,
    )


def run_all(
    engine: RoundLoop,
    prompts: list[list[int]],
    max_new_tokens: int | list[int] = 24,
    stop_ids: frozenset[int] = frozenset(),
    order: list[int] | None = None,
) -> tuple[list[Sequence], list[Round]]:
    """Decode; returns rows in prompt order and all rounds. ``order`` is the order of admission."""
    budgets = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(prompts)
    rows = [Sequence(i, list(prompt), budgets[i], stop_ids) for i, prompt in enumerate(prompts)]
    pool = SequencePool([rows[i] for i in order] if order else rows)
    rounds = []
    while not pool.done:
        rounds.append(engine.step(pool))
        assert len(rounds) < 10_000, "the engine does not come to an end"
    return rows, rounds


@functools.cache
def the_model() -> CausalLM:
    return CausalLM(small_llama(1, torch.float64))


@functools.lru_cache(maxsize=5000)
def fresh(*tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (V) after the last token and KV (N, H, length, D) of one row alone; the same row is asked for often."""
    with torch.inference_mode():
        output = the_model().module(torch.tensor([tokens]), use_cache=True)
    layers = returned_cache(output).layers
    return output.logits[0, -1], torch.stack([part[0] for layer in layers for part in (layer.keys, layer.values)])
