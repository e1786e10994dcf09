"""The sampling settings of a row. Imports no torch; `specdec.core.sampling` computes the distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specdec.errors import ConfigError

LEAST, MOST = 1e-30, 1e30
"""The range of divisors and factors that keep float32 logits finite."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Settings of one row, with the same meaning as in ``transformers.generate``.

    ``temperature=0`` is greedy decoding, of the penalised logits if there is a repetition penalty.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None  # keep the k most probable tokens (and ties of the last); None keeps all
    top_p: float = 1.0  # keep the smallest set of tokens whose probability reaches top_p
    min_p: float = 0.0  # drop tokens less probable than min_p times the most probable one
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the output so far become less probable
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature={self.temperature}: it must be 0 (greedy) or more")
        if 0 < self.temperature < LEAST:
            raise ConfigError(f"temperature={self.temperature}: too small for float32 logits; 0 is greedy decoding")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k}: it must be at least 1, or null for no limit")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={self.min_p}: it must be from 0 to 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ConfigError(f"repetition_penalty={self.repetition_penalty}: it must be above 0 (1 is no penalty)")
        if not LEAST <= self.repetition_penalty <= MOST:
            raise ConfigError(f"repetition_penalty={self.repetition_penalty}: it must be from {LEAST:g} to {MOST:g}")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens change the distribution beyond the model's own logits."""
        return self.repetition_penalty != 1


GREEDY = SamplingParams(temperature=0.0)
