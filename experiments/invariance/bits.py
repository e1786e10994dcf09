"""Are the logits of every emitted token the same bits in every batch, under every alignment? And are they in 16 bit?

    python experiments/invariance/bits.py runner.dtype=bfloat16 data=spec_bench data.path=FILE data.prompt_tokens=128
    python experiments/invariance/bits.py temperature=0.8 verifier=rejection --alignments inplace --batches 8

Decodes the prompts with the target alone at batch 1, and then with drafts under each alignment at each batch size;
further settings are those of run.py. Logits are compared by their hashes. Every finished point is a line of --out, and
is not computed again. With numerics=default the same command shows what the mode changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from torch import Tensor

import specdec.config  # noqa: F401  (declares the plug-ins)
from specdec.config.identity import identity
from specdec.config.resolve import resolve
from specdec.config.schema import RunConfig
from specdec.core.files import append_line, digest, read_lines
from specdec.core.prompts import load_prompts
from specdec.core.round import Draft, Round, Verdict
from specdec.core.sampling import Noise
from specdec.core.sequence import Sequence
from specdec.equivalence.witness import Witness
from specdec.models.pair import load_pair
from specdec.run.decode import Watch, decode

ALIGNMENTS = ("eqspec", "inplace", "masked", "rollback", "expansion")
USUAL = ["numerics=invariant", "baseline=false", "reference=false", "warmup=false"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row's output, and a hash of the logits (or distributions) that gave each of its tokens."""

    output_ids: list[int]
    digests: list[str]


class _Hashing(Witness):
    """Hashes what decided each emitted token."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.digests: dict[int, list[str]] = {}
        self.rows: dict[int, Sequence] = {}

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        assert self._inner is not None
        verdict = self._inner.verify_sampled(draft, probs_BTV, noise)
        self._passed = probs_BTV, verdict
        return verdict

    def observe(self, outcome: Round) -> None:
        assert self._passed is not None
        numbers_BTV, verdict = self._passed
        for b, row in enumerate(outcome.rows):
            columns = verdict.fed_nodes(b)[: len(outcome.emitted[b])]
            chosen = numbers_BTV[b, columns].contiguous().view(torch.uint8).numpy()
            hashes = [hashlib.blake2b(line.tobytes(), digest_size=8).hexdigest() for line in chosen]
            self.digests.setdefault(row.index, []).extend(hashes)
            self.rows[row.index] = row


def decoded(config: RunConfig) -> tuple[dict[int, Row], dict[str, Any]]:
    """All rows of a config, and how they were computed."""
    pair, witness = load_pair(config), _Hashing()
    prompts, _ = load_prompts(config.data, pair.tokenizer, pair.context_length - config.max_new_tokens)
    threads = config.runner.threads or config.pair.threads
    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    decode(config, pair, prompts, watch=Watch(witness=witness))
    about = {"execution": pair.target.execution.name, "wall_s": round(time.perf_counter() - start, 1)}
    return {i: Row(row.output_ids, witness.digests[i]) for i, row in witness.rows.items()}, about


def configured(overrides: list[str]) -> RunConfig:
    """A resolved config."""
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=overrides))


def compared(name: str, rows: dict[int, Row], alone: dict[int, Row]) -> dict[str, Any]:
    """Counts of equal rows and positions."""
    same_bits = [
        sum(a == b for a, b in zip(rows[i].digests, alone[i].digests, strict=False)) if i in rows else 0 for i in alone
    ]
    return {
        "method": name,
        "rows": len(alone),
        "equal_outputs": sum(rows[i].output_ids == alone[i].output_ids for i in alone if i in rows),
        "equal_rows": sum(i in rows and rows[i].digests == alone[i].digests for i in alone),
        "positions": sum(len(row.digests) for row in alone.values()),
        "equal_positions": sum(same_bits),
    }


def main() -> None:
    """Decode and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("settings", nargs="*", help="further settings, as for run.py")
    parser.add_argument("--alignments", nargs="+", default=ALIGNMENTS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--out", type=Path, default=Path("results/invariance.jsonl"))
    arguments = parser.parse_args()
    settings = [*USUAL, *arguments.settings]
    sampled = configured(settings).temperature > 0
    # A sampled draft takes part in the choice of tokens: there the reference is the method itself at batch 1.
    alone = [*settings, "scheduler=static", "alignment=eqspec", "batch=1"]
    points = {"alone": alone if sampled else [*alone, "drafter=none"]}
    for batch, alignment in product(arguments.batches, arguments.alignments):
        method = ["scheduler=static", f"alignment={alignment}", f"batch={batch}"]
        points[f"{alignment}, batch {batch}"] = [*settings, *method]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    known = {line["key"]: line for line in read_lines(arguments.out)} if arguments.out.exists() else {}
    expected: dict[int, Row] = {}
    for name, overrides in points.items():
        config = configured(overrides)
        key = digest({"identity": identity(config), "numerics": config.numerics})
        if key not in known:
            rows, about = decoded(config)
            plain = {str(i): asdict(row) for i, row in sorted(rows.items())}
            known[key] = {"key": key, **about, "dtype": config.runner.dtype, "rows": plain}
            append_line(arguments.out, known[key])
        rows = {int(i): Row(**row) for i, row in known[key]["rows"].items()}
        expected = expected or rows
        shown = {**compared(name, rows, expected), **{k: v for k, v in known[key].items() if k not in ("key", "rows")}}
        print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
