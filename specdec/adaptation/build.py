"""Puts a drafter, its learner and a policy together."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace

from specdec.adaptation.adapting import AdaptingDrafter
from specdec.adaptation.learner import Learner
from specdec.adaptation.policies import Always, Bandit, Policy
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.registry import unknown


def with_own_draft(context: DrafterContext) -> DrafterContext:
    """The same, with a copy of the draft model: what a run teaches it, no other run of the pair shall know."""
    if context.draft is None:
        return context
    theirs = context.draft
    own = CausalLM(copy.deepcopy(theirs.module), theirs.architecture.mask_form)
    own.context_length, own.max_columns = theirs.context_length, theirs.max_columns
    return replace(context, draft=own)


def adapting(
    drafter: Drafter,
    context: DrafterContext,
    learner: str,
    *,
    policy: str,
    arm: str | None,
    rows: int,
    lr: float,
    depth: int,
    max_tokens: int,
    horizon: int | None,
    trial_share: float,
) -> AdaptingDrafter:
    """The drafter, which learns with these settings (`specdec.config.schema.AdaptConfig`).

    Args:
        learner: ``module:Class`` of a `Learner`.

    Raises:
        ConfigError: the drafter has no such arm.
    """
    module, _, name = learner.partition(":")
    make = getattr(importlib.import_module(module), name)
    made: Learner = make(drafter, context, lr=lr, depth=depth)
    if arm is not None and arm in made.missing:
        raise ConfigError(f"adapt.arm={arm}: {made.missing[arm]}")
    if arm is not None and arm not in made.arms:
        raise ConfigError(unknown("adapt.arm", arm, (*made.arms, "null")))
    arms = made.arms if arm is None else (arm,)
    chosen: Policy = Always(arms)
    if policy == "bandit":
        chosen = Bandit(arms, horizon=horizon, trial_share=trial_share)
    return AdaptingDrafter(drafter, made, chosen, context.clock, rows=rows, max_tokens=max_tokens)
