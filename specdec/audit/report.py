"""What an audit found, as text and as one JSON document. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

MOST_ROWS = 12  # rows that the text describes
_FIRST_TOKEN_SHARE = 0.5

Show = Callable[[int], str]
"""A token's text."""


def greedy_lines(verdicts: list[dict[str, Any]], show: Show) -> list[str]:
    """The counts, and what stands at the first divergence of each row that is not exact."""
    counts = Counter(verdict["verdict"] for verdict in verdicts)
    num_tokens = sum(verdict["num_tokens"] for verdict in verdicts)
    num_divergent = sum(verdict["num_divergent"] for verdict in verdicts)
    lines = [
        f"{counts['exact']} of {len(verdicts)} rows exact, {counts['near-tie']} near-ties, "
        f"{counts['failure']} failures; {num_divergent} of {num_tokens} tokens are not the target's argmax"
    ]
    other = sorted((v for v in verdicts if v["verdict"] != "exact"), key=lambda v: str(v["verdict"]) != "failure")
    lines += [_row_line(verdict, show) for verdict in other[:MOST_ROWS]]
    if len(other) > MOST_ROWS:
        lines.append(f"... and {len(other) - MOST_ROWS} more rows; --out FILE keeps all verdicts")
    failed = [v for v in verdicts if v["verdict"] == "failure"]
    at_once = sum(_first(v) == 0 for v in failed)
    if at_once > _FIRST_TOKEN_SHARE * len(verdicts):
        lines.append(
            f"{at_once} rows differ at their first token already: is it the engine's target, tokenizer, chat template, "
            "and first special token?"
        )
    return lines


def _first(verdict: dict[str, Any]) -> int | None:
    return next((item["position"] for item in verdict["divergences"] if item["kind"] == "failure"), None)


def _row_line(verdict: dict[str, Any], show: Show) -> str:
    text = f"row {verdict['id']}: {verdict['verdict']}"
    if verdict["divergences"]:
        item = verdict["divergences"][0]
        noise = verdict["noise"]
        times = f"{item['margin'] / noise:.3g} x the noise of {noise:.2g}" if noise else "no noise was measured"
        text += (
            f" at token {item['position']}: {show(item['token'])} stands where the target has "
            f"{show(item['expected'])}; margin {item['margin']:.4g} ({times}), rank {item['rank']}; "
            f"{verdict['num_divergent']} of {verdict['num_tokens']} tokens differ"
        )
    return f"{text}; {verdict['reason']}" if verdict["reason"] else text


def sampled_lines(verdicts: list[dict[str, Any]], tests: list[dict[str, Any]], level: float, show: Show) -> list[str]:
    """The tests, the verdict of all of them, and the rows that fail by themselves."""
    rejected = [test["name"] for test in tests if test["rejects"]]
    lines = [
        f"{len(verdicts)} rows, {sum(verdict['num_tokens'] for verdict in verdicts)} tokens, {len(tests)} tests: "
        + (f"NOT the stated law ({', '.join(rejected)})" if rejected else "no deviation from the stated law found")
    ]
    for test in tests:
        outcome = "REJECTED" if test["rejects"] else "passed"
        lines.append(f"  {test['name']:<11} p {test['p_value']:<10.3g} {outcome:<9} {test['detail']}")
    lines.append(
        f"  a test rejects at p <= {level / len(tests):.2g}: the level {level:g} of the file over {len(tests)} tests"
    )
    failed = [verdict for verdict in verdicts if verdict["verdict"] == "failure"]
    lines += [f"row {verdict['id']}: {verdict['reason']}" for verdict in failed[:MOST_ROWS]]
    if len(failed) > MOST_ROWS:
        lines.append(f"... and {len(failed) - MOST_ROWS} more rows; --out FILE keeps all verdicts")
    return lines
