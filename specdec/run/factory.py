"""Builds the parts of a run from its config. The classes themselves never get a config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from specdec.adaptation.build import adapting, with_own_draft
from specdec.alignment.base import Alignment
from specdec.budgets.base import Budget
from specdec.budgets.none import NoBudget
from specdec.config.adaptation import adapts
from specdec.config.budgets import check_probes
from specdec.config.checks import check_samples, check_shared_prefix
from specdec.config.judging import NO_SELECTOR, check_siblings
from specdec.config.plugins import declared, plugin
from specdec.config.reference import sampling_params
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
from specdec.selectors.base import Selector, SelectorContext
from specdec.trees.base import Tree
from specdec.verifiers.base import Verifier


def build_engine(
    config: RunConfig,
    pair: Pair,
    clock: Clock,
    known_output: KnownOutput | None = None,
    first_tokens: list[int] | None = None,
) -> RoundLoop:
    """The engine that a resolved run config describes, over the models of ``pair``.

    Args:
        known_output: for drafters that replay: a row's reference output, if it is known.
        first_tokens: of every row, with ``data.shared_prefix``.
    """
    observers: list[ModelObserver] = []  # one list for all models of this engine, those of the drafter's own too
    pair.target.observers = observers
    reads_text = declared(config, "drafter").by_text

    def align(model: CausalLM) -> Alignment:
        of_pair = model is pair.target or model is pair.draft
        execution = config.execution if of_pair or config.execution == "eager" else "auto"
        model.execute(execution, config.numerics)
        model.observers = observers
        alignment: Alignment = plugin(config, "alignment", model, clock)
        if model.recurrent and not alignment.restores_states:
            raise ConfigError(
                f"alignment={config.alignment.name} does not restore the recurrent states of a "
                f"{type(model.module).__name__}: set alignment=inplace"
            )
        # Tokens of another tokenizer's prompts need not begin with those of the text: they share what is found.
        if config.data.shared_prefix is not None and first_tokens and (model is pair.target or not reads_text):
            alignment.declare(first_tokens)
        if config.debug.invariants:
            from specdec.alignment.checked import CheckedAlignment

            return CheckedAlignment(alignment, model, every=config.debug.invariants_every)
        return alignment

    check_ids("stop_tokens", config.stop_tokens or (), pair.target.vocab_size)
    tree = build_tree(config)
    if (nodes := most_nodes(config, tree)) > pair.context_length:
        source = f"tree={config.tree.name}" if declared(config, "drafter").grows else f"drafter={config.drafter.name}"
        raise ConfigError(
            f"{source}: {nodes} nodes per row at a depth of {max_depth(config)} are more than the context of "
            f"{pair.context_length} tokens; choose fewer"
        )
    tools = (clock, pair.tokenizer, pair.draft_tokenizer, known_output)
    selector = build_selector(config, pair, clock)
    target = align(pair.target)  # first: heads are executed as their target is
    context = DrafterContext(pair.target, pair.draft, align, *tools, tree, selector, config.pair.allow_pickle)
    verifier: Verifier = plugin(config, "verifier")
    check_samples(config, verifier.samples)  # a plug-in may not have declared it
    if adapts(config):
        context = with_own_draft(context)
    drafter: Drafter = plugin(config, "drafter", context)
    check_siblings(config, drafter.siblings, verifier.judges)  # the same
    check_probes(config, drafter.probe_ids)
    check_shared_prefix(config, bool(drafter.hidden_layers), drafter.reads_cache)
    if adapts(config):
        drafter = adapting(drafter, context, declared(config, "drafter").learner, **asdict(config.adapt))
    return RoundLoop(
        target=target,
        drafter=drafter,
        verifier=verifier,
        scheduler=plugin(config, "scheduler", config.batch, build_batching(config).window),
        draft_length=build_draft_length(config),
        clock=clock,
        prefill_chunk=config.runner.prefill_chunk,
        budget=build_budget(config),
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


def build_budget(config: RunConfig) -> Budget:
    """The verify budget; without a drafter there is nothing to cut."""
    budget: Budget = plugin(config, "budget") if declared(config, "drafter").drafts else NoBudget()
    return budget


def max_depth(config: RunConfig) -> int:
    """The longest draft, or the deepest tree, that the draft-length policy may choose."""
    drafts = declared(config, "drafter").drafts
    return int(getattr(config.draft_length, "max_gamma", config.gamma)) if drafts else 0


def most_nodes(config: RunConfig, tree: Tree) -> int:
    """Nodes of a row's draft, at most; of a drafter that arranges its guesses itself, by its own settings."""
    depth = max_depth(config)
    if declared(config, "drafter").grows:
        return tree.num_nodes(min(depth, tree.max_depth or depth))
    nodes = getattr(config.drafter, "nodes", None)
    return int(depth * getattr(config.drafter, "matches", 1) if nodes is None else nodes) if depth else 0


def build_tree(config: RunConfig) -> Tree:
    """The tree of a config, which is refused if it cannot be drafted at any depth of the run."""
    tree: Tree = plugin(config, "tree")
    tree.check(max_depth(config))
    return tree if config.selector.name == NO_SELECTOR else tree.largest()


def build_selector(config: RunConfig, pair: Pair, clock: Clock) -> Selector | None:
    """The selector of a config; None if all rows have the tree's own shape."""
    if config.selector.name == NO_SELECTOR:
        return None
    context = SelectorContext(
        num_paths=config.tree.num_paths,
        trunk=getattr(config.tree, "trunk", 0),
        depth=max_depth(config),
        verifier=config.verifier.name,
        params=sampling_params(config),
        pair=[pair.fingerprint, pair.draft_fingerprint or ""],
        target=pair.target,
        draft=pair.draft if declared(config, "drafter").name == "model" else None,
        clock=clock,
    )
    selector: Selector = plugin(config, "selector", context)
    return selector


def executions(config: RunConfig, pair: Pair) -> dict[str, Any]:
    """The name of each model's execution, and their preparation time in ``prepare_s``."""
    chosen = {"target": pair.target.execute(config.execution, config.numerics)}
    if pair.draft is not None:
        chosen["draft"] = pair.draft.execute(config.execution, config.numerics)
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
