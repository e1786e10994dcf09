"""Trial rounds: what a pair costs and accepts on this device, measured for draft-length policies before a run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from math import log
from pathlib import Path
from statistics import median_low

import torch

from specdec.config.identity import input_hashes
from specdec.config.judging import NO_SELECTOR
from specdec.config.plugins import declared, plugin_config
from specdec.config.schema import RunConfig
from specdec.core.clock import Clock
from specdec.core.round import Round
from specdec.core.sequence import SequencePool
from specdec.core.siblings import IID
from specdec.draft_lengths.fixed import FixedLength
from specdec.draft_lengths.profile import Profiler, Trial
from specdec.engine.loop import RoundLoop
from specdec.models.pair import Pair
from specdec.run.factory import build_engine, build_tree
from specdec.run.provenance import processor
from specdec.run.trial_rows import TrialRows

NUM_TOKENS = 64  # of each row, at most; then the batch starts over
LEAST_TOKENS = 12  # of each row: with fewer, most drafts would be cut
NUM_TURNS = 5  # through all draft lengths
_DECISIVE = (
    "alignment",
    "drafter",
    "tree",
    "selector",
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


def profiler(
    config: RunConfig, pair: Pair, trial_rows: TrialRows, synchronize: Callable[[], None] | None = None
) -> Profiler:
    """Runs trials with ``config``'s pair, alignment, drafter and execution, and narrower trees if there are any."""
    chains = config.temperature == 0 and declared(config, "tree").siblings == IID  # greedy rows draft chains
    has_own = config.selector.name == NO_SELECTOR and declared(config, "drafter").grows and not chains
    widths = build_tree(config).widths() if has_own else []
    own = _profiler(config, pair, trial_rows, synchronize, None)
    return replace(own, narrower={w: _profiler(config, pair, trial_rows, synchronize, w) for w in widths})


def _profiler(
    config: RunConfig,
    pair: Pair,
    trial_rows: TrialRows,
    synchronize: Callable[[], None] | None,
    width: int | None,
) -> Profiler:
    """The same for one width of the trees; None: their own."""

    def length(gamma: int) -> FixedLength:
        policy = FixedLength(gamma=gamma)
        policy.width = width
        return policy

    def start(batch: int) -> tuple[RoundLoop, SequencePool, float]:
        """A batch after its first round, and the seconds in which its draft read the prompts and drafted a token."""
        alone = replace(
            config,
            batch=batch,
            scheduler=plugin_config("scheduler", "static"),
            batching=plugin_config("batching", "fifo", window=batch),
            budget=plugin_config("budget", "none"),
            debug=replace(config.debug, invariants=False),  # the checks take time
        )
        gc.collect()  # reference cycles may hold the previous batch
        declared_tokens = trial_rows.first_tokens
        engine = build_engine(alone, pair, Clock(synchronize), trial_rows.known_output, declared_tokens)
        engine.drafter.prepare(batch)
        rows = trial_rows.rows(batch, NUM_TOKENS)
        if declared(config, "drafter").replays:
            known = min(len(trial_rows.known_output(row) or []) for row in rows)
            rows = trial_rows.rows(batch, min(max(known, LEAST_TOKENS), NUM_TOKENS))
        first = length(1)
        # The draft reads whole prompts in its first round, where they are timed; chunked prefill feeds both models.
        first.drafting = config.runner.prefill_chunk is not None
        engine.draft_length = first
        pool = SequencePool(rows)
        return engine, pool, engine.step(pool).seconds["draft"]

    def run(batch: int, gammas: list[int]) -> dict[int, Trial]:
        trials = {gamma: _Rounds(trial_rows.stop_ids) for gamma in gammas}
        reads = [start(batch)[-1]]  # warms up new shapes
        engine, pool, seconds = start(batch)
        reads.append(seconds)
        # Each length's first round is not counted. The draft catches up in it after a plain round; and a processor's
        # caches hold the weights of the round before, so that a plain round after drafting is slower than one among
        # plain rounds.
        for gamma in NUM_TURNS * sorted(gammas, reverse=True):
            for counted in (False, True):
                if len(pool.active) < batch or min(row.num_remaining for row in pool.active) <= gamma:
                    del engine, pool  # free its memory before the next batch is built
                    engine, pool, seconds = start(batch)
                    reads.append(seconds)
                engine.draft_length = length(gamma)
                outcome = engine.step(pool)
                if counted:
                    trials[gamma].add(outcome)
        longest = engine.drafter.max_length
        del engine, pool
        gc.collect()
        # Two forwards are taken off: the drafted step, and the part of reading that does not grow with its tokens.
        step_s = median_low(stages["draft"] for stages in trials[1].seconds)
        num_read = sum(len(row.prompt_ids) for row in trial_rows.rows(batch, NUM_TOKENS))
        read_s = max(min(reads) - 2 * step_s, 0.0) / num_read
        return {gamma: rounds.trial(min(gamma, longest or gamma), read_s) for gamma, rounds in trials.items()}

    return Profiler(run, Path(config.results_dir), partial(_settings, config, pair, trial_rows, width))


class _Rounds:
    """Collects the rounds of one batch size and draft length."""

    def __init__(self, stop_ids: frozenset[int]) -> None:
        self.seconds: list[dict[str, float]] = []
        self._stop_ids = stop_ids
        self._drafted = False  # whether any round had a draft
        self._drafts: list[tuple[int, int]] = []  # depth and accepted tokens, of a row in a round
        self._num_nodes = self._num_row_rounds = 0

    def add(self, outcome: Round) -> None:
        """Add a round's times, and the acceptance of rows that have not passed a stop token of the run."""
        if any(outcome.num_drafted) and not self._drafted:  # rounds without a draft say nothing of its cost
            self._drafted = True
            self.seconds.clear()
        if any(outcome.num_drafted) or not self._drafted:
            self.seconds.append(outcome.seconds)
        self._num_nodes += sum(outcome.num_drafted)
        self._num_row_rounds += len(outcome.rows)
        counts = zip(outcome.rows, outcome.emitted, outcome.depths, outcome.num_accepted, strict=True)
        for row, emitted, depth, accepted in counts:
            if self._stop_ids.isdisjoint(row.output_ids[: len(row.output_ids) - len(emitted)]):
                self._drafts.append((depth, accepted))

    def trial(self, length: int, read_s: float) -> Trial:
        """Median times, and drafted tokens tried and accepted at each of the first ``length`` places."""
        rest = (sum(stages.values()) - stages["draft"] - stages["prefill"] for stages in self.seconds)
        tries = [(min(accepted + 1, depth), accepted) for depth, accepted in self._drafts]
        return Trial(
            draft_s=median_low(stages["draft"] for stages in self.seconds),
            verify_s=median_low(rest),
            num_row_rounds=len(tries),
            tried=[sum(place < tried for tried, _ in tries) for place in range(length)],
            accepted=[sum(place < accepted for _, accepted in tries) for place in range(length)],
            read_s=read_s,
            num_nodes=self._num_nodes / max(self._num_row_rounds, 1),
        )


def _settings(config: RunConfig, pair: Pair, trial_rows: TrialRows, width: int | None) -> dict[str, object]:
    """Everything that a trial depends on, apart from its batch size and draft length."""
    settings = asdict(config)
    device = pair.target.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        # A power of 4, because the prompts that are left of a resumed run have a different mean.
        **({} if width is None else {"width": width}),
        "prompt_tokens": 4 ** round(log(max(trial_rows.mean_prompt_tokens, 1), 4)),
        **({"max_new_tokens": config.max_new_tokens} if declared(config, "drafter").replays else {}),
        **({"first_tokens": len(trial_rows.first_tokens)} if trial_rows.first_tokens else {}),
        "pair": [pair.fingerprint, pair.draft_fingerprint],
        "drafter_inputs": input_hashes(config, "drafter."),
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": settings["runner"]["dtype"],
        "attention": settings["pair"]["attention"],
        **{key: settings[key] for key in _DECISIVE if key in settings and settings[key] != {"name": NO_SELECTOR}},
    }
