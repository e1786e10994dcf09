"""The fetched SmolLM2-135M-Instruct: its special tokens, and conversations as `transformers` itself would lead them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_pair import composed
from test_prompts import SPEC_BENCH

from specdec.config.identity import identity
from specdec.core.files import read_lines
from specdec.core.prompts import load_prompts
from specdec.models.fetch import folder_of
from specdec.models.pair import Pair, load_pair
from specdec.run.decode import decode

NAME = "smollm2-135m"
NUM_CONVERSATIONS, MAX_NEW_TOKENS = 20, 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not folder_of(NAME).is_dir(), reason=f"not fetched: python -m specdec.models.fetch {NAME}"),
]


def config(*overrides: str):
    return composed("pair=smollm2_135m", "drafter=prompt_lookup", "scheduler=continuous", "batch=4", *overrides)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(config())


def test_special_tokens_and_template(pair):
    tokenizer = pair.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2), "pad is eos"
    assert pair.stop_ids == {2}
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(chat, add_special_tokens=False).input_ids[:2] == tokenizer("<|im_start|>system").input_ids
    assert tokenizer("Hi").input_ids == tokenizer("Hi", add_special_tokens=False).input_ids, "no BOS before plain text"
    assert sum(weight.numel() for weight in pair.target.module.parameters()) == 134_515_008
    assert pair.context_length == 8192


def test_identity_names_no_path():
    assert str(Path.home()) not in str(identity(config()))


@pytest.mark.skipif(not SPEC_BENCH.exists(), reason="the Spec-Bench prompts are not on this machine")
def test_conversations_are_those_of_transformers(pair):
    run = config(
        *("data=spec_bench", f"data.path={SPEC_BENCH}", "data.turns=conversation", f"max_new_tokens={MAX_NEW_TOKENS}"),
        *("warmup=false", f"data.num_prompts={2 * NUM_CONVERSATIONS}"),
    )
    prompts, _ = load_prompts(run.data, pair.tokenizer, pair.context_length - MAX_NEW_TOKENS)
    rows = {row.index: row for row in decode(run, pair, prompts).rows}
    questions = [line["turns"] for line in read_lines(SPEC_BENCH)][:NUM_CONVERSATIONS]
    assert [len(turns) for turns in questions] == [2] * NUM_CONVERSATIONS
    for place, turns in enumerate(questions):
        led = list(led_by_transformers(pair, turns))
        ours = [(rows[2 * place + turn].prompt_ids, rows[2 * place + turn].output_ids) for turn in range(2)]
        assert ours == led, f"conversation {place}"


def led_by_transformers(pair: Pair, turns: list[str]):
    """Prompt and answer of every turn: the template over the whole history, answers as text."""
    tokenizer, module, history = pair.tokenizer, pair.target.module, []
    for turn in turns:
        history.append({"role": "user", "content": turn})
        inputs = tokenizer.apply_chat_template(
            history, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = module.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        prompt, answer = inputs["input_ids"][0].tolist(), output[0, inputs["input_ids"].shape[1] :].tolist()
        yield prompt, answer
        history.append({"role": "assistant", "content": tokenizer.decode(answer, skip_special_tokens=True)})
