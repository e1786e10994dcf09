"""Selectors of the kit: prepared once, and copied, so that all of them know the same of the machine."""

from __future__ import annotations

import copy
from collections.abc import Callable

from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.models.causal_lm import CausalLM
from specdec.selectors.base import Selector, SelectorContext

MakeSelector = Callable[[SelectorContext], Selector]
VERIFIER = "specinfer"
PAIR = ["the kit's target", "the kit's draft"]


def prepared_context(
    models: tuple[CausalLM, CausalLM], num_paths: int, depth: int, temperature: float
) -> SelectorContext:
    """What a selector of the kit is built for."""
    params = SamplingParams(temperature)
    return SelectorContext(num_paths, 0, depth, VERIFIER, params, list(PAIR), *models, Clock())


def copies_of(make: MakeSelector, context: SelectorContext, batch: int) -> Callable[[], Selector]:
    """Makes copies of one selector that was prepared for a run of ``batch`` rows; they share its models."""
    first = make(context)
    first.prepare(batch)
    shared = {id(part): part for part in (context.target, context.draft, context.clock)}
    return lambda: copy.deepcopy(first, dict(shared))
