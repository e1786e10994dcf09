"""The models of an Engine: wrapped and checked, never changed; and the draft length that their sizes suggest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from specdec.config.drafter_weights import UNTRAINED
from specdec.core.siblings import CHAIN
from specdec.errors import ConfigError, PairError
from specdec.models.causal_lm import CausalLM
from specdec.models.compatibility import supported
from specdec.registry import create, lookup, unknown
from specdec.trees.base import Tree

Model = Any
"""A causal language model of `transformers`, or a specdec.models.causal_lm.CausalLM."""

MAX_GAMMA = 8
EXPECTED_ACCEPTANCE = 0.8  # probability that a drafted token is accepted, if draft and target are of one family


def wrapped(model: Model, role: str) -> CausalLM:
    """The model as a CausalLM; its training mode is left as it was.

    Raises:
        PairError: it is no causal language model, or it cannot be run in aligned batches.
    """
    if isinstance(model, CausalLM):
        return model
    if not hasattr(model, "config") or not hasattr(model, "modules"):
        raise PairError(f"{role}: a {type(model).__name__} is no causal language model of transformers")
    with _modes_kept([model]):
        return supported(model, role)


def choose_drafter(draft: Model | str | None, tokenizer: Any, draft_tokenizer: Any) -> str:
    """The drafter's name in the registry.

    Raises:
        ConfigError: it needs trained weights, which a call cannot name, or a draft's tokenizer comes without its model
            or without the target's.
    """
    if draft_tokenizer is not None and (draft is None or isinstance(draft, str)):
        raise ConfigError("draft_tokenizer is given without a draft model that it belongs to: leave it out")
    if draft_tokenizer is not None and tokenizer is None:
        raise ConfigError("draft_tokenizer is given without tokenizer=, the target's: pass both")
    if not isinstance(draft, str):
        return "none" if draft is None else "model" if draft_tokenizer is None else "retokenize"
    if UNTRAINED in lookup("drafter", draft).config.__dataclass_fields__:  # type: ignore[attr-defined]
        raise ConfigError(
            f"draft={draft!r} drafts with trained weights, which run.py loads (drafter={draft} drafter.path=FOLDER): "
            "choose prompt_lookup, trigram or self, or pass a draft model"
        )
    return draft


def choose_tree(drafter: str, name: str, settings: Mapping[str, Any], depth: int) -> Tree:
    """The tree of a call's drafts.

    Raises:
        ConfigError: the drafter grows none, or a setting is unknown or out of range.
    """
    entry = lookup("tree", name)
    if name != CHAIN and not lookup("drafter", drafter).grows:
        raise ConfigError(f"tree={name}: drafter={drafter} grows no trees; pass a draft model, or draft='self'")
    for key in settings:
        if key not in entry.defaults:
            raise ConfigError(unknown(f"setting of tree={name}", key, entry.defaults))
    tree: Tree = create("tree", name, **settings)
    tree.check(depth)
    return tree


def check_device(target: CausalLM, draft: CausalLM | None) -> None:
    """Refuse a draft on another device than the target."""
    if draft is not None and draft.device != target.device:
        raise PairError(f"target is on {target.device} and draft on {draft.device}: move them to one device")


def check_unmoved(models: list[CausalLM]) -> None:
    """Refuse models that were moved to another device or number format after their caches were made."""
    for model in models:
        module = model.module
        if (module.device, module.dtype) != (model.device, model.dtype):
            raise PairError(
                f"a model has moved from {model.device}, {model.dtype} to {module.device}, {module.dtype} since this "
                "Engine was made: make a new one"
            )


def choose_gamma(target: CausalLM, draft: CausalLM | None) -> int:
    """The draft length of the best expected speed, if a forward's cost is proportional to the weights that it reads.

    With acceptance a and cost ratio c, gamma tokens give (1 - a^(gamma + 1)) / ((1 - a) (gamma c + 1)) times the speed.
    Source: Leviathan et al. 2023, arXiv 2211.17192, theorem 3.8. The choice depends on the models alone.
    """
    ratio = 0.0 if draft is None else draft.num_read_weights / target.num_read_weights
    return max(
        range(1, MAX_GAMMA + 1),
        key=lambda gamma: (1 - EXPECTED_ACCEPTANCE ** (gamma + 1)) / (gamma * ratio + 1),
    )


@contextmanager
def evaluating(*models: CausalLM | None) -> Iterator[None]:
    """Run the block in evaluation mode, and restore the mode of every module afterwards."""
    modules = [model.module for model in models if model is not None and model.module.training]
    with _modes_kept(modules):
        for module in modules:
            module.eval()
        yield


@contextmanager
def _modes_kept(modules: list[Any]) -> Iterator[None]:
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
