"""Several MTP layers, each of which drafts one token: layer k continues from what layer k - 1 made of every token.

Entry t of layer k is made of (token t + k, the state that layer k - 1 gave entry t; of layer 1, the target's hidden
state of token t), and its last one predicts the k-th drafted token. So all layers have entries for the same tokens, and
the last k - 1 of layer k hold drafted tokens. A round keeps the entries that are true in every layer, and feeds the
others again in the next.
Source: DeepSeek-V3, arXiv 2412.19437, section 2.2.
Shape letters: B rows, T entries fed, H the target's hidden states, D the layers' states, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specdec.alignment.base import Alignment
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.layout import padded
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHAIN
from specdec.core.transfer import to_device
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.last_fed import last_fed
from specdec.drafters.memory import DrafterMemory
from specdec.drafters.picker import Picker
from specdec.drafters.spread import spread
from specdec.errors import ConfigError
from specdec.heads.layers import STATES, HeadModel
from specdec.heads.steps import MAX_ENTRIES, UnreadStates
from specdec.heads.target_mtp import TargetMtp
from specdec.registry import create


class MtpLayersDrafter(Drafter):
    """Chains of up to a token per layer, one forward of every layer per round."""

    def __init__(self, context: DrafterContext, layers: list[TargetMtp]) -> None:
        if context.tree.siblings != CHAIN:
            raise ConfigError(f"drafter=mtp: the {len(layers)} MTP layers of this target draft chains: set tree=chain")
        self.layers, self.hidden_layers, self.max_length = layers, layers[0].hidden_layers, len(layers)
        self._device, self._target = context.device, context.target
        self._caches: list[Alignment] = [create("alignment", "inplace", layer.model, context.clock) for layer in layers]
        self._unread = UnreadStates(context.device)
        self._again: dict[int, Tensor] = {}  # (T, H) of the entries of each row that are fed once more
        self._true: dict[int, int] = {}  # of the rows of this round: entries that are true in every layer

    @property
    def memory(self) -> DrafterMemory:
        first = self.layers[0].model
        shapes = [shape for layer in self.layers for shape in layer.model.architecture.kv_shapes]
        weights = sum(layer.model.num_read_weights for layer in self.layers)
        output = first.module.get_output_embeddings()
        whole = HeadModel(self._target, first.execution, kv_shapes=tuple(shapes), num_weights=weights, output=output)
        return DrafterMemory(whole, InplaceAlignment, hidden_chunk=MAX_ENTRIES)

    def admit(self, rows: list[Sequence]) -> None:
        """Empty caches: the entries of the prompts are made of what ``observe_hidden`` brings."""
        for cache in self._caches:
            cache.admit([row.index for row in rows], [[] for _ in rows])
        self._unread.admit(rows)

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        self._unread.observe(rows, hidden_BTD, kept)

    @torch.inference_mode()
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Feed every layer the new entries of the rows that draft, whatever their lengths."""
        places = [b for b, gamma in enumerate(gammas) if gamma and rows[b].length > 1]
        if not places:
            return chosen_chains([[] for _ in rows], self._device)
        drafting = [rows[b] for b in places]
        hidden = self._read(drafting)
        for row, part in zip(drafting, hidden, strict=True):
            self._true[row.index] = max(row.length - len(self.layers), 0)
            num_again = row.length - 1 - self._true[row.index]
            self._again[row.index] = part[len(part) - num_again :]
        pick, tokens, lengths = Picker(drafting), list[Tensor](), [gammas[b] for b in places]
        features_BTD = nn.utils.rnn.pad_sequence(hidden, batch_first=True)
        counts = list(map(len, hidden))
        for number in range(len(self.layers)):
            features_BTD = self._fed(number, drafting, features_BTD, counts, tokens)
            if number < max(lengths):
                tokens.append(pick(self.layers[number].logits(last_fed(features_BTD, counts))))
        draft = Draft(torch.stack(tokens, dim=1), lengths, probs_BGV=pick.probs_BGV)
        return spread(draft, places, len(rows))

    def commit(self, rows: list[Sequence]) -> None:
        fed = [row.index for row in rows if row.index in self._true]
        for cache in self._caches if fed else ():
            cache.commit(fed, [self._true[key] for key in fed])
        self._true = {}

    def release(self, rows: list[Sequence]) -> None:
        for cache in self._caches:
            cache.release([row.index for row in rows])
        self._unread.release(rows)
        for row in rows:
            self._true.pop(row.index, None)
            self._again.pop(row.index, None)

    def _read(self, rows: list[Sequence]) -> list[Tensor]:
        """The hidden states (T, H) of each row's entries that are fed now; of very many, the first are fed before."""
        parts = [list[Tensor]([self._again[row.index]]) if row.index in self._again else [] for row in rows]
        for row, part in zip(rows, parts, strict=True):
            if self._unread.knows(row):
                part.append(self._unread.take(row))
        hidden, keys = [torch.cat(part) for part in parts], [row.index for row in rows]
        while max(map(len, hidden)) > MAX_ENTRIES + len(self.layers):
            fed = [min(max(len(part) - MAX_ENTRIES - len(self.layers), 0), MAX_ENTRIES) for part in hidden]
            features_BTD = nn.utils.rnn.pad_sequence(
                [part[:n] for part, n in zip(hidden, fed, strict=True)], batch_first=True
            )
            for number, cache in enumerate(self._caches):
                features_BTD = self._fed(number, rows, features_BTD, fed, [])
                cache.commit(keys, [cache.length(key) + n for key, n in zip(keys, fed, strict=True)])
            hidden = [part[n:] for part, n in zip(hidden, fed, strict=True)]
        return hidden

    def _fed(
        self, number: int, rows: list[Sequence], features_BTD: Tensor, counts: list[int], drafted: list[Tensor]
    ) -> Tensor:
        """The states (B, T, D) of a layer's entries: those after its cache, with the tokens that follow them."""
        cache, layer, keys = self._caches[number], self.layers[number], [row.index for row in rows]
        texts = [row.tokens(cache.length(row.index) + number + 1)[:n] for row, n in zip(rows, counts, strict=True)]
        tokens_BT = padded(texts, self._device, features_BTD.shape[1])
        columns_T, ends_B = torch.arange(tokens_BT.shape[1], device=self._device), to_device(counts, self._device)
        for place, token_B in enumerate(drafted):
            is_its_BT = columns_T == ends_B[:, None] - number + place
            tokens_BT = torch.where(is_its_BT, token_B[:, None], tokens_BT)
        with layer.model.call_options(STATES):
            return cache.forward(keys, layer.inputs(layer.embed(tokens_BT), features_BTD), counts)
