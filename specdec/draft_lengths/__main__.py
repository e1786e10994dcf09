"""``python -m specdec.draft_lengths [RESULTS_DIR]``: prints profiles, and the best draft length by batch size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from specdec.config.drafter_weights import UNTRAINED, drafter_label
from specdec.draft_lengths.profile import FOLDER, FORM, best_gammas, read_trials

_TITLE = ("pair", "drafter", "alignment", "verifier", "temperature", "dtype", "execution", "prompt_tokens", "device")


def main(results_dir: Path) -> int:
    """Print every profile under ``results_dir``; returns the exit code."""
    paths = [path for path in sorted((results_dir / FOLDER).glob("*.json")) if _settings(path).get("form") == FORM]
    if not paths:
        print(f"specdec: {results_dir}: no profile here; draft_length=batch_table|goodput makes one", file=sys.stderr)
        return 1
    console = Console()
    for path in paths:
        settings, trials = _settings(path), read_trials(path)
        title = ", ".join(f"{key} {_short(settings[key])}" for key in _TITLE if settings.get(key) is not None)
        table = Table("batch", "best gamma", "profiled gamma", "draft ms", "verify ms", "accepted", title=title)
        best = best_gammas(trials)
        for batch, by_gamma in sorted(trials.items()):
            for gamma, trial in sorted(by_gamma.items()):
                times = (f"{1000 * trial.draft_s:.2f}", f"{1000 * trial.verify_s:.2f}")
                mean = f"{trial.num_accepted / max(trial.num_row_rounds, 1):.2f}"
                table.add_row(str(batch), str(best[batch]), str(gamma), *times, mean)
        console.print(table)
    return 0


def _short(value: Any) -> str:
    """A setting in short: a plug-in's name, the hashes of a pair."""
    if isinstance(value, dict):
        return drafter_label(value["name"], value.get(UNTRAINED, False)) if "name" in value else str(value)
    return " + ".join(str(part)[:8] for part in value if part) if isinstance(value, list) else str(value)


def _settings(path: Path) -> dict[str, Any]:
    """The settings that a profile was made with."""
    settings: dict[str, Any] = json.loads(path.read_text())["settings"]
    return settings


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "results")))
