"""What drafts without another model gain by the length of the context: speed, memory, acceptance; every row compared.

    python scripts/make_long_prompts.py --tokenizer FOLDER --out long.jsonl --lengths 1024,2048,4096,8120 --per-task 1
    python experiments/long_contexts/measure.py FOLDER long.jsonl --work work        # goes on where it stopped

FOLDER is a model, such as SmolLM2-135M. The prompts of one length are the rows of one batch. A prompt is read once per
length; its keys and values are kept in `--work`, and all methods decode after them in the same storage, in turns: a
turn of a method decodes all tokens. Seconds are those of the processor, of one thread, so that other jobs count little;
tokens/s are of decoding alone. A method's ratio to plain is taken turn by turn; the interval is Student's, 95%.
`view W` is `drafter=self drafter.window=W`, `copy W` the same draft with a windowed cache of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import specdec.config  # noqa: F401  (declares the plug-ins)
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.windowed import MARGIN, WindowedAlignment
from specdec.core.clock import Clock
from specdec.core.files import append_line, read_lines
from specdec.core.sequence import Sequence, SequencePool
from specdec.draft_lengths.fixed import FixedLength
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.model import ModelDrafter
from specdec.engine.loop import RoundLoop
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.schedulers.continuous import ContinuousScheduler
from specdec.verifiers.greedy import GreedyVerifier

CHUNK = 512  # tokens of a prompt that are read at once
T_975 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}  # by degrees of freedom


class Held(InplaceAlignment):
    """Keeps rows that are released, cut back to what they held at first, and admits no row twice."""

    def __init__(self, model: CausalLM, prompts: list[list[int]]) -> None:
        super().__init__(model, Clock())
        self.prompts = prompts

    def hold_prompts(self, folder: Path) -> float:
        """Read all prompts but for their last tokens, or load what was read before; returns seconds."""
        start = time.thread_time()
        rows = list(range(len(self.prompts)))
        super().admit(rows, [[] for _ in rows])
        self._slots.kv.reserve(max(map(len, self.prompts)) + CHUNK)
        for row, ids in enumerate(self.prompts):
            file = folder / f"{len(ids)}-{row}.pt"
            if file.exists():
                own_NHSD = self._slots.kv.data_NBHSD[:, self._slots.slot[row]]
                own_NHSD[:, :, : len(ids) - 1] = torch.load(file)
                self._contents[row].length = len(ids) - 1
                self._slots.kv.width = max(self._slots.kv.width, len(ids))
                continue
            for first in range(0, len(ids) - 1, CHUNK):
                part = ids[first : min(first + CHUNK, len(ids) - 1)]
                self.forward([row], torch.tensor([part]))
                self.commit([row], [first + len(part)])
            torch.save(self.content(row), file)
        return time.thread_time() - start

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """They are there."""

    def release(self, rows: list[int]) -> None:
        """Forget what was decoded."""
        self.commit(rows, [0 for _ in rows])
        for row in rows:
            self._contents[row].length = len(self.prompts[row]) - 1


class CopiedWindow(WindowedAlignment):
    """A windowed cache whose prompts are copied from the target's, in place of being computed again."""

    source: Held
    window, sinks = 0, 0
    reads_at_once = None

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Copy the sinks and the last tokens."""
        super().admit(rows, [[] for _ in rows])
        kept = self.window + MARGIN
        self._slots.kv.reserve(self.sinks + kept)
        for row, content in zip(rows, contents, strict=True):
            cut = len(content) - kept
            own_NHSD = self._slots.kv.data_NBHSD[:, self._slots.slot[row]]
            theirs_NHSD = self.source._slots.kv.data_NBHSD[:, self.source._slots.slot[row]]
            own_NHSD[:, :, : self.sinks] = theirs_NHSD[:, :, : self.sinks]
            own_NHSD[:, :, self.sinks : self.sinks + kept] = theirs_NHSD[:, :, cut : len(content)]
            self._contents[row].length, self._dropped[row] = len(content), cut - self.sinks
        self._slots.kv.width = max(self._slots.kv.width, self.sinks + kept)


def methods(windows: list[int]) -> dict[str, Callable[[DrafterContext], Drafter]]:
    """By the name in the table."""
    return {
        "plain": partial(create, "drafter", "none"),
        **{f"view {window}": partial(create, "drafter", "self", window=window) for window in windows},
        "view of all": partial(create, "drafter", "self", window=1 << 20),
        f"copy {windows[0]}": partial(create, "drafter", "model", window=windows[0]),
        "prompt_lookup": partial(create, "drafter", "prompt_lookup"),
        "suffix": partial(create, "drafter", "suffix"),
    }


def decode(target: Held, make: Callable[[DrafterContext], Drafter], gamma: int, num_tokens: int) -> dict[str, Any]:
    """One turn: all rows from their prompts on."""
    clock, own = Clock(), list[WindowedAlignment]()

    def align(model: CausalLM) -> InplaceAlignment:
        return InplaceAlignment(model, clock)

    context = DrafterContext(target.model, target.model, align, clock)
    drafter = make(context)
    if isinstance(drafter, ModelDrafter):
        sizes = drafter._cache.alignment
        copied = type("Copied", (CopiedWindow,), {"window": sizes.window, "sinks": sizes.sinks, "source": target})
        drafter._cache.alignment = drafter._cache._reader.alignment = copied(target.model, clock)
        own.append(drafter._cache.alignment)
    count = len(target.prompts)
    loop = RoundLoop(
        target, drafter, GreedyVerifier(), ContinuousScheduler(count, count), FixedLength(gamma=gamma), clock
    )
    rows = [Sequence(index, ids, num_tokens, frozenset()) for index, ids in enumerate(target.prompts)]
    pool = SequencePool(rows)
    loop.step(pool)  # the drafter reads the prompts in it
    seconds, first = [], sum(len(row.output_ids) for row in rows)
    while not pool.done:
        start = time.thread_time()
        loop.step(pool)
        seconds.append(time.thread_time() - start)
    return {
        "seconds": sum(seconds),
        "tokens": sum(len(row.output_ids) for row in rows) - first,
        "rounds": len(seconds),
        "drafted": sum(row.num_drafted for row in rows),
        "accepted": sum(row.num_accepted for row in rows),
        "by_row": [[row.num_drafted, row.num_accepted] for row in rows],
        "draft_mb": sum(alignment._slots.kv.data_NBHSD.nbytes for alignment in own) / 1e6,
        "outputs": [row.output_ids for row in rows],
    }


def table(records: list[dict[str, Any]]) -> str:
    """A line per length and method."""
    lines = []
    for (length, method), group in groupby(sorted(records, key=_order), key=lambda r: (r["length"], r["method"])):
        turns = list(group)
        plain = {r["turn"]: r for r in records if r["length"] == length and r["method"] == "plain"}
        pairs = [(r, plain[r["turn"]]) for r in turns if r["turn"] in plain]
        ratios = [p["seconds"] / p["tokens"] / (r["seconds"] / r["tokens"]) for r, p in pairs]
        spread = T_975[len(ratios) - 1] * stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
        first = turns[0]
        equal = sum(a == b for r, p in pairs for a, b in zip(r["outputs"], p["outputs"], strict=True))
        drafted = first["drafted"]
        lines.append(
            [
                length,
                method,
                f"{sum(r['tokens'] for r in turns) / sum(r['seconds'] for r in turns):.1f}",
                "1"
                if method == "plain"
                else f"{mean(ratios):.2f}" + (f" +- {spread:.2f}" if len(ratios) > 1 else " (one turn)"),
                f"{first['accepted'] / drafted:.2f}" if drafted else "",
                f"{first['tokens'] / first['rounds'] / len(first['outputs']):.2f}",
                f"{first['target_mb']:.0f}",
                f"{first['draft_mb']:.0f}",
                f"{equal} of {sum(len(r['outputs']) for r, _ in pairs)}",
            ]
        )
    heads = ["context", "draft", "tokens/s", "times plain", "accepted", "tokens/round and row", "target MB", "draft MB"]
    heads.append("rows equal")
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in [heads, ["---"] * len(heads), *lines])


def _order(record: dict[str, Any]) -> tuple[int, int]:
    return record["length"], record["place"]


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of prompts' caches and of what is measured")
    parser.add_argument("--lengths", type=int, nargs="+", help="of the prompts; all by default")
    parser.add_argument("--windows", type=int, nargs="+", default=[256, 64, 1024])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = options.work / "turns.jsonl"
    records = list(read_lines(results)) if results.exists() else []
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    prompts: dict[int, list[list[int]]] = {}
    for line in options.prompts.read_text().splitlines():
        entry = json.loads(line)
        ids = tokenizer(entry["turns"][0], add_special_tokens=False)["input_ids"]
        prompts.setdefault(int(entry["category"].split()[-1]), []).append(ids)
    torch.set_num_threads(1)
    model = CausalLM(AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32))
    model.execute("auto")
    chosen = methods(options.windows)
    for length in options.lengths or prompts:
        done = {(r["method"], r["turn"]) for r in records if r["length"] == length}
        wanted = [(turn, place) for turn in range(options.turns) for place in range(len(chosen))]
        missing = [(turn, place) for turn, place in wanted if (list(chosen)[place], turn) not in done]
        if not missing:
            continue
        target = Held(model, prompts[length])
        print(f"{length}: prompts of {target.hold_prompts(options.work):.0f} s, {model.execution.name}", flush=True)
        for turn, place in missing:
            name = list(chosen)[place]
            found = decode(target, chosen[name], options.gamma, options.tokens)
            size = target._slots.kv.data_NBHSD.nbytes / 1e6
            record = {"length": length, "method": name, "place": place, "turn": turn, "target_mb": size, **found}
            append_line(results, record)
            records.append(record)
            print(f"  turn {turn} {name}: {found['tokens'] / found['seconds']:.1f} tokens/s", flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
