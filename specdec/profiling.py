"""Short runs that tell a draft-length policy what this pair costs and accepts on this device."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median_low

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from specdec.build import build_engine
from specdec.clock import Clock
from specdec.draft_lengths.fixed import FixedLength
from specdec.draft_lengths.profile import Profiler, Trial
from specdec.engine import Round
from specdec.inputs import signature
from specdec.pair import Pair
from specdec.results import plain_copy
from specdec.sequence import Sequence, SequencePool

NUM_TOKENS = 32  # of each row of a trial
_DECISIVE = (
    "alignment",
    "drafter",
    "verifier",
    "execution",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "weights",
    "seed",
)
MakeRows = Callable[[int, int], list[Sequence]]  # so many fresh rows, with so many tokens to emit


def profiler(
    cfg: DictConfig,
    pair: Pair,
    make_rows: MakeRows,
    synchronize: Callable[[], None] | None,
    known_output: Callable[[Sequence], list[int] | None] | None,
) -> Profiler:
    """Trials of ``cfg``'s pair, alignment, drafter and execution, on the run's own prompts."""

    def run(batch: int, gamma: int) -> Trial:
        alone = plain_copy(cfg)
        with open_dict(alone):
            alone.batch = batch
            alone.scheduler, alone.batching = {"name": "static"}, {"name": "fifo", "window": batch}
        engine = build_engine(alone, pair, Clock(synchronize), known_output)
        engine.draft_length = FixedLength(gamma=gamma)
        pool = SequencePool(make_rows(batch, min(NUM_TOKENS, cfg.max_new_tokens)))
        rounds = []
        while not pool.done:
            rounds.append(engine.step(pool))
        return _trial(rounds, batch)

    return Profiler(run, Path(cfg.results_dir), partial(_settings, cfg, pair))


def _trial(rounds: list[Round], batch: int) -> Trial:
    """Medians over the rounds of full batches, but for the first, in which the draft reads the prompts."""
    full = [outcome.seconds for outcome in rounds if len(outcome.rows) == batch]
    full = full[1:] or full
    rest = [sum(seconds.values()) - seconds["draft"] - seconds["prefill"] for seconds in full]
    return Trial(
        draft_s=median_low(seconds["draft"] for seconds in full),
        verify_s=median_low(rest),
        num_row_rounds=sum(len(outcome.rows) for outcome in rounds),
        num_accepted=sum(sum(outcome.num_accepted) for outcome in rounds),
    )


def _settings(cfg: DictConfig, pair: Pair) -> dict[str, object]:
    """Everything that decides what a trial comes to, but for its batch size and draft length."""
    settings = OmegaConf.to_container(plain_copy(cfg))
    assert isinstance(settings, dict)
    device = pair.target.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "pair": [pair.fingerprint, pair.draft_fingerprint],
        "drafter_inputs": {key: value for key, value in signature(cfg).items() if key.startswith("drafter.")},
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": settings["runner"]["dtype"],
        "attention": settings["pair"]["attention"],
        **{key: settings[key] for key in _DECISIVE if key in settings},
    }
