"""Parallel prompt decoding: trained prompt tokens behind every candidate, so that the target drafts while it verifies.

In the forward that verifies, each candidate (and the row's last token) is followed by M prompt tokens of its own, in a
tree. Behind the candidate that turns out to be the last accepted one, the i-th prompt token's hidden state tells, by
the target's own head, the token i places behind the next one: the next round's candidates. No draft model, no cache of
its own; the price is (G + 1) M more tokens per verifying forward. Prompt tokens are never kept and never emitted.
Source: Chen et al. 2024, arXiv 2405.18628 (PPD); here one candidate per place, a chain, instead of a sparse tree.
Shape letters: B rows, T tokens fed, G candidates, M prompt tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from specdec.alignment.layout import padded
from specdec.config.drafter_weights import check_weights
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.trained import load_weights, placed, read_settings
from specdec.errors import ConfigError


class PromptTokens(nn.Module):
    """M embeddings; before training they are those of tokens spread over the vocabulary."""

    def __init__(self, num_tokens: int, embedding: nn.Embedding) -> None:
        super().__init__()
        places = torch.linspace(0, embedding.weight.shape[0] - 1, num_tokens + 2).long()[1:-1]
        # The table is called, not read: some scale what they hold, and an adapter may stand in front of it.
        self.embeddings_MD = nn.Parameter(embedding(places.to(embedding.weight.device)).detach().clone().float())


class PpdDrafter(Drafter):
    """Candidates that the target itself guessed in the round before."""

    reads_hidden = True

    def __init__(
        self, context: DrafterContext, *, path: str | None = None, untrained: bool = False, num_tokens: int = 3
    ) -> None:
        check_weights("ppd", path, untrained)
        if num_tokens < 1:
            raise ConfigError(f"drafter.num_tokens={num_tokens}: it must be at least 1")
        settings: dict[str, Any] = {"num_tokens": num_tokens}
        if path is not None:
            settings = read_settings(path, "ppd", context.target)
        target = context.target
        tokens = PromptTokens(settings["num_tokens"], target.module.get_input_embeddings())
        if path is not None:
            load_weights(path, tokens)
        self.probes_MD = placed(tokens, target).embeddings_MD
        self.max_length = settings["num_tokens"]
        self.probe_ids = tuple(range(target.vocab_size, target.vocab_size + settings["num_tokens"]))
        self._head = target.module.get_output_embeddings()
        self._device, self._context_length = context.device, target.context_length
        self._guesses: dict[int, list[int]] = {}  # M tokens behind each row's last one
        self._asked: dict[int, int] = {}  # of the rows whose last draft held probes: its number of candidates

    def admit(self, rows: list[Sequence]) -> None:
        """Nothing is known of a row before its prompt is read."""

    @torch.inference_mode()
    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        """Read the guesses off the prompt tokens behind the last token that stays."""
        num_probes, answered, columns = len(self.probe_ids), [], []
        for b, row in enumerate(rows):
            candidates = self._asked.pop(row.index, None)
            self._guesses.pop(row.index, None)
            if not kept[b]:
                first = 0
            elif candidates is not None:
                first = 1 + candidates + (len(kept[b]) - 1) * num_probes
            else:
                continue  # a part of a prompt, or a round without a draft: nothing was asked
            answered.append(b)
            columns.append(list(range(first, first + num_probes)))
        if answered:
            places_B1 = torch.tensor(answered, device=self._device)[:, None]
            hidden_BMD = hidden_BTD[places_B1, torch.tensor(columns, device=self._device)]
            guesses = self._head(hidden_BMD).argmax(-1).tolist()
            self._guesses.update((rows[b].index, guess) for b, guess in zip(answered, guesses, strict=True))

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """The guesses as a chain, and prompt tokens behind each of them."""
        tokens, parents, counts = [], [], []
        for row, gamma in zip(rows, gammas, strict=True):
            chain = self._guesses.get(row.index, [])[:gamma]
            nodes, links = list(chain), list(range(-1, len(chain) - 1))
            # The last token of a row needs no guesses behind it, and behind the context there is no room for them.
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

    def commit(self, rows: list[Sequence]) -> None:
        """Nothing was kept of what is dropped."""

    def release(self, rows: list[Sequence]) -> None:
        """Forget rows."""
        for row in rows:
            self._guesses.pop(row.index, None)
            self._asked.pop(row.index, None)
