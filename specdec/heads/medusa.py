"""Medusa: independent heads on the target's last hidden state; head k drafts the token k places after the next one.

The hidden state that a row's last token was chosen from is known before that token is fed, so a whole chain costs G
small layers and needs no cache. No head sees what the others draft. By default the draft is a chain of each head's
first token; with ``nodes``, the most probable part of the Cartesian product of the heads' top tokens, of one shape for
all rows.
Source: Cai et al. 2024, arXiv 2401.10774, Medusa-1 (a residual block and a projection per head).
Shape letters: B rows, T tokens fed, G heads, K tokens per head, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from specdec.alignment.layout import padded
from specdec.config.drafter_weights import check_trained_weights
from specdec.core.outputs import NORMED
from specdec.core.round import Draft
from specdec.core.sampling import penalized, seen_tokens, settings_of
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHOSEN
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.medusa import MedusaHeads
from specdec.drafters.memory import DrafterMemory
from specdec.drafters.picker import Picker, top_tokens
from specdec.drafters.ranked_trees import most_probable, read_accuracies
from specdec.drafters.trained import loaded, read_settings
from specdec.errors import ConfigError
from specdec.heads.folder import open_folder
from specdec.heads.shapes import num_medusa_heads
from specdec.heads.spec import SPECDEC, recognised
from specdec.heads.weights import Head, load_head


class MedusaDrafter(Drafter):
    """Chains of one token per head, or trees of several."""

    hidden_layers = (NORMED,)

    def __init__(
        self, context: DrafterContext, *, path: str | None, untrained: bool, num_heads: int, nodes: int | None
    ) -> None:
        if num_heads < 1:
            raise ConfigError(f"drafter.num_heads={num_heads}: it must be at least 1")
        if nodes is not None and nodes < 1:
            raise ConfigError(f"drafter.nodes={nodes}: it must be at least 1, or null for a chain")
        target = context.target
        check_trained_weights("medusa", path, untrained)
        settings: dict[str, Any]
        if path is not None and recognised(open_folder(path, allow_pickle=context.allow_pickle)).layout != SPECDEC:
            head = load_head("medusa", path, context)
            num_heads, settings = num_medusa_heads(head.spec), head.spec.config
            self._heads = published(head)
        else:
            settings = read_settings("medusa", path, untrained, target, num_heads=num_heads)
            num_heads = settings["num_heads"]
            self._heads = loaded(MedusaHeads(num_heads, target.module.get_output_embeddings()), path, target)
        self.max_length = num_heads
        if nodes is not None:
            self.siblings = CHOSEN
            accuracies = read_accuracies(settings, num_heads)
            self._trees = [most_probable(accuracies[:depth], nodes) for depth in range(num_heads + 1)]
            self._num_ranks = 1 + max(rank for tree in self._trees for rank in [0, *tree.ranks])
        self._device = context.device
        self._hidden: dict[int, Tensor] = {}  # (D) of each row's last token but one: what its last was chosen from

    @property
    def memory(self) -> DrafterMemory:
        return DrafterMemory(num_logits=self.max_length)

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        self._hidden.update((row.index, hidden_BTD[b, kept[b][-1]]) for b, row in enumerate(rows))

    @torch.inference_mode()
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """A row whose prompt is a single token drafts nothing in its first round: no hidden state is known of it."""
        counts = [gamma if row.index in self._hidden else 0 for row, gamma in zip(rows, gammas, strict=True)]
        if not any(counts):
            return chosen_chains([[] for _ in rows], self._device)
        known = next(iter(self._hidden.values()))
        hidden_BD = torch.stack([self._hidden.get(row.index, torch.zeros_like(known)) for row in rows])
        logits_BGV, pick = self._heads(hidden_BD), Picker(rows)
        if self.siblings == CHOSEN:
            return self._most_probable(rows, counts, logits_BGV)
        tokens = [pick(logits_BGV[:, g]) for g in range(max(counts))]
        return Draft(torch.stack(tokens, dim=1), counts, probs_BGV=pick.probs_BGV)

    def _most_probable(self, rows: list[Sequence], depths: list[int], logits_BGV: Tensor) -> Draft:
        """Trees of each head's top tokens, no deeper than ``depths[b]``."""
        settings = settings_of(rows)
        if settings is not None:
            logits_BGV = penalized(logits_BGV, settings, seen_tokens(rows, None, logits_BGV[:, :1]))
        trees = [self._trees[depth] for depth in depths]
        places = [[g * self._num_ranks + k for g, k in zip(tree.places, tree.ranks, strict=True)] for tree in trees]
        top_BX = top_tokens(logits_BGV, self._num_ranks).flatten(1)
        tokens_BN = top_BX.gather(1, padded(places, self._device))
        return Draft(tokens_BN, [tree.num_nodes for tree in trees], [tree.parents for tree in trees])

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            self._hidden.pop(row.index, None)


def published(head: Head) -> Callable[[Tensor], Tensor]:
    """Logits (..., G, V) of hidden states (..., D) by heads in the layout of their authors."""
    tensors, num_blocks = head.tensors, int(head.spec.config.get("medusa_num_layers", 1))

    def logits_of(hidden: Tensor) -> Tensor:
        logits = []
        for g in range(num_medusa_heads(head.spec)):
            states = hidden
            for block in range(num_blocks):
                name = f"{g}.{block}.linear"
                states = states + silu(linear(states, tensors[f"{name}.weight"], tensors[f"{name}.bias"]))
            logits.append(linear(states, tensors[f"{g}.{num_blocks}.weight"]))
        return torch.stack(logits, dim=-2)

    return logits_of
