"""T(a): what a round takes if every row of the batch has a shape, from forwards measured at this batch size.

T(K, L1, L2) = the draft's forwards, level by level (the first is fed two tokens, the last level none), and the target's
over the last token and L1 + K L2 nodes. Source: Thomas et al. 2026, arXiv 2602.16994, section 4; times are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from specdec.alignment.forward_times import ForwardTimes
from specdec.core.clock import Clock
from specdec.core.sampling import processed
from specdec.core.sampling_params import SamplingParams
from specdec.draft_lengths.costs import interpolated
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.trees.base import RowShape

NODES = (0, 1, 3, 7, 15, 31, 63)  # of the trees that the target is timed with; between them times are linear


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """Seconds of forwards of a full batch."""

    draft_s: dict[int, float]  # by tokens fed per row, with the distributions after them
    target_s: dict[int, float]  # by tokens fed per row

    def of(self, shape: RowShape) -> float:
        """Seconds of a round of this shape."""
        fed = [1 if level <= shape.trunk else shape.width for level in range(1, shape.depth)]
        nodes = min(shape.trunk, shape.depth) + shape.width * max(shape.depth - shape.trunk, 0)
        drafting_s = sum(interpolated(self.draft_s, count) for count in (2, *fed))
        return drafting_s + interpolated(self.target_s, 1 + nodes)

    def ratios(self) -> list[float]:
        """What a time model has besides its unit: the times relative to the target's forward of one token."""
        unit_s = self.target_s[1]
        return [seconds / unit_s for seconds in (*self.draft_s.values(), *self.target_s.values())]


def measure(
    target: CausalLM, draft: CausalLM, batch: int, num_paths: int, params: SamplingParams, clock: Clock | None = None
) -> RoundTimes:
    """Time forwards of ``batch`` rows."""
    clock = clock or Clock()

    def seconds(model: CausalLM, sizes: Sequence[int], samples: bool) -> dict[int, float]:
        after = partial(_distributions, [params] * batch) if samples else _nothing
        trees = {size + 1: [-1] * size for size in sizes}
        return ForwardTimes(create("alignment", "inplace", model, clock), clock, batch, after).of(trees)

    return RoundTimes(seconds(draft, range(max(num_paths, 2)), True), seconds(target, NODES, False))


def _distributions(settings: list[SamplingParams], logits_BTV: Tensor) -> Tensor:
    return processed(logits_BTV, settings)


def _nothing(logits_BTV: Tensor) -> None:
    return
