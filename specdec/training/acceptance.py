"""Acceptance on held-out prompts, measured by the engine, and the speed-up that measured times predict from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from specdec.core.loops import loop_figures
from specdec.core.metrics import ratio
from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.models.causal_lm import CausalLM
from specdec.training.config import ValidationConfig
from specdec.training.decoding import MakeDrafter, decode, stop_ids_of


@dataclass(frozen=True, slots=True)
class HeldoutPrompt:
    """One encoded prompt and the category that it is counted under."""

    ids: list[int]
    category: str


@dataclass(slots=True)
class AcceptanceCounts:
    """Raw counts over rounds; ratios are derived from them."""

    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_tokens: int = 0
    reached: Counter[int] = field(default_factory=Counter)  # by position in the draft: drafted, all before it accepted
    accepted: Counter[int] = field(default_factory=Counter)  # by position in the draft: accepted

    def add(self, drafted: int, depth: int, accepted: int, emitted: int) -> None:
        """Count one row's round: nodes drafted, the depth of their tree, tokens accepted and emitted."""
        self.num_rounds += 1
        self.num_drafted += drafted
        self.num_accepted += accepted
        self.num_tokens += emitted
        self.reached.update(range(min(accepted + 1, depth)))
        self.accepted.update(range(accepted))

    def record(self) -> dict[str, Any]:
        """The counts, then their ratios."""
        return {
            "num_rounds": self.num_rounds,
            "num_drafted": self.num_drafted,
            "num_accepted": self.num_accepted,
            "num_tokens": self.num_tokens,
            "acceptance_rate": _rounded(ratio(self.num_accepted, self.num_drafted)),
            "mean_acceptance_length": _rounded(ratio(self.num_tokens, self.num_rounds)),
            "acceptance_by_place": [round(self.accepted[i] / self.reached[i], 4) for i in sorted(self.reached)],
        }


def measure_acceptance(
    target: CausalLM,
    make_drafter: MakeDrafter,
    prompts: list[HeldoutPrompt],
    cfg: ValidationConfig,
    draft: CausalLM | None = None,
) -> dict[str, Any]:
    """Decode the prompts greedily; returns counts, ratios and a predicted speed-up, the first two also per category.

    The prediction: tokens per round x time of a plain round / (drafting + verifying time of a round), all measured at
    ``cfg.batch`` rows.
    """
    overall, categories = AcceptanceCounts(), dict[str, AcceptanceCounts]()
    steps = list[tuple[int, int, int, int]]()

    def count(outcome: Round) -> None:
        accepted, emitted = outcome.num_accepted, map(len, outcome.emitted)
        figures = zip(outcome.rows, outcome.num_drafted, outcome.depths, accepted, emitted, strict=True)
        for row, drafted, depth, kept, new in figures:
            for counts in (overall, categories.setdefault(prompts[row.index].category, AcceptanceCounts())):
                counts.add(drafted, depth, kept, new)
            steps.append((row.index, len(row.output_ids) - new, kept, depth))

    rows = rows_of(target, prompts, cfg.new_tokens)
    seconds = decode(
        target,
        rows,
        cfg.batch,
        make_drafter=make_drafter,
        draft=draft,
        gamma=cfg.gamma,
        execution="auto",  # as run.py does, so that the times are those of use
        observe=count,
    )
    round_s = seconds["draft"] + seconds["verify"]
    few = rows_of(target, prompts[: cfg.batch], min(cfg.new_tokens, 16))
    plain_s = decode(target, few, cfg.batch, gamma=cfg.gamma, execution="auto")["verify"]
    record = overall.record()
    return {
        "gamma": cfg.gamma,
        "new_tokens": cfg.new_tokens,
        "num_prompts": len(prompts),
        **record,
        **{key: _rounded(value) for key, value in loop_figures({r.index: r.output_ids for r in rows}, steps).items()},
        "draft_round_ms": round(1e3 * seconds["draft"], 3),
        "verify_round_ms": round(1e3 * seconds["verify"], 3),
        "plain_round_ms": round(1e3 * plain_s, 3),
        "predicted_speedup": _rounded(record["mean_acceptance_length"] * plain_s / round_s) if round_s else None,
        "categories": {name: counts.record() for name, counts in sorted(categories.items())},
    }


def rows_of(target: CausalLM, prompts: list[HeldoutPrompt], new_tokens: int) -> list[Sequence]:
    """Greedy rows with the target's own stop tokens."""
    stops = stop_ids_of(target.module)
    return [Sequence(i, prompt.ids, new_tokens, stops) for i, prompt in enumerate(prompts)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
