"""Decoding with and without alignment.shared_prefix, in turns: time to first token, tokens/s, memory, and equal tokens.

    python experiments/prefixes/measure.py --rows 16 --prefix 1000 4000 --execution native

The target has the shape of SmolLM2-135M and random weights that are bfloat16 numbers, as published ones are. Every
prompt is one prefix and 16 to 48 tokens of its own. Both ways decode the same prompts, a round of one and a round of
the other in turns; the ratios of ten blocks of rounds give the interval (95%, Student's t). Without `--whole`, the run
that does not share gets copies of the prompts' keys and values in place of computing them.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.alignment.inplace import InplaceAlignment
from specdec.core.clock import Clock
from specdec.core.sequence import Sequence, SequencePool
from specdec.draft_lengths.fixed import FixedLength
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.lookup import PromptLookupDrafter
from specdec.drafters.none import NoDrafter
from specdec.engine.loop import RoundLoop
from specdec.models.causal_lm import CausalLM
from specdec.schedulers.continuous import ContinuousScheduler
from specdec.verifiers.greedy import GreedyVerifier

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
BLOCKS = 10
T_975 = (0, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # by degrees of freedom


def make_model(execution: str, device: str, dtype: torch.dtype) -> CausalLM:
    """The target."""
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).to(device, dtype)
    model = CausalLM(module)
    model.execute(execution)
    return model


class Copying(InplaceAlignment):
    """Unshared, with prompts whose keys and values come from another alignment: only decoding is measured then."""

    source: InplaceAlignment | None = None

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Copy the rows' caches, or compute them where there is no source."""
        if self.source is None:
            super().admit(rows, contents)
            return
        super().admit(rows, [[] for _ in rows])
        self._slots.kv.reserve(max(map(len, contents)))
        for row, content in zip(rows, contents, strict=True):
            own_NHSD = self._slots.kv.data_NBHSD[:, self._slots.slot[row]]
            own_NHSD[:, :, : len(content)] = self.source.content(row)[:, :, : len(content)]
            self._contents[row].length = len(content)
        self._slots.kv.width = max(map(len, contents))


class Run:
    """One way to decode the prompts, round by round."""

    def __init__(self, model: CausalLM, prompts: list[list[int]], num_tokens: int, gamma: int, shared: bool) -> None:
        self.synchronize = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
        clock = Clock(self.synchronize)
        self.target = Copying(model, clock, shared_prefix=64 * shared)
        context = DrafterContext(model, None, lambda of: Copying(of, clock), clock)
        drafter: Drafter = PromptLookupDrafter(context) if gamma else NoDrafter(context)
        scheduler = ContinuousScheduler(len(prompts), len(prompts))
        self.loop = RoundLoop(self.target, drafter, GreedyVerifier(), scheduler, FixedLength(gamma=gamma), clock)
        self.rows = [Sequence(index, ids, num_tokens, frozenset()) for index, ids in enumerate(prompts)]
        self.pool = SequencePool(self.rows)
        self.num_bytes = 0

    def step(self) -> float:
        """Seconds of one round."""
        start = time.perf_counter()
        self.loop.step(self.pool)
        self.synchronize()
        seconds = time.perf_counter() - start
        held = self.target._prefixes.num_bytes
        self.num_bytes = max(self.num_bytes, held + self.target._slots.kv.data_NBHSD.nbytes)
        return seconds


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95% interval."""
    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return f"{mean:.2f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return f"{mean:.2f} +- {T_975[min(n - 1, 9)] * deviation / math.sqrt(n):.2f}"


def compare(model: CausalLM, prompts: list[list[int]], options: argparse.Namespace) -> list[object]:
    """Cells of the table for some prompts."""
    runs = [Run(model, prompts, options.tokens, options.gamma, shared) for shared in (False, True)]
    shared_first_s = runs[1].step()
    runs[0].target.source = None if options.whole else runs[1].target
    first_s = runs[0].step()
    seconds: list[list[float]] = [[], []]
    while not runs[0].pool.done:  # both emit the same tokens, so they end together
        for way in (0, 1) if len(seconds[0]) % 2 else (1, 0):
            seconds[way].append(runs[way].step())
    num_emitted = sum(len(row.output_ids) for row in runs[0].rows) - len(prompts)
    blocks = [slice(i * len(seconds[0]) // BLOCKS, (i + 1) * len(seconds[0]) // BLOCKS) for i in range(BLOCKS)]
    ratios = [sum(seconds[0][block]) / sum(seconds[1][block]) for block in blocks]
    equal = sum(a.output_ids == b.output_ids for a, b in zip(runs[0].rows, runs[1].rows, strict=True))
    return [
        *(f"{first_s:.1f}" if options.whole else "", f"{shared_first_s:.1f}"),
        *(f"{num_emitted / sum(way):.1f}" for way in seconds),
        interval(ratios),
        *(f"{run.num_bytes / 1e6:.0f}" for run in runs),
        f"{equal} of {len(prompts)}",
    ]


def main() -> None:
    """Print one line per number of rows and prefix length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[16])
    parser.add_argument("--prefix", type=int, nargs="+", default=[1000])
    parser.add_argument("--execution", default="native")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--gamma", type=int, default=0, help="prompt lookup with this draft length; 0: plain decoding")
    parser.add_argument("--whole", action="store_true", help="compute the prompts of every row in the run without")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    model = make_model(options.execution, options.device, getattr(torch, options.dtype))
    print("| rows | prefix | s to first | shared | tokens/s | shared | ratio | MB | shared | rows equal |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for num_rows in options.rows:
        for length in options.prefix:
            generator = torch.Generator().manual_seed(length)

            def ids(count: int, generator: torch.Generator = generator) -> list[int]:
                return [int(i) for i in torch.randint(0, SHAPE["vocab_size"], (count,), generator=generator)]

            prefix = ids(length)
            prompts = [prefix + ids(16 + 32 * b // num_rows) for b in range(num_rows)]
            cells = [num_rows, length, *compare(model, prompts, options)]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
