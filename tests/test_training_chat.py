"""Conversations as a corpus: the target's template, answers only, and drafts that are selected on what they serve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from specdec.assets import local_path
from specdec.core.prompt_sources import read_questions
from specdec.core.prompts import encode
from specdec.training import TrainingError, run_task
from specdec.training.blocks import BlockStream
from specdec.training.budget import Budget
from specdec.training.chat import ChatPrompts, encoded_texts
from specdec.training.config import (
    DraftConfig,
    HeldoutConfig,
    OutputsConfig,
    PhaseConfig,
    StageConfig,
    TrainConfig,
    ValidationConfig,
)
from specdec.training.corpus import Corpus, SourceFile, read_corpus
from specdec.training.corpus_config import CorpusConfig
from specdec.training.generation import outputs_of, with_log_probs
from specdec.training.heldout import make_prompts
from specdec.training.outputs import load_outputs, save_outputs
from specdec.training.sources import Sources
from specdec.training.tasks import encoded

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 with a chat template, and conversations of one to three questions."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = AutoTokenizer.from_pretrained(local_path("asset:tiny/tokenizer"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "target")
    config = transformers.Qwen3Config(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=0,
        initializer_range=0.2,
        bos_token_id=None,
        pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder / "target")
    with (folder / "chat.jsonl").open("w") as stream:
        for number in range(40):
            turns = [
                message
                for turn in range(1 + number % 3)
                for message in (
                    {"role": "user", "content": f"question {turn} of {number}" + " more" * (number % 5) + "?"},
                    {"role": "assistant", "content": f"answer {number * turn}, that is all"},
                )
            ]
            stream.write(json.dumps({"messages": turns}) + "\n")
    return folder


def settings(root: Path, task: str, data: str) -> TrainConfig:
    cfg = TrainConfig(task=task, frozen=str(root / "target"), precision="32-true", threads=1, progress=False)
    cfg.output_dir, cfg.device.accelerator, cfg.distill.data = str(root / f"{task}-{data}"), "cpu", data
    cfg.corpus = CorpusConfig(source="jsonl", path=str(root / "chat.jsonl"), column="messages", heldout_percent=20)
    cfg.fit.steps, cfg.fit.phases, cfg.draft_model = 3, [PhaseConfig(1.0, 32, 4)], DraftConfig(num_layers=1)
    cfg.greedy = OutputsConfig(num_batches=2, batch=4, new_tokens=8, max_prompt_tokens=60, top_k=4)
    cfg.heldout = HeldoutConfig(num_prompts=6, max_tokens=120)
    cfg.validation = ValidationConfig(every=0, num_prompts=3, new_tokens=6, gamma=2, batch=3)
    return cfg


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("heads", "outputs"),
        pytest.param("heads", "corpus", marks=pytest.mark.slow),
        pytest.param("distill", "outputs", marks=pytest.mark.slow),
        pytest.param("distill", "corpus", marks=pytest.mark.slow),
    ],
)
def test_a_draft_learns_from_conversations_and_serves_them_exactly(root, run, task, data):
    cfg = settings(root, task, data)
    cfg.heads.kind = kind = "eagle" if data == "outputs" else "eagle3"
    report = run_task("", cfg)
    assert report["num_drafted"] > 0
    prompts = f"{cfg.output_dir}/heldout/heldout.jsonl"
    questions, _ = read_questions(prompts, "train", None, skip_broken=False)
    tokenizer = Sources(cfg, root).tokenizer
    lines = [json.loads(line) for line in Path(prompts).read_text().splitlines()]
    measured = [prompt.ids for prompt in encoded(lines, tokenizer, None)]
    assert measured == [encode(tokenizer, question.prompts("first")[0], "auto") for question in questions]
    assert tokenizer.decode(measured[0]).startswith("<|user|>\n")
    assert tokenizer.decode(measured[0]).endswith("<|assistant|>\n")
    if task == "distill":
        how = ["pair.draft=" + report["export"], "drafter=model"]
    else:
        how = [f"drafter={kind}", "drafter.path=" + report["export"]]
    code, out, err = run(
        *(f"pair={root / 'target'}", f"data.path={prompts}", "batch=8", "strict=true", "max_new_tokens=8"),
        *("baseline=false", "runner.accelerator=cpu", "runner.threads=1", *how),
    )
    assert code == 0, err
    assert "6/6" in out


def test_outputs_of_conversations_are_the_target_s_answers_to_their_prompts(root):
    """Rows of different lengths: prompt, answer and what was kept of the target's distribution stand side by side."""
    cfg = settings(root, "rows", "outputs")
    sources = Sources(cfg, root / "rows")
    every = ChatPrompts(sources.corpus, sources.tokenizer, cfg.greedy, 0)
    prompts = {len(ids): ids for ids in map(every.prompt, range(40))}
    decoded = outputs_of(sources.target, list(prompts.values())[:4], cfg.greedy, frozenset([0]), 0)
    made = with_log_probs(sources.target, decoded, cfg.greedy)
    save_outputs(made, root / "rows.npz", 2048)
    outputs = load_outputs(root / "rows.npz")
    rows = torch.tensor([2, 0, 3])
    batch = outputs.batch(rows, {"batches": 1}, count_prompt=False)
    assert len(set(outputs.num_prompt_B.tolist())) == 4
    model = sources.target.module
    for row, number in enumerate(rows.tolist()):
        start, count = int(outputs.num_prompt_B[number]), int(outputs.num_valid_B[number])
        assert batch.counted_BT[row].nonzero()[:, 0].tolist() == list(range(start, start + count))
        text = sources.tokenizer.decode(batch.ids_BT[row, :start])
        assert text.startswith("<|user|>\n")
        assert text.endswith("<|assistant|>\n")
        logits_TV = model(batch.ids_BT[row : row + 1]).logits[0].log_softmax(-1).detach()
        for column in range(start, start + count):
            top = logits_TV[column - 1].topk(4)
            assert int(batch.ids_BT[row, column]) == int(top.indices[0])
            assert batch.top_ids_BTK[row, column].tolist() == top.indices.tolist()
            torch.testing.assert_close(batch.top_logps_BTK[row, column], top.values, atol=1e-2, rtol=1e-2)


def test_only_answers_count_and_begin_where_their_prompt_ends(root):
    tokenizer = AutoTokenizer.from_pretrained(root / "target")
    messages = [{"role": role, "content": text} for role, text in (("user", "a?"), ("assistant", "b"), ("user", "c?"))]
    ids, counted = encoded_texts(tokenizer, (*messages, {"role": "assistant", "content": "d"}))
    answers = "".join(tokenizer.decode([token]) if keep else "\0" for token, keep in zip(ids, counted, strict=True))
    assert [part for part in answers.split("\0") if part] == [
        "<think></think>b<|endoftext|>\n",
        "<think></think>d<|endoftext|>\n",
    ]
    served = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    place = len(ids) - len(tokenizer("<think></think>d<|endoftext|>\n").input_ids)
    assert ids[place - len(served) : place] == served, "the second text begins anew, as it is served"


def test_blocks_count_the_answers(root):
    cfg = settings(root, "blocks", "corpus")
    sources = Sources(cfg, root / "blocks")
    (root / "blocks/tokens").mkdir(parents=True)
    record = sources.encode(root / "blocks/tokens")
    tokens, counted = sources.load("train"), sources.load_counted("train")
    assert 0 < record["train"]["answer_tokens"] == counted.sum() < len(tokens) == len(counted)
    stream = BlockStream(tokens, Budget(StageConfig(phases=[PhaseConfig(1.0, 32, 2)])), 0, counted=counted)
    batch = stream.draw()
    for ids_T, counted_T in zip(batch.ids_BT.numpy(), batch.counted_BT.numpy(), strict=True):
        starts = [n for n in range(len(tokens) - 31) if np.array_equal(tokens[n : n + 32], ids_T)]
        assert any(np.array_equal(counted[n + 1 : n + 32], counted_T[1:]) for n in starts)


def test_held_out_prompts_begin_with_one_beginning_of_text():
    """Of a tokenizer that adds it: not part of the text, and once in what is fed."""
    tokenizer = AutoTokenizer.from_pretrained(local_path("asset:tiny/tokenizer"))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    text = "".join(f"line {number} of a text\n" for number in range(200))
    corpus = Corpus([SourceFile("a", text)], [SourceFile("b", text)], is_code=False)
    prompts = make_prompts(corpus, tokenizer, HeldoutConfig(num_prompts=4, max_tokens=40), 0)
    for prompt, fed in zip(prompts, encoded(prompts, tokenizer, None), strict=True):
        assert "<s>" not in prompt["turns"][0]
        assert fed.ids[0] == begin
        assert begin not in fed.ids[1:]


def test_what_is_no_conversation_is_named(tmp_path):
    lines = [[{"role": "user", "content": "a"}], [{"role": "tool", "content": "b"}]]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    cfg = CorpusConfig(source="jsonl", path=str(tmp_path / "bad.jsonl"), column="messages", heldout_percent=20)
    with pytest.raises(TrainingError, match=r"corpus\.column=messages: row 2 of .*: message 1 must have the role"):
        read_corpus(cfg)


def test_a_tokenizer_without_a_template_is_refused(root):
    cfg = settings(root, "distill", "outputs")
    cfg.tokenizer, cfg.output_dir = "asset:tiny/tokenizer", str(root / "untold")
    with pytest.raises(TrainingError, match="holds messages, but the tokenizer has no chat template: set tokenizer="):
        run_task("", cfg)
