"""Builds the parts of a run from its config. The classes themselves never get a config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from specdec.alignment.base import Alignment
from specdec.config.checks import check_samples
from specdec.config.judging import check_siblings
from specdec.config.plugins import declared, plugin
from specdec.config.schema import RunConfig
from specdec.core.clock import Clock
from specdec.core.sequence import KnownOutput
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.fixed import FixedLength
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.engine.loop import RoundLoop
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM, ModelObserver
from specdec.models.pair import Pair
from specdec.models.vocabulary import check_ids
from specdec.run.serving.base import Arrivals
from specdec.schedulers.order import BatchingPolicy
from specdec.trees.base import Tree
from specdec.verifiers.base import Verifier


def build_engine(config: RunConfig, pair: Pair, clock: Clock, known_output: KnownOutput | None = None) -> RoundLoop:
    """The engine that a resolved run config describes, over the models of ``pair``.

    ``known_output`` is for drafters that replay: a row's reference output, if it is known.
    """
    observers: list[ModelObserver] = []  # one list for all models of this engine, those of the drafter's own too
    pair.target.observers = observers

    def align(model: CausalLM) -> Alignment:
        of_pair = model is pair.target or model is pair.draft
        model.execute(config.execution if of_pair or config.execution == "eager" else "auto")
        model.observers = observers
        alignment: Alignment = plugin(config, "alignment", model, clock)
        if config.debug.invariants:
            from specdec.alignment.checked import CheckedAlignment

            return CheckedAlignment(alignment, model, every=config.debug.invariants_every)
        return alignment

    check_ids("stop_tokens", config.stop_tokens or (), pair.target.vocab_size)
    tree = build_tree(config)
    if (nodes := most_nodes(config, tree)) > pair.context_length:
        raise ConfigError(
            f"tree={config.tree.name}: {nodes} nodes per row at a depth of {max_depth(config)} are more than the "
            f"context of {pair.context_length} tokens; choose fewer"
        )
    tools = (clock, pair.tokenizer, pair.draft_tokenizer, known_output)
    context = DrafterContext(pair.target, pair.draft, align, *tools, tree)
    verifier: Verifier = plugin(config, "verifier")
    check_samples(config, verifier.samples)  # a plug-in may not have declared it
    drafter: Drafter = plugin(config, "drafter", context)
    check_siblings(config, drafter.siblings, verifier.judges)  # the same
    return RoundLoop(
        target=align(pair.target),
        drafter=drafter,
        verifier=verifier,
        scheduler=plugin(config, "scheduler", config.batch, build_batching(config).window),
        draft_length=build_draft_length(config),
        clock=clock,
        prefill_chunk=config.runner.prefill_chunk,
    )


@contextmanager
def preserving_model_state(pair: Pair) -> Iterator[None]:
    """Restore the models' execution and observers after the block, which decodes within a run of the same pair."""
    models = [model for model in (pair.target, pair.draft) if model is not None]
    before = [(model, model.execution, model.observers) for model in models]
    try:
        yield
    finally:
        for model, execution, observers in before:
            model.execution, model.observers = execution, observers


def build_draft_length(config: RunConfig) -> DraftLength:
    """The draft-length policy; without a drafter, the one that always chooses 0."""
    drafts = declared(config, "drafter").drafts
    policy: DraftLength = plugin(config, "draft_length") if drafts else FixedLength(gamma=0)
    return policy


def max_depth(config: RunConfig) -> int:
    """The longest draft, or the deepest tree, that the draft-length policy may choose."""
    drafts = declared(config, "drafter").drafts
    return int(getattr(config.draft_length, "max_gamma", config.gamma)) if drafts else 0


def most_nodes(config: RunConfig, tree: Tree) -> int:
    """Nodes of a row's draft, at most."""
    depth = max_depth(config)
    return tree.num_nodes(min(depth, tree.max_depth or depth)) if declared(config, "drafter").grows else depth


def build_tree(config: RunConfig) -> Tree:
    """The tree of a config, which is refused if it cannot be drafted at any depth of the run."""
    tree: Tree = plugin(config, "tree")
    tree.check(max_depth(config))
    return tree


def executions(config: RunConfig, pair: Pair) -> dict[str, Any]:
    """The name of each model's execution, and their preparation time in ``prepare_s``."""
    chosen = {"target": pair.target.execute(config.execution)}
    if pair.draft is not None:
        chosen["draft"] = pair.draft.execute(config.execution)
    return {
        **{role: execution.name for role, execution in chosen.items()},
        "prepare_s": sum(execution.prepare_s for execution in chosen.values()),
    }


def execution_notes(pair: Pair) -> list[str]:
    """Why a model runs eagerly although a faster execution supports its architecture."""
    models = {"target": pair.target, "draft": pair.draft}
    return [f"{role}: {m.execution.note}" for role, m in models.items() if m is not None and m.execution.note]


def build_batching(config: RunConfig) -> BatchingPolicy:
    """The batching policy of a config."""
    policy: BatchingPolicy = plugin(config, "batching")
    return policy


def build_arrivals(config: RunConfig) -> Arrivals:
    """The arrival process of a config."""
    arrivals: Arrivals = plugin(config, "arrivals")
    return arrivals
