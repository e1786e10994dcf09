"""Behind ``model.generate`` of `transformers`, and engines from checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import perturbed
from library_models import NEW, alone, block, laid_out, ragged
from test_processors import OPTIONS
from transformers import TextStreamer

import specdec
from specdec.errors import ConfigError


@pytest.fixture(scope="module")
def draft(llama):
    return perturbed(llama, 0.04)


FOLDER = Path(__file__).parents[1] / "experiments" / "custom_generate"


@pytest.mark.parametrize("name", [None, "min_new_tokens", "logits_processor", "stopping_criteria"])
def test_behind_the_generate_of_transformers(llama, draft, name):
    rows, settings = ragged(5, 12), {"max_new_tokens": NEW, **OPTIONS.get(name, {})}
    expected = [alone(llama, row, **settings) for row in rows]
    ids, mask = block(rows, "left")
    call = {"attention_mask": mask, "custom_generate": specdec.custom_generate, "assistant_model": draft, **settings}
    assert torch.equal(llama.generate(ids, **call), laid_out(ids, expected))


def test_everything_that_our_generate_takes_passes_through_theirs(llama, draft):
    ids = torch.tensor([[7, 8, 9], [1, 2, 3]])
    call = {"custom_generate": specdec.custom_generate, "max_new_tokens": 6, "return_dict_in_generate": True}
    found = llama.generate(ids, assistant_model=draft, gamma=2, output_logprobs=True, **call)
    assert [len(row) for row in found.logprobs] == found.num_new_tokens
    assert max(map(max, found.accepted_lengths)) <= 2
    assert sum(found.num_drafted)
    lookup = llama.generate(ids, draft="prompt_lookup", gamma=2, **call)
    assert torch.equal(lookup.sequences, found.sequences)
    sampled = llama.generate(ids, draft=draft, do_sample=True, num_return_sequences=2, seed=5, top_k=9, **call)
    again = llama.generate(ids, draft=draft, do_sample=True, num_return_sequences=2, seed=5, top_k=9, batch=1, **call)
    assert torch.equal(sampled.sequences, again.sequences)
    assert len(sampled.sequences) == 4
    for match, wrong in {
        "both given": {"draft": draft, "assistant_model": draft},
        "num_beams=3": {"num_beams": 3},
        "unknown drafter": {"draft": "promt_lookup"},
    }.items():
        with pytest.raises(ConfigError, match=match):
            llama.generate(ids, **{**call, **wrong})
    with pytest.raises(ConfigError, match="pass it as model"):
        specdec.custom_generate(llama, ids)


def test_a_streamer_behind_theirs_gets_the_prompt_once(llama, draft, capsys):
    class Numbers:
        def decode(self, ids, **_):
            return " ".join(map(str, ids)) + " "

    ids = torch.tensor([[7, 8, 9]])
    streamer = TextStreamer(Numbers(), skip_prompt=True)
    call = {"custom_generate": specdec.custom_generate, "assistant_model": draft, "max_new_tokens": 6}
    found = llama.generate(ids, streamer=streamer, **call)
    assert re.findall(r"\d+", capsys.readouterr().out) == [str(token) for token in found[0, 3:].tolist()]


def test_what_transformers_changes_on_the_way(llama, draft):
    """It takes one streamer, repeats rows, widens lengths to the block, loses tokenizers, and swallows arguments."""
    rows, seen = ragged(3, 9), []
    ids, mask = block(rows, "left")
    call = {"attention_mask": mask, "custom_generate": specdec.custom_generate, "assistant_model": draft}

    class Kept:
        def __init__(self):
            self.tokens = []

        def put(self, tokens):
            self.tokens += tokens.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    streamers = [Kept() for _ in rows]
    lengths = {"max_length": max(map(len, rows)) + 5}
    expected = [alone(llama, row, **lengths) for row in rows]
    assert torch.equal(llama.generate(ids, streamers=streamers, **call, **lengths), laid_out(ids, expected))
    assert [one.tokens for one in streamers] == [row + new + ["end"] for row, new in zip(rows, expected, strict=True)]
    sampled = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 3}
    with pytest.raises(ValueError, match="num_return_sequences has to be 1 when doing assisted generate"):  # theirs
        llama.generate(ids, **call, **sampled)
    del call["assistant_model"]
    call["draft"] = draft
    llama.generate(ids, prefix_allowed_tokens_fn=lambda row, _: seen.append(row) or [1], **call, **sampled)
    assert set(seen) == {0, 1, 2}
    for match, wrong in {
        "streamer: one for 3 rows; pass streamers": {"streamer": Kept()},
        "inputs_embeds=Tensor is not.*token ids or texts": {"inputs_embeds": torch.zeros(3, ids.shape[1], 32)},
        "position_ids=Tensor is not": {"position_ids": mask},
        "negative_prompt_ids=Tensor is not": {"negative_prompt_ids": ids},
        "draft_tokenizer is given without tokenizer=": {"assistant_tokenizer": object()},
        "num_assistant_tokens=3 is not.*set gamma=": {"num_assistant_tokens": 3},
    }.items():
        with pytest.raises(ConfigError, match=match):
            llama.generate(ids, **call, **wrong)


def test_a_folder_for_the_hub(llama, draft, tmp_path):
    """experiments/custom_generate is what is uploaded; there it needs trust_remote_code, as all code from the Hub."""
    ids = torch.tensor([[7, 8, 9], [1, 2, 3]])
    call = {"assistant_model": draft, "max_new_tokens": 6, "custom_generate": str(FOLDER), "trust_remote_code": True}
    assert torch.equal(llama.generate(ids, **call), specdec.generate(llama, draft, ids, max_new_tokens=6))


def test_an_engine_from_checkpoints():
    settings = {"tokenizer": "asset:tiny/tokenizer", "dtype": "float32", "device": "cpu"}
    engine = specdec.load("asset:tiny/target", "asset:tiny/draft", gamma=3, **settings)
    output = engine.generate(["The king"], max_new_tokens=8, return_dict_in_generate=True)
    plain = specdec.load("asset:tiny/target", **settings)
    assert output.texts == plain.generate(["The king"], max_new_tokens=8, return_dict_in_generate=True).texts
    assert sum(output.num_drafted)
    assert not sum(plain.generate(["x"], return_dict_in_generate=True).num_drafted)
    assert specdec.load("asset:tiny/target", "prompt_lookup", **settings).draft is None
    with pytest.raises(ConfigError, match="no such folder"):
        specdec.load("./nowhere")
    with pytest.raises(ConfigError, match="dtype 'int8'"):
        specdec.load("asset:tiny/target", dtype="int8")
