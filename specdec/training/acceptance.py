"""Acceptance on held-out prompts, measured by the real engine; and the speed that it predicts from measured times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.base import Alignment
from specdec.core.clock import Clock
from specdec.core.metrics import ratio
from specdec.core.round import Round
from specdec.core.sequence import Sequence, SequencePool
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.engine.loop import RoundLoop
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.training.config import ValidationConfig

MakeDrafter = Callable[[DrafterContext], Drafter]


@dataclass(frozen=True, slots=True)
class HeldoutPrompt:
    """One encoded prompt and the category that it is counted under."""

    ids: list[int]
    category: str


@dataclass(slots=True)
class Counts:
    """Raw counts over the rounds of some rows; ratios are derived."""

    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_tokens: int = 0
    reached: Counter[int] = field(default_factory=Counter)  # per place in the draft: drafted, and all before accepted
    accepted: Counter[int] = field(default_factory=Counter)  # per place in the draft: accepted

    def add(self, drafted: int, accepted: int, emitted: int) -> None:
        """Count one row's round."""
        self.num_rounds += 1
        self.num_drafted += drafted
        self.num_accepted += accepted
        self.num_tokens += emitted
        self.reached.update(range(min(accepted + 1, drafted)))
        self.accepted.update(range(accepted))

    def record(self) -> dict[str, Any]:
        """Counts first, then the ratios that follow from them."""
        rates = [self.accepted[place] / self.reached[place] for place in sorted(self.reached)]
        return {
            "num_rounds": self.num_rounds,
            "num_drafted": self.num_drafted,
            "num_accepted": self.num_accepted,
            "num_tokens": self.num_tokens,
            "acceptance_rate": _rounded(ratio(self.num_accepted, self.num_drafted)),
            "mean_acceptance_length": _rounded(ratio(self.num_tokens, self.num_rounds)),
            "acceptance_by_place": [round(rate, 4) for rate in rates],  # of those drafted there, all before accepted
        }


def measure_acceptance(
    target: CausalLM, make_drafter: MakeDrafter, prompts: list[HeldoutPrompt], cfg: ValidationConfig, **models: Any
) -> dict[str, Any]:
    """Decode the prompts greedily; counts and ratios of all rows, per category, and the predicted speed-up.

    The prediction: tokens per round x time of a plain round / (drafting + verifying time of a round), all measured at
    ``cfg.batch`` rows. ``models`` go into the drafter's context (``draft``).
    """
    overall, categories = Counts(), dict[str, Counts]()

    def count(outcome: Round) -> None:
        for row, drafted, accepted, emitted in zip(
            outcome.rows, outcome.num_drafted, outcome.num_accepted, outcome.emitted, strict=True
        ):
            for counts in (overall, categories.setdefault(prompts[row.index].category, Counts())):
                counts.add(drafted, accepted, len(emitted))

    seconds = _decode(target, make_drafter, prompts, cfg, count, **models)
    record = {"gamma": cfg.gamma, "new_tokens": cfg.new_tokens, "num_prompts": len(prompts), **overall.record()}
    round_s = seconds["draft"] + seconds["verify"]
    plain_s = plain_round_s(target, prompts, cfg)
    length = record["mean_acceptance_length"]
    return {
        **record,
        "draft_round_ms": round(1e3 * seconds["draft"], 3),
        "verify_round_ms": round(1e3 * seconds["verify"], 3),
        "plain_round_ms": round(1e3 * plain_s, 3),
        "predicted_speedup": _rounded(length * plain_s / round_s) if round_s else None,
        "categories": {name: counts.record() for name, counts in sorted(categories.items())},
    }


def plain_round_s(target: CausalLM, prompts: list[HeldoutPrompt], cfg: ValidationConfig) -> float:
    """Seconds of a round of plain decoding, over one batch of the prompts."""
    few = prompts[: cfg.batch]
    short = ValidationConfig(new_tokens=min(cfg.new_tokens, 16), gamma=cfg.gamma, batch=cfg.batch)
    seconds = _decode(target, lambda context: create("drafter", "none", context), few, short, lambda outcome: None)
    return seconds["verify"]


def _decode(
    target: CausalLM,
    make_drafter: MakeDrafter,
    prompts: list[HeldoutPrompt],
    cfg: ValidationConfig,
    count: Callable[[Round], None],
    draft: CausalLM | None = None,
) -> dict[str, float]:
    """Run the engine over the prompts; returns seconds per round and stage."""
    clock = Clock()

    def align(model: CausalLM) -> Alignment:
        model.execute("auto")  # as run.py does, so that the times are those of use
        alignment: Alignment = create("alignment", "inplace", model, clock)
        return alignment

    context = DrafterContext(target, draft, align, clock)
    engine = RoundLoop(
        context.align(target),
        make_drafter(context),
        create("verifier", "greedy"),
        create("scheduler", "static", cfg.batch, cfg.batch),
        create("draft_length", "fixed", gamma=cfg.gamma),
        clock,
    )
    stops = stop_ids_of(target)
    pool = SequencePool([Sequence(i, prompt.ids, cfg.new_tokens, stops) for i, prompt in enumerate(prompts)])
    num_rounds = 0
    while not pool.done:
        count(engine.step(pool))
        num_rounds += 1
    return {stage: total / max(1, num_rounds) for stage, total in clock.seconds.items()}


def stop_ids_of(target: CausalLM) -> frozenset[int]:
    """The tokens at which the target stops by its own configuration."""
    eos = target.module.generation_config.eos_token_id
    return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
