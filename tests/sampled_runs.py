"""Engines that sample: drafters and verifiers by name, and the smallest pair, which they have if no other is given."""

from __future__ import annotations

import functools

import torch
from conftest import perturbed, small_llama
from harness import ALIGNMENTS, make_engine

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.core.clock import Clock
from specdec.core.sequence import Sequence, SequencePool
from specdec.drafters.context import DrafterContext
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.verifiers.block import BlockVerifier
from specdec.verifiers.naive import NaiveVerifier
from specdec.verifiers.rejection import RejectionVerifier

V, GAMMA = 4, 3
VERIFIERS = {"rejection": RejectionVerifier, "block": BlockVerifier, "naive": NaiveVerifier}
DRAFTERS = {
    "none": functools.partial(create, "drafter", "none"),
    "model": functools.partial(create, "drafter", "model"),
    "self": functools.partial(create, "drafter", "self", num_layers=1),
    "lookup": functools.partial(create, "drafter", "prompt_lookup"),
    "trigram": functools.partial(create, "drafter", "trigram"),
}
SMALLEST = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
TARGET = CausalLM(small_llama(0, torch.float64, layers=2, **SMALLEST))
DRAFT = CausalLM(perturbed(TARGET.module, 0.1))


def build(drafter: str, verifier, scheduler: str, alignment: str, batch: int, gamma: int = GAMMA, models=None):
    target, draft = models or (TARGET, DRAFT)
    clock = Clock()
    make = ALIGNMENTS[alignment]
    context = DrafterContext(target, draft, lambda model: make(model, clock), clock)
    made = DRAFTERS[drafter](context)
    return make_engine(
        target, drafter=made, scheduler=scheduler, batch=batch, gamma=gamma, alignment=make, verifier=verifier()
    )


def run(engine, rows: list[Sequence]) -> list[Sequence]:
    pool = SequencePool(rows)
    while not pool.done:
        engine.step(pool)
    return rows
