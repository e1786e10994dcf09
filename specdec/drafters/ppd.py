"""Parallel prompt decoding: trained prompt tokens after every candidate, so that the target drafts while it verifies.

In the verifying forward each candidate (and the row's last token) is followed by up to M prompt tokens of its own, in a
tree. After the last accepted candidate, the hidden state of the i-th prompt token gives, by the target's own head, the
token i places after the next one: the next round's candidates. There is no draft model and no further cache; the price
is the prompt tokens of every verifying forward. Prompt tokens are never kept and never emitted.
By default one candidate per place, a chain, with M prompt tokens after each; with ``nodes``, the dynamic sparse trees
of `specdec.drafters.sparse_trees`, where rows of one batch are in different states and have different trees.
Source: Chen et al. 2024, arXiv 2405.18628 (PPD).
Shape letters: B rows, A rows with new guesses, G nodes, M prompt tokens, K guesses per place, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specdec.alignment.forward_times import ForwardTimes
from specdec.alignment.layout import padded
from specdec.core.outputs import NORMED
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHOSEN
from specdec.core.transfer import to_device
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.memory import DrafterMemory
from specdec.drafters.picker import top_tokens
from specdec.drafters.ranked_trees import Accuracies, RankedTree, read_accuracies
from specdec.drafters.sparse_trees import SIZES, SparseTree, best_trees
from specdec.drafters.trained import loaded, read_settings
from specdec.errors import ConfigError


class PromptTokens(nn.Module):
    """M embeddings; before training they are those of tokens spread over the vocabulary."""

    def __init__(self, num_tokens: int, embedding: nn.Embedding) -> None:
        super().__init__()
        places = torch.linspace(0, embedding.weight.shape[0] - 1, num_tokens + 2).long()[1:-1]
        # The embedding is called, not read: some scale their weights, and an adapter may wrap it.
        self.embeddings_MD = nn.Parameter(embedding(places.to(embedding.weight.device)).detach().clone().float())


class PpdDrafter(Drafter):
    """Drafts the target's own guesses of the previous round."""

    hidden_layers = (NORMED,)
    siblings = CHOSEN  # prompt tokens after every candidate make a tree, even where the candidates are a chain

    def __init__(
        self,
        context: DrafterContext,
        *,
        path: str | None,
        untrained: bool,
        num_tokens: int,
        nodes: int | None,
        fit_nodes: bool,
    ) -> None:
        if num_tokens < 1:
            raise ConfigError(f"drafter.num_tokens={num_tokens}: it must be at least 1")
        if nodes is not None and nodes < 3:
            raise ConfigError(
                f"drafter.nodes={nodes}: a candidate and two prompt tokens need at least 3 (null: a chain)"
            )
        if fit_nodes and nodes is None:
            raise ConfigError("drafter.fit_nodes=true chooses among trees of up to drafter.nodes nodes: set that too")
        target = context.target
        settings = read_settings("ppd", path, untrained, target, num_tokens=num_tokens)
        num_tokens = settings["num_tokens"]
        tokens = PromptTokens(num_tokens, target.module.get_input_embeddings())
        self.probes_MD = loaded(tokens, path, target).embeddings_MD
        self.max_length = num_tokens
        self.probe_ids = tuple(range(target.vocab_size, target.vocab_size + num_tokens))
        self._head = target.module.get_output_embeddings()
        self._context, self._device = context, context.device
        self._accuracies = read_accuracies(settings, num_tokens)
        self._nodes, self._fit_nodes = nodes, fit_nodes
        self._trees = self._make_trees(nodes)  # by the number of places that are guessed, from 0 on
        self._guesses: dict[int, Tensor] = {}  # of each row: (M K) ids after its last token, by place and rank
        self._state: dict[int, int] = {}  # of the same rows: for how many places there are guesses
        self._asked: dict[int, _Nodes] = {}  # of the rows whose last draft held probes: that draft

    @property
    def memory(self) -> DrafterMemory:
        num_nodes = max(len(tree.parents) for tree in self._trees)
        return DrafterMemory(num_nodes=num_nodes, num_logits=len(self.probe_ids))

    def prepare(self, batch: int) -> None:
        """With ``fit_nodes``, take the trees with the most tokens per second: expected tokens over measured time."""
        if not self._fit_nodes or self._nodes is None:
            return
        budgets = [size for size in SIZES if 3 <= size < self._nodes] + [self._nodes]
        found = {budget: best_trees(self._accuracies, budget) for budget in budgets}
        parents = {
            budget: _Nodes.of(trees.by_state[-1], 1, len(self.probe_ids)).parents for budget, trees in found.items()
        }
        seconds = ForwardTimes(self._context.align(self._context.target), self._context.clock, batch).of(parents)
        best = max(budgets, key=lambda budget: (1 + found[budget].num_expected) / seconds[budget])
        self._trees = self._make_trees(best)
        print(f"note: trees of {best} nodes promise most tokens per second at batch size {batch}", flush=True)

    def _make_trees(self, budget: int | None) -> list[_Nodes]:
        accuracies = self._accuracies
        trees = _chains(accuracies) if budget is None else best_trees(accuracies, budget).by_state
        nothing = SparseTree(RankedTree([], [], [], []), [len(accuracies)])
        self._num_ranks = 1 + max(max(tree.candidates.ranks, default=0) for tree in trees)
        return [_Nodes.of(tree, self._num_ranks, len(accuracies)) for tree in (nothing, *trees)]

    @torch.inference_mode()
    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        """Read the guesses from the prompt tokens after the last kept token."""
        answered, columns = [], []
        for b, row in enumerate(rows):
            asked = self._asked.pop(row.index, None)
            self._guesses.pop(row.index, None)
            if not kept[b]:
                first, count = 0, len(self.probe_ids)
            elif asked is not None:
                first, count = 1 + asked.first_probe[kept[b][-1]], asked.num_probes[kept[b][-1]]
            else:
                continue  # a part of a prompt, or a round without a draft: no probes were fed
            answered.append(b)
            self._state[row.index] = count
            columns.append([*range(first, first + count), *[first] * (len(self.probe_ids) - count)])
        if answered:
            places_A1 = to_device(answered, self._device)[:, None]
            hidden_AMD = hidden_BTD[places_A1, to_device(columns, self._device)]
            guesses_AX = top_tokens(self._head(hidden_AMD), self._num_ranks).flatten(1)
            self._guesses.update((rows[b].index, guesses_AX[a]) for a, b in enumerate(answered))

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Each row's tree for its state, no deeper than its draft length."""
        trees, num_nodes = [], []
        for row, gamma in zip(rows, gammas, strict=True):
            tree = self._trees[min(self._state[row.index], gamma) if row.index in self._guesses else 0]
            # A row's last token needs no guesses after it, and past the context there is no room for them.
            room = row.length + tree.depth + len(self.probe_ids) <= self._context.target.context_length
            if asks := row.num_remaining > 1 and room:
                self._asked[row.index] = tree
            trees.append(tree)
            num_nodes.append(len(tree.parents) if asks else tree.num_candidates)
        unknown_X = torch.zeros(len(self.probe_ids) * self._num_ranks, dtype=torch.long, device=self._device)
        guesses_BX = torch.stack([self._guesses.get(row.index, unknown_X) for row in rows])
        probes_BM = to_device([self.probe_ids] * len(rows), self._device)
        sources = [tree.sources[:count] for tree, count in zip(trees, num_nodes, strict=True)]
        tokens_BG = torch.cat([guesses_BX, probes_BM], dim=1).gather(1, padded(sources, self._device))
        num_probes = [count - tree.num_candidates for tree, count in zip(trees, num_nodes, strict=True)]
        parents = [tree.parents[:count] for tree, count in zip(trees, num_nodes, strict=True)]
        return Draft(tokens_BG, num_nodes, parents, num_probes=num_probes)

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            for known in (self._guesses, self._state, self._asked):
                known.pop(row.index, None)


@dataclass(frozen=True, slots=True)
class _Nodes:
    """A sparse tree as it is fed: its candidates, then all prompt tokens."""

    parents: list[int]
    sources: list[
        int
    ]  # where each node's id stands in a row's guesses, by place and rank, and the M probe ids after them
    num_candidates: int
    depth: int  # of the deepest candidate
    first_probe: list[int]  # of the root, then of each candidate: the node of its first prompt token
    num_probes: list[int]

    @classmethod
    def of(cls, tree: SparseTree, num_ranks: int, num_places: int) -> _Nodes:
        candidates = tree.candidates
        parents = list(candidates.parents)
        sources = [place * num_ranks + rank for place, rank in zip(candidates.places, candidates.ranks, strict=True)]
        first_probe = []
        for end, count in enumerate(tree.num_probes):
            first_probe.append(len(parents))
            parents += [end - 1, *range(len(parents), len(parents) + count - 1)]
            sources += range(num_places * num_ranks, num_places * num_ranks + count)
        depth = 1 + max(candidates.places, default=-1)
        return cls(parents, sources, candidates.num_nodes, depth, first_probe, tree.num_probes)


def _chains(accuracies: Accuracies) -> list[SparseTree]:
    """The first guess of every place, and all prompt tokens after each."""
    places = range(len(accuracies))
    chains = [RankedTree([*range(-1, d)], [*range(d + 1)], [0] * (d + 1), [0.0] * (d + 1)) for d in places]
    return [SparseTree(chain, [len(accuracies)] * (chain.num_nodes + 1)) for chain in chains]
