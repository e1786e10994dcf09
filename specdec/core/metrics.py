"""A run's metrics. Raw counts are stored; ratios are derived from them only here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specdec.core.round import Round
from specdec.core.sequence import Sequence


@dataclass(slots=True)
class Tally:
    """Counts over the rounds of a run."""

    num_verify_calls: int = 0  # target forwards that verified a batch
    num_row_rounds: int = 0  # rows of all those batches
    num_same_length_batches: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_output_tokens: int = 0
    accepted: Counter[int] = field(default_factory=Counter)

    def add(self, outcome: Round) -> None:
        """Count one round."""
        self.num_verify_calls += 1
        self.num_row_rounds += len(outcome.rows)
        self.num_same_length_batches += outcome.same_length
        self.num_drafted += sum(outcome.num_drafted)
        self.num_accepted += sum(outcome.num_accepted)
        self.num_output_tokens += sum(map(len, outcome.emitted))
        self.accepted.update(outcome.num_accepted)

    @property
    def acceptance_rate(self) -> float | None:
        """TAR: accepted / drafted."""
        return ratio(self.num_accepted, self.num_drafted)

    def counts(self) -> dict[str, Any]:
        """The counts, and the ratios that follow from them alone."""
        longest = max(self.accepted, default=0)
        return {
            "num_output_tokens": self.num_output_tokens,
            "num_drafted": self.num_drafted,
            "num_accepted": self.num_accepted,
            "num_verify_calls": self.num_verify_calls,
            "num_row_rounds": self.num_row_rounds,
            "num_same_length_batches": self.num_same_length_batches,
            "accepted_histogram": [self.accepted[length] for length in range(longest + 1)],
            "acceptance_rate": self.acceptance_rate,
            "nodes_per_round": ratio(self.num_drafted, self.num_row_rounds),
            "mean_acceptance_length": ratio(self.num_output_tokens, self.num_row_rounds),
            "grouping_rate": ratio(self.num_same_length_batches, self.num_verify_calls),
        }


def timing(seconds: dict[str, float], num_output_tokens: int) -> dict[str, Any]:
    """Stage times in seconds. decode_s is the sum of its stages; wall_s also includes the prefill of the prompts."""
    decode_s = sum(value for stage, value in seconds.items() if stage != "prefill")
    wall_s = decode_s + seconds["prefill"]
    return {
        "wall_s": wall_s,
        "decode_s": decode_s,
        **{f"{stage}_s": value for stage, value in seconds.items()},
        "tokens_per_s": ratio(num_output_tokens, wall_s),
        "alignment_overhead": ratio(seconds["align"], decode_s),
    }


def calibration_error(bins: list[list[float]]) -> float | None:
    """Expected calibration error: the mean distance of predicted and true shares, bins weighted by their counts.

    Args:
        bins: number of predictions, their sum, and how many came true. Source: Naeini et al. 2015, AAAI.
    """
    return ratio(sum(abs(predicted - true) for _, predicted, true in bins), sum(count for count, _, _ in bins))


def latencies(rows: list[Sequence]) -> dict[str, Any]:
    """Percentiles over all rows of the seconds from arrival to the first token and to the end."""
    ttft = [row.first_token_s - row.arrived_s for row in rows if row.first_token_s is not None]
    total = [row.finished_s - row.arrived_s for row in rows if row.finished_s is not None]
    return {"latency_s": percentiles(total), "ttft_s": percentiles(ttft)}


def percentiles(values: AbstractSequence[float]) -> dict[str, float | None]:
    """p50, p90 and p99, by linear interpolation."""
    return {f"p{p}": quantile(values, p / 100) for p in (50, 90, 99)}


def quantile(values: AbstractSequence[float], q: float) -> float | None:
    """The q-quantile by linear interpolation; None without values."""
    return float(np.quantile(values, q)) if values else None


def ratio(numerator: float, denominator: float) -> float | None:
    """A quotient; None if the denominator is 0."""
    return numerator / denominator if denominator else None
