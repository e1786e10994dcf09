"""How long a model's forward over trees takes on this machine, for methods that choose a size by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median_low

import torch
from torch import Tensor

from specdec.alignment.base import Alignment
from specdec.core.clock import Clock
from specdec.core.outputs import NORMED, Outputs
from specdec.models.causal_lm import CausalLM

CONTENT = 64  # committed tokens of each row
NUM_TURNS = 5  # through all trees, so that a slow moment of the machine affects all alike


class ForwardTimes:
    """Forwards of ``batch`` rows in an alignment of their own, whose time no run is charged with.

    Args:
        after: what is done with the logits of every forward, which counts too.
    """

    def __init__(
        self, alignment: Alignment, clock: Clock, batch: int, after: Callable[[Tensor], object] = lambda _: None
    ) -> None:
        self._model: CausalLM = alignment.model
        self._alignment, self._clock, self._batch, self._after = alignment, clock, batch, after

    def of(self, trees: dict[int, list[int]]) -> dict[int, float]:
        """Median seconds of a forward and its commit, by tree; every row is fed its last token and the tree's nodes.

        Args:
            trees: parents of each tree's nodes, -1 for the last token.
        """
        charged = dict(self._clock.seconds)
        rows = list(range(self._batch))
        length = max(1, min(CONTENT, self._model.context_length - max(map(len, trees.values())) - 1))
        self._alignment.admit(rows, [[0] * length] * self._batch)
        seconds: dict[int, list[float]] = {size: [] for size in trees}
        for turn in range(NUM_TURNS + 1):
            for size, parents in trees.items():
                taken = self._forward_s(rows, [-1, *(parent + 1 for parent in parents)], length)
                if turn:  # new shapes are slow at first
                    seconds[size].append(taken)
        self._alignment.release(rows)
        self._clock.seconds.update(charged)  # nothing of this is the run's time
        return {size: median_low(taken) for size, taken in seconds.items()}

    def _forward_s(self, rows: list[int], parents: list[int], length: int) -> float:
        device = self._model.device
        tokens_BT = torch.zeros(len(rows), len(parents), dtype=torch.long, device=device)
        start = self._now()
        with self._model.call_options(Outputs(hidden=(NORMED,))):
            both_BTX = self._alignment.forward(rows, tokens_BT, [len(parents)] * len(rows), [parents] * len(rows))
        self._after(both_BTX[..., : self._model.vocab_size])
        self._alignment.commit(rows, [[0] for _ in rows])
        end = self._now()
        self._alignment.commit(rows, [length for _ in rows])
        return end - start

    def _now(self) -> float:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()
        elif torch.get_num_threads() == 1:
            return time.thread_time()  # what other jobs take of the core is not the forward's
        return time.perf_counter()
