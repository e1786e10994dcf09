"""Drafting with a smaller model of the same vocabulary, whose KV cache is aligned like the target's."""

from __future__ import annotations

from specdec.drafters.context import DrafterContext
from specdec.drafters.model_tree import ModelTreeDrafter
from specdec.errors import ConfigError


class ModelDrafter(ModelTreeDrafter):
    """Drafts from ``context.draft``."""

    def __init__(self, context: DrafterContext) -> None:
        if context.draft is None:
            raise ConfigError(
                "drafter=model needs a draft model: set pair.draft, or choose drafter=prompt_lookup, trigram or self"
            )
        super().__init__(context.draft, context.align(context.draft), context.tree)
