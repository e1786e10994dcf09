"""A forward as a list of tokens, each attending to its own row's columns in order of position.

What a token's numbers depend on is made the same in every batch: tokens of all rows form one list, padded to a size of
the model's class (specdec.models.numerics); keys and values are read in the order of their positions, wherever an
alignment keeps them, padded to a width of the class; a tree is read path by path. Padding is fed, but never stored.

Shape letters: B rows, T tokens per row, M tokens of the list, N sequences (a row, or a path of its tree), L queries and
W columns of a sequence, H query heads, K key heads, G = H / K, E head size, S columns of the storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from specdec.core.transfer import to_device
from specdec.errors import ContractError
from specdec.models.execution.base import Call, Chains
from specdec.models.numerics.classes import Classes

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sequence:
    """A row, or a path of its tree: the columns that its last query sees, in order, and its queries."""

    row: int
    columns: Ints | None  # None: 0, 1, 2, ...
    queries: Ints  # places in the list of tokens
    seen: Ints  # how many of the columns each query sees


class Packed:
    """Some tokens of a call; the KVWriter of a forward over them.

    ``index_M`` are places among the call's B x T tokens, padded to a size of the class by repeating the first.
    """

    shared = None

    def __init__(self, call: Call, rows_M: Ints, steps_M: Ints, seen_BTS: NDArray[np.bool_] | None, classes: Classes):
        self._device = call.tokens_BT.device
        self.place = call.writer.place
        self._storage = self.place.storage
        self.num_tokens = len(rows_M)
        self.rows_M, self.steps_M = rows_M, steps_M
        slots_B, starts_B = self.place.slots_B.numpy(), self.place.starts_B.numpy()
        padding = np.zeros(classes.num_rows(self.num_tokens) - self.num_tokens, np.int64)
        flat_M = rows_M * call.tokens_BT.shape[1] + steps_M
        self.index_M = to_device(np.concatenate([flat_M, flat_M[padding]]), self._device)
        columns_M = starts_B[rows_M] + steps_M
        if seen_BTS is None:
            sequences = _chains(rows_M, columns_M)
        else:
            sequences = [s for b in np.unique(rows_M) for s in _sequences(b, rows_M, steps_M, columns_M, seen_BTS)]
        self._plan_queries(sequences, classes, len(padding))
        self.num_columns = max(tile.width for tile in self._tiles)
        self._storage.reserve(self.num_columns)
        self._plan_reads(sequences, slots_B)
        self._written_2M = to_device(np.stack([slots_B[rows_M], columns_M]), self._device)
        self._places: dict[int, tuple[Tensor, Tensor | None]] = {}  # of vectors to write and to read, by heads
        self._masks: dict[tuple[int, int], tuple[Tensor, list[Tensor]]] = {}

    def _plan_queries(self, sequences: list[Sequence], classes: Classes, num_padding: int) -> None:
        """Which token attends at which place (N, L), and where its result is found."""
        lengths_N = np.array([len(sequence.queries) for sequence in sequences])
        queries_X, seen_X = (np.concatenate([getattr(s, name) for s in sequences]) for name in ("queries", "seen"))
        n_X = np.repeat(np.arange(len(sequences)), lengths_N)
        l_X = np.arange(len(queries_X)) - np.repeat(lengths_N.cumsum() - lengths_N, lengths_N)
        most_seen = np.ones(lengths_N.max(), np.int64)
        np.maximum.at(most_seen, l_X, seen_X)
        self._tiles = classes.tiles(most_seen.tolist())
        width = self._tiles[-1].start + self._tiles[-1].size
        queries, seen = np.zeros((len(sequences), width), np.int64), np.ones((len(sequences), width), np.int64)
        queries[n_X, l_X], seen[n_X, l_X] = queries_X, seen_X
        places = np.zeros(self.num_tokens + num_padding, np.int64)
        places[queries_X] = n_X * width + l_X
        self._queries_X = to_device(queries.ravel(), self._device)
        self._seen_NL = to_device(seen, self._device)
        self._places_M = to_device(places, self._device)

    def _plan_reads(self, sequences: list[Sequence], slots_B: Ints) -> None:
        """Consecutive slots whose columns are positions are read where they are; others are copied in order."""
        slots_N = slots_B[[sequence.row for sequence in sequences]]
        in_order = all(s.columns is None or s.columns[-1] + 1 == len(s.columns) for s in sequences)
        self._view = in_order and bool((np.diff(slots_N) == 1).all())
        self._first_slot = int(slots_N[0])
        self._num_sequences = len(sequences)
        if self._view:
            return
        columns = np.zeros((len(sequences), self.num_columns), np.int64)
        for n, sequence in enumerate(sequences):
            own = np.arange(sequence.seen.max(initial=1)) if sequence.columns is None else sequence.columns
            columns[n, : len(own)] = own
            columns[n, len(own) :] = own[0]  # masked, and finite
        self._slots_N, self._columns_NW = to_device(slots_N, self._device), to_device(columns, self._device)

    def mask(self) -> Tensor:
        """(N, L, W) bool: a query sees the columns up to its own."""
        return torch.arange(self.num_columns, device=self._device) < self._seen_NL[..., None]

    def write(self, index: int, states_1HMD: Tensor) -> Tensor:
        """Store the new keys (index 2l) or values (2l + 1) of layer l; return all that are read, (N, K, W, E)."""
        _, heads, _, size = states_1HMD.shape
        part_BHSD = self._storage.part(index, states_1HMD)
        vectors_XD = self._storage.vectors(index, size)
        written_X, read_X = self._vectors(heads)
        vectors_XD.index_copy_(0, written_X, states_1HMD[0, :, : self.num_tokens].transpose(0, 1).reshape(-1, size))
        if read_X is None:
            slots = slice(self._first_slot, self._first_slot + self._num_sequences)
            return part_BHSD[slots, :, : self.num_columns]
        return vectors_XD.index_select(0, read_X).view(self._num_sequences, heads, self.num_columns, size)

    def written(self) -> None:
        """Nothing to do."""

    def _vectors(self, heads: int) -> tuple[Tensor, Tensor | None]:
        """Places among the slots x heads x columns vectors of a part: to write, and to read unless they are viewed."""
        if heads not in self._places:
            _, _, all_heads, columns, _ = self._storage.data_NBHSD.shape
            heads_H = torch.arange(heads, device=self._device)
            slots_M, columns_M = self._written_2M
            written_MH = (slots_M[:, None] * all_heads + heads_H) * columns + columns_M[:, None]
            read_X = None
            if not self._view:
                firsts_NH = (self._slots_N[:, None] * all_heads + heads_H) * columns
                read_X = (firsts_NH[..., None] + self._columns_NW[:, None]).flatten()
            self._places[heads] = written_MH.flatten(), read_X
        return self._places[heads]

    def attend(self, q_1HME: Tensor, keys: Tensor, values: Tensor, mask_N1LW: Tensor, scale: float | None) -> Tensor:
        """Attention (M, H, E) of the list's queries over what ``write`` returned.

        ``mask_N1LW`` is bool, or added to the scores; the same tensor for all layers that share it.
        """
        H, K = q_1HME.shape[1], keys.shape[1]
        q_XHE = q_1HME[0].transpose(0, 1).index_select(0, self._queries_X)
        q_NLHE = q_XHE.view(self._num_sequences, -1, *q_XHE.shape[1:])
        parts = []
        for tile, mask in zip(self._tiles, self._folded(mask_N1LW, H // K, q_1HME.dtype), strict=True):
            tile_NLHE = q_NLHE[:, tile.start : tile.start + tile.size]
            parts.append(attention(tile_NLHE, keys[:, :, : tile.width], values[:, :, : tile.width], mask, scale))
        mixed_NLHE = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return mixed_NLHE.flatten(0, 1).index_select(0, self._places_M)

    def _folded(self, mask_N1LW: Tensor, groups: int, dtype: torch.dtype) -> list[Tensor]:
        """The mask of each tile, as ``attention`` takes it."""
        key = id(mask_N1LW), groups
        if key not in self._masks:
            parts = [mask_N1LW[:, 0, t.start : t.start + t.size, : t.width] for t in self._tiles]
            self._masks[key] = mask_N1LW, [fold_mask(part, groups, dtype) for part in parts]
        return self._masks[key][1]


def pack(call: Call, classes: Classes) -> Iterator[Packed]:
    """The call's real tokens in lists of at most the largest size, to be run one after the other.

    Reads the masks on the host, unless the layout is one of chains whose columns are positions.
    """
    B, T = call.tokens_BT.shape[:2]
    real_BT = np.ones((B, T), bool) if call.real_BT is None else call.real_BT.cpu().numpy()
    seen_BTS = None if isinstance(call.layout, Chains) else call.mask().cpu().numpy()
    rows_M, steps_M = real_BT.nonzero()
    for first in range(0, len(rows_M), classes.rows[-1]):
        part = slice(first, first + classes.rows[-1])
        yield Packed(call, rows_M[part], steps_M[part], seen_BTS, classes)


def attention(q_NLHE: Tensor, keys: Tensor, values: Tensor, mask_N1XW: Tensor, scale: float | None) -> Tensor:
    """(N, L, H, E): queries that share a key head are folded into one list, so that no key is repeated."""
    N, L, H, E = q_NLHE.shape
    K = keys.shape[1]
    folded = q_NLHE.view(N, L, K, H // K, E).permute(0, 2, 3, 1, 4).reshape(N, K, H // K * L, E)
    mixed = scaled_dot_product_attention(folded, keys, values, attn_mask=mask_N1XW, scale=scale)
    return mixed.view(N, K, H // K, L, values.shape[-1]).permute(0, 3, 1, 2, 4).reshape(N, L, H, -1)


def fold_mask(mask_NLW: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of folded queries, (N, 1, G L, W); bool masks are converted."""
    if mask_NLW.dtype == torch.bool:
        mask_NLW = torch.zeros_like(mask_NLW, dtype=dtype).masked_fill_(~mask_NLW, torch.finfo(dtype).min)
    N, L, W = mask_NLW.shape
    return mask_NLW[:, None].expand(N, groups, L, W).reshape(N, 1, groups * L, W)


def _chains(rows_M: Ints, columns_M: Ints) -> list[Sequence]:
    """Rows whose columns are positions, from the first one with a token to the last."""
    rows = np.arange(rows_M[0], rows_M[-1] + 2)
    bounds, places_M, seen_M = np.searchsorted(rows_M, rows).tolist(), np.arange(len(rows_M)), columns_M + 1
    parts = zip(rows.tolist(), bounds[:-1], bounds[1:], strict=False)
    return [Sequence(b, None, places_M[start:stop], seen_M[start:stop]) for b, start, stop in parts]


def _sequences(b: int, rows_M: Ints, steps_M: Ints, columns_M: Ints, seen_BTS: NDArray[np.bool_]) -> Iterator[Sequence]:
    """The sequences of one row: itself if its tokens are a chain, else a path to each leaf of its tree."""
    queries = (rows_M == b).nonzero()[0]
    seen_TS = seen_BTS[b, steps_M[queries]]
    own_TT = seen_TS[:, columns_M[queries]]
    counts_T = seen_TS.sum(1)
    for leaf in (own_TT.sum(0) == 1).nonzero()[0]:  # nobody but the leaf itself sees it
        path = own_TT[leaf].nonzero()[0]
        before_T = seen_TS[leaf].cumsum()[columns_M[queries[path]]]
        if not (before_T == counts_T[path]).all():
            raise ContractError("numerics=invariant: a token does not see what the tokens before it on its path see")
        yield Sequence(b, seen_TS[leaf].nonzero()[0], queries[path], counts_T[path])
