"""Acceptance of LongSpec heads by the length of the context, beside a draft model.

    python experiments/longspec/by_length.py FOLDER ... [--target asset:tiny/target --draft asset:tiny/draft]
        [--lengths 128 512 1024 1900] [--prompts 12] [--new-tokens 64]

Every FOLDER is what `train.py recipe=longspec` exported. Contexts are the beginnings of held-out files of the standard
library (those of train.py), cut to each length: the same files at every length. Rows are greedy, four at a time, and
draft four tokens. One JSON line per drafter and length; acceptance is also counted outside of loops, in which a weak
target repeats itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.config.schema import PairConfig
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.models.causal_lm import CausalLM
from specdec.models.checkpoints import load_model
from specdec.registry import create
from specdec.training.acceptance import HeldoutPrompt, measure_acceptance
from specdec.training.config import TrainConfig, ValidationConfig
from specdec.training.sources import Sources

SHOWN = ("num_rounds", "acceptance_rate", "acceptance_outside_loops", "mean_acceptance_length", "acceptance_by_place")


def contexts(sources: Sources, lengths: list[int], count: int) -> Iterator[tuple[int, list[HeldoutPrompt]]]:
    """Per length the first ``count`` held-out files that are longer than every length."""
    texts = (sources.tokenizer(file.text)["input_ids"] for file in sources.corpus.heldout)
    long = [ids for ids in texts if len(ids) > max(lengths)][:count]
    for length in lengths:
        yield length, [HeldoutPrompt(ids[:length], "long") for ids in long]


def drafter(context: DrafterContext, folder: str | None) -> Drafter:
    """The head of a folder; without one, the draft model."""
    if folder is None:
        return create("drafter", "model", context)  # type: ignore[no-any-return]
    return create("drafter", "longspec", context, path=folder, untrained=False)  # type: ignore[no-any-return]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folders", nargs="+")
    arguments.add_argument("--target", default="asset:tiny/target")
    arguments.add_argument("--draft")
    arguments.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1024, 1900])
    arguments.add_argument("--prompts", type=int, default=12)
    arguments.add_argument("--new-tokens", type=int, default=64)
    given = arguments.parse_args()
    sources = Sources(TrainConfig(task="heads", frozen=given.target), Path())
    target, cfg = sources.target, ValidationConfig(new_tokens=given.new_tokens, gamma=4, batch=4)
    folders = given.folders
    draft = None
    if given.draft:
        module = load_model("draft", given.draft, PairConfig(name="draft"), target.dtype, target.device)
        draft, folders = CausalLM(module), [*folders, None]
    for length, prompts in contexts(sources, given.lengths, given.prompts):
        for folder in folders:
            found = measure_acceptance(target, lambda c, f=folder: drafter(c, f), prompts, cfg, draft)
            figures = {key: found[key] for key in SHOWN if key in found}
            print(
                json.dumps({"length": length, "drafter": folder or "model", "prompts": len(prompts), **figures}),
                flush=True,
            )


if __name__ == "__main__":
    main()
