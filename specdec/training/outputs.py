"""The target's own outputs: kept on disk, and drawn as training batches (`generation` makes them).

Shapes: B rows, T tokens, P prompt and N output tokens, K kept, V vocabulary. In greedy decoding the draft is asked for
tokens after prefixes of the target's greedy output, and for no others that count (a round ends at the first mismatch),
so these outputs have the distribution that the draft meets in use (sequence-level distillation, Kim and Rush 2016).
"""

from __future__ import annotations

import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec.core.loops import LONGEST_PERIOD, in_loops
from specdec.training import TrainingError
from specdec.training.blocks import Batch, Stream
from specdec.training.budget import Budget
from specdec.training.losses import output_mask
from specdec.training.tokenizer import id_type

DAMAGE = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error)
NUM_LOADED = 16  # files in memory, in the small types of the disk; the shuffle spreads the rows of each over a pass


class Outputs(NamedTuple):
    """Prompts with their outputs behind them, and the target's largest log-probabilities for every output token."""

    ids_BT: Tensor  # prompt, then output; past a row's end anything
    num_prompt_B: Tensor
    num_valid_B: Tensor  # output tokens up to and including the stop token
    top_ids_BNK: Tensor
    top_logps_BNK: Tensor

    def tokens(self) -> list[list[int]]:
        """The output tokens of every row, up to and including the stop token."""
        sizes = zip(self.ids_BT, self.num_prompt_B.tolist(), self.num_valid_B.tolist(), strict=True)
        return [ids_T[first : first + count].tolist() for ids_T, first, count in sizes]

    def batch(self, rows: Tensor, place: dict[str, int], count_prompt: bool) -> Batch:
        """The training batch of some rows."""
        prompts, ends = self.num_prompt_B[rows], self.num_prompt_B[rows] + self.num_valid_B[rows]
        width = int(ends.max())
        counted_BT = output_mask(prompts.tolist(), ends.tolist(), width, count_prompt)
        ids_BT = self.ids_BT[rows, :width].long()
        if not self.top_ids_BNK.shape[2]:
            return Batch(ids_BT, counted_BT, place)
        # The output token of each column; what stands at the prompt's columns, for which nothing was kept, is not read.
        place_BT = (torch.arange(width) - prompts[:, None]).clamp(0, self.top_ids_BNK.shape[1] - 1)
        place_BTK = place_BT[..., None].expand(-1, -1, self.top_ids_BNK.shape[2])
        top_ids_BNK, top_logps_BNK = self.top_ids_BNK[rows].long(), self.top_logps_BNK[rows].float()
        top_ids_BTK, top_logps_BTK = (part.gather(1, place_BTK) for part in (top_ids_BNK, top_logps_BNK))
        return Batch(ids_BT, counted_BT, place, top_ids_BTK, top_logps_BTK)


class OutputStream(Stream):
    """Batches from the cached outputs, each of prompts of about one length; shuffled again in each pass."""

    def __init__(
        self,
        folder: Path,
        budget: Budget,
        seed: int,
        *,
        count_prompt: bool = False,
        cut_loops: bool = False,
        num_devices: int = 1,
    ) -> None:
        self.budget, self.seed, self.count_prompt, self.num_devices = budget, seed, count_prompt, num_devices
        self.paths = sorted(folder.glob("batch_*[0-9].npz"))
        if not self.paths:
            raise TrainingError(f"{folder} holds no outputs; raise greedy.minutes or greedy.num_batches")
        self.sizes = [num_rows(path) for path in self.paths]
        self._load = lru_cache(maxsize=NUM_LOADED)(lambda path: _loaded(path, cut_loops))
        self.place = {"batches": 0}
        self.states: Any = None  # the target's hidden states (HiddenStates), if they are kept on disk
        self._pass: tuple[int, list[tuple[int, Tensor]]] | None = None

    def token_counts(self, vocab_size: int) -> Tensor:
        counts_V = torch.zeros(vocab_size, dtype=torch.long)
        for path, size in zip(self.paths, self.sizes, strict=True):
            batch = self._load(path).batch(torch.arange(size), self.place, self.count_prompt)
            counts_V += torch.bincount(batch.ids_BT[batch.counted_BT], minlength=vocab_size)
        return counts_V

    def draw(self) -> Batch:
        size = self.budget.stage.phases[0].batch * self.num_devices
        per_pass = sum(-(-count // size) for count in self.sizes)
        number, index = divmod(self.place["batches"], per_pass)
        if self._pass is None or self._pass[0] != number:
            self._pass = (number, self._shuffled(number, size))
        source, rows = self._pass[1][index]
        self.place = {"batches": self.place["batches"] + 1}
        outputs, path = self._load(self.paths[source]), self.paths[source]
        batch = outputs.batch(rows, self.place, self.count_prompt)
        if self.states is None:
            return batch
        hidden_BTLD = self.states.of(path, rows, batch.ids_BT.shape[1])
        return batch._replace(hidden_BTLD=hidden_BTLD, layers=tuple(self.states.layers))

    def _shuffled(self, number: int, size: int) -> list[tuple[int, Tensor]]:
        """Every row of every cached batch once: (cached batch, rows)."""
        random = np.random.default_rng([self.seed, number])
        parts = []
        for source, count in enumerate(self.sizes):
            order = torch.from_numpy(random.permutation(count))
            parts += [(source, rows) for rows in order.split(size)]
        return [parts[index] for index in random.permutation(len(parts))]


def save_outputs(outputs: Outputs, path: Path, vocab_size: int) -> None:
    """Write small ids and 16-bit log-probabilities, atomically."""
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        ids=outputs.ids_BT.numpy().astype(id_type(vocab_size)),
        num_prompt=outputs.num_prompt_B.numpy().astype(np.uint32),
        num_valid=outputs.num_valid_B.numpy().astype(np.uint32),
        top_ids=outputs.top_ids_BNK.numpy().astype(id_type(vocab_size)),
        top_logps=outputs.top_logps_BNK.numpy().astype(np.float16),
    )
    partial.replace(path)


def load_outputs(path: Path) -> Outputs:
    """Read what `save_outputs` wrote, in its small types."""
    try:
        with np.load(path) as arrays:
            ids, top_ids, top_logps = (torch.from_numpy(arrays[key]) for key in ("ids", "top_ids", "top_logps"))
            num_prompt, num_valid = (
                torch.from_numpy(arrays[key].astype(np.int64)) for key in ("num_prompt", "num_valid")
            )
            return Outputs(ids, num_prompt, num_valid, top_ids, top_logps)
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _loaded(path: Path, cut_loops: bool) -> Outputs:
    outputs = load_outputs(path)
    return without_loops(outputs) if cut_loops else outputs


def without_loops(outputs: Outputs) -> Outputs:
    """The outputs up to where they begin to repeat themselves, the first saying of it included."""
    num_valid_B = outputs.num_valid_B.clone()
    for b, tokens in enumerate(outputs.tokens()):
        if True in (loops := in_loops(tokens)):
            num_valid_B[b] = min(loops.index(True) + LONGEST_PERIOD, len(tokens))
    return outputs._replace(num_valid_B=num_valid_B)


def num_rows(path: Path) -> int:
    """Rows of a file of outputs, from its smallest array."""
    try:
        with np.load(path) as arrays:
            return len(arrays["num_valid"])
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"{path} is damaged ({type(error).__name__}): delete it and record.json beside it; it is generated again"
    )
