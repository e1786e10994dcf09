"""Processors, criteria and scores of `transformers` in batches: each row as `generate` gives it alone."""

from __future__ import annotations

import pytest
import torch
from cases import nightly_but, short_only
from conftest import perturbed
from library_models import EOS, NEW, VOCAB, alone, block, laid_out, ragged
from transformers import LogitsProcessor, LogitsProcessorList, MaxLengthCriteria, StoppingCriteria
from transformers.generation import EosTokenCriteria

import specdec
from specdec.errors import ConfigError


@pytest.fixture(scope="module")
def draft(llama):
    return perturbed(llama, 0.04)


class Odd(LogitsProcessor):
    """Forbids even tokens after an even number of tokens."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        if input_ids.shape[1] % 2 == 0:
            scores[:, ::2] = -torch.inf
        return scores


class Counting(LogitsProcessor):
    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        return scores + self.calls * (torch.arange(scores.shape[-1]) % 2)


class Twice(StoppingCriteria):
    """Ends a row at a token that it already has."""

    def __call__(self, input_ids, scores, **_):
        return torch.tensor([row[-1] in row[-9:-1] for row in input_ids.tolist()])


OPTIONS = {
    "min_new_tokens": {
        "min_new_tokens": 4,
        "min_length": 40,
        "eos_token_id": [EOS, 9, 28, 36, 50],
    },  # the second: no effect
    "min_length": {"min_length": 16, "eos_token_id": [EOS, 9, 28, 36, 50]},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[3], [7, 9], [11, 12, 13]]},
    "sequence_bias": {"sequence_bias": {(4,): 3.0, (4, 9): -5.0}, "repetition_penalty": 1.3},
    "suppress_tokens": {"suppress_tokens": list(range(20, 40)), "begin_suppress_tokens": [EOS, 8]},
    "forced_eos_token_id": {"forced_eos_token_id": 17},
    "forced token 0": {"forced_eos_token_id": 0},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 1.4)},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 1.2},
    "logits_processor": {"logits_processor": LogitsProcessorList([Odd()]), "repetition_penalty": 1.2},
    "stopping_criteria": {"stopping_criteria": [Twice()]},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda _, ids: [(int(ids[-1]) * k) % VOCAB for k in (2, 3, 5)]
    },
}


@pytest.mark.parametrize("tree", nightly_but(["chain", "confidence"], "chain"))
@pytest.mark.parametrize(
    "name",
    short_only(
        OPTIONS,
        "min_new_tokens",
        "no_repeat_ngram_size",
        "forced token 0",
        "logits_processor",
        "stopping_criteria",
        "prefix_allowed_tokens_fn",
    ),
)
def test_each_option_does_to_a_row_what_it_does_alone(llama, draft, name, tree):
    rows, settings = ragged(5, 12), {"max_new_tokens": NEW, **OPTIONS[name]}
    expected = [alone(llama, row, **settings) for row in rows]
    assert expected != [alone(llama, row, max_new_tokens=NEW) for row in rows]  # the option does something
    ids, mask = block(rows, "left")
    shape = {"tree": tree, "tree_settings": {"top_k": 2, "num_nodes": 6} if tree != "chain" else None}
    found = specdec.generate(llama, draft, ids, attention_mask=mask, gamma=3, **shape, **settings)
    assert torch.equal(found, laid_out(ids, expected))


def test_sampled_rows_follow_processors(llama, draft):
    rows = ragged(4, 12)
    settings = {"do_sample": True, "max_new_tokens": NEW, "seed": [3, 4, 5, 6], "logits_processor": [Odd()]}
    engine = specdec.Engine(llama, draft, gamma=3)
    ids, mask = block(rows, "left")
    found = engine.generate(ids, attention_mask=mask, **settings)
    for new, row in zip(found[:, ids.shape[1] :].tolist(), rows, strict=True):
        new = new[: new.index(EOS)] if EOS in new else new
        assert all((len(row) + place) % 2 or token % 2 for place, token in enumerate(new))


@pytest.mark.nightly
def test_sampled_rows_have_the_processed_distribution(llama, draft):
    few = {"suppress_tokens": [token for token in range(VOCAB) if token not in (1, 2, 3)], "repetition_penalty": 1.5}
    count = 4000
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 2, "num_return_sequences": count, "seed": 0, **few}
    drawn = specdec.generate(llama, draft, [[7, 2]], gamma=1, **settings)
    logits = llama(torch.tensor([[7, 2]])).logits[0, -1].float()
    logits[2] = logits[2] * 1.5 if logits[2] < 0 else logits[2] / 1.5
    law = logits[1:4].softmax(-1)
    found = torch.bincount(drawn[:, 2], minlength=4)[1:4] / count
    assert (found - law).abs().max() < 4 * 0.5 / count**0.5


def test_several_rows_of_one_prompt(llama, draft):
    settings = {"do_sample": True, "max_new_tokens": 6, "seed": 1, "gamma": 2}
    ids = torch.tensor([[7, 8], [9, 1]])
    found = specdec.generate(llama, draft, ids, num_return_sequences=3, **settings)
    assert torch.equal(found, specdec.generate(llama, draft, ids.repeat_interleave(3, dim=0), **settings))
    assert len(set(map(tuple, found.tolist()))) > 2


def test_scores_and_logits_are_those_of_generate(llama, draft):
    rows = ragged(4, 12)
    settings = {
        "max_new_tokens": NEW,
        "repetition_penalty": 1.3,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    settings |= {"output_logits": True}
    found = specdec.generate(llama, draft, rows, gamma=3, output_logprobs=True, **settings)
    assert len(found.scores) == len(found.logits) == max(found.num_new_tokens)
    for b, row in enumerate(rows):
        ids = torch.tensor([row])
        expected = llama.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        count = found.num_new_tokens[b]
        assert count == len(expected.scores)
        for kind in ("scores", "logits"):
            ours = torch.stack([step[b] for step in getattr(found, kind)])
            theirs = torch.cat(getattr(expected, kind))
            torch.testing.assert_close(ours[:count], theirs, rtol=1e-5, atol=1e-5)
            assert ours[count:].isnan().all()
        tokens = expected.sequences[0, len(row) :]
        sure = torch.cat(expected.logits).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found.logprobs[b]), sure, rtol=1e-4, atol=1e-4)


def test_sampled_scores_are_those_of_generate(llama, draft, monkeypatch):
    """`generate` is made to draw the same tokens, so that its scores are those of the same row."""
    rows = ragged(3, 12)
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.95, "max_new_tokens": 6}
    settings |= {"repetition_penalty": 1.3, "suppress_tokens": [3, 4], "renormalize_logits": True}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    found = specdec.generate(llama, draft, rows, gamma=3, seed=3, **settings)
    for b, row in enumerate(rows):
        count = found.num_new_tokens[b]
        tokens = found.sequences[b, -max(found.num_new_tokens) :][:count]
        drawn = iter(tokens.tolist())
        monkeypatch.setattr(torch, "multinomial", lambda *_, drawn=drawn, **__: torch.tensor([[next(drawn)]]))
        ids = torch.tensor([row])
        expected = llama.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert torch.equal(expected.sequences[0, len(row) :], tokens)
        ours = torch.stack([step[b] for step in found.scores])[:count]
        torch.testing.assert_close(ours, torch.cat(expected.scores), rtol=1e-5, atol=1e-5)


def test_processors_see_only_texts_that_a_row_can_have(llama, draft):
    """A function that knows the allowed texts alone, as that of a trie: it fails at any other, as drafts contain."""
    allowed = {(): [11, 12], (11,): [20, 21], (12,): [EOS], (11, 20): [EOS], (11, 21): [30], (11, 21, 30): [EOS]}

    def following(_, ids):
        return allowed[tuple(ids[2:].tolist())]

    settings = {"prefix_allowed_tokens_fn": following, "max_new_tokens": 6}
    rows = [[7, token] for token in range(20, 26)]
    expected = [alone(llama, row, **settings) for row in rows]
    found = specdec.generate(llama, draft, rows, gamma=3, **settings)
    assert torch.equal(found, laid_out(torch.tensor(rows), expected))
    sampled = specdec.generate(llama, draft, rows, gamma=3, do_sample=True, seed=1, top_k=0, **settings)
    assert {tuple(row).count(EOS) > 0 for row in sampled.tolist()} == {True}


REFUSED = {
    "a function of ids and scores": {"logits_processor": [Counting()]},
    "give a list of functions, not object": {"stopping_criteria": object()},
    "logits_processor: it returned .1, 3. for scores of .1, 61.": {
        "logits_processor": [lambda ids, scores: scores[:, :3]]
    },
    "greedy rows of one prompt are equal": {"num_return_sequences": 2},
    "output_scores=True needs return_dict_in_generate": {"output_scores": True},
    "transformers refuses suppress_tokens, forced_eos_token_id: Every token": {
        "suppress_tokens": [7],
        "forced_eos_token_id": 7,
    },
    "row 0: its logits processors leave no token": {"suppress_tokens": list(range(VOCAB)), "do_sample": True},
    "set max_length in place of MaxLengthCriteria": {"stopping_criteria": [MaxLengthCriteria(9)]},
    "set eos_token_id in place of EosTokenCriteria": {"stopping_criteria": [EosTokenCriteria(9)]},
    "transformers refuses bad_words_ids: .*bad_words_ids": {"bad_words_ids": [3]},
    "guidance_scale=2.0 is not supported": {"guidance_scale": 2.0},
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_cannot_be_followed_is_named(llama, draft, match):
    with pytest.raises(ConfigError, match=match) as caught:
        specdec.generate(llama, draft, [[1, 2]], gamma=2, max_new_tokens=4, **REFUSED[match])
    assert "\n" not in str(caught.value)
