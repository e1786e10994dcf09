"""The peak memory of a run, predicted before it: weights, keys and values, and the largest forward.

Alignments declare what they copy and feed (``Alignment.peak_rows``, ``fed_rows``); the memory of a forward is an upper
estimate from shapes.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from specdec.alignment.base import Alignment
from specdec.errors import ConfigError
from specdec.models.architecture import Architecture
from specdec.models.kv import GROWTH_COLUMNS

SLACK = 1.1  # factor for the allocator's rounding and small tensors, on everything but weights
SMALLEST_CHUNK = 16
LIVE_HIDDEN = 6  # hidden states per token that exist at once: residual, norm, queries and their rotations, output
LIVE_MLP = 3  # gate, up and their product
RAGGED_TOKENS = 256  # whose MLP a ragged execution computes at once, at most
SAMPLING_COPIES = 4  # float64 copies of the logits while a distribution is computed


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What decides the peak memory of a run; every row counts with the longest possible length."""

    target: Architecture
    draft: Architecture | None  # None: no drafter with a KV cache
    alignment: type[Alignment]
    base_bytes: int  # the process with its weights, before any row is admitted
    batch: int
    window: int | None  # rows in flight where they are more than the batch (exspec)
    longest_prompt: int
    max_new_tokens: int
    num_nodes: int  # of a row's draft, at most: its length, or all nodes of its tree
    sampled: bool
    prefill_chunk: int | None
    num_fed: int | None = None  # of these, those that the draft model is fed; None: all
    widest: int = 1  # most of those in one forward
    ragged: bool = False  # whether forwards compute no padding and copy no keys (the native execution)

    @property
    def run_bytes(self) -> int:
        """Memory of the run, without the loaded models."""
        in_flight = max(self.batch, self.window or 0)
        columns = self.longest_prompt + self.max_new_tokens + self.num_nodes + 1 + GROWTH_COLUMNS
        chunk = min(self.prefill_chunk or self.longest_prompt, self.longest_prompt)
        whole = chunk >= self.longest_prompt
        total, forwards = 0.0, []
        num_fed = self.num_nodes if self.num_fed is None else self.num_fed
        target = (self.target, self.num_nodes + 1, self.num_nodes + 1)
        for model, fed, step in (target, (self.draft, num_fed, max(self.widest, 2))):
            if model is None:
                continue
            total += model.token_bytes * self.alignment.peak_rows(in_flight, self.batch, fed) * columns
            # At the start all rows are admitted at once.
            num_logits = 1 if whole else chunk
            forwards.append(forward_bytes(model, in_flight, chunk, columns, num_logits, False, self.ragged))
            fed_rows = self.alignment.fed_rows(in_flight, self.batch)
            forwards.append(forward_bytes(model, fed_rows, step, columns, step, self.sampled, self.ragged))
        return int(SLACK * (total + max(forwards)))

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of the process (CPU) or of the allocator (GPU)."""
        return self.base_bytes + self.run_bytes

    def require_fit(self, free_bytes: int | None) -> None:
        """Refuse a run that does not fit.

        Raises:
            ConfigError: saying which batch, or which ``runner.prefill_chunk``, would.
        """
        if free_bytes is None or self.run_bytes <= free_bytes:
            return
        ways = []
        if (batch := self.largest_batch(free_bytes)) > 0:
            ways.append(f"batch={batch} fits")
        if (chunk := self.largest_chunk(free_bytes)) is not None:
            ways.append(f"runner.prefill_chunk={chunk} fits")
        ways = ways or ["not even batch=1 does: choose a smaller data.max_input_tokens or max_new_tokens"]
        raise ConfigError(
            f"batch={self.batch} needs about {_size(self.run_bytes)} besides the loaded models, "
            f"{_size(free_bytes)} are free: {', or '.join(ways)}"
        )

    def largest_batch(self, free_bytes: int) -> int:
        """The largest batch that fits, 0 if none does."""
        batches = range(1, self.batch + 1)
        return bisect_left(batches, True, key=lambda batch: self._with_batch(batch).run_bytes > free_bytes)

    def largest_chunk(self, free_bytes: int) -> int | None:
        """The largest prefill chunk that makes the run fit at this batch, a power of two; None if none does."""
        sizes = (SMALLEST_CHUNK << shift for shift in range(self.longest_prompt.bit_length()))
        shorter = [size for size in sizes if size < self.longest_prompt]
        fitting = [size for size in shorter if replace(self, prefill_chunk=size).run_bytes <= free_bytes]
        return max(fitting, default=None)

    def _with_batch(self, batch: int) -> MemoryPlan:
        return replace(self, batch=batch, window=None if self.window is None else min(self.window, batch))


def forward_bytes(
    model: Architecture,
    num_rows: int,
    num_new: int,
    num_columns: int,
    num_logits: int,
    sampled: bool,
    ragged: bool = False,
) -> float:
    """Memory of one forward, without weights and cache: one layer, the mask, and the logits.

    A ragged execution keeps the residual and the queries of all tokens, and the rest of a layer for a few at a time.
    """
    tokens, itemsize = num_rows * num_new, model.dtype.itemsize
    per_logit = itemsize + (8 * SAMPLING_COPIES if sampled else 0)
    logits = num_rows * num_logits * model.vocab_size * per_logit
    if ragged:
        queries = model.num_heads * model.head_dim
        kept = tokens * (model.hidden_size + queries)
        passing = min(tokens, RAGGED_TOKENS) * (LIVE_HIDDEN * model.hidden_size + LIVE_MLP * model.intermediate_size)
        return (kept + passing) * itemsize + 3 * tokens * num_columns + logits
    hidden = tokens * (LIVE_HIDDEN * model.hidden_size + LIVE_MLP * model.intermediate_size) * itemsize
    mask = tokens * num_columns * (3 + itemsize)
    repeated = 2 * num_rows * model.num_heads * num_columns * model.head_dim * itemsize
    scores = 2 * tokens * num_columns * model.num_heads * itemsize if model.eager_attention else 0
    return hidden + mask + repeated + scores + logits


def require_weights(weight_bytes: dict[str, int], free_bytes: int | None, remedy: str) -> None:
    """Refuse weights that do not fit into memory, before they are loaded.

    Raises:
        ConfigError: naming each model's size and the remedy.
    """
    if free_bytes is None or sum(weight_bytes.values()) <= free_bytes:
        return
    parts = " and ".join(f"{_size(count)} for the {role}'s weights" for role, count in weight_bytes.items())
    raise ConfigError(f"this pair needs {parts}, {_size(free_bytes)} are free: {remedy}")


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
