"""Prompts and engines of these studies, in one process: the pair is loaded once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

import specdec.config  # noqa: F401  (declares the plug-ins)
from specdec.assets import local_path
from specdec.config.reference import sampling_params
from specdec.config.resolve import resolve
from specdec.config.schema import RunConfig
from specdec.core.clock import Clock
from specdec.core.round import Round
from specdec.core.sequence import Sequence, SequencePool
from specdec.engine.loop import RoundLoop
from specdec.models.pair import Pair
from specdec.run.factory import build_engine

ALWAYS = ["scheduler=continuous", "pair.threads=1", "seed=0"]


def configured(*overrides: str) -> RunConfig:
    """The resolved config of a point."""
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        config: RunConfig = resolve(compose(config_name="config", overrides=[*ALWAYS, *overrides]))
        return config


def read_prompts(tokenizer: Any, path: str | None, most_tokens: int) -> list[list[int]]:
    """The first turns of a file (None: the built-in held-out prompts), each cut to its first tokens."""
    lines = Path(path or local_path("asset:heldout.jsonl")).read_text().splitlines()
    return [list(tokenizer(json.loads(line)["turns"][0]).input_ids)[:most_tokens] for line in lines]


def make_rows(config: RunConfig, prompts: list[list[int]], new_tokens: int) -> list[Sequence]:
    """Fresh rows that end at their budget only, so that all settings decode equally many tokens."""
    sampling = sampling_params(config) if config.temperature else None
    return [Sequence(i, list(ids), new_tokens, sampling=sampling) for i, ids in enumerate(prompts)]


def rounds(engine: RoundLoop, rows: list[Sequence]) -> Iterator[tuple[Round, float]]:
    """Decode the rows to their ends; each round with its processor time in seconds."""
    pool = SequencePool(rows)
    while not pool.done:
        started = time.process_time()
        outcome = engine.step(pool)
        yield outcome, time.process_time() - started


def engine_of(config: RunConfig, pair: Pair) -> RoundLoop:
    """The engine of a config over a pair that is loaded."""
    return build_engine(config, pair, Clock())
