"""An engine of the library between and within its calls: caches, models, draft lengths, long prompts."""

from __future__ import annotations

import pytest
import torch
from conftest import perturbed, small_llama
from library_models import NEW, build, ragged

import specdec
from specdec.alignment.reader import Reader
from specdec.drafters.trigram import TrigramDrafter
from specdec.engine import api
from specdec.engine.wrapping import choose_gamma
from specdec.errors import PairError
from specdec.models.causal_lm import CausalLM


@pytest.fixture(scope="module")
def draft(llama):
    return perturbed(llama, 0.04)


def test_events_add_up_to_the_output_and_the_statistics(llama, draft):
    rows = ragged(7)
    engine = specdec.Engine(llama, draft, gamma=3)
    output = engine.generate(rows, max_new_tokens=NEW, return_dict_in_generate=True)
    events = list(engine.stream(rows, max_new_tokens=NEW))
    width = max(map(len, rows))
    for b in range(len(rows)):
        own = [event for event in events if event.row == b]
        tokens = [token for event in own for token in event.tokens]
        assert output.sequences[b, width : width + len(tokens)].tolist() == tokens
        assert output.num_new_tokens[b] == len(tokens)
        assert output.num_accepted[b] == sum(event.kinds.count("accepted") for event in own)
        assert output.num_drafted[b] == sum(event.num_drafted for event in own)
        assert output.accepted_lengths[b] == [event.num_accepted for event in own]
        assert output.num_verify_calls[b] == len(own)
        assert [event.stop_reason for event in own] == [None] * (len(own) - 1) + [output.stop_reasons[b]]
    kinds = {kind for event in events for kind in event.kinds}
    assert kinds == {"accepted", "recovered", "bonus"} or kinds == {"accepted", "recovered", "bonus", "plain"}
    assert output.acceptance_rate == sum(output.num_accepted) / sum(output.num_drafted)
    assert output.mean_acceptance_length == sum(output.num_new_tokens) / sum(output.num_verify_calls)
    assert torch.equal(output["sequences"], output[0]), "it is read like the outputs of transformers"
    assert isinstance(output, specdec.SpeculativeOutput)


def test_an_engine_keeps_its_caches_and_survives_an_abandoned_call(llama, draft):
    rows = ragged(6)
    engine = specdec.Engine(CausalLM(llama), draft)
    first = engine.generate(rows, max_new_tokens=NEW)
    [parts] = engine._idle
    abandoned = engine.stream(rows, max_new_tokens=NEW)
    next(abandoned)
    between = engine.generate(rows[::-1], max_new_tokens=NEW)
    list(abandoned)
    assert torch.equal(between.flip(0), first)
    abandoned = engine.stream(rows, max_new_tokens=NEW)
    next(abandoned)
    abandoned.close()
    assert torch.equal(engine.generate(rows, max_new_tokens=NEW), first)
    assert parts in engine._idle or len(engine._idle) == 1
    assert torch.equal(specdec.generate(llama, None, rows, max_new_tokens=NEW), first), "plain batched decoding"
    assert torch.equal(specdec.generate(llama, "prompt_lookup", rows, max_new_tokens=NEW), first)


def test_a_drafter_may_measure_before_the_first_rows_and_for_another_batch(llama, monkeypatch):
    prepared = []
    monkeypatch.setattr(TrigramDrafter, "prepare", lambda self, batch: prepared.append(batch))
    engine = specdec.Engine(llama, "trigram", gamma=2)
    for rows in (2, 2, 3):
        engine.generate([[1, 2, 3]] * rows, max_new_tokens=2, pad_token_id=0)
    assert prepared == [2, 3]


def test_models_are_left_as_they_were(llama):
    draft = perturbed(llama, 0.04)
    draft.train()
    draft.model.layers[0].eval()
    before = [part.training for part in draft.modules()]
    engine = specdec.Engine(llama, draft)
    engine.generate(ragged(2), max_new_tokens=3)
    assert [part.training for part in draft.modules()] == before
    draft.float()
    with pytest.raises(PairError, match=r"from cpu, torch.float64 to cpu, torch.float32"):
        engine.generate(ragged(2), max_new_tokens=3)


def test_the_draft_length_follows_the_cost_of_the_draft():
    target = CausalLM(small_llama(0, torch.float32, layers=8))
    half, small = (CausalLM(small_llama(0, torch.float32, layers=layers)) for layers in (4, 1))
    assert choose_gamma(target, half) < choose_gamma(target, small) < choose_gamma(target, None)


def test_long_prompts_are_read_in_parts(monkeypatch):
    """A mask of a whole prompt would grow by the square of its length."""
    target, rows, parts = build("Llama"), ragged(3), []

    def read(self, rows, stops, original=Reader.read):
        parts.extend(stop - self.length(row) for row, stop in zip(rows, stops, strict=True))
        original(self, rows, stops)

    monkeypatch.setattr(Reader, "read", read)
    whole = specdec.generate(target, perturbed(target, 0.05), rows, max_new_tokens=6)
    assert max(parts) == max(map(len, rows)) - 1
    parts.clear()
    monkeypatch.setattr(api, "PREFILL_CHUNK", 4)
    assert torch.equal(specdec.generate(target, perturbed(target, 0.05), rows, max_new_tokens=6), whole)
    assert max(parts) == 4
