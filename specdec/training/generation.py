"""The target's own outputs, generated once by the engine: a file per batch of prompts, shared by runs and recipes.

Shapes: B rows, T tokens, N output tokens, K kept log-probabilities.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specdec.core.files import write_json
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.models.causal_lm import CausalLM
from specdec.training import TrainingError
from specdec.training.config import LINE_EVERY_S, OutputsConfig
from specdec.training.corpus import Corpus
from specdec.training.decoding import decode
from specdec.training.outputs import Outputs, load_outputs, save_outputs
from specdec.training.prompts import prompt_source
from specdec.training.shared_outputs import share, shared_file
from specdec.training.split import alike

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@alike
@torch.inference_mode()
def outputs_of(
    target: CausalLM, prompts: list[list[int]], cfg: OutputsConfig, stop_ids: frozenset[int], seed: int
) -> Outputs:
    """Decode prompts, greedily at temperature 0; no log-probabilities are kept."""
    sampling = SamplingParams(temperature=cfg.temperature, seed=seed) if cfg.temperature else None
    rows = [Sequence(i, ids, cfg.new_tokens, stop_ids, sampling) for i, ids in enumerate(prompts)]
    decode(target, rows, len(rows), verifier="naive" if cfg.temperature else "greedy", execution="auto")
    num_prompt_B = torch.tensor([len(ids) for ids in prompts])
    width = int(num_prompt_B.max()) + cfg.new_tokens
    texts = [[*row.prompt_ids, *row.output_ids] for row in rows]
    ids_BT = torch.tensor([text + text[:1] * (width - len(text)) for text in texts])
    nothing_BNK = torch.zeros(len(rows), cfg.new_tokens, 0)
    num_valid_B = torch.tensor([len(row.output_ids) for row in rows])
    return Outputs(ids_BT, num_prompt_B, num_valid_B, nothing_BNK.long(), nothing_BNK)


@alike
@torch.inference_mode()
def with_log_probs(target: CausalLM, outputs: Outputs, cfg: OutputsConfig) -> Outputs:
    """The outputs with the target's ``cfg.top_k`` largest log-probabilities of every output token."""
    if not cfg.top_k:
        return outputs
    parts = zip(outputs.ids_BT.long().split(8), outputs.num_prompt_B.split(8), strict=True)
    ids, logps = zip(*(_most_probable(target, *part, cfg) for part in parts), strict=True)
    return outputs._replace(top_ids_BNK=torch.cat(ids), top_logps_BNK=torch.cat(logps))


def _most_probable(target: CausalLM, rows_BT: Tensor, prompt_B: Tensor, cfg: OutputsConfig) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities (B, N, K) of the target's most probable tokens at every output token."""
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
    check_made_by(out, made_by, str(target.dtype))
    prompts = prompt_source(corpus, tokenizer, cfg, seed)
    started_s = time.monotonic()
    num_tokens = num_done = num_new = 0
    told_s = 0.0
    for index in range(cfg.num_batches):
        path = out / f"batch_{index:04d}.npz"
        if not path.exists():
            if cfg.minutes is not None and time.monotonic() - started_s > 60.0 * cfg.minutes:
                break
            num_new += _write(path, target, prompts(index), cfg, stop_ids, seed + index, made_by)
            told_s = _tell(index + 1, num_new, cfg, time.monotonic() - started_s, told_s)
        num_tokens += int(load_outputs(path).num_valid_B.sum())
        num_done += 1
    return {"batches": num_done, "rows": num_done * cfg.batch, "output_tokens": num_tokens}


def _write(
    path: Path,
    target: CausalLM,
    asked: list[list[int]],
    cfg: OutputsConfig,
    stop_ids: frozenset[int],
    seed: int,
    made_by: str,
) -> int:
    """Write the outputs of one batch of prompts, or take them from the cache; returns the tokens decoded for it."""

    def shared(settings: OutputsConfig) -> Path | None:
        return shared_file(target, made_by, asked, settings, stop_ids, seed) if made_by else None

    kept = shared(cfg)
    if kept is not None and _read(kept, len(asked)) and share(kept, path):
        return 0
    bare = shared(replace(cfg, top_k=0))  # recipes that keep other log-probabilities share what was decoded
    found = _read(bare, len(asked))
    made = found or outputs_of(target, asked, cfg, stop_ids, seed)
    if bare is not None and cfg.top_k and not found:
        save_outputs(made, aside := path.with_name("decoded.npz"), target.vocab_size)
        share(aside, bare)
        aside.unlink()
    save_outputs(with_log_probs(target, made, cfg), path, target.vocab_size)
    if kept is not None:
        share(path, kept)
    return 0 if found else int(made.num_valid_B.sum())


def _tell(num_done: int, num_tokens: int, cfg: OutputsConfig, spent_s: float, told_s: float) -> float:
    """Print how far the outputs have come, every half minute and at the end; returns when that was last done."""
    if spent_s - told_s < LINE_EVERY_S and num_done < cfg.num_batches:
        return told_s
    limit = f" of {cfg.minutes:g}" if cfg.minutes is not None else ""
    speed = f"  {num_tokens / spent_s:,.0f} tokens/s" if num_tokens else ""  # none: all was decoded before
    print(f"[outputs] batch {num_done} of {cfg.num_batches}  {spent_s / 60:.1f}{limit} min{speed}", flush=True)
    return spent_s


def check_made_by(out: Path, made_by: str, dtype: str) -> None:
    """Record which target the folder's outputs are of, in which number format, and refuse another one."""
    out.mkdir(parents=True, exist_ok=True)
    note, now = out / "target.json", {"made_by": made_by, "dtype": dtype}
    before = {**now, **json.loads(note.read_text())} if note.exists() else now  # older notes have no format
    if before != now:
        found = " ".join(before.values())
        raise TrainingError(f"{out} holds outputs of another target ({found}): set force=true, or another output_dir")
    write_json(note, now)


def _read(path: Path | None, num_prompts: int) -> Outputs | None:
    """A file of the cache, if it is there, can be read and has a row per prompt."""
    try:
        found = load_outputs(path) if path is not None else None
    except TrainingError:
        return None
    return found if found is not None and len(found.num_valid_B) == num_prompts else None
