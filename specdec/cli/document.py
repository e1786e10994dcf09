"""The last line of stdout: one short JSON document, for scripts; it names the file that has every figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec.core.files import write_json

SUMMARY = "summary.json"
KEYS = (
    *("status", "skipped", "preset", "pair", "scheduler", "drafter", "batch", "tokens_per_s"),
    *("speedup_vs_ar", "interval", "num_turns", "acceptance_rate", "num_exact", "num_prompts", "num_failures"),
    *("error", "overrides", "path"),
)
"""What the line says of a point, where it is known."""
_ONLY_FAILED = ("overrides",)


def last_line(outcomes: Sequence[dict[str, Any]], sweep_dirs: Sequence[Path]) -> str:
    """The document of a run, or of a sweep, whose whole outcomes are written to ``summary.json`` in its folder."""
    if not sweep_dirs:
        return _compact(_brief(outcomes[0]))
    whole = sweep_dirs[-1] / SUMMARY
    if whole.parent.is_dir():
        write_json(whole, {"points": list(outcomes)})
    return _compact({"points": list(map(_brief, outcomes)), "document": str(whole)})


def _compact(document: dict[str, Any]) -> str:
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def _brief(outcome: dict[str, Any]) -> dict[str, Any]:
    failed = outcome["status"] != "done"
    known = {key: outcome.get(key) for key in KEYS if failed or key not in _ONLY_FAILED}
    return {key: _rounded(value) for key, value in known.items() if value is not None}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: [_rounded(end) for end in ends] for key, ends in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
