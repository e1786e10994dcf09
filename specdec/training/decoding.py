"""Decoding in the engine, as training needs it: static batches of rows that are all there from the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.base import Alignment
from specdec.core.clock import Clock
from specdec.core.round import Round
from specdec.core.sequence import Sequence, SequencePool
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.engine.loop import RoundLoop
from specdec.models.causal_lm import CausalLM
from specdec.registry import create

MakeDrafter = Callable[[DrafterContext], Drafter]


def no_drafter(context: DrafterContext) -> Drafter:
    """Plain decoding."""
    drafter: Drafter = create("drafter", "none", context)
    return drafter


def decode(
    target: CausalLM,
    rows: list[Sequence],
    batch: int,
    *,
    make_drafter: MakeDrafter = no_drafter,
    draft: CausalLM | None = None,
    gamma: int = 1,
    verifier: str = "greedy",
    execution: str | None = None,
    observe: Callable[[Round], None] = lambda outcome: None,
) -> dict[str, float]:
    """Decode the rows to their ends; returns seconds per round, by stage of the clock.

    Args:
        execution: how the models' forwards are computed; None leaves that as it is.
        observe: called with every round.
    """
    clock = Clock()

    def align(model: CausalLM) -> Alignment:
        if execution is not None:
            model.execute(execution)
        alignment: Alignment = create("alignment", "inplace", model, clock)
        return alignment

    context = DrafterContext(target, draft, align, clock)
    loop = RoundLoop(
        context.align(target),
        make_drafter(context),
        create("verifier", verifier),
        create("scheduler", "static", batch, batch),
        create("draft_length", "fixed", gamma=gamma),
        clock,
    )
    pool, num_rounds = SequencePool(rows), 0
    while not pool.done:
        observe(loop.step(pool))
        num_rounds += 1
    return {stage: total / max(1, num_rounds) for stage, total in clock.seconds.items()}


def stop_ids_of(module: Any) -> frozenset[int]:
    """The tokens at which a model stops by its own generation config."""
    eos = module.generation_config.eos_token_id
    return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)
