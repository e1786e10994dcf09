"""The target's own greedy outputs, cached on disk.

Shapes: B rows, P prompt and N output tokens, K kept, V vocabulary. Greedy decoding by rounds shows the draft
prefixes of the target's greedy output and nothing else that counts (a round ends at the first mismatch), so
training on these outputs is training on the distribution met in use.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from specdec.training.config import GreedyConfig
from specdec.training.corpus import SourceFile
from specdec.training.snippets import PROSE_KINDS, starts_by_kind
from specdec.training.tokenizer import END_OF_TEXT_ID

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class GreedyBatch(NamedTuple):
    """Rows of one prompt length with their greedy outputs and the target's top log-probabilities.

    A named tuple, because Lightning moves tuples between devices and refuses frozen dataclasses.
    """

    ids: Tensor  # (B, P + N)
    num_valid: Tensor  # (B,) output tokens up to and including end-of-text
    top_ids: Tensor  # (B, N, K)
    top_logps: Tensor  # (B, N, K)

    @property
    def num_prompt_tokens(self) -> int:
        """P."""
        return self.ids.shape[1] - self.top_ids.shape[1]

    def rows(self, index: Tensor) -> GreedyBatch:
        """The batch of these rows."""
        return GreedyBatch(self.ids[index], self.num_valid[index], self.top_ids[index], self.top_logps[index])

    @property
    def valid_mask(self) -> Tensor:
        """Which output positions count: (B, N)."""
        return torch.arange(self.top_ids.shape[1])[None] < self.num_valid[:, None]


@torch.inference_mode()
def greedy_outputs(model: LlamaForCausalLM, prompt_BP: Tensor, new_tokens: int, top_k: int) -> GreedyBatch:
    """Decode rows of equal length greedily; no padding, so each row is what the target alone would say."""
    model.set_attn_implementation("sdpa")
    cache = DynamicCache(config=model.config)
    step_BT, outputs, top_ids, top_logps = prompt_BP, [], [], []
    for _ in range(new_tokens):
        logits_BV = model(input_ids=step_BT, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        top = logits_BV.log_softmax(-1).topk(top_k)
        step_BT = logits_BV.argmax(-1, keepdim=True)
        outputs.append(step_BT)
        top_ids.append(top.indices)
        top_logps.append(top.values)
    outputs_BN = torch.cat(outputs, 1)
    ended_BN = (outputs_BN == END_OF_TEXT_ID).cumsum(1)
    num_valid = ((ended_BN - (outputs_BN == END_OF_TEXT_ID).long()) == 0).sum(1)
    ids_BT = torch.cat([prompt_BP, outputs_BN], 1)
    return GreedyBatch(ids_BT, num_valid, torch.stack(top_ids, 1), torch.stack(top_logps, 1))


def generate_corpus(
    model: LlamaForCausalLM,
    files: list[SourceFile],
    tokenizer: PreTrainedTokenizerFast,
    cfg: GreedyConfig,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Write one .npz per batch until `num_batches` or `minutes` is reached; batches there are kept."""
    prompts = PromptSource(files, tokenizer, cfg, seed)
    started_s = time.monotonic()
    num_tokens = num_done = 0
    for index in range(cfg.num_batches):
        prompt_BP = prompts.batch(index)
        path = out / f"batch_{index:04d}.npz"
        if not path.exists():
            if time.monotonic() - started_s > 60.0 * cfg.minutes:
                break
            save_batch(greedy_outputs(model, prompt_BP, cfg.new_tokens, cfg.top_k), path)
        num_done, num_tokens = num_done + 1, num_tokens + prompt_BP.shape[0] * cfg.new_tokens
    return {"batches": num_done, "rows": num_done * cfg.batch, "output_tokens": num_tokens}


class PromptSource:
    """Prompts cut from training files at starts of every kind; batch `index` depends on the seed alone."""

    def __init__(
        self, files: list[SourceFile], tokenizer: PreTrainedTokenizerFast, cfg: GreedyConfig, seed: int
    ) -> None:
        self.starts = {kind: places for kind, places in starts_by_kind(files).items() if places}
        self.tokenizer, self.cfg, self.seed = tokenizer, cfg, seed

    def batch(self, index: int) -> Tensor:
        """prompt_BP of one length, log-uniform between the limits."""
        random = np.random.default_rng([self.seed, index])
        low, high = np.log(self.cfg.min_prompt_tokens), np.log(self.cfg.max_prompt_tokens + 1)
        num_tokens = int(np.exp(random.uniform(low, high)))
        rows: list[list[int]] = []
        while len(rows) < self.cfg.batch:
            ids = self._prompt(num_tokens, random)
            if len(ids) == num_tokens:
                rows.append(ids)
        return torch.tensor(rows)

    def _prompt(self, num_tokens: int, random: np.random.Generator) -> list[int]:
        prose = [kind for kind in PROSE_KINDS if kind in self.starts]
        code = [kind for kind in self.starts if kind not in PROSE_KINDS]
        kinds = prose if prose and random.random() < self.cfg.prose_share else code
        places = self.starts[kinds[random.integers(len(kinds))]]
        file, offset = places[random.integers(len(places))]
        text = file.text[offset : offset + 12 * num_tokens]
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text).ids
        return ids[:num_tokens]


def save_batch(batch: GreedyBatch, path: Path) -> None:
    """Compact and whole: 16-bit ids and log-probabilities, renamed into place."""
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        ids=batch.ids.numpy().astype(np.uint16),
        num_valid=batch.num_valid.numpy().astype(np.uint16),
        top_ids=batch.top_ids.numpy().astype(np.uint16),
        top_logps=batch.top_logps.numpy().astype(np.float16),
    )
    partial.replace(path)


def load_batch(path: Path) -> GreedyBatch:
    """The batch written by `save_batch`."""
    with np.load(path) as arrays:
        keys = ("ids", "num_valid", "top_ids")
        ids, num_valid, top_ids = (torch.from_numpy(arrays[key].astype(np.int64)) for key in keys)
        return GreedyBatch(ids, num_valid, top_ids, torch.from_numpy(arrays["top_logps"].astype(np.float32)))
