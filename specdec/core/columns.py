"""The columns of all tables (console, report, benchmark, loggers): heading, key, format, meaning. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdec.core.tables import Cell, Column, Interval


@dataclass(frozen=True, slots=True)
class ExactColumn(Column):
    """Rows whose tokens all equal the reference, and how the others are classified; or the status of a failed point."""

    def cell(self, record: Mapping[str, Any], interval: Interval | None = None) -> Cell:
        if record.get("status", "done") != "done":
            return Cell(str(record["status"]), "", -1, "bad")
        if record.get("num_exact") is None:
            return Cell("-", "", -1)
        text, share = f"{record['num_exact']}/{record['num_prompts']}", record["num_exact"] / record["num_prompts"]
        if num_failures := record.get("num_failures"):
            return Cell(text, f"{num_failures} failures", share, "bad")
        if num_explained := record.get("num_explained"):
            return Cell(text, f"{num_explained} near-ties", share, "warn")
        return Cell(text, "", share, "good" if share == 1 else "bad")


def _share(stage: str, doing: str) -> Column:
    meaning = f"share of the decode time spent {doing}"
    return Column(stage, f"{stage}_s", ".1%", meaning, per="decode_s", quotient=f"{stage}_share")


_COLUMNS = (
    Column("method", "method", "", "the scheduler, the alignment if it is not eqspec, and other settings that differ"),
    Column("method", "scheduler", "", "the scheduler"),
    Column("results", "label", "", "the results folder"),
    *(Column(key, key, "", f"the point's {key}") for key in ("pair", "weights", "data", "dtype")),
    *(Column(key, key, "", f"the point's {key}") for key in ("alignment", "drafter", "tree", "verifier", "execution")),
    *(
        Column(key, key, "", f"the point's {key}")
        for key in ("numerics", "draft_length", "budget", "lengths", "batching", "window")
    ),
    Column("category", "category", "", "the prompts' category"),
    Column("batch", "batch", "d", "rows per round"),
    Column("gamma", "gamma", "d", "drafted tokens per row and round"),
    Column("temperature", "temperature", "g", "sampling temperature; 0 is greedy"),
    ExactColumn(
        *(
            "exact",
            "num_exact",
            "g",
            "rows whose tokens all equal the reference, and how many others are near-ties or failures",
        ),
        shows_interval=True,
    ),
    Column("exact %", "exact_match", ".1f", "rows whose tokens all equal the reference", 100),
    Column("partial %", "partial_match", ".1f", "share of tokens before the first difference", 100),
    Column("divergences", "num_divergences", "d", "rows that differ from the reference"),
    Column("near-ties", "num_explained", "d", "divergences that rounding explains"),
    Column("failures", "num_failures", "d", "divergences that rounding does not explain"),
    Column(
        *("tokens/s", "tokens_per_s", ",.0f", "output tokens per second of wall time, prefill included"),
        shows_interval=True,
    ),
    Column(
        *("served/s", "served_tokens_per_s", ",.1f"),
        meaning="output tokens per second from the first arrival to the last token",
    ),
    Column(
        *("vs plain", "speedup_vs_ar", ".2f", "speed-up over the baseline, plain decoding"),
        unit="x",
        shows_interval=True,
    ),
    Column("vs baseline", "ratio", ".2f", "speed-up over the study's baseline in the same turns", unit="x"),
    Column("over own batch 1", "speedup_vs_own_batch_1", ".2f", "speed-up over the method's own batch 1", unit="x"),
    Column("accept", "acceptance_rate", ".2f", "accepted / drafted tokens"),
    Column("nodes/round", "nodes_per_round", ".1f", "drafted tokens per row and round; of a tree, all its nodes"),
    Column("cut", "cut_share", ".0%", "share of the drafted levels that the budget cut"),
    Column(
        "ECE",
        "calibration_error",
        ".3f",
        "calibration error of the acceptance that a budget or the drafter predicts",
    ),
    Column("tokens/call", "mean_acceptance_length", ".2f", "emitted tokens per row and verify call"),
    Column("verify calls", "num_verify_calls", ",.0f", "target forwards that verified a batch"),
    Column(
        heading="ms per verify",
        key="verify_s",
        pattern=",.1f",
        meaning="verify time per call",
        scale=1000,
        per="num_verify_calls",
        quotient="verify_s_per_call",
    ),
    _share("prefill", "prefilling"),
    _share("draft", "drafting"),
    _share("verify", "verifying"),
    _share("align", "realigning"),
    _share("other", "on everything else"),
    Column("align", "alignment_overhead", ".1%", "share of the decode time spent realigning"),
    Column("align us/round", "align_s_per_round", ",.0f", "time spent realigning, per round", 1e6),
    Column("grouped", "grouping_rate", ".0%", "rounds whose rows all have one length"),
    Column("p50 s", "latency_s.p50", ".2f", "latency of a row, median"),
    Column("p90 s", "latency_s.p90", ".2f", "latency of a row, 90th percentile"),
    Column("p99 s", "latency_s.p99", ".2f", "latency of a row, 99th percentile"),
    Column("token p99 s", "token_s.p99", ".3f", "seconds per token of a row after its first, 99th percentile"),
    Column("ttft p50 s", "ttft_s.p50", ".2f", "time to the first token, median"),
    Column("ttft p99", "ttft_s.p99", ".2f", "time to the first token, 99th percentile, in seconds"),
    Column("wait p99", "wait_rounds.p99", ".0f", "most consecutive rounds that left a row out, 99th percentile"),
    Column("waits", "wait_rounds.max", ".0f", "most consecutive rounds that left a row out"),
    Column("queue", "queue_length.mean", ".1f", "rows waiting for admission, mean over time"),
    Column("loop eff.", "loop_efficiency", ".2f", "time of the forwards alone / decode time"),
    Column("bandwidth", "bandwidth_share", ".0%", "share of the device's peak bandwidth"),
    Column("MiB", "peak_memory_bytes", ",.0f", "peak memory", 2.0**-20),
    Column("warm-up s", "warm_up_s", ".1f", "seconds before the first measurement"),
    Column("prompts", "num_prompts", "d", "rows decoded"),
    Column("tokens", "num_output_tokens", ",d", "tokens of all outputs"),
)
COLUMNS = {column.name: column for column in _COLUMNS}
"""By their key in summary.json (dotted if nested), or by the name of a quotient."""


def columns(*names: str) -> list[Column]:
    """The columns of these names, in this order."""
    return [COLUMNS[name] for name in names]
