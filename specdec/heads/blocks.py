"""Block drafters: all slots of a block in one forward, over keys and values made of the target's hidden states.

The hidden states of several of the target's layers are projected to one context vector per token, which gives every
layer of the head a key and a value by that layer's own products, at the token's position. They do not depend on the
block, so each is made once and stays: a row's cache only grows. A block is the row's last token (the anchor) and mask
tokens; its slots see all context before the anchor, and each other. The block's own keys are overwritten by the next.
Source: arXiv 2602.06036 (DFlash).
Shape letters: B rows, T tokens with new context, K slots of a block, M = B x T, H the target's hidden states, D the
head's width, E head size, S columns.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.slots import SlotStorage
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.memory import DrafterMemory
from specdec.drafters.spread import spread
from specdec.heads.layers import (
    HeadExecution,
    HeadModel,
    embeddings,
    layer_module,
    norm,
    product,
    projected,
    rotary,
    target_logits,
)
from specdec.heads.spec import SPECULATORS, HeadSpec
from specdec.heads.steps import UnreadStates
from specdec.heads.vocabulary import DraftVocabulary
from specdec.heads.weights import Head
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Call
from specdec.models.execution.fused import Layer, RMSNorm, folded_mask
from specdec.models.execution.linear import Linear
from specdec.models.kv import KVWriter


class BlockExecution(HeadExecution):
    """Layers some of which may see the context through a window, or no later slots of their block."""

    def __init__(self, spec: HeadSpec, layers: list[Layer], rotary: Any, finish: Any) -> None:
        super().__init__(layers, rotary, finish)
        self._kinds = list(zip(spec.windows, spec.causal, strict=True))
        self._from_anchor = spec.layout == SPECULATORS

    def masks(self, call: Call) -> list[Tensor]:
        """A window counts positions back from each slot; in `speculators`, from the anchor, which hides no slot."""
        mask_BTS, places_BT1 = call.mask(), call.positions()[..., None]
        columns_S = torch.arange(mask_BTS.shape[-1], device=mask_BTS.device)
        made = {}
        for window, causal in set(self._kinds):
            seen_BTS = mask_BTS & (columns_S <= places_BT1) if causal else mask_BTS
            if window is not None and self._from_anchor:
                seen_BTS = seen_BTS & (columns_S >= places_BT1[:, :1] - window)
            elif window is not None:
                seen_BTS = seen_BTS & ((columns_S - places_BT1).abs() < window)
            made[window, causal] = folded_mask(seen_BTS, self.layers[0].H // self.layers[0].K, self.levels)
        return [made[kind] for kind in self._kinds]


class BlockHead:
    """The layers of DFlash; DSpark has the same."""

    def __init__(self, head: Head, target: CausalLM) -> None:
        layers = [Layer(layer_module(head, n), n, None) for n in range(head.spec.num_layers)]
        self._execution = BlockExecution(
            head.spec, layers, rotary(head.spec, target.device), RMSNorm(norm(head, "norm"))
        )
        own_head = "lm_head.weight" in head.tensors
        self._head = product(head, "lm_head") if own_head else None
        self.model = HeadModel.of(head, target, self._execution, target.module.get_output_embeddings())
        table, scale = embeddings(head, target), float(head.spec.setting("input_embedding_scale", 1.0))
        self.embed = table if scale == 1 else lambda ids: table(ids) * scale
        self._scale = float(head.spec.setting("output_multiplier", head.spec.setting("logit_scale", 1.0)))
        self._cap = float(head.spec.setting("final_logit_softcapping") or 0.0)
        self._target, self._vocabulary = target, DraftVocabulary(head, target.vocab_size)
        self._project, self._norm_hidden = product(head, "fc"), RMSNorm(norm(head, "hidden_norm"))
        self._products = [_keys_and_values(layer) for layer in layers]

    def logits(self, states: Tensor) -> Tensor:
        """(..., N) of states (..., D): over the tokens that the head can draft."""
        logits: Tensor
        if self._head is None:
            logits = target_logits(self._target, states)
        else:
            logits = self._head(states.flatten(0, -2)).unflatten(0, states.shape[:-1])
        if self._scale != 1:
            logits = logits * self._scale
        return logits if self._cap <= 0 else torch.tanh(logits / self._cap) * self._cap

    def full(self, logits: Tensor) -> Tensor:
        """(..., V)."""
        return self._vocabulary.full(logits)

    def write_context(self, hidden_BTH: Tensor, positions_BT: Tensor, writer: KVWriter) -> None:
        """Keys and values of all layers for these tokens."""
        context_MD = self._norm_hidden(projected(self._project, hidden_BTH)).flatten(0, 1)
        cos_M1E, sin_M1E = self._execution.rotation(context_MD, positions_BT, writer.num_columns)
        for layer, made in zip(self._execution.layers, self._products, strict=True):
            both_BTJE = made(context_MD).view(*positions_BT.shape, 2 * layer.K, layer.E)
            keys_MJE = both_BTJE[:, :, : layer.K].flatten(0, 1)
            if layer.norm_k is not None:
                keys_MJE = layer.norm_k(keys_MJE)
            keys_MJE = torch.addcmul(keys_MJE * cos_M1E, torch.roll(keys_MJE, layer.E // 2, dims=-1), sin_M1E)
            writer.write(2 * layer.number, keys_MJE.unflatten(0, positions_BT.shape).transpose(1, 2))
            writer.write(2 * layer.number + 1, both_BTJE[:, :, layer.K :].transpose(1, 2))


def _keys_and_values(layer: Layer) -> Linear:
    """The part of a layer's product that makes keys and values."""
    first, bias_O = layer.H * layer.E, layer.qkv.bias_O
    return Linear(layer.qkv.weight_OI[first:], None if bias_O is None else bias_O[first:])


class BlockDrafter(Drafter):
    """Chains of up to a block, one forward of the head per round.

    Args:
        from_anchor: whether the anchor's slot predicts the first token; otherwise the first mask's does.
    """

    def __init__(self, context: DrafterContext, head: Head, from_anchor: bool) -> None:
        self.head, self.hidden_layers = BlockHead(head, context.target), head.hidden_layers
        self._device, self._block = context.device, head.spec.block_size
        self._first = 0 if from_anchor else 1
        self.max_length = self._block - self._first
        mask = head.spec.mask_token_id
        assert mask is not None
        self._masks = [mask] * (self._block - 1)
        self._slots = SlotStorage(self.head.model)
        self._unread = UnreadStates(context.device)
        self._lengths: dict[int, int] = {}  # tokens of each row whose keys are in its slot

    @property
    def memory(self) -> DrafterMemory:
        longest = self.head.model.context_length  # hidden states are read as they come, at once
        return DrafterMemory(
            self.head.model,
            InplaceAlignment,
            self._block,
            num_logits=self._block,
            by_products=True,
            hidden_chunk=longest,
        )

    def admit(self, rows: list[Sequence]) -> None:
        """Empty caches: the context is made of what ``observe_hidden`` brings."""
        self._slots.take([row.index for row in rows])
        self._unread.admit(rows)
        self._lengths.update((row.index, 0) for row in rows)

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        self._unread.observe(rows, hidden_BTD, kept)

    @torch.inference_mode()
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Make the context of new tokens, then one block per row that drafts, whole whatever its length."""
        places = [b for b, gamma in enumerate(gammas) if gamma]
        if not places:
            return chosen_chains([[] for _ in rows], self._device)
        drafting = [rows[b] for b in places]
        if len(rows) == len(self._lengths) and self._slots.has_gaps():
            self._slots.close_up()
        self._read(drafting)
        states_BKD = self._states(drafting)[:, self._first :]
        return spread(self._choose(drafting, [gammas[b] for b in places], states_BKD), places, len(rows))

    @abstractmethod
    def _choose(self, rows: list[Sequence], gammas: list[int], states_BGD: Tensor) -> Draft:
        """The rows' tokens by the states of the slots that predict them."""

    def release(self, rows: list[Sequence]) -> None:
        self._slots.free([row.index for row in rows])
        self._unread.release(rows)
        for row in rows:
            del self._lengths[row.index]

    def _read(self, rows: list[Sequence]) -> None:
        new = [(row, self._unread.take(row)) for row in rows if self._unread.knows(row)]
        if not new:
            return
        starts = [self._lengths[row.index] for row, _ in new]
        hidden_BTH = nn.utils.rnn.pad_sequence([part for _, part in new], batch_first=True)
        width = hidden_BTH.shape[1]
        writer = self._slots.kv.scatter([self._slots.slot[row.index] for row, _ in new], starts, width)
        positions_BT = to_device(starts, self._device)[:, None] + torch.arange(width, device=self._device)
        self.head.write_context(hidden_BTH, positions_BT, writer)
        self._lengths.update((row.index, start + len(part)) for (row, part), start in zip(new, starts, strict=True))

    def _states(self, rows: list[Sequence]) -> Tensor:
        """(B, K, D) of the rows' blocks."""
        starts = [self._lengths[row.index] for row in rows]
        ids_BK = to_device([[row.last_token, *self._masks] for row in rows], self._device)
        starts_B1 = to_device(starts, self._device)[:, None]
        writer = self._slots.kv.scatter([self._slots.slot[row.index] for row in rows], starts, self._block)
        columns_S = torch.arange(writer.num_columns, device=self._device)
        seen_BS = columns_S < starts_B1 + self._block
        positions_BK = starts_B1 + torch.arange(self._block, device=self._device)
        mask_BKS = seen_BS[:, None].expand(-1, self._block, -1)
        return self.head.model.forward(self.head.embed(ids_BK), positions_BK, mask_BKS, writer)
