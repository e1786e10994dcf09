"""The target's own outputs: generated once by the engine, cached on disk, and drawn as training batches.

Shapes: B rows, T tokens, P prompt and N output tokens, K kept, V vocabulary. In greedy decoding the draft is asked for
tokens after prefixes of the target's greedy output, and for no others that count (a round ends at the first mismatch),
so these outputs have the distribution that the draft meets in use (sequence-level distillation, Kim and Rush 2016).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec.core.files import write_json
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.models.causal_lm import CausalLM
from specdec.training import TrainingError
from specdec.training.blocks import Batch, Stream
from specdec.training.budget import Budget
from specdec.training.config import OutputsConfig
from specdec.training.corpus import Corpus
from specdec.training.decoding import decode
from specdec.training.losses import output_mask
from specdec.training.snippets import PROSE_KINDS, starts_by_kind
from specdec.training.tokenizer import id_type

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Outputs(NamedTuple):
    """Rows of one prompt length with their outputs and the target's largest log-probabilities."""

    ids_BT: Tensor  # (B, P + N); past a row's end anything
    num_valid_B: Tensor  # output tokens up to and including the stop token
    top_ids_BNK: Tensor
    top_logps_BNK: Tensor

    def batch(self, rows: Tensor, place: dict[str, int], count_prompt: bool) -> Batch:
        """The training batch of some rows."""
        width = self.ids_BT.shape[1]
        num_prompt = width - self.top_ids_BNK.shape[1]
        lengths = (num_prompt + self.num_valid_B[rows]).tolist()
        counted_BT = output_mask([num_prompt] * len(rows), lengths, width, count_prompt)
        pad = (0, 0, num_prompt, 0)  # nothing was kept for the prompt's tokens
        tops = [torch.nn.functional.pad(part[rows], pad) for part in (self.top_ids_BNK, self.top_logps_BNK)]
        return Batch(self.ids_BT[rows], counted_BT, place, *tops)


@torch.inference_mode()
def outputs_of(target: CausalLM, prompt_BP: Tensor, cfg: OutputsConfig, stop_ids: frozenset[int], seed: int) -> Outputs:
    """Decode rows of one prompt length, greedily at temperature 0, and keep the largest log-probabilities."""
    new_tokens = cfg.new_tokens
    sampling = SamplingParams(temperature=cfg.temperature, seed=seed) if cfg.temperature else None
    rows = [Sequence(i, ids, new_tokens, stop_ids, sampling) for i, ids in enumerate(prompt_BP.tolist())]
    decode(target, rows, len(rows), verifier="naive" if cfg.temperature else "greedy")
    found = [row.output_ids for row in rows]
    filler = int(prompt_BP[0, 0])
    ids_BN = torch.tensor([row + [filler] * (new_tokens - len(row)) for row in found])
    ids_BT = torch.cat([prompt_BP, ids_BN], 1)
    top_ids, top_logps = [], []
    for rows_BT in ids_BT.split(8):
        logits_BTV = target.module(input_ids=rows_BT[:, :-1].to(target.device), use_cache=False).logits
        top = logits_BTV[:, prompt_BP.shape[1] - 1 :].float().log_softmax(-1).topk(cfg.top_k)
        top_ids.append(top.indices.cpu())
        top_logps.append(top.values.cpu())
    return Outputs(ids_BT, torch.tensor([len(row) for row in found]), torch.cat(top_ids), torch.cat(top_logps))


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

    Raises:
        TrainingError: the folder holds the outputs of another target (``made_by``, a fingerprint).
    """
    _check_made_by(out, made_by)
    prompts = PromptSource(corpus, tokenizer, cfg, seed)
    started_s = time.monotonic()
    num_tokens = num_done = 0
    for index in range(cfg.num_batches):
        path = out / f"batch_{index:04d}.npz"
        if not path.exists():
            if cfg.minutes is not None and time.monotonic() - started_s > 60.0 * cfg.minutes:
                break
            made = outputs_of(target, prompts.batch(index), cfg, stop_ids, seed + index)
            save_outputs(made, path, target.vocab_size)
        num_done, num_tokens = num_done + 1, num_tokens + cfg.batch * cfg.new_tokens
    return {"batches": num_done, "rows": num_done * cfg.batch, "output_tokens": num_tokens}


def _check_made_by(out: Path, made_by: str) -> None:
    """Record which target the folder's outputs are of, and refuse another one."""
    out.mkdir(parents=True, exist_ok=True)
    note = out / "target.json"
    if note.exists() and (found := json.loads(note.read_text())["made_by"]) != made_by:
        raise TrainingError(f"{out} holds outputs of another target ({found}): set force=true, or another output_dir")
    write_json(note, {"made_by": made_by})


class PromptSource:
    """Prompts cut from training files, at starts of every kind; batch `index` depends on the seed alone."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, cfg: OutputsConfig, seed: int) -> None:
        self.starts = starts_by_kind(corpus.train, corpus.is_code)
        self.tokenizer, self.cfg, self.seed = tokenizer, cfg, seed

    def batch(self, index: int) -> Tensor:
        """prompt_BP of one length, log-uniform between the limits."""
        random = np.random.default_rng([self.seed, index])
        low, high = np.log(self.cfg.min_prompt_tokens), np.log(self.cfg.max_prompt_tokens + 1)
        num_tokens = int(np.exp(random.uniform(low, high)))
        rows: list[list[int]] = []
        for _ in range(1000 * self.cfg.batch):
            ids = self._prompt(num_tokens, random)
            if len(ids) == num_tokens:
                rows.append(ids)
            if len(rows) == self.cfg.batch:
                return torch.tensor(rows)
        raise TrainingError(f"the corpus has too few texts of {num_tokens} tokens; lower greedy.max_prompt_tokens")

    def _prompt(self, num_tokens: int, random: np.random.Generator) -> list[int]:
        prose = [kind for kind in PROSE_KINDS if kind in self.starts]
        code = [kind for kind in self.starts if kind not in PROSE_KINDS]
        kinds = prose if prose and random.random() < self.cfg.prose_share else code
        places = self.starts[kinds[random.integers(len(kinds))]]
        file, offset = places[random.integers(len(places))]
        text = file.text[offset : offset + 12 * num_tokens]
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text).ids
        return ids[:num_tokens]


class OutputStream(Stream):
    """Batches from the cached outputs, each of one prompt length; shuffled again in each pass."""

    def __init__(
        self, folder: Path, budget: Budget, seed: int, *, count_prompt: bool = False, num_devices: int = 1
    ) -> None:
        self.budget, self.seed, self.count_prompt, self.num_devices = budget, seed, count_prompt, num_devices
        self.outputs = [load_outputs(path) for path in sorted(folder.glob("batch_????.npz"))]
        if not self.outputs:
            raise TrainingError(f"{folder} holds no outputs; raise greedy.minutes or greedy.num_batches")
        self.place = {"batches": 0}
        self._pass: tuple[int, list[tuple[int, Tensor]]] | None = None

    def draw(self) -> Batch:
        size = self.budget.stage.phases[0].batch * self.num_devices
        per_pass = sum(-(-len(outputs.ids_BT) // size) for outputs in self.outputs)
        number, index = divmod(self.place["batches"], per_pass)
        if self._pass is None or self._pass[0] != number:
            self._pass = (number, self._shuffled(number, size))
        source, rows = self._pass[1][index]
        self.place = {"batches": self.place["batches"] + 1}
        return self.outputs[source].batch(rows, self.place, self.count_prompt)

    def _shuffled(self, number: int, size: int) -> list[tuple[int, Tensor]]:
        """Every row of every cached batch once: (cached batch, rows)."""
        random = np.random.default_rng([self.seed, number])
        parts = []
        for source, outputs in enumerate(self.outputs):
            order = torch.from_numpy(random.permutation(len(outputs.ids_BT)))
            parts += [(source, rows) for rows in order.split(size)]
        return [parts[index] for index in random.permutation(len(parts))]


def save_outputs(outputs: Outputs, path: Path, vocab_size: int) -> None:
    """Write small ids and 16-bit log-probabilities, atomically."""
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        ids=outputs.ids_BT.numpy().astype(id_type(vocab_size)),
        num_valid=outputs.num_valid_B.numpy().astype(np.uint16),
        top_ids=outputs.top_ids_BNK.numpy().astype(id_type(vocab_size)),
        top_logps=outputs.top_logps_BNK.numpy().astype(np.float16),
    )
    partial.replace(path)


def load_outputs(path: Path) -> Outputs:
    """Read what `save_outputs` wrote."""
    try:
        with np.load(path) as arrays:
            ids, num_valid, top_ids = (
                torch.from_numpy(arrays[key].astype(np.int64)) for key in ("ids", "num_valid", "top_ids")
            )
            return Outputs(ids, num_valid, top_ids, torch.from_numpy(arrays["top_logps"].astype(np.float32)))
    except (ValueError, KeyError, EOFError) as error:
        raise TrainingError(f"{path} is damaged ({type(error).__name__}): delete it, it is generated again") from error
