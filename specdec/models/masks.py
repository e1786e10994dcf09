"""Which of its row's columns a query sees in each kind of layer, and the form of the masks that a model takes.

Shape letters: B rows, T queries, S columns. A query's mask (B, T, S) has one visible column per earlier position, in
order of position, in any layout: so a column's position is its rank among the visible ones.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.models.small_copy import field, unwrapped


@dataclass(frozen=True, slots=True)
class Visible:
    """What one kind of layer sees of a row: everything before the query, a sliding window, or the query's own chunk."""

    kind: str  # "full", "window" or "chunk"
    size: int = 0  # of the window or chunk, in tokens

    def of(self, mask_BTS: Tensor) -> Tensor:
        """Restrict a mask (B, T, S) to what this kind of layer sees."""
        if self.kind == "window":
            return within_window(mask_BTS, self.size)
        return within_chunk(mask_BTS, self.size) if self.kind == "chunk" else mask_BTS

    def first_seen(self, position: int) -> int:
        """The first position that a query at ``position`` sees."""
        if self.kind == "window":
            return max(position + 1 - self.size, 0)
        return position // self.size * self.size if self.kind == "chunk" else 0


FULL = Visible("full")


@dataclass(frozen=True, slots=True)
class MaskForm:
    """One mask for all layers, or one per layer type by name; bool, or added to the scores."""

    visible: tuple[tuple[str | None, Visible], ...]  # by layer type; None: the only one
    additive: bool

    @property
    def by_type(self) -> bool:
        """Whether the model takes a mask for each layer type."""
        return self.visible[0][0] is not None

    @property
    def widest(self) -> Visible:
        """The kind of layer that sees most; the whole row if kinds differ."""
        kinds = {visible for _, visible in self.visible}
        return kinds.pop() if len(kinds) == 1 else FULL

    def masks(self, mask_BTS: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """The model's ``attention_mask``: (B, 1, T, S), or such masks by layer type."""
        made = {visible: self._mask_4d(visible.of(mask_BTS), dtype) for visible in {v for _, v in self.visible}}
        if not self.by_type:
            return made[self.visible[0][1]]
        return {str(name): made[visible] for name, visible in self.visible}

    def _mask_4d(self, mask_BTS: Tensor, dtype: torch.dtype) -> Tensor:
        mask = mask_BTS[:, None]
        if not self.additive:
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def forms(module: Any) -> list[MaskForm]:
    """Every form that the model may take, most probable first; a trial (specdec.models.probe) finds the right one.

    The order is the same for all sizes of an architecture.
    """
    config = module.config.get_text_config()
    window, chunk = field(config, "sliding_window"), field(config, "attention_chunk_size")
    sizes = {kind: size for kind, size in (("window", window), ("chunk", chunk)) if isinstance(size, int)}
    whole: list[tuple[tuple[str | None, Visible], ...]] = [
        ((None, FULL),),
        *(((None, Visible(kind, size)),) for kind, size in sizes.items()),
    ]
    if "window" in sizes and _makes_windows(module):
        whole.reverse()
    layer_types = field(config, "layer_types")
    if layer_types:
        whole.insert(0, tuple((name, _visible_of(name, sizes)) for name in sorted(set(layer_types))))
    own = config._attn_implementation == "eager"
    return [MaskForm(visible, additive) for additive, visible in itertools.product((own, not own), whole)]


def within_window(mask_BTS: Tensor, window: int) -> Tensor:
    """Restrict a mask to the last ``window`` positions, including the query's own."""
    rank_BTS = mask_BTS.flip(-1).cumsum(-1).flip(-1)
    return mask_BTS & (rank_BTS <= window)


def within_chunk(mask_BTS: Tensor, chunk: int) -> Tensor:
    """Restrict a mask to the query's own chunk of positions: 0 to chunk - 1, and so on."""
    position_BTS = mask_BTS.cumsum(-1) - 1
    return mask_BTS & (position_BTS // chunk == position_BTS[..., -1:] // chunk)


def _visible_of(layer_type: str, sizes: dict[str, int]) -> Visible:
    kind = "window" if "sliding" in layer_type else "chunk" if "chunk" in layer_type else "full"
    return Visible(kind, sizes[kind]) if kind in sizes else FULL


def _makes_windows(module: Any) -> bool:
    """Whether the model's own code makes masks with a window: a config may have one that no code reads."""
    return hasattr(sys.modules.get(type(unwrapped(module)).__module__), "create_sliding_window_causal_mask")
