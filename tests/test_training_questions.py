"""Questions that the target writes itself: framed by its template, drawn from its distribution, filtered and cached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from test_training_chat import TEMPLATE, root, settings  # noqa: F401  (root is a fixture)
from transformers import AutoTokenizer

from specdec.assets import local_path
from specdec.core.prompts import encode
from specdec.models.causal_lm import CausalLM
from specdec.training import TrainingError, run_task, shared_outputs
from specdec.training.corpus_config import QuestionsConfig
from specdec.training.outputs import Outputs, without_loops
from specdec.training.questions import FILE, Turn, usable, user_turn, write_questions

END = 0  # <|endoftext|>, which the template puts behind every message


@pytest.fixture(scope="module")
def tokenizer():
    found = AutoTokenizer.from_pretrained(local_path("asset:tiny/tokenizer"))
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def target(root: Path, tokenizer) -> CausalLM:  # noqa: F811
    """The random target of the chat tests, which ends a turn after some ten tokens."""
    module = transformers.Qwen3ForCausalLM.from_pretrained(root / "target").eval()
    with torch.no_grad():
        states_BTD = module.model(torch.randint(1, 2048, (8, 32), generator=torch.Generator().manual_seed(0)))[0]
        mean_D = states_BTD.mean((0, 1))
        module.lm_head.weight[END] = 5 * mean_D / mean_D.square().sum()
    return CausalLM(module)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_outputs, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


CFG = QuestionsConfig(num=12, max_tokens=24, batch=8, top_p=0.95)


def write(target, tokenizer, out, cfg=CFG, made_by="a"):
    out.mkdir(exist_ok=True)
    return write_questions(target, tokenizer, cfg, 5, out, stop_ids=frozenset(), made_by=made_by)


def test_a_turn_begins_and_ends_as_the_template_has_it(tokenizer):
    turn = user_turn(tokenizer, frozenset({7}))
    assert turn == Turn(tokenizer.encode("<|user|>\n", add_special_tokens=False), "<|endoftext|>", frozenset({7, END}))
    asked = encode(tokenizer, [{"role": "user", "content": "what is a tensor?"}], "auto")
    assert asked[: len(turn.start_ids)] == turn.start_ids


def test_a_template_that_ends_a_turn_in_plain_text(tokenizer):
    plain = AutoTokenizer.from_pretrained(local_path("asset:tiny/tokenizer"))
    plain.chat_template = (
        "A chat. {% for m in messages %}USER: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    turn = user_turn(plain, frozenset({END}))
    assert (turn.end, turn.stop_ids) == ("ASSISTANT:", {END})
    said = plain.encode("what is a tensor? ASSISTANT: A tensor is", add_special_tokens=False)
    assert usable(said, plain, turn) == "what is a tensor?"


@pytest.mark.parametrize(
    ("text", "ends", "expected"),
    [
        ("what is a tensor?", [END], "what is a tensor?"),
        ("what is a tensor?", [], None),
        ("what is", [END], None),
        ("what is" + " so" * 16 + "?", [END], None),
        ("what is <|pad|> a tensor?", [END], None),
    ],
    ids=["ended", "not ended", "two words", "a loop", "a special token"],
)
def test_only_whole_sensible_turns_are_taken(tokenizer, text, ends, expected):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ("<|pad|>" in text) == bool(set(ids) & set(tokenizer.all_special_ids))
    assert usable(ids + ends, tokenizer, user_turn(tokenizer, frozenset())) == expected


def test_questions_are_drawn_from_the_target_and_differ(target, tokenizer, tmp_path, cache):
    record = write(target, tokenizer, tmp_path / "one")
    lines = [json.loads(line) for line in (tmp_path / "one" / FILE).read_text().splitlines()]
    texts = [line["messages"][0]["content"] for line in lines]
    assert record == {"questions": 12, "turns_written": 8 * len(list((tmp_path / "one").glob("batch_*.json")))}
    assert len(set(texts)) == 12
    start = user_turn(tokenizer, frozenset()).start_ids
    turns = json.loads((tmp_path / "one/batch_0000.json").read_text())
    assert len({tuple(turn) for turn in turns}) == 8
    for turn in turns:  # every token is one of the fewest that hold 95% of what the unmodified model says there
        logits_TV = target.module(torch.tensor([start + turn])).logits[0, len(start) - 1 : -1]
        probs_TV = logits_TV.softmax(-1)
        own_T = probs_TV.gather(1, torch.tensor(turn)[:, None])
        assert bool((probs_TV.where(probs_TV > own_T, 0).sum(-1) < CFG.top_p + 1e-5).all())


def test_batches_are_kept_and_shared(target, tokenizer, tmp_path, cache, monkeypatch):
    write(target, tokenizer, tmp_path / "one")
    content = (tmp_path / "one" / FILE).read_bytes()
    write(target, tokenizer, tmp_path / "warmer", QuestionsConfig(**{**vars(CFG), "temperature": 0.9}))
    assert (tmp_path / "warmer" / FILE).read_bytes() != content
    monkeypatch.setattr("specdec.training.questions.decode", lambda *a, **k: pytest.fail("written a second time"))
    (tmp_path / "one" / FILE).unlink()
    write(target, tokenizer, tmp_path / "one")
    write(target, tokenizer, tmp_path / "two")
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes() == content
    (tmp_path / "two/batch_0000.json").write_text("[[1,")
    with pytest.raises(TrainingError, match=r"batch_0000\.json is damaged .*: delete it"):
        write(target, tokenizer, tmp_path / "two")
    with pytest.raises(pytest.fail.Exception, match="a second time"):
        write(target, tokenizer, tmp_path / "three", made_by="another target")


def test_a_target_that_never_ends_its_turns_is_named(target, tokenizer, tmp_path, cache):
    short = QuestionsConfig(num=12, max_tokens=1, batch=4)
    with pytest.raises(TrainingError, match=r"of 60 turns .* 0 can be used .*lower questions\.num=12"):
        write(target, tokenizer, tmp_path / "one", short)


def test_an_output_is_cut_where_it_begins_to_repeat_itself():
    text = [5, 6, 7, 8, 9, *[3, 4] * 12]
    fresh = list(range(10, 10 + len(text)))
    ids_BT = torch.tensor([[1, 2, *text], [1, 2, *fresh]])
    counts_B = torch.full((2,), len(text))
    made = Outputs(ids_BT, torch.full((2,), 2), counts_B, torch.zeros(2, len(text), 1), torch.zeros(2, len(text), 1))
    assert without_loops(made).num_valid_B.tolist() == [5 + 8, len(text)]
    assert made.num_valid_B.tolist() == [len(text)] * 2


@pytest.mark.slow
def test_a_head_is_trained_from_nothing_but_the_target(target, root, run, cache):  # noqa: F811
    cfg = settings(root, "heads", "outputs")
    target.module.save_pretrained(root / "talks")
    AutoTokenizer.from_pretrained(root / "target").save_pretrained(root / "talks")
    cfg.frozen, cfg.output_dir = str(root / "talks"), str(root / "from_target")
    cfg.corpus.source, cfg.corpus.path, cfg.heads.kind = "target", None, "eagle3"
    cfg.questions = QuestionsConfig(num=24, max_tokens=24, batch=16)
    report = run_task("", cfg)
    assert report["num_drafted"] > 0
    assert "\nquestions that the target wrote itself: " in (Path(report["export"]) / "README.md").read_text()
    how = ["drafter=eagle3", f"drafter.path={report['export']}", f"data.path={root}/from_target/heldout/heldout.jsonl"]
    code, out, err = run(f"pair={root}/talks", *how, "data=jsonl", "max_new_tokens=8", "batch=2", "gamma=2")
    assert code == 0, err
    assert json.loads(out.strip().splitlines()[-1])["num_exact"] == len(
        (root / "from_target/heldout/heldout.jsonl").read_text().splitlines()
    )
