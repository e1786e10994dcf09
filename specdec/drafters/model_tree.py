"""Drafts from a causal model: a chain or a tree, one forward per level for all rows and nodes together.

Shape letters: B rows, F rows that are fed, T tokens fed, N nodes of a level, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.layout import padded
from specdec.alignment.reader import Reader
from specdec.alignment.windowed import WindowedAlignment
from specdec.core.outputs import NORMED, Outputs
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.last_fed import last_fed
from specdec.drafters.memory import DrafterMemory
from specdec.drafters.selection import Selection, shapes_of
from specdec.drafters.spread import spread
from specdec.models.causal_lm import CausalLM
from specdec.selectors.base import Selector
from specdec.trees.base import Tree
from specdec.trees.frontier import Workspace
from specdec.trees.growth import Growth

LAG = 2  # tokens that the cache of a row that drafts lacks between rounds
MAX_TOGETHER = 8  # a row that lacks at most so many catches up in its first drafting step, others in a forward before


class ModelTreeDrafter(Drafter):
    """Drafts with one model that reads the same tokens as the target, with each row's sampling settings.

    Between rounds the cache of a row that drafts lacks the row's last two tokens, which the first step of a round feeds
    together. After full acceptance the last drafted token was never fed, so some rows lack two tokens and others one;
    cutting all of them back to two keeps the shapes of every round equal, for one more token in one forward. A row that
    does not draft costs nothing: its cache is left as it is, and catches up when the row drafts again.
    Source: Leviathan et al. 2023 (drafting); the lag is described for batches in arXiv 2510.22876, "KV cache".
    """

    def __init__(self, model: CausalLM, alignment: Alignment, tree: Tree, selector: Selector | None = None) -> None:
        self.siblings = tree.siblings
        self.max_length = tree.max_depth
        self._tree = tree
        self._selection = None if selector is None else Selection(selector)
        self.hidden_layers = (NORMED,) if selector is not None and selector.reads_states else ()
        self._memory = Workspace()
        self._device = model.device
        self._alignment = alignment
        self._reader = Reader(alignment)
        self._fed: list[_Fed] = []  # rows that drafted in this round: their caches hold parts of their drafts

    @property
    def memory(self) -> DrafterMemory:
        bounded = isinstance(self._alignment, WindowedAlignment)
        return DrafterMemory(self._alignment.model, type(self._alignment) if bounded else None)

    def prepare(self, batch: int) -> None:
        if self._selection:
            self._selection.selector.prepare(batch)

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        if self._selection:
            self._selection.observe_hidden(rows, hidden_BTD, kept)

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        self._reader.read(rows, [_settled(row, stop) for row, stop in zip(rows, stops, strict=True)])

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        drafting = [row for row, gamma in zip(rows, gammas, strict=True) if gamma]
        if not drafting:
            return chosen_chains([[] for _ in rows], self._device)
        late = [row for row in drafting if row.length - self._reader.length(row) > MAX_TOGETHER]
        if late:
            self._reader.read(late, [_settled(row, row.length) for row in late])
        # Leaving a few rows out of the forwards would leave idle slots between the others, and save nothing.
        fed = rows if 2 * len(drafting) > len(rows) and all(map(self._reader.admitted, rows)) else drafting
        new = [row for row in fed if not self._reader.admitted(row)]
        if new:
            self._reader.read(new, [0] * len(new))
        places = [b for b, gamma in enumerate(gammas) if gamma or fed is rows]
        depths = [gammas[b] for b in places]
        missing = [
            row.tokens(self._reader.length(row)) if depth else [] for row, depth in zip(fed, depths, strict=True)
        ]
        lacking = [len(tokens) for tokens in missing]
        choose = shapes_of(self._selection, self._tree, self.width, depths)
        growth = Growth(self._tree, fed, depths, lacking, self._memory, choose, self.reports_certainty)
        self._grow([row.index for row in fed], missing, growth)
        draft = spread(growth.draft(), places, len(rows))
        fed_nodes = growth.fed() if draft.parents else [None] * len(fed)
        parts = zip(fed, missing, places, fed_nodes, strict=True)
        self._fed = [
            _Fed(row, row.length, len(tokens), draft, place, nodes) for row, tokens, place, nodes in parts if tokens
        ]
        return draft

    def commit(self, rows: list[Sequence]) -> None:
        fed = [of_row for of_row in self._fed if not of_row.row.finished]
        if fed:
            self._alignment.commit([of_row.row.index for of_row in fed], [of_row.kept() for of_row in fed])
        self._fed = []

    def release(self, rows: list[Sequence]) -> None:
        self._reader.release(rows)
        if self._selection:
            self._selection.release(rows)

    def _grow(self, keys: list[int], missing: list[list[int]], growth: Growth) -> None:
        """Feed what each row's cache lacks, then its tree, but for the last level."""
        counts = [len(tokens) for tokens in missing]
        fed_BT, reads_states = padded(missing, self._device), bool(self.hidden_layers)
        with self._alignment.model.call_options(Outputs(hidden=self.hidden_layers)):
            logits_BTV = self._alignment.forward(keys, fed_BT, counts)
        if self._selection and reads_states:
            logits_BTV = self._selection.observe_draft(logits_BTV, counts, self._alignment.model.vocab_size)
        feed = growth.add(last_fed(logits_BTV, counts)[:, None])
        while feed is not None:
            feed = growth.add(self._alignment.forward(keys, feed.tokens_BN, feed.counts, feed.parents))


@dataclass(frozen=True, slots=True)
class _Fed:
    """What the cache of a row was fed in a round: tokens that it lacked, then nodes of the row's draft."""

    row: Sequence
    length: int  # of the row, before the round
    num_missing: int
    draft: Draft
    place: int  # of the row in the draft
    fed_nodes: list[int] | None  # the number of each node among the tokens fed; None: the draft is a chain

    def kept(self) -> Kept:
        """What a commit keeps: the row's tokens up to the lag. Of an accepted path it is found by its tokens."""
        settled = _settled(self.row, self.row.length)
        if self.fed_nodes is None:
            return settled
        accepted = self.row.tokens(self.length)[:-LAG]  # each of these has an accepted child, so it was fed
        path = self.draft.path_of(self.place, accepted)
        nodes = [*range(self.num_missing), *[self.fed_nodes[node] for node in path]]
        return nodes[: settled - (self.length - self.num_missing)]


def _settled(row: Sequence, stop: int) -> int:
    """How many of a row's first ``stop`` tokens its cache holds between rounds."""
    return max(min(stop, row.length - LAG), 0)
