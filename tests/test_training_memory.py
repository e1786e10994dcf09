"""Corpora larger than memory: nothing holds a whole one; and mixtures of texts and conversations."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from specdec.assets import local_path
from specdec.training import TrainingError, blocks, tokenizer
from specdec.training.budget import Budget
from specdec.training.config import OutputsConfig, PhaseConfig, StageConfig, TrainConfig
from specdec.training.corpus import read_corpus
from specdec.training.corpus_config import CorpusConfig, PartConfig
from specdec.training.prompts import prompt_source
from specdec.training.records import ArrayWriter, RecordsWriter, scratch_records
from specdec.training.shares import Mixture
from specdec.training.sources import Sources

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.slow
def test_no_stage_holds_the_corpus(tmp_path, monkeypatch):
    """From the file to batches: the peak of every stage stays far below the size of the text."""
    monkeypatch.setattr(tokenizer, "CHARACTERS_AT_ONCE", 1 << 14)
    monkeypatch.setattr(blocks, "PART", 1 << 14)
    words = [f"word{number % 97}" for number in range(10)]
    with (tmp_path / "all.txt").open("w") as stream:
        for number in range(20_000):
            stream.write(f"{number} {' '.join(words)}\n")
    size = (tmp_path / "all.txt").stat().st_size
    cfg = TrainConfig(task="distill", tokenizer="asset:tiny/tokenizer")
    cfg.corpus = CorpusConfig(source="text", path=str(tmp_path / "all.txt"))
    cfg.heldout.num_prompts, cfg.fit = 4, StageConfig(phases=[PhaseConfig(1.0, 64, 4)])
    sources = Sources(cfg, tmp_path)
    for name in ("heldout", "tokens"):
        (tmp_path / name).mkdir()
    assert sources.tokenizer("warm").input_ids

    def draw() -> None:
        stream = sources.blocks(Budget(cfg.fit))
        assert int(stream.token_counts(2048).sum()) == len(stream.tokens)
        for _ in range(20):
            stream.draw()

    stages = {
        "documents": lambda: sources.corpus,
        "heldout": lambda: sources.cut_prompts(tmp_path / "heldout"),
        "prompts": lambda: prompt_source(sources.corpus, sources.tokenizer, OutputsConfig(batch=4), 1)(0),
        "tokens": lambda: sources.encode(tmp_path / "tokens"),
        "blocks": draw,
    }
    peaks = {}
    for name, stage in stages.items():
        tracemalloc.start()
        stage()
        peaks[name] = tracemalloc.get_traced_memory()[1] / size
        tracemalloc.stop()
    assert max(peaks.values()) < 0.5, peaks
    text = "".join(file.text for file in [*sources.corpus.train, *sources.corpus.heldout])
    assert len(text) == size


def test_records_and_arrays_are_what_was_written(tmp_path):
    records = [b"", b"one", "zw\u00f6lf".encode(), b"x" * 5000] * 600

    def write(writer: RecordsWriter) -> None:
        for record in records:
            writer.append(record)

    found = scratch_records(tmp_path, write)
    assert list(found) == records
    assert found[-1] == records[-1]
    assert found[1:9:3] == records[1:9:3]
    with pytest.raises(IndexError):
        found[len(records)]
    assert not list(tmp_path.iterdir())
    with ArrayWriter(tmp_path / "some.npy", np.uint16) as writer:
        for start in range(0, 3000, 7):
            writer.append(range(start, min(start + 7, 3000)))
    assert np.load(tmp_path / "some.npy", mmap_mode="r").tolist() == list(range(3000))


def test_a_mixture_draws_every_part_by_its_share():
    mixture = Mixture([0.55, 0.3, 0.15])
    drawn = [mixture(number) for number in range(1000)]
    assert Counter(part for part, _ in drawn) == {0: 550, 1: 300, 2: 150}
    assert Counter(part for part, _ in drawn[:20]) == {0: 11, 1: 6, 2: 3}
    for part in range(3):
        assert [own for found, own in drawn if found == part] == list(range([550, 300, 150][part]))


@pytest.fixture
def mixed(tmp_path: Path) -> Sources:
    """Conversations, and texts as three of ten draws."""
    with (tmp_path / "chat.jsonl").open("w") as chat, (tmp_path / "raw.jsonl").open("w") as raw:
        for number in range(120):
            turns = [("user", f"what is {number}?"), ("assistant", f"chat answer number {number} of all of them")]
            messages = [{"role": role, "content": text} for role, text in turns]
            chat.write(json.dumps({"messages": messages}) + "\n")
            raw.write(json.dumps({"text": "".join(f"raw line {n} of {number}\n" for n in range(30))}) + "\n")
    rendering = AutoTokenizer.from_pretrained(local_path("asset:tiny/tokenizer"))
    rendering.chat_template = TEMPLATE
    rendering.save_pretrained(tmp_path / "tokenizer")
    cfg = TrainConfig(task="distill", tokenizer=str(tmp_path / "tokenizer"))
    cfg.corpus = CorpusConfig(source="jsonl", path=str(tmp_path / "chat.jsonl"), column="messages", heldout_percent=20)
    cfg.corpus.also = [PartConfig(source="jsonl", path=str(tmp_path / "raw.jsonl"), share=0.3)]
    cfg.heldout.num_prompts, cfg.heldout.max_tokens = 10, 60
    cfg.fit = StageConfig(phases=[PhaseConfig(1.0, 16, 20)])
    return Sources(cfg, tmp_path)


def test_texts_and_conversations_in_one_corpus(mixed, tmp_path):
    for name in ("heldout", "tokens"):
        (tmp_path / name).mkdir()
    assert mixed.cut_prompts(tmp_path / "heldout") == {"prompts": 10}
    prompts = [json.loads(line) for line in (tmp_path / "heldout/heldout.jsonl").read_text().splitlines()]
    assert ["messages" in prompt for prompt in prompts] == [True] * 7 + [False] * 3
    assert [prompt["question_id"] for prompt in prompts] == list(range(1, 11))

    asked = prompt_source(mixed.corpus, mixed.tokenizer, OutputsConfig(batch=3, max_prompt_tokens=20), 1)
    texts = [mixed.tokenizer.decode(asked(index)[0]) for index in range(10)]
    assert sum(text.startswith("[user]what is") for text in texts) == 7
    assert sum("raw" in text or "line" in text for text in texts) >= 2

    record = mixed.encode(tmp_path / "tokens")
    assert record["train"]["answer_tokens"] < record["train"]["tokens"]
    batch = mixed.blocks(Budget(mixed.cfg.fit)).draw()
    whole = [bool(counted_T[1:].all()) for counted_T in batch.counted_BT]
    is_raw = ["chat" not in text and "[user]" not in text for text in map(mixed.tokenizer.decode, batch.ids_BT)]
    assert sum(is_raw) == 6
    assert all(counts for counts, raw in zip(whole, is_raw, strict=True) if raw)
    counts_V = mixed.blocks(Budget(mixed.cfg.fit)).token_counts(2048)
    assert 0 < float(counts_V.sum()) < sum(record[name]["tokens"] for name in ("train", "train_1"))


def test_a_mixture_that_leaves_nothing_is_refused(mixed, tmp_path):
    mixed.cfg.corpus.also[0].share = 1.0
    with pytest.raises(
        TrainingError, match=r"corpus\.also: shares \[1\.0\]: each must be at least 0\.01, and all less"
    ):
        read_corpus(mixed.cfg.corpus)
    lines = [{"text": "a text"}, {"text": [{"role": "user", "content": "a"}]}]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TrainingError, match=r"corpus\.path=.*bad\.jsonl|corpus\.column=text: row 2"):
        read_corpus(CorpusConfig(source="jsonl", path=str(tmp_path / "bad.jsonl")))
