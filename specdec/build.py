"""From names in a config to an engine. The classes themselves never see a config."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from specdec.alignment.base import Alignment
from specdec.clock import Clock
from specdec.drafters.context import DrafterContext
from specdec.engine import Engine
from specdec.model import CausalLM
from specdec.pair import Pair
from specdec.registry import create
from specdec.schedulers.order import BatchingPolicy

_NOT_PARAMS = ("name", "label")


def build_engine(cfg: DictConfig, pair: Pair, clock: Clock) -> Engine:
    """The engine that a resolved run config describes, over the models of ``pair``."""

    def align(model: CausalLM) -> Alignment:
        alignment: Alignment = plugin(cfg, "alignment", model, clock)
        return alignment

    context = DrafterContext(pair.target, pair.draft, align, clock)
    return Engine(
        target=align(pair.target),
        drafter=plugin(cfg, "drafter", context),
        verifier=plugin(cfg, "verifier"),
        scheduler=plugin(cfg, "scheduler", cfg.batch, build_batching(cfg).window),
        draft_length=plugin(cfg, "draft_length"),
        clock=clock,
    )


def build_batching(cfg: DictConfig) -> BatchingPolicy:
    """The batching policy of a config."""
    policy: BatchingPolicy = plugin(cfg, "batching")
    return policy


def plugin(cfg: DictConfig, group: str, *dependencies: Any) -> Any:
    """The plug-in chosen for ``group``, with its settings as keywords."""
    settings = OmegaConf.to_container(cfg[group], resolve=True)
    assert isinstance(settings, dict)
    params = {str(key): value for key, value in settings.items() if key not in _NOT_PARAMS}
    return create(group, settings["name"], *dependencies, **params)
