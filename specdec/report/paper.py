"""The figures that the EQSPEC paper published (arXiv 2510.22876v3), as data, to be printed beside ours.

``PAPER[experiment]`` is a list of rows with the keys ``experiment, method, pair, batch, metric, value``, and where the
paper varies it ``lengths``. They are keyed as our summaries are: ``experiment`` is a preset's name (a summary lists the
presets it belongs to under ``experiments``), ``method`` is the summary's ``scheduler`` (the label: plain, eqspec, ...),
``pair`` and ``batch`` are its own, and ``metric`` is one of its keys, dotted where it is nested (``latency_s.p99``).
Shares are fractions of 1, times are in seconds. A pair of None: the source does not say which.

Three metrics are quotients of a summary's keys, see :func:`ours`. What the paper gives only as "about" is marked
``approximate``. Measured there: A100-80GB, float16, gamma 5, greedy, Spec-Bench; 128 new tokens for the
throughput runs, 50 for Table 1 and Figure 5c.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

PAIRS = ("vicuna", "qwen3", "glm4")

# exact and partial match in %, at batch 1 and 4, per pair
_TABLE1: dict[str, tuple[tuple[tuple[float, float] | None, tuple[float, float] | None], ...]] = {
    "plain": ((None, (53.8, 98.2)), (None, (92.9, 96.5)), (None, (93.3, 97.2))),
    "hf_assisted": (((97.1, 98.4), None), ((94.6, 97.2), None), ((96.0, 98.0), None)),
    "eqspec": (((97.3, 98.6), (92.1, 98.6)), ((94.6, 96.9), (92.3, 95.7)), ((96.7, 98.1), (96.5, 98.3))),
    "exspec": (((97.3, 98.6), (90.8, 97.6)), ((94.6, 96.9), (95.0, 97.1)), ((96.7, 98.1), (95.2, 97.7))),
    "dsd": (((0.0, 8.1), (0.0, 2.2)), ((0.2, 2.2), (0.0, 0.6)), ((0.0, 1.0), (0.0, 0.8))),
    "bsp": (((1.9, 39.7), (0.2, 31.3)), ((3.5, 19.9), (2.1, 12.6)), ((1.0, 15.3), (0.6, 8.1))),
}
# tokens/s, verify calls, milliseconds per verify call, shares of the decode time in %
_TABLE2 = {"eqspec": (95.6, 1469, 24.9, 44.9, 27.4, 27.7), "exspec": (156.4, 952, 29.1, 55.9, 29.5, 14.6)}
# tokens/s and completion latency p50, p90, p99 in seconds, by batch
_TABLE4 = {
    "eqspec": {
        1: (15.2, 6.7, 13.0, 16.5),
        2: (26.7, 8.0, 14.8, 19.1),
        4: (46.1, 9.5, 16.2, 19.1),
        8: (76.0, 11.3, 19.2, 22.5),
    },
    "exspec": {
        1: (15.8, 6.1, 8.3, 9.4),
        2: (30.5, 9.8, 114.9, 134.0),
        4: (52.4, 8.0, 53.2, 70.4),
        8: (77.5, 9.2, 19.1, 33.9),
    },
}
# grouping rate in % by batch
_FIGURE5C = {
    "identical": {2: 96.0, 4: 89.0, 8: 84.0, 16: 71.0, 32: 44.0},
    "random": {2: 24.0, 4: 18.0, 8: 5.0, 16: 1.0},
}


def _row(experiment: str, method: str, pair: str | None, batch: int, metric: str, value: float, **more: Any) -> Row:
    keys = {"experiment": experiment, "method": method, "pair": pair, "batch": batch, "metric": metric}
    return {**keys, "value": value, **more}


def _table1() -> list[Row]:
    rows = []
    for method, pairs in _TABLE1.items():
        for pair, batches in zip(PAIRS, pairs, strict=True):
            for batch, shares in zip((1, 4), batches, strict=True):
                for metric, share in zip(("exact_match", "partial_match"), shares or (), strict=False):
                    rows.append(_row("paper_table1", method, pair, batch, metric, share / 100))
    return rows


def _table2() -> list[Row]:
    rows = []
    for method, (speed, calls, verify_ms, *shares) in _TABLE2.items():
        figures = {"tokens_per_s": speed, "num_verify_calls": calls, "verify_s_per_call": verify_ms / 1000}
        figures |= dict(
            zip(("verify_share", "draft_share", "alignment_overhead"), (s / 100 for s in shares), strict=True)
        )
        rows += [_row("paper_table2", method, "vicuna", 4, metric, value) for metric, value in figures.items()]
        rows.append(_row("paper_table2", method, "vicuna", 4, "acceptance_rate", 0.23, approximate=True))
    return rows


def _table4() -> list[Row]:
    metrics = ("served_tokens_per_s", "latency_s.p50", "latency_s.p90", "latency_s.p99")
    return [
        _row("paper_table4", method, None, batch, metric, value)
        for method, batches in _TABLE4.items()
        for batch, values in batches.items()
        for metric, value in zip(metrics, values, strict=True)
    ]


PAPER: dict[str, list[Row]] = {
    "paper_table1": _table1(),
    "paper_table2": _table2(),
    "paper_table4": _table4(),
    # throughput relative to the method's own batch 1
    "paper_figure5a": [_row("paper_figure5a", "exspec", None, 8, "speedup_vs_own_batch_1", 3.0, approximate=True)],
    "paper_figure5b": [
        _row("paper_figure5b", "eqspec", None, batch, "alignment_overhead", value, approximate=True)
        for batch, value in ((1, 0.13), (32, 0.40))
    ],
    "paper_figure5c": [
        _row("paper_figure5c", "exspec", None, batch, "grouping_rate", share / 100, lengths=lengths)
        for lengths, batches in _FIGURE5C.items()
        for batch, share in batches.items()
    ],
}


def ours(summary: dict[str, Any], metric: str) -> float | None:
    """A metric of the paper in one of our summaries; None where it has none.

    ``verify_s_per_call`` is verify_s / num_verify_calls, ``verify_share`` and ``draft_share`` are shares of decode_s.
    ``speedup_vs_own_batch_1`` needs two summaries and is left to the caller.
    """
    quotients = {
        "verify_s_per_call": ("verify_s", "num_verify_calls"),
        "verify_share": ("verify_s", "decode_s"),
        "draft_share": ("draft_s", "decode_s"),
    }
    if metric in quotients:
        above, below = (summary.get(key) for key in quotients[metric])
        return above / below if above is not None and below else None
    value: Any = summary
    for key in metric.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None
