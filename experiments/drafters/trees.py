"""Trees of greedy drafts against the drafters' chains, in acceptance and in tokens per second.

    python experiments/drafters/trees.py                 # all; trains the heads first, briefly; writes trees.md
    python experiments/drafters/trees.py --only medusa   # or eagle, ppd, trigram, prompt_lookup: prints that part
    python experiments/drafters/trees.py --rehearse      # every line of it at small sizes; the figures mean nothing

All settings decode the same held-out prompts greedily, in turns, on one thread; every row is compared with the target's
own `generate`. Time is the processor time of this process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from study import HEADS, outputs, settings

from specdec.assets import local_path
from specdec.core.metrics import Tally
from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.core.tables import markdown, text_table
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.training import run_task
from specdec.training.config import PhaseConfig
from specdec.training.corpus import read_corpus
from specdec.training.decoding import decode, stop_ids_of
from specdec.trees.chain import ChainTree

FOLDER = Path(__file__).parent
FITS = {"medusa": (160, 8), "ppd": (200, 4), "eagle": (100, 8)}  # steps, and rows per step
CORPUS_BYTES = 1_500_000
GAMMA = {"ppd": 3}  # its prompt tokens; others 4
BATCHES, TURNS = (1, 8), 2
HEADING = ["drafter", "settings", "batch", "tokens/call", "drafted/call", "exact", "tokens/s", "vs chain", "vs plain"]

Setting = tuple[str, dict[str, Any]]


def compared(folders: dict[str, str], corpus: str) -> dict[str, list[Setting]]:
    """By drafter: its chain first, then its trees."""
    medusa, ppd, eagle = ({"path": folders.get(kind, ""), "untrained": False} for kind in FITS)
    fitted = {"nodes": 48, "fit_nodes": True}
    sizes: list[dict[str, Any]] = [{}, {"nodes": 16}, {"nodes": 64}]
    return {
        "prompt_lookup": [("prompt_lookup", {"matches": matches}) for matches in (1, 2, 4, 8)],
        "trigram": [("trigram", size) for size in sizes],
        "trigram with a corpus": [("trigram", {"corpus": corpus, **size}) for size in sizes],
        "medusa": [("medusa", medusa), *(("medusa", {**medusa, "nodes": n}) for n in (8, 16, 32, 64))],
        "ppd": [("ppd", {**ppd, **size}) for size in ({}, *({"nodes": n} for n in (6, 12, 24, 48)), fitted)],
        "eagle": [("eagle", eagle), *(("eagle", {**eagle, "confidence": n}) for n in (8, 16, 32))],
    }


def train(results: Path, rehearse: bool, only: str | None = None) -> dict[str, str]:
    """Brief fits of the kinds of heads; stages that are done are kept."""
    folders = {}
    for kind, (steps, rows) in FITS.items():
        if only not in (None, kind):
            continue
        outputs(results, results / kind)
        cfg = settings("heads", results / kind, rehearse)
        cfg.heads, cfg.validation.every = HEADS[kind], 0
        if not rehearse:
            cfg.greedy.num_batches = 16
            cfg.fit.steps, cfg.fit.phases = steps, [PhaseConfig(1.0, 256, rows)]
        if kind == "ppd":
            cfg.fit.lr, cfg.fit.weight_decay = 1e-2, 0.0
        folders[kind] = str(run_task("", cfg)["export"])
    return folders


def write_corpus(results: Path, rehearse: bool) -> str:
    """Lines of training files, which hold none of the prompts."""
    cfg = settings("heads", results, rehearse)
    files = read_corpus(cfg.corpus).train
    budget = 20_000 if rehearse else CORPUS_BYTES
    every = max(1, sum(len(file.text) for file in files) // budget)
    texts = [file.text for file in files[::every]]
    path = results / "corpus.txt"
    path.write_text("\n".join(texts))
    return str(path)


class Bench:
    """Decodes the prompts with one drafter after the other."""

    def __init__(self, rehearse: bool) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        module = AutoModelForCausalLM.from_pretrained(local_path("asset:tiny/target"), dtype=torch.float32).eval()
        self.target = CausalLM(module)
        self.tokenizer = AutoTokenizer.from_pretrained(local_path("asset:tiny/tokenizer"))
        lines = local_path("asset:heldout.jsonl").read_text().splitlines()
        # The accuracies of the heads are measured on every fifth one.
        chosen = [line for number, line in enumerate(lines) if number % 5 in (1, 3)][: 2 if rehearse else None]
        self.prompts = [self.tokenizer(json.loads(line)["turns"][0]).input_ids for line in chosen]
        self.new_tokens = 8 if rehearse else 64
        self.expected = [self._reference(ids) for ids in self.prompts]

    def _reference(self, ids: list[int]) -> list[int]:
        output = self.target.module.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=self.new_tokens,
        )
        found: list[int] = output[0, len(ids) :].tolist()
        return found

    def run(self, name: str, params: dict[str, Any], batch: int) -> dict[str, Any]:
        """Counts of one pass over the prompts, and the processor time of its rounds."""
        rows = [Sequence(i, ids, self.new_tokens, stop_ids_of(self.target)) for i, ids in enumerate(self.prompts)]
        tally, timed = Tally(), _Timed()
        own = {key: value for key, value in params.items() if key != "confidence"}
        tree = create("tree", "confidence", top_k=4, num_nodes=params["confidence"]) if own != params else ChainTree()

        def make(context: DrafterContext) -> Drafter:
            drafter: Drafter = create("drafter", name, replace(context, tokenizer=self.tokenizer, tree=tree), **own)
            drafter.prepare(batch)
            timed.start()
            return drafter

        def observe(outcome: Round) -> None:
            tally.add(outcome)

        decode(self.target, rows, batch, make_drafter=make, gamma=GAMMA.get(name, 4), execution="auto", observe=observe)
        exact = sum(row.output_ids == wanted for row, wanted in zip(rows, self.expected, strict=True))
        return {**tally.counts(), "seconds": timed.stop(), "exact": exact, "rows": len(rows)}


class _Timed:
    """Processor time since ``start``."""

    def start(self) -> None:
        self._since = time.process_time()

    def stop(self) -> float:
        return time.process_time() - self._since


def measure(bench: Bench, parts: dict[str, list[Setting]]) -> Iterator[list[str]]:
    """One line of the table per setting and batch size; all settings of a batch size take turns."""
    for batch in BATCHES:
        runs = [("none", [("none", {})]), *parts.items()]
        passes: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for _ in range(TURNS):
            for label, several in runs:
                for number, (name, params) in enumerate(several):
                    passes.setdefault((label, number), []).append(bench.run(name, params, batch))
                    print(f"[batch {batch}: {label} {number}]", flush=True)
        speed = {key: _speed(found) for key, found in passes.items()}
        for label, several in runs:
            for number, (_, params) in enumerate(several):
                counts = passes[label, number][0]
                yield [
                    label,
                    _shown(params),
                    str(batch),
                    f"{counts['mean_acceptance_length']:.3f}",
                    f"{counts['num_drafted'] / counts['num_row_rounds']:.1f}",
                    f"{counts['exact']}/{counts['rows']}",
                    f"{speed[label, number]:.0f}",
                    f"{speed[label, number] / speed[label, 0]:.2f}x",
                    f"{speed[label, number] / speed['none', 0]:.2f}x",
                ]


def _speed(passes: list[dict[str, Any]]) -> float:
    return passes[0]["num_output_tokens"] / statistics.median_low(found["seconds"] for found in passes)


def _shown(params: dict[str, Any]) -> str:
    own = {key: value for key, value in params.items() if key not in ("path", "corpus", "untrained")}
    return " ".join(f"{key}={str(value).lower()}" for key, value in own.items()) or "chain"


def main() -> None:
    """Train, decode, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--only", help="one drafter; nothing is written")
    parser.add_argument("--results", type=Path, default=Path("results/drafters"))
    arguments = parser.parse_args()
    results = arguments.results / ("trees-rehearsal" if arguments.rehearse else "trees")
    results.mkdir(parents=True, exist_ok=True)
    only = arguments.only if arguments.only in FITS else None
    parts = compared(train(results, arguments.rehearse, only), write_corpus(results, arguments.rehearse))
    if arguments.only:
        parts = {label: several for label, several in parts.items() if label.startswith(arguments.only)}
    table = markdown(text_table(HEADING, list(measure(Bench(arguments.rehearse), parts))))
    if not (arguments.only or arguments.rehearse):
        (FOLDER / "trees.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
