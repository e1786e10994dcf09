"""Drafting with a smaller model of the same vocabulary, whose KV cache is aligned like the target's."""

from __future__ import annotations

from specdec.alignment.windowed import windowed
from specdec.config.windows import check_sizes
from specdec.drafters.context import DrafterContext
from specdec.drafters.draft_cache import OwnCache, check_windowed
from specdec.drafters.model_tree import ModelTreeDrafter
from specdec.errors import ConfigError


class ModelDrafter(ModelTreeDrafter):
    """Drafts from ``context.draft``; with a window it sees a row's first ``sinks`` and last ``window`` tokens."""

    def __init__(self, context: DrafterContext, *, window: int | None = None, sinks: int = 4) -> None:
        check_sizes(window, sinks)
        if context.draft is None:
            raise ConfigError(
                "drafter=model needs a draft model: set pair.draft, or choose drafter=prompt_lookup, trigram or self"
            )
        alignment = context.align(context.draft)
        if window is not None:
            check_windowed(context.draft, "draft")
            alignment = windowed(window, sinks)(context.draft, context.clock)
        super().__init__(context.draft, OwnCache(alignment), context.tree, context.selector)
