"""Drafting by way of text up to the end of the draft's context, which rows of the target outgrow.

The draft has learned positions: a token that is fed after its last one is an IndexError, and not a quiet mistake.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from cases import short_only
from conftest import VOCAB, greedy_alone, small_llama
from harness import ALIGNMENTS, make_engine, run_all
from test_drafters import pairs_of_letters
from transformers import GPT2Config, GPT2LMHeadModel

from specdec.conformance.models import letter_tokenizer
from specdec.core.clock import Clock
from specdec.drafters.context import DrafterContext
from specdec.drafters.retokenize import RetokenizeDrafter
from specdec.models.causal_lm import CausalLM

CONTEXT = 40  # of the draft, in its own tokens
GAMMA = 5
NEW = 24
LENGTHS = [5, CONTEXT - 12, CONTEXT - 2, CONTEXT - 1, CONTEXT, CONTEXT + 1, CONTEXT + 30, 12]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64))


@pytest.fixture(scope="module")
def ragged() -> list[list[int]]:
    """Rows that end below, at and above the draft's context, and rows that cross it."""
    rng = random.Random(5)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(model, ragged) -> list[list[int]]:
    return [greedy_alone(model, prompt, NEW, frozenset()) for prompt in ragged]


def short_draft(vocab_size: int) -> CausalLM:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, initializer_range=0.25
    )
    return CausalLM(GPT2LMHeadModel(config).double().eval())


class Watched(RetokenizeDrafter):
    """Notes how long each row is for the draft, how many tokens it was asked for, and how many it drafted."""

    def __init__(self, model: CausalLM, alignment: Callable, theirs, draft: CausalLM | None = None) -> None:
        clock = Clock()
        tools = {"tokenizer": letter_tokenizer(), "draft_tokenizer": theirs}
        draft = draft or short_draft(len(theirs))
        super().__init__(DrafterContext(model, draft, lambda wrapped: alignment(wrapped, clock), clock, **tools))
        self.seen: list[tuple[int, int, int]] = []

    def propose(self, rows, gammas):
        draft = super().propose(rows, gammas)
        lengths = [len(self._encode(row)) for row in rows]
        self.seen += zip(lengths, gammas, draft.num_drafted, strict=True)
        return draft


def shuffled():
    order = list(range(VOCAB))
    random.Random(2).shuffle(order)
    return letter_tokenizer(order)


@pytest.mark.parametrize("alignment", short_only(ALIGNMENTS, "inplace"))
def test_rows_draft_up_to_the_end_of_the_context_and_then_go_on_without(model, ragged, expected, alignment):
    drafter = Watched(model, ALIGNMENTS[alignment], shuffled())
    rows, _ = run_all(make_engine(model, drafter=drafter, gamma=GAMMA, scheduler="exspec"), ragged, NEW)
    assert [row.output_ids for row in rows] == expected
    # One letter is one token on both sides: as many are drafted as are asked for, or none.
    for length, gamma, drafted in drafter.seen:
        assert drafted == (gamma if length + gamma < CONTEXT else 0), (length, gamma, drafted)
    full = {length for length, gamma, drafted in drafter.seen if gamma == GAMMA and drafted}
    none = {length for length, gamma, drafted in drafter.seen if gamma == GAMMA and not drafted}
    assert max(full) < CONTEXT - GAMMA <= min(none) < CONTEXT < max(none)


@pytest.mark.parametrize("scheduler", short_only(["static", "continuous"], "static"))
def test_a_draft_with_other_words_ends_at_its_own_length(model, ragged, expected, scheduler):
    """Pairs of letters are single tokens of the draft: its context holds more letters than it has positions."""
    theirs = pairs_of_letters()
    drafter = Watched(model, ALIGNMENTS["inplace"], theirs)
    rows, _ = run_all(make_engine(model, drafter=drafter, gamma=GAMMA, scheduler=scheduler), ragged, NEW)
    assert [row.output_ids for row in rows] == expected
    assert any(length + gamma < CONTEXT and drafted for length, gamma, drafted in drafter.seen)
    assert all(drafted == 0 for length, gamma, drafted in drafter.seen if length + gamma >= CONTEXT)
    assert max(length for length, _, _ in drafter.seen) > CONTEXT


def test_without_the_bound_the_draft_would_be_fed_more_than_it_has_positions(model, ragged):
    """What the tests above would meet if the bound were not kept."""
    draft = short_draft(VOCAB)
    draft.context_length = model.context_length
    drafter = Watched(model, ALIGNMENTS["inplace"], shuffled(), draft)
    with pytest.raises(IndexError):
        run_all(make_engine(model, drafter=drafter, gamma=GAMMA), ragged[:2], NEW)
