"""Tables for loggers: figures per category, and samples, those that differ from their reference first."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from specdec.core.metrics import quantile, ratio

Record = dict[str, Any]


def by_category(samples: list[Record]) -> list[Record]:
    """One row per category of prompts, in alphabetical order."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for sample in samples:
        groups[str(sample["category"])].append(sample)
    return [{"category": category, **_figures(groups[category])} for category in sorted(groups)]


def by_place(summary: Record) -> list[Record]:
    """One row per place of the draft, from 1: the share of drafts accepted up to it, and those first rejected there."""
    shares, rejections = summary.get("acceptance_by_place") or [], summary.get("first_rejections") or []
    pairs = enumerate(zip(shares, rejections, strict=True), start=1)
    return [{"place": place, "accepted": share, "first_rejections": number} for place, (share, number) in pairs]


def _figures(samples: list[Record]) -> Record:
    num_tokens = sum(len(sample["output_ids"]) for sample in samples)
    num_rounds = sum(len(sample["accepted_lengths"]) for sample in samples)
    num_accepted = sum(sum(sample["accepted_lengths"]) for sample in samples)
    return {
        "num_prompts": len(samples),
        "num_output_tokens": num_tokens,
        "acceptance_rate": ratio(num_accepted, sum(sample["num_drafted"] for sample in samples)),
        "mean_acceptance_length": ratio(num_tokens, num_rounds),
        "latency_s_p50": quantile([sample["latency_s"] for sample in samples], 0.5),
        "num_divergences": sum(sample["exact"] is False for sample in samples),
    }


def sample_rows(samples: list[Record], limit: int) -> list[Record]:
    """Up to ``limit`` samples; divergences first."""
    ordered = sorted(samples, key=lambda sample: (sample["exact"] is not False, sample["index"]))
    return [
        {
            "index": sample["index"],
            "question_id": str(sample["question_id"]),
            "category": str(sample["category"]),
            "num_prompt_tokens": sample["num_prompt_tokens"],
            "num_output_tokens": len(sample["output_ids"]),
            "stop_reason": sample["stop_reason"],
            "acceptance_rate": ratio(sum(sample["accepted_lengths"]), sample["num_drafted"]),
            "latency_s": sample["latency_s"],
            "exact": sample["exact"],
            "first_divergence": sample["first_divergence"],
            "divergence": (sample["explanation"] or {}).get("kind"),
            "reason": (sample["explanation"] or {}).get("reason"),
            "text": sample["text"],
        }
        for sample in ordered[:limit]
    ]


def run_name(run_hash: str, overrides: list[str]) -> str:
    """A run's overrides without those that do not affect its results; without any, its hash."""
    noise = ("logger", "results_dir", "progress", "force", "hydra")
    telling = [override for override in overrides if not override.lstrip("+~").startswith(noise)]
    telling.sort(key=lambda override: "." in override.partition("=")[0])  # details last: long names are cut
    return " ".join(telling)[:128] or run_hash
