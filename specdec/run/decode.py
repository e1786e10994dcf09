"""Decode prompts with the round loop, and report every round to observers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from specdec.budgets.base import Budget
from specdec.budgets.none import NoBudget
from specdec.config.reference import sampling_params
from specdec.config.schema import RunConfig
from specdec.core.clock import Clock
from specdec.core.metrics import Tally
from specdec.core.prompts import Prompt, declared_tokens
from specdec.core.round import Round
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import KnownOutput, Sequence, SequencePool
from specdec.core.stop_strings import StopText
from specdec.draft_lengths.base import DraftLength
from specdec.draft_lengths.fixed import FixedLength
from specdec.equivalence.witness import Witness
from specdec.models.memory import PeakMemory
from specdec.models.pair import Pair
from specdec.run.factory import build_arrivals, build_batching, build_budget, build_draft_length, build_engine
from specdec.run.forward_log import ForwardLog, recording
from specdec.run.serving.conversations import Conversations
from specdec.run.serving.figures import ServingLog
from specdec.run.serving.queue import ArrivalQueue
from specdec.run.trial_rounds import profiler
from specdec.run.trial_rows import TrialRows

MEMORY_EVERY_S = 0.05
"""Seconds between looks at the memory: one takes as long as a tenth of a small model's round."""
WARMUP_ROWS, WARMUP_TOKENS = 2, 4
Observer = Callable[[Round, Clock], None]


def stop_ids(config: RunConfig, pair: Pair) -> frozenset[int]:
    """Tokens that end a row: the config's, or the model's own."""
    return pair.stop_ids if config.stop_tokens is None else frozenset(config.stop_tokens)


def make_rows(config: RunConfig, pair: Pair, prompts: list[Prompt], arrived_s: float = 0.0) -> list[Sequence]:
    """A fresh row for every prompt."""
    stops, params = stop_ids(config, pair), row_sampling(config)
    rows = [
        Sequence(p.index, p.ids, p.budget(config.max_new_tokens), stops, params, arrived_s=arrived_s) for p in prompts
    ]
    if config.stop_strings:
        for row in rows:
            row.stop_text = StopText(tuple(config.stop_strings), pair.decode)
    return rows


def conversations(config: RunConfig, pair: Pair, prompts: list[Prompt]) -> Conversations:
    """The conversations of the prompts; without data.turns=conversation, each prompt is one of its own."""
    return Conversations(
        prompts,
        pair.tokenizer,
        stop_ids(config, pair),
        chat_template=config.data.chat_template,
        overlong=config.data.overlong,
        limit=min(pair.context_length - config.max_new_tokens, config.data.max_input_tokens or pair.context_length),
    )


def _queue(config: RunConfig, pair: Pair, prompts: list[Prompt], clock: Clock) -> ArrivalQueue:
    """The rows of all first turns with their arrival times; a later turn's row is made after the answer before it."""
    arrivals, turns = build_arrivals(config), conversations(config, pair, prompts)
    openings, start = turns.openings(), clock.now()
    rows = make_rows(config, pair, openings)
    for row, moment in zip(rows, arrivals.times(len(rows)), strict=True):
        row.arrived_s = start + moment

    def follow_up(row: Sequence) -> Sequence | None:
        prompt = turns.follow_up(row.index, row.prompt_ids, row.output_ids)
        if prompt is None or row.finished_s is None:
            return None
        return make_rows(config, pair, [prompt], arrived_s=row.finished_s + arrivals.think(prompt.index))[0]

    return ArrivalQueue(rows, build_batching(config), clock, follow_up)


def row_sampling(config: RunConfig) -> SamplingParams | None:
    """The rows' sampling settings; None for greedy decoding of unchanged logits, which then costs nothing extra."""
    params = sampling_params(config)
    return None if params.greedy and not params.penalizes else params


@dataclass(frozen=True, slots=True)
class Watch:
    """What observes the rounds of a run."""

    observers: tuple[Observer, ...] = ()  # called after every round, outside the measured time
    witness: Witness | None = None  # keeps the logits that classify a divergence
    serving: ServingLog | None = None  # records queue lengths and waits
    forwards: ForwardLog | None = None  # records the model forwards, for bound=true

    def observe(self, outcome: Round, pool: SequencePool, clock: Clock) -> None:
        """Report one round."""
        if self.serving is not None:
            self.serving.observe(outcome, pool, clock.now())
        if self.witness is not None:
            self.witness.observe(outcome)
        for observer in self.observers:
            observer(outcome, clock)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Rows in prompt order, with counts, times and peak memory."""

    rows: list[Sequence]
    tally: Tally
    clock: Clock
    memory: PeakMemory


def decode(
    config: RunConfig,
    pair: Pair,
    prompts: list[Prompt],
    known_output: KnownOutput | None = None,
    watch: Watch = Watch(),
) -> Decoded:
    """Decode all prompts. ``known_output`` is for drafters that replay a row's reference output."""
    synchronize = torch.cuda.synchronize if pair.target.device.type == "cuda" else None
    if config.warmup:
        _warm_up(config, pair, prompts, synchronize, known_output)
    draft_length, budget = _prepared(config, pair, prompts, synchronize, known_output)
    clock = build_arrivals(config).open_clock(synchronize)
    engine = build_engine(config, pair, clock, known_output, declared_tokens(prompts))
    engine.draft_length, engine.budget = draft_length, budget
    engine.drafter.prepare(config.batch)
    if watch.witness is not None:
        engine.verifier = watch.witness.wrap(engine.verifier)
    queue, pool = _queue(config, pair, prompts, clock), SequencePool([])
    tally, memory = Tally(), PeakMemory(pair.target.device)
    with recording(watch.forwards, clock, engine.target.model.observers):
        while queue.feed(pool):
            outcome = engine.step(pool)
            queue.observe(outcome)
            tally.add(outcome)
            memory.sample(every_s=MEMORY_EVERY_S)
            watch.observe(outcome, pool, clock)
        memory.sample()
    return Decoded(sorted(queue.rows, key=lambda row: row.index), tally, clock, memory)


def _prepared(
    config: RunConfig,
    pair: Pair,
    prompts: list[Prompt],
    synchronize: Callable[[], None] | None,
    known_output: KnownOutput | None,
) -> tuple[DraftLength, Budget]:
    """The draft-length policy and the budget, after any profiling that they need, on the run's own prompts."""
    policy, budget = build_draft_length(config), build_budget(config)
    trial_rows = TrialRows(prompts, pair.context_length, stop_ids(config, pair), row_sampling(config), known_output)
    trials = profiler(config, pair, trial_rows, synchronize)
    policy.prepare(trials, config.batch)
    budget.prepare(trials, config.batch)
    return policy, budget


def _warm_up(
    config: RunConfig,
    pair: Pair,
    prompts: list[Prompt],
    synchronize: Callable[[], None] | None,
    known_output: KnownOutput | None,
) -> None:
    """Trigger lazy initialisation before the clock starts."""
    for gamma in (config.gamma, 0):  # with and without drafts, whatever the policy would choose
        engine = build_engine(config, pair, Clock(synchronize), known_output, declared_tokens(prompts))
        engine.draft_length, engine.budget = FixedLength(gamma=gamma), NoBudget()
        rows = [Sequence(p.index, p.ids, WARMUP_TOKENS, sampling=row_sampling(config)) for p in prompts[:WARMUP_ROWS]]
        pool = SequencePool(rows)
        while not pool.done:
            engine.step(pool)
