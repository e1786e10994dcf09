"""What a target writes is made once, whatever run asks for it: a file per batch of outputs or questions in the cache.

A file is named by all that decides it: the target's weights, config and number format, the prompts, the settings and
the seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from specdec.assets import cache_folder
from specdec.models.causal_lm import CausalLM
from specdec.training.config import OutputsConfig
from specdec.training.corpus_config import QuestionsConfig


def shared_file(
    target: CausalLM, made_by: str, prompts: list[list[int]], cfg: OutputsConfig, stop_ids: frozenset[int], seed: int
) -> Path:
    """Where the outputs of one batch of prompts are kept; ``made_by`` is the target's fingerprint."""
    settings = (cfg.new_tokens, cfg.temperature, cfg.top_k, sorted(stop_ids), seed if cfg.temperature else None)
    return _named(f"outputs/{made_by}", [str(target.dtype), prompts, *settings], ".npz")


def shared_questions(
    target: CausalLM,
    made_by: str,
    start_ids: list[int],
    cfg: QuestionsConfig,
    stop_ids: frozenset[int],
    first_seed: int,
) -> Path:
    """Where one batch of users' turns, which the target wrote behind ``start_ids``, is kept."""
    settings = (cfg.temperature, cfg.top_p, cfg.max_tokens, cfg.batch, sorted(stop_ids), first_seed)
    return _named(f"questions/{made_by}", [str(target.dtype), start_ids, *settings], ".json")


def _named(folder: str, settings: list[Any], suffix: str) -> Path:
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    return cache_folder() / folder / f"{digest[:24]}{suffix}"


def share(source: Path, destination: Path) -> bool:
    """Make a file known under a second name, without a copy where the disk allows it; False if there is no such file.

    A destination that cannot be written is left out: the cache saves time, and nothing depends on it.
    """
    if not source.exists():
        return False
    partial = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, partial)
        partial.replace(destination)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        return False
    return True
