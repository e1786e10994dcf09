"""The shape of the most expected tokens per second at this very root, by trees sampled beside the draft.

It runs the target over the sampled trees, so it costs more than it can save: it says what a perfect selector would
reach in tokens per round, and makes the targets that a trained one learns from.
"""

from __future__ import annotations

import torch

from specdec.errors import ConfigError
from specdec.selectors.base import Roots, RowShape, Selector, SelectorContext
from specdec.selectors.combs import CombLayout
from specdec.selectors.efficiency import check_rule, expected_accepted
from specdec.selectors.explore import Explorer
from specdec.selectors.times import measure


class EstimateSelector(Selector):
    """Averages the exact block efficiency of every shape over ``samples`` trees, and divides by its measured time.

    Source: Thomas et al. 2026, arXiv 2602.16994, section 3.

    Args:
        samples: trees per root.
        by: speed (expected tokens per second, with times of forwards at the run's batch size) or tokens (expected
            tokens per round, whatever they cost).
    """

    def __init__(self, context: SelectorContext, *, samples: int, by: str) -> None:
        check_rule(context.verifier, "selector=estimate")
        if samples < 1:
            raise ConfigError(f"selector.samples={samples}: it must be at least 1")
        if by not in ("speed", "tokens"):
            raise ConfigError(f"selector.by={by}: choose speed or tokens")
        if context.target is None or context.draft is None:
            raise ConfigError("selector=estimate runs the draft model itself: set drafter=model, or another selector")
        self._context, self._by = context, by
        self._layout = CombLayout(context.num_paths, context.depth)
        self._models = context.target, context.draft
        self._explorer = Explorer(*self._models, self._layout, samples, context.clock)
        self._num_samples = samples
        self._costs_A = torch.ones(len(self._layout.shapes), dtype=torch.float64)

    def prepare(self, batch: int) -> None:
        if self._by == "speed":
            times = measure(*self._models, batch, self._context.num_paths, self._context.params, self._context.clock)
            self._costs_A = torch.tensor([times.of(shape) for shape in self._layout.shapes], dtype=torch.float64)

    def choose(self, roots: Roots) -> list[RowShape]:
        shapes, tokens = self._layout.shapes, [roots.tokens(b) for b in range(len(roots.indices))]
        explored = self._explorer.explore(roots.indices, tokens, roots.settings)
        accepted_RA = expected_accepted(self._context.verifier, explored.combs)
        tokens_BA = 1 + accepted_RA.unflatten(0, (len(tokens), self._num_samples)).mean(1)
        depths_A = torch.tensor([shape.depth for shape in shapes], device=tokens_BA.device)
        rooms_B1 = torch.tensor(roots.depths, device=tokens_BA.device)[:, None]
        worth_BA = (tokens_BA / self._costs_A.to(tokens_BA.device)).masked_fill(depths_A > rooms_B1, -1.0)
        return [shapes[best] for best in worth_BA.argmax(1).tolist()]

    def release(self, indices: list[int]) -> None:
        self._explorer.release(indices)
