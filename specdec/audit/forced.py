"""The target's logits at every position of an engine's own output, and how far rounding may move them.

One forward over a row is enough where every emitted token leads by far. Where one does not, the row is computed in all
the ways of `specdec.equivalence.rounding`, which measures the noise between correct computations of that very row.
Shape letters: n tokens of the output, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.audit.rows import Row
from specdec.core.sampling import penalized
from specdec.core.sampling_params import SamplingParams
from specdec.equivalence.rounding import in_one_piece, measure_rounding
from specdec.models.causal_lm import CausalLM

_CLEAR = 4  # times the largest noise so far: a token that leads by more needs no measurement of its own
_ANY_TOKEN = 0  # fed nowhere: only asks for the logits after the last token


@dataclass(frozen=True, slots=True)
class Forced:
    """Logits of a row, teacher-forced: position i decides token i, position n what would follow."""

    logits_NV: Tensor  # (n + 1, V), CPU
    noise: float  # largest difference of a logit between correct computations


class Forcing:
    """Computes `Forced`; keeps the largest noise that it has measured.

    Args:
        batch, chunk: the engine's rows per forward, and the tokens per row that it feeds at once.
    """

    def __init__(self, model: CausalLM, batch: int, chunk: int) -> None:
        self._model, self._batch, self._chunk = model, batch, chunk
        self.largest_noise = 0.0
        self._is_known = False

    @torch.inference_mode()
    def quick(self, row: Row) -> Forced:
        """By one forward; the noise is the largest measured so far, on other rows perhaps."""
        if not self._is_known:
            self.measured(row)
        tokens = row.prompt_ids + row.output_ids
        return Forced(in_one_piece(self._model, tokens, len(row.prompt_ids)).cpu(), self.largest_noise)

    def measured(self, row: Row) -> Forced:
        """Token by token, as plain decoding computes it, with the noise of this row."""
        output = [*row.output_ids, _ANY_TOKEN]
        rounding = measure_rounding(self._model, row.prompt_ids, output, self._batch, self._chunk, foreign=True)
        noise = rounding.largest
        if self._model.dtype == torch.float64:  # logits are compared in float32
            noise = max(noise, torch.finfo(torch.float32).eps * float(rounding.logits_nV.abs().max()))
        self.largest_noise, self._is_known = max(self.largest_noise, noise), True
        return Forced(rounding.logits_nV, noise)

    def is_clear(self, least_lead: float) -> bool:
        """Whether rounding cannot change which token leads by so much."""
        return least_lead > _CLEAR * self.largest_noise


def scores_of_row(row: Row, logits_NV: Tensor, params: SamplingParams) -> Tensor:
    """Logits after the repetition penalty: (n + 1, V), float32 or 16 bits as `transformers` compares them."""
    seen_1NV = None
    if params.penalizes:
        seen_NV = torch.zeros(logits_NV.shape, dtype=torch.bool)
        seen_NV[:, row.prompt_ids] = True
        for place, token in enumerate(row.output_ids):
            seen_NV[place + 1 :, token] = True
        seen_1NV = seen_NV[None]
    return penalized(logits_NV[None], [params], seen_1NV)[0]
