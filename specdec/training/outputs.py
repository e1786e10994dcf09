"""The target's own outputs: generated once by the engine, cached on disk, and drawn as training batches.

Shapes: B rows, T tokens, P prompt and N output tokens, K kept, V vocabulary. In greedy decoding the draft is asked for
tokens after prefixes of the target's greedy output, and for no others that count (a round ends at the first mismatch),
so these outputs have the distribution that the draft meets in use (sequence-level distillation, Kim and Rush 2016).
"""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec.core.files import write_json
from specdec.core.loops import LONGEST_PERIOD, in_loops
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.models.causal_lm import CausalLM
from specdec.training import TrainingError
from specdec.training.blocks import Batch, Stream
from specdec.training.budget import Budget
from specdec.training.config import LINE_EVERY_S, OutputsConfig
from specdec.training.corpus import Corpus
from specdec.training.decoding import decode
from specdec.training.losses import output_mask
from specdec.training.prompts import prompt_source
from specdec.training.shared_outputs import share, shared_file
from specdec.training.tokenizer import id_type

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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


@torch.inference_mode()
def outputs_of(
    target: CausalLM, prompts: list[list[int]], cfg: OutputsConfig, stop_ids: frozenset[int], seed: int
) -> Outputs:
    """Decode prompts, greedily at temperature 0, and keep the largest log-probabilities of every output token."""
    new_tokens = cfg.new_tokens
    sampling = SamplingParams(temperature=cfg.temperature, seed=seed) if cfg.temperature else None
    rows = [Sequence(i, ids, new_tokens, stop_ids, sampling) for i, ids in enumerate(prompts)]
    decode(target, rows, len(rows), verifier="naive" if cfg.temperature else "greedy", execution="auto")
    num_prompt_B = torch.tensor([len(ids) for ids in prompts])
    width = int(num_prompt_B.max()) + new_tokens
    texts = [[*row.prompt_ids, *row.output_ids] for row in rows]
    ids_BT = torch.tensor([text + text[:1] * (width - len(text)) for text in texts])
    num_valid_B = torch.tensor([len(row.output_ids) for row in rows])
    tops = [_most_probable(target, *part, cfg) for part in zip(ids_BT.split(8), num_prompt_B.split(8), strict=True)]
    return Outputs(ids_BT, num_prompt_B, num_valid_B, *(torch.cat(top) for top in zip(*tops, strict=True)))


def _most_probable(target: CausalLM, rows_BT: Tensor, prompt_B: Tensor, cfg: OutputsConfig) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities (B, N, K) of the target's most probable tokens at every output token."""
    if not cfg.top_k:
        nothing_BNK = torch.zeros(len(rows_BT), cfg.new_tokens, 0)
        return nothing_BNK.long(), nothing_BNK
    first = int(prompt_B.min()) - 1  # the column that predicts the first output token of all
    inputs_BT = rows_BT[:, :-1].to(target.device)
    output = target.module(input_ids=inputs_BT, use_cache=False, logits_to_keep=rows_BT.shape[1] - 1 - first)
    top = output.logits.float().log_softmax(-1).topk(cfg.top_k)
    columns_BN = (prompt_B - 1 - first)[:, None] + torch.arange(cfg.new_tokens)
    columns_BNK = columns_BN[..., None].expand(-1, -1, cfg.top_k)
    return top.indices.cpu().gather(1, columns_BNK), top.values.cpu().gather(1, columns_BNK)


def generate_outputs(
    target: CausalLM,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    cfg: OutputsConfig,
    seed: int,
    out: Path,
    *,
    stop_ids: frozenset[int],
    made_by: str = "",
) -> dict[str, Any]:
    """Write one .npz file per batch until `num_batches` or `minutes` is reached; files of an earlier run are kept.

    Batches that any run has asked this target for are taken from the cache (`specdec.training.shared_outputs`).

    Raises:
        TrainingError: the folder holds the outputs of another target (``made_by``, a fingerprint).
    """
    _check_made_by(out, made_by)
    prompts = prompt_source(corpus, tokenizer, cfg, seed)
    started_s = time.monotonic()
    num_tokens = num_done = num_new = 0
    told_s = 0.0
    for index in range(cfg.num_batches):
        path = out / f"batch_{index:04d}.npz"
        if not path.exists():
            if cfg.minutes is not None and time.monotonic() - started_s > 60.0 * cfg.minutes:
                break
            asked = prompts(index)
            shared = shared_file(target, made_by, asked, cfg, stop_ids, seed + index) if made_by else None
            if shared is None or not share(shared, path) or not _is_whole(path, len(asked)):
                made = outputs_of(target, asked, cfg, stop_ids, seed + index)
                save_outputs(made, path, target.vocab_size)
                if shared is not None:
                    share(path, shared)
                num_new += int(made.num_valid_B.sum())
            told_s = _tell(index + 1, num_new, cfg, time.monotonic() - started_s, told_s)
        with np.load(path) as arrays:
            num_tokens += int(arrays["num_valid"].astype(np.int64).sum())
        num_done += 1
    return {"batches": num_done, "rows": num_done * cfg.batch, "output_tokens": num_tokens}


def _tell(num_done: int, num_tokens: int, cfg: OutputsConfig, spent_s: float, told_s: float) -> float:
    """Print how far the outputs have come, every half minute and at the end; returns when that was last done."""
    if spent_s - told_s < LINE_EVERY_S and num_done < cfg.num_batches:
        return told_s
    limit = f" of {cfg.minutes:g}" if cfg.minutes is not None else ""
    speed = num_tokens / max(spent_s, 1e-9)
    print(
        f"[outputs] batch {num_done} of {cfg.num_batches}  {spent_s / 60:.1f}{limit} min  {speed:,.0f} tokens/s",
        flush=True,
    )
    return spent_s


def _check_made_by(out: Path, made_by: str) -> None:
    """Record which target the folder's outputs are of, and refuse another one."""
    out.mkdir(parents=True, exist_ok=True)
    note = out / "target.json"
    if note.exists() and (found := json.loads(note.read_text())["made_by"]) != made_by:
        raise TrainingError(f"{out} holds outputs of another target ({found}): set force=true, or another output_dir")
    write_json(note, {"made_by": made_by})


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


def _is_whole(path: Path, num_prompts: int) -> bool:
    """Whether a file of the cache can be read and has a row per prompt."""
    try:
        return len(load_outputs(path).num_valid_B) == num_prompts
    except TrainingError:
        return False


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
