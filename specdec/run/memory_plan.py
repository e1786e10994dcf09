"""The peak memory of a run, predicted before it: weights, keys and values, and the largest forward.

Alignments declare what they keep and copy (``Alignment.kept_columns``, ``moved_columns``, ``fed_rows``), drafters what
they add (``Drafter.memory``); the memory of a forward is an upper estimate from shapes (`specdec.run.model_memory`).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from specdec.errors import ConfigError
from specdec.run.model_memory import ModelMemory, RunSize, Sharing

SLACK = 1.1  # factor for the allocator's rounding and small tensors, on everything but weights
SMALLEST_CHUNK = 16


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What decides the peak memory of a run; every row counts with the longest possible length."""

    target: ModelMemory
    draft: ModelMemory | None  # None: no drafter with a KV cache
    base_bytes: int  # the process with its weights, before any row is admitted
    batch: int
    window: int | None  # rows in flight where they are more than the batch (exspec)
    longest_prompt: int
    max_new_tokens: int
    sampled: bool
    prefill_chunk: int | None
    law_bytes: int = 0  # per row: distributions of the draft, until it is judged
    token_bytes: int = 0  # per token of a row, of the drafter's own tables
    row_bytes: int = 0  # per row, of the drafter's own keys and values that do not grow
    by_products: bool = False  # whether the draft makes keys and values of hidden states by products alone
    sharing: Sharing | None = None  # None: rows share nothing
    hidden_chunk: int | None = None  # tokens whose hidden states the drafter reads at once; None: it keeps none

    @property
    def run_bytes(self) -> int:
        """Memory of the run, without the loaded models: the largest of its moments."""
        longest = self.longest_prompt if self.sharing is None else self.sharing.own
        size = RunSize(
            self.batch,
            max(self.batch, self.window or 0),
            self.longest_prompt,
            max(min(self.prefill_chunk or longest, longest), 1),
            self.max_new_tokens,
            self.sampled,
            self.sharing,
        )
        models = [self.target] if self.draft is None else [self.target, self.draft]
        kept = sum(model.kept_bytes(size) for model in models)
        workspace = max(model.workspace_bytes(size) for model in models)
        host = size.in_flight * (size.prompt + size.max_new_tokens) * self.token_bytes
        kept += size.in_flight * self.row_bytes
        laws = size.batch * self.law_bytes if self.sampled else 0
        unread = self._unread_bytes(size)
        forwards = [unread + self.target.prompt_bytes(size), laws + self.target.step_bytes(size)]
        if self.draft is not None:
            forwards += [self._reading_bytes(size, unread), laws + self.draft.step_bytes(size)]
        moments = [workspace + forward for forward in forwards]
        moments += [model.moved_bytes(size) + (0 if model.moves_first(size) else workspace) for model in models]
        return int(SLACK * (kept + host + max(moments)))

    def _unread_bytes(self, size: RunSize) -> float:
        """The target's hidden states of the prompts, which the drafter keeps until it drafts."""
        if self.hidden_chunk is None:
            return 0
        sizes = self.target.architecture
        states = self.target.num_hidden * sizes.hidden_size * sizes.dtype.itemsize
        return size.in_flight * size.prompt * states

    def _reading_bytes(self, size: RunSize, unread: float) -> float:
        """The draft reads the prompts, or in parts, joined and padded, the hidden states of their tokens."""
        assert self.draft is not None
        if self.hidden_chunk is None:
            return self.draft.prompt_bytes(size)
        part = replace(size, in_flight=size.batch, chunk=min(self.hidden_chunk, size.prompt))
        joined = unread * (1 + part.chunk / size.prompt)
        return joined + (self.draft.context_bytes(part) if self.by_products else self.draft.prompt_bytes(part))

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
