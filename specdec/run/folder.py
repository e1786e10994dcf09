"""Run folders: named by the hash of the resolved config, appended to while they run, skipped when finished.

``samples.jsonl`` and ``rounds.jsonl`` grow by whole lines and are never rewritten while a point runs, so that a process
that is killed at any moment leaves at most one torn line. In a point on several processes, each has its own files
(``samples.rank1.jsonl``), which are merged when the point is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from specdec.core.files import LineFile, digest, read_lines, write_atomically, write_json, write_lines

ELSEWHERE = "running elsewhere"
"""Status of a point that another process was computing."""


def read_summary(path: Path) -> dict[str, Any] | None:
    """The summary of a finished run's folder, or None."""
    try:
        summary = json.loads((path / "summary.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return summary if isinstance(summary, dict) and summary.get("status") == "done" else None


class RunFolder:
    """``results_dir/<hash>``: config.yaml, env.json, attempts, samples and rounds, and finally summary.json."""

    def __init__(self, results_dir: str | Path, settings: dict[str, Any]) -> None:
        self.hash = digest(settings)
        self.path = Path(results_dir) / self.hash
        self.settings = settings

    def finished(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None."""
        return read_summary(self.path)

    def clear(self) -> None:
        """Delete what an earlier run wrote."""
        if self.path.exists():
            (self.path / "summary.json").unlink(missing_ok=True)
            shutil.rmtree(self.path)

    def list_preset(self, summary: dict[str, Any], preset: str | None) -> dict[str, Any]:
        """Add a preset to those that the finished run belongs to; returns its summary."""
        presets = summary.get("experiments") or []
        if preset is None or preset in presets:
            return summary
        summary = {**summary, "experiments": [*presets, preset]}
        write_json(self.path / "summary.json", summary)
        return summary

    def start(self, env: dict[str, Any]) -> None:
        """Write the config and the environment; existing samples and rounds stay."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", "failure.json"):
            (self.path / name).unlink(missing_ok=True)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.settings)))
        write_json(self.path / "env.json", env)

    def open_lines(self, kind: str, rank: int = 0) -> LineFile:
        """The file of ``kind`` (samples, rounds) that a process appends to."""
        return LineFile(self.path / (f"{kind}.rank{rank}.jsonl" if rank else f"{kind}.jsonl"))

    def samples(self) -> dict[int, dict[str, Any]]:
        """Finished rows of all attempts and processes, by index; one with an explanation replaces one without."""
        found: dict[int, dict[str, Any]] = {}
        for sample in self._all_lines("samples"):
            if not found.get(sample["index"], {}).get("explanation"):
                found[sample["index"]] = sample
        return found

    def rounds(self) -> list[dict[str, Any]]:
        """Rounds of all attempts and processes; each once, even if a process was killed while it merged the files."""
        numbered = {(line["attempt"], line["rank"], line["step"]): line for line in self._all_lines("rounds")}
        return [numbered[key] for key in sorted(numbered)]

    def attempts(self) -> list[dict[str, Any]]:
        """One record for each time that the point was started or resumed."""
        return list(read_lines(self.path / "attempts.jsonl"))

    def fail(self, message: str) -> None:
        """Record why the point is not finished; its samples and rounds stay."""
        if self.path.is_dir():
            write_json(self.path / "failure.json", {"status": "failed", "error": message})

    def finish(self, samples: Iterable[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Put the samples in prompt order, merge the processes' files, then write the summary: the run is done."""
        rounds = self.rounds() if self._extra_files() else None
        write_lines(self.path / "samples.jsonl", samples)
        if rounds is not None:
            write_lines(self.path / "rounds.jsonl", rounds)
        write_json(self.path / "summary.json", summary)
        for path in self._extra_files():
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "divergences", ignore_errors=True)

    def _extra_files(self) -> list[Path]:
        return sorted(self.path.glob("samples.rank*.jsonl")) + sorted(self.path.glob("rounds.rank*.jsonl"))

    def _all_lines(self, kind: str) -> Iterator[dict[str, Any]]:
        for path in (self.path / f"{kind}.jsonl", *sorted(self.path.glob(f"{kind}.rank*.jsonl"))):
            yield from read_lines(path)
