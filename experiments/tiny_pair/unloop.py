"""Train a model not to repeat itself: unlikelihood of what its own greedy outputs say again, beside the text's loss.

Source: Welleck et al. 2020, arXiv 1908.04319 (sequence-level unlikelihood), here for tokens in loops alone.
Shape letters: B rows, T tokens, X repeated tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.core.loops import in_loops, loop_figures
from specdec.training.blocks import Batch, BlockStream
from specdec.training.losses import LossSum
from specdec.training.objectives import next_token, token_logits
from specdec.training.outputs import load_outputs

NGRAM = 3  # a token repeats if it ends this many tokens that the output has said before


class Unlikelihood:
    """The objective: the mean loss of blocks of text, and the mean of -log(1 - p) over repeated tokens."""

    def __init__(self, texts: BlockStream, block: int, rows: int, weight: float) -> None:
        self.texts, self.block, self.rows, self.weight = texts, block, rows, weight

    def __call__(self, model: Any, batch: Batch, step: int) -> LossSum:
        """Of the batch's outputs and of the next rows of text."""
        text, first = next_token(model, self._text(batch), step), batch.first_counted
        again_BT = repeated(batch)[:, first:]
        logits_XV, tokens_X = token_logits(model, batch.ids_BT, first)[again_BT], batch.ids_BT[:, first:][again_BT]
        mean = unlikelihood(logits_XV, tokens_X).sum() / max(1, len(tokens_X))
        return LossSum(text.total + text.num_positions * self.weight * mean, text.num_positions)

    def _text(self, batch: Batch) -> Batch:
        """The rows of text that go with a batch; they follow from its number, also after a resume."""
        first = (batch.place["batches"] - 1) * self.rows
        rows = [self.texts.row(self.block, number)[0] for number in range(first, first + self.rows)]
        text_BT = torch.from_numpy(np.stack(rows)).to(batch.ids_BT.device)
        return Batch(text_BT, torch.ones_like(text_BT, dtype=torch.bool), batch.place)


def unlikelihood(logits_XV: Tensor, tokens_X: Tensor) -> Tensor:
    """-log(1 - p(token)), per position (X), also where p rounds to 1."""
    others_XV = logits_XV.scatter(-1, tokens_X[:, None], float("-inf"))
    return logits_XV.logsumexp(-1) - others_XV.logsumexp(-1)


def repeated(batch: Batch) -> Tensor:
    """(B, T) bool: tokens of the outputs that stand in a loop and were said before, with the tokens before them."""
    found_BT = torch.zeros_like(batch.counted_BT)
    for b, counted_T in enumerate(batch.counted_BT):
        columns = counted_T.nonzero()[:, 0].tolist()
        tokens = batch.ids_BT[b, columns].tolist()
        said = set[tuple[int, ...]]()
        for place, loops in enumerate(in_loops(tokens)):
            ngram = tuple(tokens[max(0, place + 1 - NGRAM) : place + 1])
            found_BT[b, columns[place]] = loops and ngram in said
            said.add(ngram)
    return found_BT


def loop_share(files: list[Path]) -> float:
    """The share of the tokens of files of outputs that stand in loops."""
    rows = [tokens for path in files for tokens in load_outputs(path).tokens()]
    return round(loop_figures(dict(enumerate(rows)), ())["loop_share"] or 0.0, 4)
