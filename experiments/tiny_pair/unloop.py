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

from specdec.core.loops import in_loops
from specdec.training.blocks import Batch, BlockStream
from specdec.training.losses import LossSum, cross_entropy
from specdec.training.outputs import load_outputs

NGRAM = 3  # a token repeats if it ends this many tokens that the output has said before


class Unlikelihood:
    """The objective: the mean loss of blocks of text, and the mean of -log(1 - p) over repeated tokens."""

    def __init__(self, texts: BlockStream, block: int, rows: int, weight: float) -> None:
        self.texts, self.block, self.rows, self.weight = texts, block, rows, weight

    def __call__(self, model: Any, batch: Batch, step: int) -> LossSum:
        """Of the batch's outputs and of the next rows of text, which follow from the batch's number."""
        first = (batch.place["batches"] - 1) * self.rows
        rows = [self.texts.row(self.block, number)[0] for number in range(first, first + self.rows)]
        text_BT = torch.from_numpy(np.stack(rows)).to(batch.ids_BT.device)
        losses_BT = cross_entropy(_logits(model, text_BT), text_BT[:, 1:])
        again_BT = repeated(batch)[:, 1:]
        logits_XV = _logits(model, batch.ids_BT)[again_BT]
        unlikely = self.weight * unlikelihood(logits_XV, batch.ids_BT[:, 1:][again_BT]).sum() / max(1, len(logits_XV))
        return LossSum(losses_BT.sum() + losses_BT.numel() * unlikely, losses_BT.numel())


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


def loop_share(folder: Path) -> float:
    """The share of the outputs' tokens that stand in loops."""
    flags = list[bool]()
    for path in sorted(folder.glob("batch_*[0-9].npz")):
        outputs = load_outputs(path)
        for b, (first, count) in enumerate(
            zip(outputs.num_prompt_B.tolist(), outputs.num_valid_B.tolist(), strict=True)
        ):
            flags += in_loops(outputs.ids_BT[b, first : first + count].tolist())
    return round(sum(flags) / max(1, len(flags)), 4)


def _logits(model: Any, ids_BT: Tensor) -> Tensor:
    logits_BTV: Tensor = model(input_ids=ids_BT[:, :-1], use_cache=False).logits.float()
    return logits_BTV
