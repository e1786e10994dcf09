"""A point's summary, computed only from what is on disk, so that a resumed point is summarized like any other.

What is counted by row (tokens, drafted, accepted) comes from the samples and does not depend on interruptions. What is
counted by round (verify calls, time) comes from all rounds that ran, including those of rows that were interrupted and
decoded again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from specdec.config.budgets import NONE as NO_BUDGET
from specdec.config.drafter_weights import drafter_label_of
from specdec.config.judging import tree_label
from specdec.config.plugins import declared
from specdec.config.schema import RunConfig
from specdec.core.acceptance import by_place
from specdec.core.clock import STAGES
from specdec.core.loops import loop_figures
from specdec.core.metrics import Tally, calibration_error, percentiles, ratio, timing
from specdec.equivalence.near_ties import NEAR_TIE
from specdec.run.factory import build_batching
from specdec.run.forward_bound import read_bound
from specdec.run.reference_outputs import reference_label
from specdec.run.run import Run
from specdec.run.serving.figures import read_figures

_EQUIVALENCE = ("exact_match", "partial_match", "num_exact", "num_divergences", "num_explained", "num_failures")
Records = list[dict[str, Any]]


def summarize(run: Run) -> dict[str, Any]:
    """Everything in summary.json except the comparison with the baseline."""
    config, folder, reference = run.config, run.folder, run.store.key if run.store else None
    samples, rounds, attempts = list(folder.samples().values()), folder.rounds(), folder.attempts()
    tally = tally_of(samples, rounds)
    return {
        **_choices(run),
        "num_prompts": len(samples),
        **tally.counts(),
        **by_place(_steps(rounds)),
        **loop_figures({sample["index"]: sample["output_ids"] for sample in samples}, levels(rounds)),
        **_of_budget(rounds, config.budget.name),
        **_of_adaptation(rounds),
        "num_discarded_tokens": _emitted(rounds) - tally.num_output_tokens,
        **timing(stage_seconds(rounds), tally.num_output_tokens),
        "latency_s": percentiles([sample["latency_s"] for sample in samples]),
        "ttft_s": percentiles([sample["ttft_s"] for sample in samples]),
        "peak_memory_bytes": max((line["peak_memory_bytes"] for line in rounds), default=0),
        **equivalence(samples, reference),
        "reference_by": reference_label(config) if reference else None,
        **read_figures(folder.path),
        **read_bound(folder.path),
        "speedup_vs_ar": None,
        "baseline": None,
        "execution": _execution(attempts, "target"),
        "compile_s": _execution(attempts, "prepare_s"),
        "num_attempts": len({line["attempt"] for line in rounds}),
        "smallest_batch": min((attempt["batch"] for attempt in attempts), default=config.batch),
        "ranks": [_rank_figures(rank, samples, rounds) for rank in range(run.ranks.num_shares)],
        "status": "done",
    }


def tally_of(samples: Records, rounds: Records) -> Tally:
    """The counts of a run from its records."""
    tally = Tally(num_verify_calls=len(rounds), num_same_length_batches=sum(line["same_length"] for line in rounds))
    for sample in samples:
        tally.num_row_rounds += len(sample["accepted_lengths"])
        tally.num_drafted += sample["num_drafted"]
        tally.num_accepted += sum(sample["accepted_lengths"])
        tally.num_output_tokens += len(sample["output_ids"])
        tally.accepted.update(sample["accepted_lengths"])
    return tally


def _steps(rounds: Records) -> Iterator[tuple[int, int]]:
    """Accepted tokens and levels of every row's draft in every round."""
    for line in rounds:
        yield from zip(line["num_accepted"], line["depth"], strict=True)


def levels(rounds: Records) -> Iterator[tuple[int, int, int, int]]:
    """Each row's rounds: its tokens before, and the accepted and drafted levels. An attempt decodes a row afresh."""
    begun: dict[tuple[int, int], int] = defaultdict(int)
    for line in rounds:
        figures = zip(line["rows"], line["num_accepted"], line["depth"], line["num_emitted"], strict=True)
        for row, accepted, depth, emitted in figures:
            yield row, begun[line["attempt"], row], accepted, depth
            begun[line["attempt"], row] += emitted


def _of_budget(rounds: Records, budget: str) -> dict[str, Any]:
    """The share of drafted levels that a budget cut, and the calibration error of its predictions or the drafter's.

    None without a budget, and without predictions.
    """
    proposed = sum(sum(line.get("proposed") or line["depth"]) for line in rounds)
    kept = sum(sum(line["depth"]) for line in rounds)
    found = [line["calibration"] for line in rounds if line.get("calibration")]
    return {
        "cut_share": None if budget == NO_BUDGET else ratio(proposed - kept, proposed),
        "calibration_error": calibration_error(np.sum(found, axis=0).tolist()) if found else None,
    }


def _of_adaptation(rounds: Records) -> dict[str, Any]:
    """Updates of the drafter by what was updated, and what learning took; None where none was thought of."""
    learned = [line["learned"] for line in rounds if line.get("learned")]
    if not learned:
        return {"num_updates": None, "adapt_s": None}
    arms = Counter(arm for arm, _ in learned if arm != "none")
    return {"num_updates": dict(arms), "adapt_s": sum(seconds for _, seconds in learned)}


def stage_seconds(rounds: Records) -> dict[str, float]:
    """Seconds per stage: the sum over attempts of their slowest process."""
    parts: dict[int, dict[int, Records]] = defaultdict(lambda: defaultdict(list))
    for line in rounds:
        parts[line["attempt"]][line["rank"]].append(line)
    slowest = [max((_summed(lines) for lines in ranks.values()), key=_total) for ranks in parts.values()]
    return {stage: sum(seconds[stage] for seconds in slowest) for stage in STAGES}


def _summed(rounds: Records) -> dict[str, float]:
    return {stage: sum(line[f"{stage}_s"] for line in rounds) for stage in STAGES}


def _total(seconds: dict[str, float]) -> float:
    return sum(seconds.values())


def _emitted(rounds: Records) -> int:
    return sum(sum(line["num_emitted"]) for line in rounds)


def _rank_figures(rank: int, samples: Records, rounds: Records) -> dict[str, Any]:
    """What one process did, in all attempts."""
    mine = [line for line in rounds if line["rank"] == rank]
    wall_s, num_tokens = _total(_summed(mine)), _emitted(mine)
    return {
        "rank": rank,
        "num_prompts": sum(sample["rank"] == rank for sample in samples),
        "num_output_tokens": num_tokens,
        "num_verify_calls": len(mine),
        "wall_s": wall_s,
        "tokens_per_s": ratio(num_tokens, wall_s),
        "peak_memory_bytes": max((line["peak_memory_bytes"] for line in mine), default=0),
    }


def _choices(run: Run) -> dict[str, Any]:
    """The models, data and methods of the run."""
    config, folder, env = run.config, run.folder, run.env
    groups = ("alignment", "drafter", "verifier", "batching", "draft_length", "budget")
    return {
        "hash": folder.hash,
        "path": str(folder.path),
        "pair": config.pair.name,
        "target_fingerprint": env.get("pair_fingerprint"),
        "draft_fingerprint": env.get("draft_fingerprint"),
        "data": _data_label(config),
        "data_fingerprint": env.get("inputs", {}).get("data.path"),
        "scheduler": config.scheduler.label,
        **{group: getattr(config, group).name for group in groups},
        "tree": tree_label(config),
        "drafter": drafter_label_of(config),
        "batch": config.batch,
        "gamma": config.gamma if declared(config, "drafter").drafts else 0,
        "temperature": config.temperature,
        "numerics": config.numerics,
        "max_new_tokens": config.max_new_tokens,
        "dtype": config.runner.dtype,
        "weights": config.weights,
        "window": build_batching(config).window,
        "lengths": "random" if config.data.prompt_tokens is None else "identical",
        "arrivals": config.arrivals.name,
        "turn": config.turn,
        "experiments": [config.experiment] if config.experiment else [],
    }


def _execution(attempts: Records, key: str) -> Any:
    """A value of the last attempt's execution; an earlier attempt may have run on another machine."""
    return ((attempts[-1].get("execution") if attempts else None) or {}).get(key)


def _data_label(config: RunConfig) -> str:
    """The name of the data group, or of the file that replaces it."""
    path = str(config.data.path)
    return Path(path).stem if Path(path).is_file() else str(config.data.name)


def equivalence(samples: Records, reference: str | None) -> dict[str, Any]:
    """How many rows equal the reference, and how many of the others are explained."""
    if reference is None:
        return dict.fromkeys((*_EQUIVALENCE, "reference"))
    num_exact = sum(sample["exact"] for sample in samples)
    num_explained = sum((sample["explanation"] or {}).get("kind") == NEAR_TIE for sample in samples)
    return {
        "exact_match": num_exact / len(samples),
        "partial_match": sum(sample["matched_share"] for sample in samples) / len(samples),
        "num_exact": num_exact,
        "num_divergences": len(samples) - num_exact,
        "num_explained": num_explained,
        "num_failures": len(samples) - num_exact - num_explained,
        "reference": reference,
    }
