"""From names in a config to an engine. The classes themselves never see a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specdec.alignment.base import Alignment
from specdec.core.clock import Clock
from specdec.core.sequence import Sequence
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.fixed import FixedLength
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.engine.loop import RoundLoop
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM, ModelObserver
from specdec.models.pair import Pair
from specdec.models.vocabulary import check_ids
from specdec.registry import NOT_PARAMS, create, lookup
from specdec.run.serving.base import Arrivals
from specdec.schedulers.order import BatchingPolicy
from specdec.verifiers.base import Verifier


def build_engine(
    cfg: DictConfig, pair: Pair, clock: Clock, known_output: Callable[[Sequence], list[int] | None] | None = None
) -> RoundLoop:
    """The engine that a resolved run config describes, over the models of ``pair``.

    ``known_output`` is for a drafter that replays: what a row will say, where that is known.
    """
    observers: list[ModelObserver] = []  # one list for all models of this engine

    def align(model: CausalLM) -> Alignment:
        of_pair = model is pair.target or model is pair.draft
        model.execute(cfg.execution if of_pair or cfg.execution == "eager" else "auto")
        model.observers = observers
        alignment: Alignment = plugin(cfg, "alignment", model, clock)
        if cfg.debug.invariants:
            from specdec.alignment.checked import CheckedAlignment

            return CheckedAlignment(alignment, model, every=cfg.debug.invariants_every)
        return alignment

    check_ids("stop_tokens", cfg.stop_tokens or (), pair.target.vocab_size)
    context = DrafterContext(pair.target, pair.draft, align, clock, pair.tokenizer, pair.draft_tokenizer, known_output)
    verifier: Verifier = plugin(cfg, "verifier")
    if cfg.temperature > 0 and not verifier.samples:
        raise ConfigError(
            f"temperature={cfg.temperature}: verifier={cfg.verifier.name} decides greedy rows only; "
            "set verifier=rejection|block, or temperature=0"
        )
    drafter: Drafter = plugin(cfg, "drafter", context)
    if cfg.temperature > 0 and drafter.probe_ids and verifier.chains_only:
        raise ConfigError(
            f"drafter={cfg.drafter.name} drafts trees and verifier={cfg.verifier.name} samples along chains only: "
            "set verifier=naive, or temperature=0"
        )
    return RoundLoop(
        target=align(pair.target),
        drafter=drafter,
        verifier=verifier,
        scheduler=plugin(cfg, "scheduler", cfg.batch, build_batching(cfg).window),
        draft_length=build_draft_length(cfg),
        clock=clock,
        prefill_chunk=cfg.runner.prefill_chunk,
    )


@contextmanager
def preserving_model_state(pair: Pair) -> Iterator[None]:
    """Let the block decode within another run of the same pair, and restore execution and observers afterwards."""
    models = [model for model in (pair.target, pair.draft) if model is not None]
    before = [(model, model.execution, model.observers) for model in models]
    try:
        yield
    finally:
        for model, execution, observers in before:
            model.execution, model.observers = execution, observers


def build_draft_length(cfg: DictConfig) -> DraftLength:
    """The draft-length policy; a drafter that never drafts leaves it nothing to choose."""
    drafts = lookup("drafter", cfg.drafter.name).drafts
    policy: DraftLength = plugin(cfg, "draft_length") if drafts else FixedLength(gamma=0)
    return policy


def executions(cfg: DictConfig, pair: Pair) -> dict[str, Any]:
    """How the pair's models are executed, and the seconds that it took to prepare them for it."""
    chosen = {"target": pair.target.execute(cfg.execution)}
    if pair.draft is not None:
        chosen["draft"] = pair.draft.execute(cfg.execution)
    return {
        **{role: execution.name for role, execution in chosen.items()},
        "prepare_s": sum(execution.prepare_s for execution in chosen.values()),
    }


def execution_notes(pair: Pair) -> list[str]:
    """Why a model runs eagerly although a faster execution knows its architecture."""
    models = {"target": pair.target, "draft": pair.draft}
    return [f"{role}: {m.execution.note}" for role, m in models.items() if m is not None and m.execution.note]


def build_batching(cfg: DictConfig) -> BatchingPolicy:
    """The batching policy of a config."""
    policy: BatchingPolicy = plugin(cfg, "batching")
    return policy


def build_arrivals(cfg: DictConfig) -> Arrivals:
    """When prompts come."""
    arrivals: Arrivals = plugin(cfg, "arrivals")
    return arrivals


def plugin(cfg: DictConfig, group: str, *dependencies: Any) -> Any:
    """The plug-in chosen for ``group``, with its settings as keywords."""
    settings = OmegaConf.to_container(cfg[group], resolve=True)
    assert isinstance(settings, dict)
    params = {str(key): value for key, value in settings.items() if key not in NOT_PARAMS}
    return create(group, settings["name"], *dependencies, **params)
