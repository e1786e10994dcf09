"""LongSpec: drafts for long contexts with an own cache of a few hundred tokens.

Every round makes the target's last keys and values of the tokens that it has just read, and the own ones of the tokens
that were committed; then the draft grows from the row's last token, level by level. During a draft nothing is known of
the target's keys for the last token and the drafted ones: the head is trained for that.
Source: Yang et al. 2025, arXiv 2502.17421 (LongSpec). Its drafts at temperature 0 are a tree of a beam; its released
rule for sampled rows is not lossless. Here the draft's law is handed over, and any verifier judges it.
Shape letters: B rows, T tokens, N nodes of a level, D hidden size, S columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specdec.alignment.inplace import InplaceAlignment
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.transfer import to_device
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.memory import DrafterMemory
from specdec.drafters.selection import Selection, shapes_of
from specdec.drafters.spread import spread
from specdec.drafters.trained import loaded, read_settings
from specdec.errors import ConfigError
from specdec.heads.last_layer import LastLayer
from specdec.heads.layers import HeadModel, target_logits
from specdec.heads.longspec_cache import BothCaches, LongSpecCache, LongSpecRound
from specdec.heads.longspec_layer import LongSpecLayer
from specdec.heads.steps import UnreadStates
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Call, Execution
from specdec.models.kv import GROWTH_COLUMNS
from specdec.trees.frontier import Workspace
from specdec.trees.growth import Growth

WINDOW = 512  # tokens that the self-attention of an untrained layer sees, if nothing is said


class LongSpecExecution(Execution):
    """The layer, over the columns of a `BothCaches`."""

    name = "head"

    def __init__(self, layer: LongSpecLayer, last: LastLayer) -> None:
        self._layer, self._last = layer, last

    def run(self, call: Call) -> Tensor:
        """States (B, T, D) for embeddings (B, T, D)."""
        writer = call.writer
        assert isinstance(writer, BothCaches)
        own_BTP, read_BTS = call.mask().split([writer.own.num_columns, writer.target[0].shape[2]], dim=-1)
        rotation = self._last.rotation(call.tokens_BT, call.positions())

        def write(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return writer.write(0, keys), writer.write(1, values)

        return self._layer(call.tokens_BT, rotation, own_BTP, read_BTS, writer.target, write)  # type: ignore[no-any-return]


class LongSpecDrafter(Drafter):
    """Chains and trees, one forward of the layer per level."""

    def __init__(self, context: DrafterContext, *, path: str | None, untrained: bool, window: int | None) -> None:
        target = context.target
        if path is not None and window is not None:
            raise ConfigError(
                f"drafter.window={window} with drafter.path={path}: the head has the window that it was trained with; "
                "leave drafter.window out"
            )
        settings = read_settings("longspec", path, untrained, target, window=WINDOW if window is None else window)
        window = checked_window(
            settings.get("window"), "drafter.window" if path is None else f"drafter.path={path}: window"
        )
        self._last = LastLayer(target.module, "drafter=longspec")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = LongSpecLayer(target.module, self._last, window)
        self._layer = loaded(layer, path, target)
        self._model = _model(self._layer, self._last, target)
        self._target, self._embed = target, target.module.get_input_embeddings()
        self.hidden_layers = (target.num_layers - 1,)
        self.siblings, self.max_length = context.tree.siblings, context.tree.max_depth
        self._device, self._tree, self._memory = context.device, context.tree, Workspace()
        self._selection = None if context.selector is None else Selection(context.selector)
        self._cache, self._unread = LongSpecCache(self._model, window), UnreadStates(context.device)

    @property
    def memory(self) -> DrafterMemory:
        own_columns = self._layer.window + GROWTH_COLUMNS
        return DrafterMemory(
            self._model,
            InplaceAlignment,
            hidden_chunk=self._model.context_length,  # hidden states are read as they come, at once
            by_products=True,
            row_bytes=own_columns * self._model.architecture.token_bytes,
        )

    def prepare(self, batch: int) -> None:
        if self._selection:
            self._selection.selector.prepare(batch)

    def admit(self, rows: list[Sequence]) -> None:
        self._cache.admit([row.index for row in rows])
        self._unread.admit(rows)

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        self._unread.observe(rows, hidden_BTD, kept)

    @torch.inference_mode()
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """A row of a single token drafts nothing: the target has no keys for it yet."""
        places = [b for b, (row, gamma) in enumerate(zip(rows, gammas, strict=True)) if gamma and row.length > 1]
        if not places:
            return chosen_chains([[] for _ in rows], self._device)
        drafting = [rows[b] for b in places]
        if len(rows) == len(self._cache):
            self._cache.close_up()
        self._read(drafting)
        self._settle(drafting)
        return spread(self._grown(drafting, [gammas[b] for b in places]), places, len(rows))

    def release(self, rows: list[Sequence]) -> None:
        self._cache.release([row.index for row in rows])
        self._unread.release(rows)
        if self._selection:
            self._selection.release(rows)

    def _read(self, rows: list[Sequence]) -> None:
        """Make the target's keys and values of the tokens whose hidden states have come."""
        new = [(row.index, self._unread.take(row)) for row in rows if self._unread.knows(row)]
        if not new:
            return
        keys, counts = [key for key, _ in new], [len(part) for _, part in new]
        hidden_BTD = nn.utils.rnn.pad_sequence([part for _, part in new], batch_first=True)
        starts_B = to_device([self._cache.read_up_to(key) for key in keys], self._device)
        positions_BT = starts_B[:, None] + torch.arange(hidden_BTD.shape[1], device=self._device)
        self._cache.add(keys, counts, *self._last.keys_and_values(hidden_BTD, positions_BT))

    def _settle(self, rows: list[Sequence]) -> None:
        """Make own keys and values of the last tokens but one, of all rows as many as the row that lacks most needs.

        What a row has already is made again, the same; a short row repeats its first token.
        """
        keys, lengths = [row.index for row in rows], [row.length - 1 for row in rows]
        lacking = (length - self._cache.settled_up_to(key) for key, length in zip(keys, lengths, strict=True))
        count = min(max(lacking), self._layer.window)
        if count < 1:
            return
        tokens = [row.tokens(max(length - count, 0))[:-1] for row, length in zip(rows, lengths, strict=True)]
        tokens_BT = to_device([part[:1] * (count - len(part)) + part for part in tokens], self._device, torch.long)
        first_B1 = to_device(lengths, self._device)[:, None] - count
        positions_BT = (first_B1 + torch.arange(count, device=self._device)).clamp(min=0)
        embeds_BTD = self._embed(tokens_BT)
        rotation = self._last.rotation(embeds_BTD, positions_BT)
        own = self._layer.keys_and_values(self._layer.own_norm(embeds_BTD), rotation)
        self._cache.settle(keys, lengths, positions_BT, own)

    def _grown(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        choose = shapes_of(self._selection, self._tree, self.width, gammas)
        once = [1] * len(rows)
        growth = Growth(self._tree, rows, gammas, once, self._memory, choose, self.reports_certainty)
        caches = self._cache.round([row.index for row in rows])
        tokens_B1 = to_device([[row.last_token] for row in rows], self._device, torch.long)
        feed, level = growth.add(self._logits(caches, 0, tokens_B1, once)), 1
        while feed is not None:
            feed = growth.add(self._logits(caches, level, feed.tokens_BN, feed.counts, feed.parents))
            level += 1
        return growth.draft()

    def _logits(
        self,
        caches: LongSpecRound,
        level: int,
        tokens_BN: Tensor,
        counts: list[int],
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """(B, N, V) after the nodes of a level."""
        writer, mask_BNX = caches.feed(level, tokens_BN.shape[1], counts, parents)
        positions_BN = (caches.roots_B1 + level).expand(-1, tokens_BN.shape[1])
        states_BND = self._model.forward(self._embed(tokens_BN), positions_BN, mask_BNX, writer)
        return target_logits(self._target, states_BND)


def checked_window(window: object, setting: str) -> int:
    """A number of tokens.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ConfigError(f"{setting}={window}: give a number of tokens from 1 on")
    return window


def _model(layer: LongSpecLayer, last: LastLayer, target: CausalLM) -> HeadModel:
    """The layer as a model with one layer's keys and values: those of the target's last one, or its own."""
    return HeadModel(
        target,
        LongSpecExecution(layer, last),
        kv_shapes=((last.num_keys, last.head_dim),) * 2,
        num_weights=sum(weight.numel() for weight in layer.parameters()),
        output=target.module.get_output_embeddings(),
        num_heads=last.num_heads,
    )
