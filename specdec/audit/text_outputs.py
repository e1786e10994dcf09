"""Greedy outputs that are known as text only: which tokens the engine is taken to have emitted.

A text has several segmentations into tokens. The engine is taken to have emitted the target's own argmax as long as the
text agrees with it, and the tokenizer's segmentation of what is left from there on: if any correct engine can have
written the text, this one is found right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specdec.audit.forced import Forcing
from specdec.audit.greedy import EXACT, GreedyRules, judge_greedy
from specdec.audit.rows import Row

_PARTIAL = "\ufffd"  # a decoder's sign for bytes that are not yet a character


def judge_text(row: Row, *, tokenizer: Any, forcing: Forcing, rules: GreedyRules) -> dict[str, Any]:
    """The verdict on a row, given as ids or as text."""
    while True:
        verdict = judge_greedy(row, forcing, rules)
        if row.text is None or verdict["verdict"] == EXACT or not verdict["divergences"]:
            return verdict
        other = _resegmented(row, verdict["divergences"][0], tokenizer)
        if other is None:
            return verdict | {"segmentation": "assumed"}
        row = other


def _resegmented(row: Row, divergence: dict[str, Any], tokenizer: Any) -> Row | None:
    """The row with the target's own token at its first divergence; None if the text does not agree with it."""
    assert row.text is not None
    begin = [*row.output_ids[: divergence["position"]], divergence["expected"]]
    text = tokenizer.decode(begin, clean_up_tokenization_spaces=False)
    if text.endswith(_PARTIAL) or not row.text.startswith(text):
        return None
    rest = tokenizer.encode(row.text[len(text) :], add_special_tokens=False)
    if tokenizer.decode(begin + rest, clean_up_tokenization_spaces=False) != row.text:
        return None
    return replace(row, output_ids=begin + rest)
