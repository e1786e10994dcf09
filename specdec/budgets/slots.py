"""A round's drafts as slots: level l of row b, with what is known of it before its tokens are drawn.

Shape letters: B rows, G nodes, C = G + 1 columns, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.budgets.base import Draft
from specdec.verifiers.children import depths_of, padded_parents

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Slots:
    """The tables of one round, on the host."""

    nodes_BL: Ints  # draws of each level; 0: no such slot. Repeats count, because they are an outcome of the draws
    top_BL: Floats | None  # the largest probability of what the level is drawn from, mean over the level's parents
    entropy_BL: Floats | None  # in nats, likewise
    told_BL: Floats | None = None  # the drafter's own prediction that the slot is accepted, likewise

    @property
    def depths_B(self) -> Ints:  # noqa: N802
        """Levels of each row's draft."""
        depths_B: Ints = (self.nodes_BL > 0).sum(1)
        return depths_B

    @classmethod
    def of(cls, draft: Draft) -> Slots:
        """Waits for the device once, if drafts come with certainties or chances; the tokens are brought along."""
        counts_B, tables_BGK = np.array(draft.num_candidates), _known(draft)
        if draft.parents is None:
            real_BL = np.arange(counts_B.max(initial=0)) < counts_B[:, None]
            tables = None if tables_BGK is None else tables_BGK[:, : real_BL.shape[1]]
            return cls(real_BL.astype(np.int64), *_parts(draft, tables))
        parents_BG = padded_parents(draft)
        depths_BG = np.where(np.arange(parents_BG.shape[1]) < counts_B[:, None], depths_of(parents_BG), 0)
        num_levels = int(depths_BG.max(initial=0))
        nodes_BL = np.zeros((len(counts_B), num_levels), np.int64)
        rows_N, nodes_N = np.nonzero(depths_BG) if draft.draws is None else _drawn(draft)
        np.add.at(nodes_BL, (rows_N, depths_BG[rows_N, nodes_N] - 1), 1)
        if tables_BGK is None:
            return cls(nodes_BL, None, None)
        inner_BC = np.zeros((len(counts_B), parents_BG.shape[1] + 1), bool)  # columns with children
        rows_N, nodes_N = np.nonzero(depths_BG)
        inner_BC[rows_N, parents_BG[rows_N, nodes_N] + 1] = True
        rows_N, columns_N = np.nonzero(inner_BC)
        levels_N = np.pad(depths_BG, ((0, 0), (1, 0)))[rows_N, columns_N]
        sums_BLK, parents_BL = np.zeros((*nodes_BL.shape, tables_BGK.shape[-1])), np.zeros(nodes_BL.shape)
        np.add.at(sums_BLK, (rows_N, levels_N), tables_BGK[rows_N, columns_N])
        np.add.at(parents_BL, (rows_N, levels_N), 1)
        return cls(nodes_BL, *_parts(draft, sums_BLK / parents_BL.clip(1)[..., None]))


def on_host(draft: Draft, values: Tensor) -> Floats:
    """float32 values (B, ...) on the host; the drafted tokens come in the same transfer."""
    if values.device.type == "cpu":
        return values.double().numpy()
    bits = draft.fetch(values.float().flatten(1).view(torch.int32).long())
    floats: Floats = np.array(bits, dtype=np.int32).view(np.float32).reshape(values.shape).astype(np.float64)
    return floats


def _known(draft: Draft) -> Floats | None:
    """(B, G, K) by column: certainties (K = 2), chances (1) or both (3); None if the draft comes with neither."""
    parts = [] if draft.certainty_BG2 is None else [on_host(draft, draft.certainty_BG2)]
    if draft.chances is not None:
        parts.append(np.array(draft.chances, dtype=np.float64)[..., None])
    return np.concatenate(parts, axis=-1) if parts else None


def _parts(draft: Draft, values_BLK: Floats | None) -> tuple[Floats | None, Floats | None, Floats | None]:
    """``top_BL``, ``entropy_BL`` and ``told_BL``."""
    if values_BLK is None:
        return None, None, None
    told_BL = None if draft.chances_BG is None else values_BLK[..., -1]
    return (None, None, told_BL) if draft.certainty_BG2 is None else (values_BLK[..., 0], values_BLK[..., 1], told_BL)


def _drawn(draft: Draft) -> tuple[Ints, Ints]:
    """Row and node of every draw."""
    assert draft.draws is not None
    sizes = [len(row) for row in draft.draws]
    return np.repeat(np.arange(len(sizes)), sizes), np.array([node for row in draft.draws for node in row], np.int64)
