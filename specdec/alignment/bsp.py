"""BSP as published: masked holes, but position ids that are cache columns. Known incorrect; kept to be measured.

Idea: prompts are padded on the right, all rows append to the same columns, and rejected tokens stay as masked holes:
all of that is correct. The published code passes no position ids, so models with rotary positions use cache columns
instead, and two kinds of holes shift a row's positions. Each is a switch:

- ``count_padding``: a row shorter than the longest prompt continues at the position where the longest one ends;
- ``count_holes``: rejected tokens, and columns that only other rows fed, count as positions. Wrong at batch 1 too.

With both off, positions are running counts and the result is exact.
Cost: none per round: nothing is moved, and holes are never removed. When rows join, the batch is padded again
(published: batches never change).
Source: Su, Giannoula, Pekhimenko 2023, arXiv 2310.18813, and its port to Hugging Face caches; the published code is
right for OPT, which computes positions from the mask. The defect is described in arXiv 2510.22876.
"""

from __future__ import annotations

from specdec.alignment.masked import MaskedAlignment
from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM


class BspAlignment(MaskedAlignment):
    """Columns as positions; see the module's text."""

    def __init__(self, model: CausalLM, clock: Clock, *, count_padding: bool = True, count_holes: bool = True) -> None:
        super().__init__(model, clock, max_hole_share=1.0)  # never compacted
        self.count_padding = count_padding
        self.count_holes = count_holes

    def _positions(self, row: int, counts: list[int]) -> list[int]:
        """The running counts, plus the padding and the holes that the switches count."""
        padding, width = self._batch.padding[row], self._batch.kv.width
        shifted = []
        for t, count in enumerate(counts):
            holes = width + t - count - padding
            position = count + self.count_padding * padding + self.count_holes * holes
            shifted.append(min(position, self.model.context_length - 1))
        return shifted
