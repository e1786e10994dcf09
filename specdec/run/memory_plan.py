"""Peak memory of a run, predicted before it: weights, keys and values, and the largest forward.

What strategies copy and feed is theirs to say (``Alignment.peak_rows``, ``fed_rows``); what a forward holds is an upper
estimate from shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from specdec.alignment.base import Alignment
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import GROWTH_COLUMNS
from specdec.models.small_copy import field

SLACK = 1.1  # of what is not weights: what the allocator rounds up, and small things
SMALLEST_CHUNK = 16
LIVE_HIDDEN = 6  # hidden states of a token that exist at once: residual, norm, queries and their rotations, output
LIVE_MLP = 3  # gate, up and their product
SAMPLING_COPIES = 4  # float64 copies of the logits while a law is made of them


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The sizes of a model that decide what it needs."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    itemsize: int
    eager_attention: bool  # whether attention scores are written out

    def kv_bytes(self, num_tokens: float) -> float:
        """Keys and values of so many tokens."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.itemsize * num_tokens

    def forward_bytes(self, num_rows: int, num_new: int, num_columns: int, num_logits: int, sampled: bool) -> float:
        """What one forward holds at once, beyond weights and cache: one layer, the mask, and the logits."""
        tokens = num_rows * num_new
        hidden = tokens * (LIVE_HIDDEN * self.hidden_size + LIVE_MLP * self.intermediate_size) * self.itemsize
        mask = tokens * num_columns * (3 + self.itemsize)
        repeated = 2 * num_rows * self.num_heads * num_columns * self.head_dim * self.itemsize
        scores = 2 * tokens * num_columns * self.num_heads * self.itemsize if self.eager_attention else 0
        per_logit = self.itemsize + (8 * SAMPLING_COPIES if sampled else 0)
        return hidden + mask + repeated + scores + num_rows * num_logits * self.vocab_size * per_logit


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What decides the peak of a run; rows are taken to be as long as the longest can become."""

    target: ModelSize
    draft: ModelSize | None  # None: nothing with a cache of its own drafts
    alignment: type[Alignment]
    base_bytes: int  # the process with its weights, before any row is admitted
    batch: int
    window: int | None  # rows in flight where they are more than the batch (exspec)
    longest_prompt: int
    max_new_tokens: int
    gamma: int
    sampled: bool
    prefill_chunk: int | None

    @property
    def run_bytes(self) -> int:
        """What the run takes on top of the loaded models."""
        in_flight = max(self.batch, self.window or 0)
        columns = self.longest_prompt + self.max_new_tokens + self.gamma + 1 + GROWTH_COLUMNS
        chunk = min(self.prefill_chunk or self.longest_prompt, self.longest_prompt)
        whole = chunk >= self.longest_prompt
        total, forwards = 0.0, []
        for model, fed in ((self.target, self.gamma + 1), (self.draft, self.gamma)):
            if model is None:
                continue
            total += model.kv_bytes(self.alignment.peak_rows(in_flight, self.batch, fed) * columns)
            newcomers = in_flight  # at the start all places are filled at once
            forwards.append(model.forward_bytes(newcomers, chunk, columns, 1 if whole else chunk, sampled=False))
            step = fed if model is self.target else 2
            fed_rows = self.alignment.fed_rows(in_flight, self.batch)
            forwards.append(model.forward_bytes(fed_rows, step, columns, step, self.sampled))
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
            f"batch={self.batch} needs about {_size(self.run_bytes)} beside the loaded models, "
            f"{_size(free_bytes)} are free: {', or '.join(ways)}"
        )

    def largest_batch(self, free_bytes: int) -> int:
        """The largest batch that fits, 0 if none does."""
        return _largest(self.batch, lambda batch: self._with_batch(batch).run_bytes <= free_bytes)

    def largest_chunk(self, free_bytes: int) -> int | None:
        """The largest prefill chunk that makes the run fit at this batch, a power of two; None if none does."""
        chunk = SMALLEST_CHUNK
        fits = [
            size
            for size in (chunk << shift for shift in range(self.longest_prompt.bit_length()))
            if size < self.longest_prompt and replace(self, prefill_chunk=size).run_bytes <= free_bytes
        ]
        return max(fits, default=None)

    def _with_batch(self, batch: int) -> MemoryPlan:
        return replace(self, batch=batch, window=None if self.window is None else min(self.window, batch))


def size_of(model: CausalLM) -> ModelSize:
    """The sizes of a loaded model."""
    config = model.module.config.get_text_config()
    intermediate = field(config, "intermediate_size")
    return ModelSize(
        num_layers=len(model.kv_shapes) // 2,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        hidden_size=config.hidden_size,
        intermediate_size=intermediate if isinstance(intermediate, int) else 4 * config.hidden_size,
        vocab_size=model.vocab_size,
        itemsize=model.dtype.itemsize,
        eager_attention=config._attn_implementation == "eager",
    )


def require_weights(weight_bytes: dict[str, int], free_bytes: int | None, remedy: str) -> None:
    """Refuse weights that do not fit, before they are loaded.

    Raises:
        ConfigError: naming each model's size and the remedy.
    """
    if free_bytes is None or sum(weight_bytes.values()) <= free_bytes:
        return
    parts = " and ".join(f"{_size(count)} for the {role}'s weights" for role, count in weight_bytes.items())
    raise ConfigError(f"this pair needs {parts}, {_size(free_bytes)} are free: {remedy}")


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``limit`` that fits, if smaller ones fit too; 0 if none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
