"""Short runs that tell a draft-length policy what this pair costs and accepts on this device."""

from __future__ import annotations

import gc
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
from specdec.engine import Engine, Round
from specdec.inputs import signature
from specdec.pair import Pair
from specdec.results import plain_copy
from specdec.sequence import Sequence, SequencePool

NUM_TOKENS = 64  # of each row, at most; then the batch is begun again
NUM_TURNS = 5  # through all draft lengths
_DECISIVE = (
    "alignment",
    "drafter",
    "verifier",
    "execution",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
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
    mean_prompt_tokens: float,
) -> Profiler:
    """Trials of ``cfg``'s pair, alignment, drafter and execution, on the run's own prompts."""

    def start(batch: int) -> tuple[Engine, SequencePool, float]:
        """A batch behind its first round, and the seconds of drafting a token in it, reading included."""
        alone = plain_copy(cfg)
        with open_dict(alone):
            alone.batch = batch
            alone.scheduler, alone.batching = {"name": "static"}, {"name": "fifo", "window": batch}
            alone.debug.invariants = False  # checks take time that no other run would take
        gc.collect()  # of the batch before, which may be held in cycles
        engine = build_engine(alone, pair, Clock(synchronize), known_output)
        num_tokens = min(NUM_TOKENS, cfg.max_new_tokens) if engine.drafter.replays else NUM_TOKENS
        pool = SequencePool(make_rows(batch, num_tokens))
        first = FixedLength(gamma=1)
        first.drafting = False  # so that the draft reads when it drafts, and the target alone before that
        engine.draft_length = first
        return engine, pool, engine.step(pool).seconds["draft"]

    def run(batch: int, gammas: list[int]) -> dict[int, Trial]:
        rounds: dict[int, list[Round]] = {gamma: [] for gamma in gammas}
        reads = [start(batch)[-1]]  # what has to be prepared for shapes that are new is behind us after that
        engine, pool, seconds = start(batch)
        reads.append(seconds)
        # Each turn begins with a round that is not counted: behind one without a draft, drafters have to catch up.
        for gamma in NUM_TURNS * [None, *sorted(gammas, reverse=True)]:
            longest = 1 if gamma is None else gamma
            if len(pool.active) < batch or min(row.num_remaining for row in pool.active) <= longest:
                del engine, pool  # before the next batch takes as much memory
                engine, pool, seconds = start(batch)
                reads.append(seconds)
            engine.draft_length = FixedLength(gamma=longest)
            outcome = engine.step(pool)
            if gamma is not None:
                rounds[gamma].append(outcome)
        del engine, pool
        gc.collect()
        # Reading costs a forward, whatever it reads: that much is taken off, as the cost of a drafted step.
        step_s = median_low(outcome.seconds["draft"] for outcome in rounds[1])
        num_read = sum(len(row.prompt_ids) for row in make_rows(batch, NUM_TOKENS))
        read_s = max(min(reads) - 2 * step_s, 0.0) / num_read
        return {gamma: _trial(of_gamma, read_s) for gamma, of_gamma in rounds.items()}

    return Profiler(run, Path(cfg.results_dir), partial(_settings, cfg, pair, mean_prompt_tokens))


def _trial(rounds: list[Round], read_s: float) -> Trial:
    """Medians of the times, and what became of the drafted tokens at each place."""
    seconds = [outcome.seconds for outcome in rounds]
    drafts = [pair for outcome in rounds for pair in zip(outcome.num_drafted, outcome.num_accepted, strict=True)]
    longest = max(drafted for drafted, _ in drafts)
    return Trial(
        draft_s=median_low(stages["draft"] for stages in seconds),
        verify_s=median_low(sum(stages.values()) - stages["draft"] - stages["prefill"] for stages in seconds),
        num_row_rounds=len(drafts),
        tried=[sum(place < min(accepted + 1, drafted) for drafted, accepted in drafts) for place in range(longest)],
        accepted=[sum(place < accepted for _, accepted in drafts) for place in range(longest)],
        read_s=read_s,
    )


def _settings(cfg: DictConfig, pair: Pair, mean_prompt_tokens: float) -> dict[str, object]:
    """Everything that decides what a trial comes to, but for its batch size and draft length."""
    settings = OmegaConf.to_container(plain_copy(cfg))
    assert isinstance(settings, dict)
    device = pair.target.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "prompt_tokens": 1 << round(mean_prompt_tokens).bit_length(),
        "pair": [pair.fingerprint, pair.draft_fingerprint],
        "drafter_inputs": {key: value for key, value in signature(cfg).items() if key.startswith("drafter.")},
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": settings["runner"]["dtype"],
        "attention": settings["pair"]["attention"],
        **{key: settings[key] for key in _DECISIVE if key in settings},
    }
