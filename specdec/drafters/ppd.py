"""Parallel prompt decoding: trained prompt tokens after every candidate, so that the target drafts while it verifies.

In the verifying forward each candidate (and the row's last token) is followed by M prompt tokens of its own, in a tree.
After the last accepted candidate, the hidden state of the i-th prompt token gives, by the target's own head, the token
i places after the next one: the next round's candidates. There is no draft model and no further cache; the price is
(G + 1) M more tokens per verifying forward. Prompt tokens are never kept and never emitted.
Source: Chen et al. 2024, arXiv 2405.18628 (PPD); here one candidate per place, a chain, instead of a sparse tree.
Shape letters: B rows, T tokens fed, G candidates, M prompt tokens, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specdec.alignment.layout import padded
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHOSEN
from specdec.core.transfer import to_device
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
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

    reads_hidden = True
    siblings = CHOSEN  # prompt tokens after every candidate make a tree, although the candidates are a chain

    def __init__(self, context: DrafterContext, *, path: str | None, untrained: bool, num_tokens: int) -> None:
        if num_tokens < 1:
            raise ConfigError(f"drafter.num_tokens={num_tokens}: it must be at least 1")
        target = context.target
        num_tokens = read_settings("ppd", path, untrained, target, num_tokens=num_tokens)["num_tokens"]
        tokens = PromptTokens(num_tokens, target.module.get_input_embeddings())
        self.probes_MD = loaded(tokens, path, target).embeddings_MD
        self.max_length = num_tokens
        self.probe_ids = tuple(range(target.vocab_size, target.vocab_size + num_tokens))
        self._head = target.module.get_output_embeddings()
        self._device, self._context_length = context.device, target.context_length
        self._guesses: dict[int, list[int]] = {}  # of each row, M tokens after its last one
        self._asked: dict[int, int] = {}  # of the rows whose last draft held probes: its number of candidates

    @torch.inference_mode()
    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        """Read the guesses from the prompt tokens after the last kept token."""
        num_probes, answered, columns = len(self.probe_ids), [], []
        for b, row in enumerate(rows):
            candidates = self._asked.pop(row.index, None)
            self._guesses.pop(row.index, None)
            if not kept[b]:
                first = 0
            elif candidates is not None:
                first = 1 + candidates + (len(kept[b]) - 1) * num_probes
            else:
                continue  # a part of a prompt, or a round without a draft: no probes were fed
            answered.append(b)
            columns.append(list(range(first, first + num_probes)))
        if answered:
            places_B1 = to_device(answered, self._device)[:, None]
            hidden_BMD = hidden_BTD[places_B1, to_device(columns, self._device)]
            guesses = self._head(hidden_BMD).argmax(-1).tolist()
            self._guesses.update((rows[b].index, guess) for b, guess in zip(answered, guesses, strict=True))

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """The guesses as a chain, with prompt tokens after each of them."""
        tokens, parents, counts = [], [], []
        for row, gamma in zip(rows, gammas, strict=True):
            chain = self._guesses.get(row.index, [])[:gamma]
            nodes, links = list(chain), list(range(-1, len(chain) - 1))
            # A row's last token needs no guesses after it, and past the context there is no room for them.
            if row.num_remaining > 1 and row.length + len(chain) + len(self.probe_ids) <= self._context_length:
                self._asked[row.index] = len(chain)
                for end in range(-1, len(chain)):
                    links += [end, *range(len(nodes), len(nodes) + len(self.probe_ids) - 1)]
                    nodes += self.probe_ids
            tokens.append(nodes)
            parents.append(links)
            counts.append(len(chain))
        num_drafted = [len(nodes) for nodes in tokens]
        num_probes = [total - count for total, count in zip(num_drafted, counts, strict=True)]
        return Draft(padded(tokens, self._device), num_drafted, parents, num_probes=num_probes)

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            self._guesses.pop(row.index, None)
            self._asked.pop(row.index, None)
