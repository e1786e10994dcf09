"""Are a row's logits the same bits alone and in a batch, one token at a time and several at once? For every position.

    python experiments/native/bits.py pair=tiny data=heldout
    python experiments/native/bits.py pair=smollm2_135m drafter=prompt_lookup data=spec_bench data.path=FILE

Decodes the prompts with the target alone at batch 1, and then in batches with drafts, under several methods; further
settings are those of run.py. With execution=native every logit is the same; compare execution=fused.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from hydra import compose, initialize_config_module

import specdec.config  # noqa: F401  (declares the plug-ins)
from specdec.config.resolve import resolve
from specdec.core.prompts import load_prompts
from specdec.core.round import Round
from specdec.core.tables import markdown, text_table
from specdec.equivalence.witness import Witness
from specdec.models.pair import load_pair
from specdec.run.decode import Watch, decode

FOLDER = Path(__file__).parent
ALONE = ["scheduler=plain", "drafter=none", "batch=1"]
METHODS = {
    "plain, batch 16": ["scheduler=plain", "drafter=none", "batch=16"],
    "continuous, batch 16, gamma 5": ["scheduler=continuous", "alignment=inplace", "batch=16", "gamma=5"],
    "the same, prompts in chunks of 37": [
        *("scheduler=continuous", "alignment=inplace", "batch=16", "gamma=5", "runner.prefill_chunk=37"),
    ],
    "eqspec, batch 4, gamma 3": ["scheduler=eqspec", "batch=4", "gamma=3"],
    "exspec, batch 8, gamma 5": ["scheduler=exspec", "batch=8", "gamma=5"],
}
Digests = dict[tuple[int, int], bytes]
"""A hash of the logits that gave each row's token at each place of its output."""


class _Digesting(Witness):
    """Hashes the logits of every emitted token."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.digests: Digests = {}

    def observe(self, outcome: Round) -> None:
        assert self._passed is not None, "greedy rounds only"
        logits_BTV, verdict = self._passed
        for b, row in enumerate(outcome.rows):
            start, columns = len(row.output_ids) - len(outcome.emitted[b]), verdict.fed_nodes(b)
            for place in range(len(outcome.emitted[b])):
                numbers = logits_BTV[b, columns[place]].float().numpy()
                self.digests[row.index, start + place] = hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()


def digests(method: list[str], settings: list[str]) -> tuple[str, Digests]:
    """The execution that decoded, and the digests of all outputs under a method."""
    overrides = [*settings, *method, "baseline=false", "reference=false", "warmup=false"]
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        config = resolve(compose(config_name="config", overrides=overrides))
    pair, witness = load_pair(config), _Digesting()
    prompts, _ = load_prompts(config.data, pair.tokenizer, pair.context_length - config.max_new_tokens)
    decode(config, pair, prompts, watch=Watch(witness=witness))
    return pair.target.execution.name, witness.digests


def main(settings: list[str]) -> None:
    """Decode with every method, and print which positions have equal bits."""
    execution, alone = digests(ALONE, settings)
    rows = []
    for name, method in METHODS.items():
        _, batched = digests(method, settings)
        different = {key for key in alone.keys() | batched.keys() if alone.get(key) != batched.get(key)}
        num_rows, num_different = len({row for row, _ in alone}), len({row for row, _ in different})
        equal = f"{len(alone.keys() - different):,} of {len(alone):,}"
        rows.append([name, equal, f"{num_rows - num_different} of {num_rows}"])
        print(f"[{execution}] {' | '.join(rows[-1])}", flush=True)
    title = f"execution={execution}: against the target alone at batch 1 ({' '.join(settings)})"
    print(f"\n{title}\n\n{markdown(text_table(['method', 'positions with equal bits', 'rows'], rows))}")


if __name__ == "__main__":
    main(sys.argv[1:])
