"""Drafters without a model that learn from the row's own text: suffix decoding and token recycling."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import Counter

import pytest
import torch
from cases import short_only
from conftest import greedy_alone, small_llama
from harness import ALIGNMENTS, make_engine, run_all
from hypothesis import given, settings
from hypothesis.strategies import integers, lists

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.core.clock import Clock
from specdec.core.sequence import Sequence
from specdec.drafters.context import DrafterContext
from specdec.drafters.lookup import NgramIndex
from specdec.drafters.suffix_automaton import SuffixAutomaton
from specdec.drafters.suffix_tree import SuffixTree
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.registry import create

NEW = 14
FORMS = {
    "suffix": {},
    "suffix tree": {"nodes": 12},
    "recycling": {},
    "recycling tree": {"nodes": 12},
}


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64))


def drafter_of(model, form, **more):
    clock = Clock()
    context = DrafterContext(model, None, lambda other: ALIGNMENTS["inplace"](other, clock), clock)
    return create("drafter", form.split()[0], context, **{**FORMS[form], **more})


def proposed(drafter, prompt, gamma=8):
    row = Sequence(0, prompt, 99)
    drafter.admit([row])
    draft = drafter.propose([row], [gamma])
    drafter.release([row])
    return draft.ids[0][: draft.num_drafted[0]], draft.parents


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", short_only([1, 4], 4))
def test_every_output_is_the_targets_and_something_is_accepted(model, prompts, form, batch):
    own = [greedy_alone(model, prompt, NEW, frozenset()) for prompt in prompts[1:7]]
    known = [prompt + output + prompt for prompt, output in zip(prompts[1:7], own, strict=True)]
    truth = [greedy_alone(model, prompt, NEW, frozenset()) for prompt in known]
    engine = make_engine(
        model, drafter=drafter_of(model, form), alignment=ALIGNMENTS["inplace"], scheduler="continuous", batch=batch
    )
    rows, _ = run_all(engine, known, NEW)
    assert [row.output_ids for row in rows] == truth
    assert sum(row.num_accepted for row in rows) > 0


def test_the_tree_counts_every_substring():
    rng = random.Random(1)
    for _ in range(20):
        text, depth = [rng.randrange(3) for _ in range(rng.randint(1, 40))], rng.randint(2, 6)
        tree = SuffixTree(depth)
        tree.extend(text)
        counts = Counter(tuple(text[i : i + size]) for size in range(1, depth + 1) for i in range(len(text) - size + 1))
        found = {}
        paths = [((), 0)]
        while paths:
            path, node = paths.pop()
            for (parent, token), child in tree._child.items():
                if parent == node:
                    found[(*path, token)] = tree._counts[child]
                    paths.append(((*path, token), child))
        assert found == counts


def test_the_most_frequent_continuation_is_drafted_and_its_length_follows_the_match(model):
    text = [5, 1, 2, 7, 8, 9, 5, 1, 2, 7, 8, 4, 6, 1, 2, 3, 0, 5, 1, 2]
    tokens, _ = proposed(drafter_of(model, "suffix", factor=9.0, min_prob=0.6), text)
    assert tokens == [7, 8], "5 1 2 was followed by 7 8 twice, and then by 9 and by 4"
    tokens, _ = proposed(drafter_of(model, "suffix", factor=9.0, min_prob=0.4), text)
    assert tokens == [7, 8, 4, 6, 1, 2, 3, 0], "of equally frequent ones the latest"
    short, _ = proposed(drafter_of(model, "suffix", factor=0.4), text)
    assert short == [7], "one token for a match of three at a factor of 0.4"
    tokens, parents = proposed(drafter_of(model, "suffix tree", factor=9.0, min_prob=0.1), text)
    assert {9, 4} <= {token for token, parent in zip(tokens, parents[0], strict=True) if parent == tokens.index(8)}


def test_a_store_is_read_from_outputs_or_text_and_bounded(model, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps({"output_ids": ids}) + "\n" for ids in ([1, 2, 3, 4], [1, 2, 9, 4])))
    assert proposed(drafter_of(model, "suffix", store=str(path)), [7, 1, 2])[0] == [9, 4], "of equal counts the latest"
    assert proposed(drafter_of(model, "suffix", store=str(path), store_tokens=4), [1, 2, 3])[0] == []
    for content, message in (('{"output_ids": [999]}', "token id 999"), ('{"text": "a"}', "line 1 has no output_ids")):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            drafter_of(model, "suffix", store=str(path))
    with pytest.raises(ConfigError, match="not a readable text file"):
        drafter_of(model, "suffix", store=str(tmp_path / "none.txt"))


def test_settings_out_of_range_are_refused(model):
    for form, wrong in (
        ("suffix", {"depth": 1}),
        ("suffix", {"factor": 0}),
        ("suffix", {"min_prob": 2}),
        ("suffix", {"store_tokens": 0}),
        ("suffix", {"nodes": 0}),
        ("recycling", {"choices": 0}),
        ("recycling", {"nodes": 0}),
    ):
        with pytest.raises(ConfigError, match=f"drafter.{next(iter(wrong))}="):
            drafter_of(model, form, **wrong)


def test_recycling_drafts_what_the_target_last_gave_after_a_token(model):
    text = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]
    logits = model.module(torch.tensor([text])).logits[0]
    after = {token: int(logits[place].argmax()) for place, token in enumerate(text[:-1])}
    expected, last = [], text[-1]
    while len(expected) < 5 and last in after:
        last = after[last]
        expected.append(last)
    engine = make_engine(
        model, drafter=drafter_of(model, "recycling"), alignment=ALIGNMENTS["inplace"], batch=1, gamma=5
    )
    seen = []
    original = engine.drafter.propose

    def propose(rows, gammas):
        draft = original(rows, gammas)
        seen.append(draft.ids[0][: draft.num_drafted[0]])
        return draft

    engine.drafter.propose = propose
    run_all(engine, [text], NEW)
    assert expected
    assert seen[0] == expected[: len(seen[0])] == expected


@settings(max_examples=300, deadline=None)
@given(text=lists(integers(0, 2), max_size=60), longest=integers(1, 6), shortest=integers(1, 6))
def test_the_automaton_finds_what_the_index_of_ngrams_finds(text, longest, shortest):
    shortest = min(shortest, longest)
    automaton, index = SuffixAutomaton(longest, shortest), NgramIndex(longest, shortest, 1)
    for token in text:
        automaton.append(token)
        index.append(token)
        assert automaton.start == next(index.starts(), None)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: SuffixAutomaton(3, 1), lambda: OwnTree(16)], ids=["automaton", "tree"])
def test_a_token_of_a_long_text_costs_what_one_of_a_short_text_does(make):
    """Linear time in all: behind 40,000 tokens one may take twice what it takes in the first 10,000.

    Blocks of 500 tokens go to a long text and to short ones in turns, so that what else the machine does meets both.
    """
    rng, long, short = random.Random(0), make(), make()
    for _ in range(40_000):
        long.append(rng.randrange(500))
    tokens, ratios = [rng.randrange(500) for _ in range(10_000)], []
    for start in range(0, len(tokens), 500):
        block = tokens[start : start + 500]
        ratios.append(seconds_of(long, block) / seconds_of(short, block))
    assert statistics.median(ratios) < 2, ratios  # 9 for what reads all that came before


def seconds_of(text, block) -> float:
    """Processor time to append a block of tokens."""
    started_s = time.process_time()
    for token in block:
        text.append(token)
    return time.process_time() - started_s


class OwnTree:
    """A text's own tree with the ends that it needs."""

    def __init__(self, depth: int) -> None:
        self._tree = SuffixTree(depth)
        self._ends = self._tree.start()

    def append(self, token: int) -> None:
        self._tree.append(self._ends, token)
