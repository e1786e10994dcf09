"""Attempts at a point: what an unfinished one wrote is kept if inputs, code and machine are still the same.

Every start of a point is an attempt, one line of ``attempts.jsonl``. Rows that were finished stay as they are; rows
that were in flight are decoded again, in other batches than before, which changes no output (a row never depends on its
neighbours) but does change times. So the times of a resumed point are sums over its attempts, the tokens of rows that
were in flight are counted (``num_discarded_tokens``), and ``num_attempts`` shows the interruptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from specdec.config.identity import CODE_AND_MACHINE
from specdec.core.files import append_line, digest
from specdec.core.prompts import Prompt
from specdec.run.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a point."""

    number: int  # from 1
    todo: frozenset[int]  # indices of the prompts that are not finished
    run: str  # an id that attempts which resume one another share, and other attempts at the point do not
    num_earlier_rounds: int  # rounds on disk of the attempts that this one resumes


def begin(
    folder: RunFolder, env: dict[str, Any], reference: str | None, prompts: list[Prompt], *, batch: int, force: bool
) -> tuple[Attempt, str | None]:
    """Open the folder for one more attempt; returns it with a note of what was kept or dropped, if anything was."""
    conditions = _conditions(env, reference, prompts)
    earlier = [line for line in folder.attempts() if "conditions" in line]
    changed = _changed(earlier[-1]["conditions"], conditions) if earlier else []
    note = None
    if changed and not force:
        note = f"earlier samples are dropped, because these have changed: {', '.join(changed)}"
    if force or changed or not earlier:
        folder.clear()
        earlier = []
    folder.start(env)
    kept = folder.samples()
    if earlier:
        note = f"resumed in {folder.path}: {len(kept)} of {len(prompts)} prompts are finished"
    todo = frozenset(prompt.index for prompt in prompts) - kept.keys()
    run = earlier[0].get("run") if earlier else None
    attempt = Attempt(len(earlier) + 1, todo, run or uuid4().hex[:8], len(folder.rounds()))
    record = {
        "attempt": attempt.number,
        "run": attempt.run,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "batch": batch,
        "num_kept": len(kept),
        "execution": env.get("execution"),
        "conditions": conditions,
    }
    append_line(folder.path / "attempts.jsonl", record)
    return attempt, note


def _conditions(env: dict[str, Any], reference: str | None, prompts: list[Prompt]) -> dict[str, Any]:
    """What must be the same for two attempts to form one run."""
    names = (*CODE_AND_MACHINE, "inputs")
    encoded = [[prompt.index, prompt.ids] for prompt in prompts]
    return {**{name: env.get(name) for name in names}, "prompts": digest(encoded), "reference": reference}


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
