"""Drafts from a causal model: a chain or a tree, one forward per level for all rows and nodes together.

Shape letters: B rows, F rows that are fed, T tokens fed, N nodes of a level, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from specdec.alignment.layout import padded
from specdec.core.outputs import LOGITS, NORMED, Outputs
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.draft_cache import DraftCache, FedRow
from specdec.drafters.last_fed import last_fed
from specdec.drafters.memory import DrafterMemory
from specdec.drafters.selection import Selection, shapes_of
from specdec.drafters.spread import spread
from specdec.models.causal_lm import CausalLM
from specdec.models.sparse_view import SparseView
from specdec.selectors.base import Selector
from specdec.trees.base import Tree
from specdec.trees.frontier import Workspace
from specdec.trees.growth import Growth


class ModelTreeDrafter(Drafter):
    """Drafts with one model that reads the same tokens as the target, with each row's sampling settings."""

    def __init__(self, model: CausalLM, cache: DraftCache, tree: Tree, selector: Selector | None = None) -> None:
        self.siblings = tree.siblings
        self.max_length = tree.max_depth
        self._tree = tree
        self._selection = None if selector is None else Selection(selector)
        self.hidden_layers = (NORMED,) if selector is not None and selector.reads_states else ()
        self._memory = Workspace()
        self._device = model.device
        self._model = model
        self._cache = cache

    @property
    def memory(self) -> DrafterMemory:
        return self._cache.memory

    def prepare(self, batch: int) -> None:
        if self._selection:
            self._selection.selector.prepare(batch)

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        if self._selection:
            self._selection.observe_hidden(rows, hidden_BTD, kept)

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        self._cache.read(rows, stops)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        drafting = [row for row, gamma in zip(rows, gammas, strict=True) if gamma]
        if not drafting:
            return chosen_chains([[] for _ in rows], self._device)
        fed = self._cache.ready(rows, drafting)
        places = [b for b, gamma in enumerate(gammas) if gamma or fed is rows]
        depths = [gammas[b] for b in places]
        missing = [self._cache.missing(row) if depth else [] for row, depth in zip(fed, depths, strict=True)]
        lacking = [len(tokens) for tokens in missing]
        choose = shapes_of(self._selection, self._tree, self.width, depths)
        growth = Growth(self._tree, fed, depths, lacking, self._memory, choose, self.reports_certainty)
        depth = min(max(depths), self.max_length or max(depths))
        view = self._cache.view(max(lacking) + self._tree.num_fed(depth))
        self._grow([row.index for row in fed], missing, growth, view)
        draft = spread(growth.draft(), places, len(rows))
        fed_nodes = growth.fed() if draft.parents else [None] * len(fed)
        parts = zip(fed, missing, places, fed_nodes, strict=True)
        self._cache.drafted(
            [FedRow(row, row.length, len(tokens), draft, place, nodes) for row, tokens, place, nodes in parts if tokens]
        )
        return draft

    def commit(self, rows: list[Sequence]) -> None:
        self._cache.commit()

    def release(self, rows: list[Sequence]) -> None:
        self._cache.release(rows)
        if self._selection:
            self._selection.release(rows)

    def _grow(self, keys: list[int], missing: list[list[int]], growth: Growth, view: SparseView | None) -> None:
        """Feed what each row's cache lacks, then its tree, but for the last level."""
        counts = [len(tokens) for tokens in missing]
        fed_BT, reads_states, alignment = padded(missing, self._device), bool(self.hidden_layers), self._cache.alignment
        with self._model.call_options(Outputs(hidden=self.hidden_layers), view=view):
            logits_BTV = alignment.forward(keys, fed_BT, counts)
        if self._selection and reads_states:
            logits_BTV = self._selection.observe_draft(logits_BTV, counts, self._model.vocab_size)
        feed = growth.add(last_fed(logits_BTV, counts)[:, None])
        with self._model.call_options(LOGITS, view=view):
            while feed is not None:
                feed = growth.add(alignment.forward(keys, feed.tokens_BN, feed.counts, feed.parents))
