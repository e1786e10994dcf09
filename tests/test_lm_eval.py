"""`--model specdec` of lm-evaluation-harness, with the real package: scores equal those of its own `--model hf`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'specdec[lm-eval]')")

import lm_eval
from lm_eval.api.registry import get_model

import specdec.lm_eval.model  # noqa: F401  (registers itself)
from specdec.assets import local_path
from specdec.errors import ConfigError

ROOT = Path(__file__).parent.parent
TINY = {name: str(local_path(f"asset:tiny/{name}")) for name in ("target", "draft", "tokenizer")}
NUM = 6


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[dict]:
    """One local task per kind of request, on parts of the held-out prompts."""
    data = tmp_path_factory.mktemp("data") / "docs.jsonl"
    lines = (ROOT / "specdec" / "assets" / "heldout.jsonl").read_text().splitlines()[:NUM]
    texts = [json.loads(line)["turns"][0] for line in lines]
    halves = [(text[: len(text) // 2], text[len(text) // 2 :][:30]) for text in texts]
    docs = [{"text": first, "next": rest, "choices": [rest, "def ", "\n    return"]} for first, rest in halves]
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    mean = {"aggregation": "mean", "higher_is_better": True}
    return [
        {
            **common,
            "task": "continue",
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{next}}",
            "metric_list": [{"metric": "exact_match", **mean}],
            "generation_kwargs": {"until": ["\n\n", "return"], "max_gen_toks": 24, "do_sample": False},
        },
        {
            **common,
            "task": "choose",
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": 0,
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", **mean}],
        },
        {
            **common,
            "task": "read",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity"}],
        },
    ]


def evaluated(model: str, tasks: list[dict], **arguments) -> dict:
    return lm_eval.simple_evaluate(
        model, model_args=arguments, tasks=tasks, batch_size=arguments.pop("batch_size", 1), device="cpu",
        bootstrap_iters=0, log_samples=True,
    )  # fmt: skip


def answers(found: dict, task: str) -> list:
    return [sample["filtered_resps"] for sample in sorted(found["samples"][task], key=lambda s: s["doc_id"])]


@pytest.mark.slow
def test_scores_and_texts_equal_those_of_the_harness_own_model(tasks):
    ours = evaluated("specdec", tasks, **TINY, batch_size=4, max_length=64)
    theirs = evaluated("hf", tasks, pretrained=TINY["target"], tokenizer=TINY["tokenizer"], max_length=64)
    assert answers(ours, "continue") == answers(theirs, "continue"), "greedy texts, drafted in batches of four"
    assert any(text for (text,) in answers(ours, "continue"))
    for mine, other in zip(answers(ours, "choose"), answers(theirs, "choose"), strict=True):
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in other]
        assert [score for score, _ in mine] == pytest.approx([score for score, _ in other], abs=1e-3)
    read = [[score for (score,) in answers(found, "read")] for found in (ours, theirs)]
    assert read[0] == pytest.approx(read[1], abs=1e-2), "texts longer than max_length, in windows"
    for task in ("continue", "choose", "read"):
        for key, value in theirs["results"][task].items():
            if isinstance(value, float):
                assert ours["results"][task][key] == pytest.approx(value, rel=1e-4), (task, key)


def test_a_wrong_setting_is_refused():
    with pytest.raises(ConfigError, match="batch_size=auto: give the number of rows in flight"):
        get_model("specdec")(**TINY, batch_size="auto")
    model = get_model("specdec")(**TINY, max_length=32, max_gen_toks=40)
    assert model._scored([([5], [])]) == [(0.0, True)], "nothing to score"
    with pytest.raises(ConfigError, match="max_gen_toks=40 leaves no room for a prompt"):
        model._generated(["def f"], {})


@pytest.mark.nightly
def test_two_processes_share_the_requests(tasks, tmp_path):
    """As torchrun starts them: rank 0 writes what one process finds."""
    script = tmp_path / "evaluate.py"
    script.write_text(
        "import json, sys, lm_eval, specdec.lm_eval.model\n"
        "tasks, arguments, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]\n"
        "found = lm_eval.simple_evaluate('specdec', model_args=arguments, tasks=tasks, batch_size=2, device='cpu', "
        "bootstrap_iters=0)\n"
        "if found: open(out, 'w').write(json.dumps({name: values for name, values in found['results'].items()}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    results = []
    for num in (1, 2):
        out = tmp_path / f"{num}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={num}", "--master-port=29577"]
        words = [str(script), json.dumps(tasks), json.dumps(TINY), str(out)]
        subprocess.run([*launch, *words], env=environment, check=True, capture_output=True)
        results.append(json.loads(out.read_text()))
    for task, values in results[0].items():
        for key, value in values.items():
            if isinstance(value, float):
                assert results[1][task][key] == pytest.approx(value, rel=1e-4), (task, key)
