"""Outputs of finished points as the answer files of Spec-Bench, which its ``evaluation/speed.py`` compares.

Format: a line per question as in Spec-Bench's ``evaluation/eval.py``. Of each turn, ``new_tokens`` is the number
of output tokens, ``wall_time`` the seconds of the rounds that the row took part in (at batch 1, its own time),
``decoding_steps`` their number, and ``accept_lengths`` the tokens that each gave the row, the target's own included.

The script counts the tokens of its baseline anew from the text, less one for a token that begins every text; with a
tokenizer that adds none, it finds the baseline slower by one token per answer.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from specdec.analysis import Record, read_json
from specdec.core.files import read_lines, write_lines
from specdec.report.content import ReportContent
from specdec.report.intervals import STAGES


def write_answers(content: ReportContent, folder: Path) -> list[Path]:
    """One file per finished point: ``answers/LABEL-METHOD-bBATCH-HASH.jsonl``."""
    folder = folder / "answers"
    folder.mkdir(exist_ok=True)
    written = []
    for point in content.points:
        if point["status"] == "done":
            name = re.sub(r"[^\w.=+-]+", "_", f"{point['label']}-{point['method']}-b{point['batch']}")
            written.append(folder / f"{name}-{point['hash']}.jsonl")
            write_lines(written[-1], answers(point))
    return written


def answers(point: Record) -> list[dict[str, Any]]:
    """The lines of a point's file, in the order of its questions."""
    run = Path(point["folder"])
    spent = _seconds(read_lines(run / "rounds.jsonl"))
    started = str(read_json(run / "env.json").get("started") or "1970-01-01T00:00:00+00:00")
    turns: dict[str, list[Record]] = defaultdict(list)
    for sample in read_lines(run / "samples.jsonl"):
        turns[json.dumps(sample["question_id"])].append(sample)
    return [
        {
            "question_id": samples[0]["question_id"],
            "category": samples[0]["category"],
            "answer_id": f"{point['hash']}-{samples[0]['index']}",
            "model_id": f"{point['pair']} {point['method']} batch {point['batch']}",
            "choices": [_choice(sorted(samples, key=lambda sample: sample["index"]), spent)],
            "tstamp": datetime.fromisoformat(started).timestamp(),
        }
        for samples in turns.values()
    ]


def _choice(samples: list[Record], spent: dict[int, float]) -> dict[str, Any]:
    emitted = [_emitted(sample) for sample in samples]
    return {
        "index": 0,
        "turns": [sample["text"] for sample in samples],
        "decoding_steps": [len(lengths) for lengths in emitted],
        "new_tokens": [len(sample["output_ids"]) for sample in samples],
        "wall_time": [spent[sample["index"]] for sample in samples],
        "accept_lengths": [length for lengths in emitted for length in lengths],
    }


def _emitted(sample: Record) -> list[int]:
    """Tokens per round; the last round may have given fewer, because the output ended."""
    lengths = [accepted + 1 for accepted in sample["accepted_lengths"]]
    if lengths:
        lengths[-1] += len(sample["output_ids"]) - sum(lengths)
    return lengths


def _seconds(rounds: Iterable[Record]) -> dict[int, float]:
    """By row: the time of the rounds of its last attempt that it took part in."""
    found: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for line in rounds:
        for row in line["rows"]:
            found[row][line["attempt"]] += sum(line.get(stage) or 0.0 for stage in STAGES)
    return {row: seconds[max(seconds)] for row, seconds in found.items()}
