"""EAGLE-style drafting: one decoder layer over the target's hidden states, each with the token that followed it.

Entry t of the draft's own cache is made of (token t + 1, the target's hidden state of token t); its output predicts the
target's next hidden state, from which the target's own head gives token t + 2. Past what the target has verified, the
draft continues from its own outputs, each node from its parent's. A commit drops the entries of drafted tokens; the
next round feeds the true ones.
Source: Li et al. 2024, arXiv 2401.15077 (EAGLE); trained on its own outputs as in arXiv 2503.01840 (EAGLE-3).
Shape letters: B rows, T entries fed, N nodes of a level, D hidden size, V vocabulary, X = V + D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from specdec.alignment.base import Alignment
from specdec.alignment.layout import padded
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.model_tree import last_fed
from specdec.drafters.trained import loaded, read_settings
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.trees.frontier import Workspace, by_place
from specdec.trees.growth import Growth


class EagleLayer(nn.Module):
    """A projection of (token embedding, hidden state) to the hidden size, one decoder layer, and a norm."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        theirs = target.config.get_text_config()
        shared = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
        shape = {name: value for name in shared if (value := getattr(theirs, name, None)) is not None}
        config: Any = LlamaConfig(
            vocab_size=1,  # the embeddings are the target's
            num_hidden_layers=1,
            max_position_embeddings=theirs.max_position_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            **shape,
        )
        config._attn_implementation = "sdpa"
        self.body = LlamaModel(config)
        self.body.embed_tokens = nn.Identity()  # type: ignore[assignment]
        self.project = nn.Linear(2 * theirs.hidden_size, theirs.hidden_size, bias=False)
        with torch.no_grad():
            self.project.weight[:, theirs.hidden_size :] += torch.eye(theirs.hidden_size)
        _copy_where_alike(self.body, target)

    def inputs(self, embeds_BTD: Tensor, hidden_BTD: Tensor) -> Tensor:
        """What the layer reads, (B, T, D)."""
        projected: Tensor = self.project(torch.cat([embeds_BTD, hidden_BTD], dim=-1))
        return projected


class EagleDrafter(Drafter):
    """Trees of any depth, one forward of the layer per level."""

    reads_hidden = True

    def __init__(self, context: DrafterContext, *, path: str | None, untrained: bool) -> None:
        read_settings("eagle", path, untrained, context.target)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = EagleLayer(context.target.module)
        self._layer = loaded(layer, path, context.target)
        self._model = as_causal(self._layer, context.target)
        self._model.execute("eager" if context.target.execution.name == "eager" else "auto")
        self._embed = context.target.module.get_input_embeddings()
        self._device = context.device
        self._tree = context.tree
        self._memory = Workspace()
        self.siblings, self.max_length = context.tree.siblings, context.tree.max_depth
        # Always inplace, whatever the target's alignment: other strategies may feed tokens again, and need their ids.
        self._cache: Alignment = create("alignment", "inplace", self._model, context.clock)
        self._unread: dict[int, list[Tensor]] = {}  # (T, D) hidden states that the cache has no entry of yet
        self._true: dict[int, int] = {}  # of the rows of this round: entries made of committed tokens alone

    def admit(self, rows: list[Sequence]) -> None:
        """Empty caches: the entries of the prompts are made of what ``observe_hidden`` brings."""
        self._cache.admit([row.index for row in rows], [[] for _ in rows])
        self._unread.update((row.index, []) for row in rows)

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        for b, row in enumerate(rows):
            first, last = kept[b][0], kept[b][-1]
            chain = last - first + 1 == len(kept[b])
            # A copy: a view would keep the logits in the same tensor alive for as long as nothing is drafted.
            stays = (
                hidden_BTD[b, first : last + 1].clone() if chain else hidden_BTD[b, to_device(kept[b], self._device)]
            )
            self._unread[row.index].append(stays)

    @torch.inference_mode()
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Feed the new hidden states, then continue from the layer's own outputs."""
        keys = [row.index for row in rows]
        counts = [gamma if row.length > 1 else 0 for row, gamma in zip(rows, gammas, strict=True)]
        if not any(counts):
            return chosen_chains([[] for _ in rows], self._device)
        new = [self._take(row) if count else None for row, count in zip(rows, counts, strict=True)]
        fed = [0 if part is None else len(part) for part in new]
        some = next(part for part in new if part is not None)
        hidden_BTD = nn.utils.rnn.pad_sequence([some[:0] if part is None else part for part in new], batch_first=True)
        # Entry t holds token t + 1: the tokens that go with the new hidden states are the row's last ones.
        tokens_BT = padded([row.tokens(row.length - n) for row, n in zip(rows, fed, strict=True)], self._device)
        growth = Growth(self._tree, rows, counts, fed, self._memory)
        outputs_BNX = last_fed(self._forward(keys, tokens_BT, hidden_BTD, fed), fed)[:, None]
        self._true = {key: self._cache.length(key) + n for key, n in zip(keys, fed, strict=True) if n}
        while (feed := growth.add(outputs_BNX[..., : self._model.vocab_size])) is not None:
            hidden_BND = by_place(outputs_BNX[..., self._model.vocab_size :], feed.places_BN)
            outputs_BNX = self._forward(keys, feed.tokens_BN, hidden_BND, feed.counts, feed.parents)
        return growth.draft()

    def commit(self, rows: list[Sequence]) -> None:
        fed = [row.index for row in rows if row.index in self._true]
        if fed:
            self._cache.commit(fed, [self._true[key] for key in fed])
        self._true = {}

    def release(self, rows: list[Sequence]) -> None:
        self._cache.release([row.index for row in rows])
        for row in rows:
            del self._unread[row.index]
            self._true.pop(row.index, None)

    def _take(self, row: Sequence) -> Tensor:
        unread = self._unread[row.index]
        self._unread[row.index] = []
        return torch.cat(unread)

    def _forward(
        self,
        keys: list[int],
        tokens_BT: Tensor,
        hidden_BTD: Tensor,
        fed: list[int],
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Feed entries; returns the logits and the hidden state (B, T, V + D) of each."""
        inputs_BTD = self._layer.inputs(self._embed(tokens_BT), hidden_BTD)
        with self._model.call_options("both"):
            return self._cache.forward(keys, inputs_BTD, fed, parents)


def as_causal(layer: EagleLayer, target: CausalLM) -> CausalLM:
    """The layer with the target's head, as a model whose cache an alignment can hold."""
    shell = LlamaForCausalLM(layer.body.config)
    shell.model = layer.body
    shell.lm_head = target.module.get_output_embeddings()
    config: Any = layer.body.config
    shape = (config.num_key_value_heads, config.head_dim)
    model = CausalLM(shell, kv_shapes=(shape, shape))  # it is fed embeddings: no id could be tried
    model.observers = target.observers
    model.vocab_size = target.vocab_size
    return model


def _copy_where_alike(body: Any, target: Any) -> None:
    """Copy the target's last layer and norm, where they are of the same kind and shape."""
    decoder: Any = getattr(target, target.base_model_prefix, None)
    if getattr(decoder, "layers", None) is None or getattr(decoder, "norm", None) is None:
        return
    for ours, theirs in ((body.layers[0], decoder.layers[-1]), (body.norm, decoder.norm)):
        state = theirs.state_dict()
        shapes = {name: value.shape for name, value in ours.state_dict().items()}
        if shapes == {name: value.shape for name, value in state.items()}:
            ours.load_state_dict(state)
