"""A drafter that learns while it serves, through a shift of domain: never, always, or where the bandit says it pays.

    python experiments/adaptation/study.py --shifted spec_bench.jsonl              # writes adaptation.md
    python experiments/adaptation/study.py --shifted spec_bench.jsonl --rows 16 16 # a rehearsal
    python experiments/adaptation/study.py --shifted spec_bench.jsonl --specblock HEAD --out FOLDER

The built-in target serves prompts of the kind that its drafts were trained for (pieces of held-out Python files), then
those of another file. Every method serves the same stream, greedily, in an engine of its own; the engines take turns
round by round in one process. Times are of the processor, updates and measurements included, because other jobs run on
the machine; the bandit reads the same clock. Every output is compared with plain decoding's.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.config.resolve import resolve
from specdec.config.schema import RunConfig
from specdec.core.clock import Clock
from specdec.core.files import write_json
from specdec.core.sequence import Sequence, SequencePool
from specdec.core.tables import markdown, text_table
from specdec.engine.loop import RoundLoop
from specdec.models.pair import Pair, load_pair
from specdec.run.factory import build_engine
from specdec.training.corpus import read_corpus
from specdec.training.heldout import make_prompts

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parent / "heads"))
from fits import configured  # noqa: E402

SHARED = ("scheduler=continuous", "batch=8", "gamma=4", "runner.threads=1", "progress=false")
PLAIN, SEED, NEW_TOKENS, MOST_GIVEN = "plain decoding", 20, 64, 96
RESAMPLES = 999
KNOWN = "adapt.horizon=40000"  # rows: what someone would set who knows that the new kind stays
SHARE = "adapt.trial_share=0.5"  # for a short stream: the default share begins its first trial after 1,280 rows
POLICIES = {
    "none": ["adapt.policy=none"],
    "always": ["adapt.policy=always"],
    "bandit": ["adapt.policy=bandit", SHARE],
    "bandit, long horizon": ["adapt.policy=bandit", SHARE, KNOWN],
}
METHODS = {PLAIN: ["drafter=none"]} | {
    f"{drafter}: {name}": [f"drafter={drafter}", *words]
    for drafter in ("eagle3", "model")
    for name, words in POLICIES.items()
}
TREES = {
    **POLICIES,
    "always the rank head": ["adapt.policy=always", "adapt.arm=rank_head"],
}


class ProcessorClock(Clock):
    """Stage times of the processor."""

    def now(self) -> float:
        return time.process_time()

    def _charge(self) -> None:
        now = time.process_time()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


@dataclass
class Stream:
    """One method's engine, and the moments at which its rows ended."""

    engine: RoundLoop
    clock: Clock
    pool: SequencePool
    ended: list[tuple[int, int, int, float]] = field(default_factory=list)  # row, tokens, rounds, seconds so far
    learned: list[tuple[int, str, float]] = field(default_factory=list)  # rows ended before, arm, seconds

    def step(self) -> None:
        """One round."""
        outcome = self.engine.step(self.pool)
        if outcome.learned:
            self.learned.append((len(self.ended), *outcome.learned))
        now = sum(self.clock.seconds.values())
        self.ended += [(row.index, len(row.output_ids), len(row.accepted_lengths), now) for row in outcome.finished]

    def part(self, first: int, last: int) -> tuple[int, int, float]:
        """Tokens, rounds and seconds of the rows from the ``first`` to end on."""
        start = self.ended[first - 1][3] if first else 0.0
        rows = self.ended[first:last]
        return sum(row[1] for row in rows), sum(row[2] for row in rows), rows[-1][3] - start


def with_trees(head: str) -> dict[str, list[str]]:
    """The methods for trees of a SpecBlock head, beside plain decoding."""
    drafter = ["drafter=specblock", f"drafter.path={head}", "drafter.nodes=12"]
    return {PLAIN: METHODS[PLAIN]} | {f"specblock: {name}": [*drafter, *words] for name, words in TREES.items()}


def config_of(words: list[str]) -> RunConfig:
    """A run's settings."""
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=[*SHARED, *words]))


def prompts_of(pair: Pair, shifted: Path, counts: list[int]) -> list[list[int]]:
    """Prompts of the kind that the drafts were trained for, then of the other."""
    settings = configured(["recipe=dspark"])
    held_out = replace(settings.heldout, num_prompts=max(counts[0], 16), max_tokens=MOST_GIVEN)
    texts = [
        prompt["turns"][0] for prompt in make_prompts(read_corpus(settings.corpus), pair.tokenizer, held_out, SEED)
    ]
    others = [json.loads(line)["turns"][0] for line in shifted.read_text().splitlines()]
    for each in (texts, others):
        random.Random(SEED).shuffle(each)
    chosen = texts[: counts[0]] + others[: counts[1]]
    return [pair.tokenizer(text)["input_ids"][:MOST_GIVEN] for text in chosen]


def served(methods: dict[str, list[str]], shifted: Path, counts: list[int]) -> tuple[dict[str, Stream], dict[str, Any]]:
    """All streams, served to their ends, and whether their outputs are plain decoding's."""
    streams, outputs = {}, {}
    prompts: list[list[int]] = []
    for name, words in methods.items():
        config, clock = config_of(words), ProcessorClock()
        pair = load_pair(config)
        prompts = prompts or prompts_of(pair, shifted, counts)
        outputs[name] = [Sequence(i, ids, NEW_TOKENS, pair.stop_ids) for i, ids in enumerate(prompts)]
        streams[name] = Stream(build_engine(config, pair, clock), clock, SequencePool(outputs[name]))
    while open_streams := [stream for stream in streams.values() if not stream.pool.done]:
        for stream in open_streams:
            stream.step()
    plain = [row.output_ids for row in outputs[PLAIN]]
    return streams, {
        name: sum(r.output_ids == o for r, o in zip(rows, plain, strict=True)) for name, rows in outputs.items()
    }


def ratio(stream: Stream, other: Stream, first: int, last: int, block: int = 32) -> str:
    """Tokens per second over another method's, with a 95% interval from blocks of rows."""
    edges = range(first, last, block)
    ours, theirs = ([s.part(edge, min(edge + block, last)) for edge in edges] for s in (stream, other))
    tokens_s = np.array([[a[0], a[2], b[0], b[2]] for a, b in zip(ours, theirs, strict=True)])
    random_N = np.random.default_rng(0).integers(len(tokens_s), size=(RESAMPLES, len(tokens_s)))
    whole, drawn = tokens_s.sum(0), tokens_s[random_N].sum(1)
    value = whole[0] / whole[1] / (whole[2] / whole[3])
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1] / (drawn[:, 2] / drawn[:, 3]), [0.025, 0.975])
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def lines(streams: dict[str, Stream], exact: dict[str, int], counts: list[int]) -> list[list[str]]:
    """The table: both domains, and the second in thirds."""
    first, total = counts[0], sum(counts)
    thirds = [first + counts[1] * i // 3 for i in range(4)]
    found = []
    for name, stream in streams.items():
        parts = [(0, first), *pairwise(thirds)]
        lengths = [tokens / rounds for tokens, rounds, _ in (stream.part(*part) for part in parts)]
        whole = [(0, first), (first, total)]
        speeds = [tokens / seconds for tokens, _, seconds in (stream.part(*part) for part in whole)]
        other = streams.get(f"{name.partition(':')[0]}: none", stream)
        arms = [arm for _, arm, _ in stream.learned if arm != "none"]
        share = sum(seconds for _, _, seconds in stream.learned) / sum(stream.clock.seconds.values())
        found.append(
            [
                *(name, *(f"{length:.2f}" for length in lengths), *(f"{speed:.0f}" for speed in speeds)),
                *(ratio(stream, other, *part) for part in whole),
                ", ".join(f"{arms.count(arm)} {arm}" for arm in dict.fromkeys(arms)) or "0",
                f"{share:.0%}",
                f"{exact[name]}/{total}",
            ]
        )
    return found


HEADINGS = ("method", "tokens/round: trained kind", "other, 1st third", "2nd", "3rd", "tok/s: trained kind", "other")
HEADINGS += ("ratio to none: trained kind", "other", "updates", "of the time", "equal to plain")


def main() -> None:
    """Serve, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shifted", type=Path, required=True, help="JSONL file with turns: prompts of the other kind")
    parser.add_argument("--rows", type=int, nargs=2, default=[96, 320], help="rows of each kind (default: %(default)s)")
    parser.add_argument("--specblock", help="folder of a specblock head: its trees instead of the other drafters")
    parser.add_argument("--only", default="", help="methods whose names contain this, beside plain decoding")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    given = parser.parse_args()
    methods = METHODS if given.specblock is None else with_trees(given.specblock)
    chosen = {name: words for name, words in methods.items() if name == PLAIN or given.only in name}
    streams, exact = served(chosen, given.shifted, given.rows)
    table = lines(streams, exact, given.rows)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "adaptation.md").write_text(markdown(text_table(HEADINGS, table, 1)) + "\n")
    record = {name: {"ended": s.ended, "learned": s.learned, "exact": exact[name]} for name, s in streams.items()}
    write_json(given.out / "results.json", record)
    print((given.out / "adaptation.md").read_text())


if __name__ == "__main__":
    main()
