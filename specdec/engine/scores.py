"""The scores of emitted tokens, kept while a call runs: what ``output_scores`` and ``output_logits`` return.

Shape letters: B rows, T positions, V vocabulary, n emitted tokens.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.core.round import Verdict
from specdec.core.sampling import warped
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence


@dataclass(slots=True)
class ScoreRecorder:
    """Keeps, by row, the float32 (n, V) that each round's emitted tokens were chosen from.

    Args:
        scores: keep those after all processing, as tokens are drawn from. logits: keep the target's own.
        logprobs: keep the log-probability of each emitted token under the target's own logits, at temperature 1.
        normalized: keep sampled scores as log-probabilities (renormalize_logits).
    """

    scores: bool = False
    logits: bool = False
    logprobs: bool = False
    normalized: bool = False
    scores_of: dict[int, list[Tensor]] = field(init=False, default_factory=lambda: defaultdict(list))
    logits_of: dict[int, list[Tensor]] = field(init=False, default_factory=lambda: defaultdict(list))
    logprobs_of: dict[int, list[float]] = field(init=False, default_factory=lambda: defaultdict(list))
    _seen: tuple[Tensor, Tensor, list[SamplingParams] | None] | None = field(init=False, default=None)

    def see(self, logits_BTV: Tensor, scores_BTV: Tensor, settings: list[SamplingParams] | None) -> None:
        """A round's logits, and its scores before temperature, top-k, top-p and min-p."""
        self._seen = logits_BTV, scores_BTV, settings

    def keep(self, rows: list[Sequence], verdict: Verdict, emitted: list[list[int]]) -> None:
        """Keep what the round's emitted tokens were chosen from, and forget the rest."""
        assert self._seen is not None
        (logits_BTV, scores_BTV, settings), self._seen = self._seen, None
        for b, row in enumerate(rows):
            columns = verdict.fed_nodes(b)[: len(emitted[b])]
            logits_nV = logits_BTV[b, columns].float()
            if self.logits:
                self.logits_of[row.index].append(logits_nV)
            if self.scores:
                own = [] if settings is None else [settings[b]]
                scores_nV = scores_BTV[b, columns].float()
                scores_nV = warped(scores_nV[None], own)[0] if own else scores_nV
                self.scores_of[row.index].append(scores_nV.log_softmax(-1) if self.normalized else scores_nV)
            if self.logprobs:
                tokens_n1 = torch.tensor(emitted[b], device=logits_nV.device)[:, None]
                found_n = logits_nV.double().log_softmax(-1).gather(-1, tokens_n1)[:, 0]
                self.logprobs_of[row.index] += found_n.tolist()


def by_step(kept: dict[int, list[Tensor]], rows: list[Sequence]) -> tuple[Tensor, ...]:
    """One (B, V) per emitted place, as ``transformers`` returns them; NaN for rows that had ended before it."""
    whole = [torch.cat(kept[row.index]) for row in rows]
    padded_BNV = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=torch.nan)
    return padded_BNV.unbind(1)
