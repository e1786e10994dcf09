"""Where OpenVINO GenAI's draft decoding errs: which rows and tokens, and what explains the tokens that it emits there.

    python experiments/audit/engine_outputs.py openvino-draft --peers FOLDER --out results/audit     # first
    python experiments/audit/openvino_cause.py --peers FOLDER --out results/audit

Asks the engine again under conditions that differ in one thing, and prints a line for each: rows that are not exact,
the places of the wrong tokens, and how many of them the draft model gives after the same tokens, or the target gives
one position earlier (then the forward that chose them had not read the token before them).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from specdec.bench.peers import PeerProcess
from specdec.config.schema import PairConfig
from specdec.core.files import read_lines
from specdec.models.checkpoints import load_model

SPEED = Path(__file__).resolve().parent.parent / "speed"
CONDITIONS: list[tuple[str, dict[str, Any]]] = [
    ("8 rows at once, nothing joins later", {"rows": 8, "batch": 8, "tokens": 8192}),
    ("32 rows at once, all prompts in one step", {"rows": 32, "batch": 32, "tokens": 8192}),
    ("32 rows at once, prompts spread over steps of 256 tokens", {"rows": 32, "batch": 32, "tokens": 256}),
    ("32 rows, 8 at a time: rows join running ones", {"rows": 32, "batch": 8, "tokens": 8192}),
    ("32 rows, one at a time", {"rows": 32, "batch": 1, "tokens": 8192}),
    ("32 rows, one at a time, prompts in chunks of 32 tokens", {"rows": 32, "batch": 1, "tokens": 32}),
    ("32 rows, 8 at a time, without a draft", {"rows": 32, "batch": 8, "tokens": 8192, "plain": True}),
]


@torch.inference_mode()
def greedy(module: Any, prompt: list[int], output: list[int]) -> list[int]:
    """The model's argmax at every position of an output."""
    logits = module(torch.tensor([prompt + output[:-1]]), use_cache=False).logits[0]
    best: list[int] = logits[len(prompt) - 1 :].argmax(-1).tolist()
    return best


def examined(rows: list[tuple[list[int], list[int]]], target: Any, draft: Any) -> dict[str, Any]:
    """Counts of a condition."""
    places: Counter[int] = Counter()
    wrong_rows = []
    by_draft = one_early = num_wrong = num_agree = num_tokens = 0
    for number, (prompt, output) in enumerate(rows):
        best, drafted = greedy(target, prompt, output), greedy(draft, prompt, output)
        wrong = [place for place, token in enumerate(output) if token != best[place]]
        wrong_rows += [number] if wrong else []
        places.update(wrong)
        num_wrong += len(wrong)
        by_draft += sum(output[place] == drafted[place] for place in wrong)
        one_early += sum(place > 0 and output[place] == best[place - 1] for place in wrong)
        num_agree += sum(map(int.__eq__, drafted, output))
        num_tokens += len(output)
    return {
        "wrong_rows": wrong_rows,
        "wrong_tokens": num_wrong,
        "places": dict(sorted(places.items())),
        "by_draft": by_draft,
        "one_position_early": one_early,
        "draft_agrees_overall": round(num_agree / num_tokens, 3),
    }


def main() -> None:
    """Ask under every condition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/audit"))
    given = parser.parse_args()
    folder = next((given.out / "models").iterdir()).resolve()
    prompts = [line["prompt_ids"] for line in read_lines(given.out / "openvino-draft-32.jsonl")]
    target, draft = (
        load_model(name, str(folder / name), PairConfig(name="audit"), torch.float32, torch.device("cpu"))
        for name in ("target", "draft")
    )
    python = given.peers / "openvino" / "bin" / "python"
    for title, asked in CONDITIONS:
        process = PeerProcess("openvino", python, SPEED / "peers" / "peer_openvino.py", given.out / "cause.log")
        request = {
            "target": str(folder / "target"),
            "draft": None if asked.get("plain") else str(folder / "draft"),
            "prompts": prompts[: asked["rows"]],
            "max_new_tokens": 64,
            "batch": asked["batch"],
            "stop_ids": [],
            "gamma": 5,
            "threads": 1,
            "dtype": "float32",
            "options": {"cache": str((given.out / "peers").resolve()), "max_batched_tokens": asked["tokens"]},
        }
        outputs = process.ask(request, timeout_s=1200)["outputs"]
        process.close()
        found = examined(list(zip(request["prompts"], outputs, strict=True)), target, draft)
        print(json.dumps({"condition": title, "rows": len(outputs), **found}), flush=True)


if __name__ == "__main__":
    main()
