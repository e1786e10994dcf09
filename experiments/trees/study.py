"""All lossless verifiers on all drawn trees of 12 nodes: tokens per round at the same roots, and tokens per second.

    python experiments/trees/study.py                # about half an hour of one core; goes on where it stopped
    python experiments/trees/study.py --rehearse     # every line of it at small sizes; the figures mean nothing

*Paired*: the prompts are decoded with ``verifier=naive``, whose tokens are those of plain sampling, so all trees meet
the same texts. In every round each verifier that can judge the tree decides the same draft, three times with numbers of
its own. *Timed*: each verifier decodes by itself, at several batch sizes, on one thread, in processor time. Writes
results.json and tables.md; picture.py draws one round.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from decoding import configured, engine_of, make_rows, read_prompts, rounds

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise
from specdec.core.target_law import TargetLaw
from specdec.models.pair import Pair, load_pair
from specdec.registry import create, lookup, names
from specdec.verifiers.base import LawVerifier, Verifier

FOLDER = Path(__file__).parent
SMALL = ["pair.target_architecture.hidden_size=192", "pair.target_architecture.intermediate_size=512"]
SMALL += ["pair.target_architecture.num_hidden_layers=6", "pair.target_architecture.num_attention_heads=6"]
SMALL += ["pair.target_architecture.num_key_value_heads=6", "pair.target_architecture.vocab_size=2048"]
PAIRS = {"tiny": ["pair=tiny"], "synthetic": ["pair=synthetic", *SMALL, "pair.synthetic.residual_scale=0.11"]}
UNIT = {"tiny": 1.0, "synthetic": 0.07}  # of temperature: random weights have small logits, and so flat distributions
TREES: dict[str, list[str]] = {  # each of 12 nodes
    "chain": ["gamma=12", "tree=chain"],
    "paths": ["gamma=4", "tree=paths", "tree.num_paths=3"],
    "delayed": ["gamma=6", "tree=delayed", "tree.num_paths=3", "tree.trunk=3"],
    "gumbel": ["gamma=4", "tree=gumbel", "tree.branches=[3,1,1,1]"],
    "beam": ["gamma=4", "tree=beam", "tree.width=3"],
}
SHORT = {"chain of 4": ["gamma=4", "tree=chain"]}
TIMED = {
    "chain of 4": ("rejection", "block"),
    "chain": ("rejection", "block"),
    "paths": ("naive", "specinfer", "spectr", "traversal"),
    "delayed": ("naive", "specinfer", "spectr", "traversal"),
    "gumbel": ("recursive", "traversal"),
    "beam": ("recursive", "traversal"),
}
TEMPERATURES = (0.2, 0.6, 1.0, 1.2)
BATCHES = (1, 4, 8, 16)
REPEATS = 3


def judging(tree: str) -> list[str]:
    """The lossless verifiers that can judge sampled rows of this tree."""
    kind = lookup("tree", tree).siblings
    entries = {name: lookup("verifier", name) for name in names("verifier")}
    return [
        name
        for name, entry in entries.items()
        if entry.samples and not entry.lossy and not entry.known_incorrect and kind in entry.judges
    ]


class Side(LawVerifier):
    """Decides as naive does, and notes what every verifier would keep of the same drafts."""

    def __init__(self, verifiers: list[str]) -> None:
        self.verifiers: dict[str, Verifier] = {name: create("verifier", name) for name in verifiers}
        self.naive: Verifier = create("verifier", "naive")
        self.generator = torch.Generator().manual_seed(0)
        self.kept: dict[str, list[list[int]]] = {}  # of the last round, by verifier: tokens per repeat and row
        self.overlap: list[float] = []  # of each row: the sum of min(p, q) at the root

    def verify_law(self, draft: Draft, law: TargetLaw, noise: Noise) -> Verdict:
        """The naive verdict."""
        ready = TargetLaw.of(law.whole())
        if draft.probs_BGV is not None:
            self.overlap = torch.minimum(ready.whole()[:, 0], draft.probs_BGV[:, 0]).sum(-1).tolist()
        self.kept = {name: [] for name in self.verifiers}
        for _ in range(REPEATS):
            own = Noise(*(self._numbers(part) for part in (noise.draws_BT, noise.tests_BG)))
            for name, verifier in self.verifiers.items():
                verdict = verifier.verify_law(draft, ready, own)
                self.kept[name].append([len(path) + 1 for path in verdict.paths])
        return self.naive.verify_law(draft, ready, noise)

    def _numbers(self, like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=self.generator, dtype=torch.float64)


def paired(pair: Pair, parts: list[str], tree: str, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    """By verifier and prompt: tokens and verdicts, of rounds whose drafts have their full depth."""
    config = configured(*parts, "verifier=naive", "batch=8")
    engine, side = engine_of(config, pair), Side(judging(tree))
    engine.verifier = side
    found: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    overlap, nodes, drafts = [], 0, 0
    for outcome, _ in rounds(engine, make_rows(config, prompts, new_tokens)):
        for b, row in enumerate(outcome.rows):
            if outcome.depths[b] < config.gamma:
                continue
            overlap.append(side.overlap[b])
            nodes, drafts = nodes + outcome.num_drafted[b], drafts + 1
            for name, repeats in side.kept.items():
                found[name][row.index][0] += sum(kept[b] for kept in repeats)
                found[name][row.index][1] += len(repeats)
    counts = {name: [of_row[index] for index in sorted(of_row)] for name, of_row in found.items()}
    return {"counts": counts, "overlap": sum(overlap) / len(overlap), "nodes": nodes / drafts}


def timed(pair: Pair, parts: list[str], batch: int, prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
    """Counts and processor time of a run; prompts are read before the clock starts."""
    config = configured(*parts, f"batch={batch}")
    rows = make_rows(config, [prompts[i % len(prompts)] for i in range(max(batch, 4))], new_tokens)
    total: Counter[str] = Counter()
    for outcome, seconds in rounds(engine_of(config, pair), rows):
        decoding = sum(outcome.seconds.values())
        share = 1 - outcome.seconds["prefill"] / decoding if decoding else 1.0
        total.update(seconds=seconds * share, tokens=sum(map(len, outcome.emitted)), row_rounds=len(outcome.rows))
    return dict(total)


class Study:
    """Results by key, kept on disk after each one."""

    def __init__(self, path: Path, rehearse: bool, pairs: list[str]) -> None:
        self.path, self.rehearse, self.pairs = path, rehearse, pairs
        self.results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def run(self) -> None:
        """All points that are missing."""
        for name in self.pairs:
            of_pair = PAIRS[name]
            pair = load_pair(configured(*of_pair))
            prompts = read_prompts(pair.tokenizer, None, 24 if self.rehearse else 64)[: 4 if self.rehearse else 24]
            for temperature in TEMPERATURES[:1] if self.rehearse else TEMPERATURES:
                for tree, settings in TREES.items():
                    parts = [*of_pair, *settings, f"temperature={temperature * UNIT[name]}"]
                    new_tokens = 20 if self.rehearse else 32
                    self._keep(f"paired {name} {temperature} {tree}", paired, pair, parts, tree, prompts, new_tokens)
            for batch in BATCHES[:2] if self.rehearse else BATCHES:
                for tree, verifier, settings in self.points():
                    parts = [*of_pair, *settings, f"temperature={UNIT[name]}", f"verifier={verifier}"]
                    new_tokens = 12 if self.rehearse else 16
                    self._keep(
                        f"timed {name} {batch} {tree}: {verifier}", timed, pair, parts, batch, prompts, new_tokens
                    )

    @staticmethod
    def points() -> list[tuple[str, str, list[str]]]:
        """Tree, verifier and settings of the timed runs."""
        found = [("none", "naive", ["drafter=none", "gamma=0"])]
        for tree, parts in {**SHORT, **TREES}.items():
            found += [(tree, verifier, parts) for verifier in TIMED[tree]]
        return found

    def _keep(self, key: str, measure: Any, *args: Any) -> None:
        if key not in self.results:
            self.results[key] = measure(*args)
            self.path.write_text(json.dumps(self.results))
            print(f"[{key}]", flush=True)


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("results/trees"))
    parser.add_argument("--pair", action="append", choices=PAIRS, help="measure this one only; may be repeated")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    study = Study(
        given.results / ("rehearsal.json" if given.rehearse else "results.json"),
        given.rehearse,
        given.pair or list(PAIRS),
    )
    torch.set_num_threads(1)
    study.run()
    from tables import tables

    text = tables(study.results)
    print(text)
    if not (given.rehearse or given.pair):
        (FOLDER / "tables.md").write_text(text)
        (FOLDER / "results.json").write_text(json.dumps(study.results) + "\n")


if __name__ == "__main__":
    main()
