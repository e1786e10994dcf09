"""The audit of other engines' outputs: right outputs pass, every planted fault is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from audit_samples import PROMPTS, SETTINGS, samples
from cases import short_only
from conftest import VOCAB, greedy_alone, small_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdec.audit.__main__ import main
from specdec.conformance.models import LETTERS, letter_tokenizer
from specdec.core.files import write_lines
from specdec.core.sampling import processed
from specdec.core.sampling_params import SamplingParams
from specdec.models.causal_lm import CausalLM

NEW = 20


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float32))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("target")
    model.module.save_pretrained(place)
    letter_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def right(model) -> list[list[int]]:
    return [greedy_alone(model, prompt, NEW, frozenset()) for prompt in PROMPTS]


@pytest.fixture
def audit(folder, tmp_path, capsys):
    """Audit rows (or text) and return exit code, document and error."""

    def call(rows, *arguments: str, target: Path = folder):
        path = tmp_path / "outputs.jsonl"
        if isinstance(rows, str):
            path.write_text(rows)
        else:
            write_lines(path, rows)
        code = main([str(path), "--target", str(target), "--json", "--quiet", *arguments])
        out, err = capsys.readouterr()
        assert len(err.splitlines()) <= 1, err
        return code, json.loads(out) if out else None, err

    return call


def rows_of(outputs, **more):
    return [{"prompt_ids": p, "output_ids": o, **more} for p, o in zip(PROMPTS, outputs, strict=True)]


def planted(right, row, place, token):
    return [[*o[:place], token, *o[place + 1 :]] if i == row else o for i, o in enumerate(right)]


def test_outputs_of_the_target_are_exact(audit, right):
    code, document, _ = audit(rows_of(right), "--max-new-tokens", str(NEW))
    assert (code, document["counts"]) == (0, {"exact": len(PROMPTS)})
    assert document["precision"] == "float32 on cpu"
    assert "near-tie is a margin" in document["criterion"]


def test_a_wrong_token_is_a_failure_where_it_stands(audit, right):
    wrong = (right[1][6] + 1) % VOCAB
    code, document, _ = audit(rows_of(planted(right, 1, 6, wrong)))
    assert (code, document["counts"]) == (1, {"exact": len(PROMPTS) - 1, "failure": 1})
    first = document["rows"][1]["divergences"][0]
    assert (first["position"], first["token"], first["expected"]) == (6, wrong, right[1][6])
    assert first["margin"] > document["rows"][1]["bound"]


def test_a_tie_is_explained_and_the_row_judged_to_its_end(audit, right, tmp_path):
    winner, other = right[0][0], next(t for t in range(VOCAB) if all(t not in o for o in right))
    twin = small_llama(0, torch.float32)
    with torch.no_grad():
        twin.lm_head.weight[other] = twin.lm_head.weight[winner]
    twin.save_pretrained(tmp_path / "twin")
    tied = CausalLM(twin)
    later = greedy_alone(tied, [*PROMPTS[0], max(winner, other)], NEW - 1, frozenset())
    row = {"prompt_ids": PROMPTS[0], "output_ids": [max(winner, other), *later]}
    code, document, _ = audit([row], target=tmp_path / "twin")
    assert (code, document["counts"]) == (0, {"near-tie": 1})
    assert document["rows"][0]["divergences"][0]["margin"] <= document["rows"][0]["bound"]
    row["output_ids"][-1] = (row["output_ids"][-1] + 1) % VOCAB
    code, document, _ = audit([row], target=tmp_path / "twin")
    assert (code, document["counts"]) == (1, {"failure": 1}), "a bug behind a tie"


def test_ends_are_judged_where_budget_and_stops_are_known(audit, right):
    stop = right[0][9]
    at = right[0].index(stop)
    for output, arguments, reason in (
        (right[0][:7], [], "ends after 7 tokens without a stop token"),
        ([*right[0], 1], [], "more than --max-new-tokens"),
        (right[0], ["--stop-ids", str(stop)], "goes on after the stop token"),
        (right[0][: at + 1], ["--stop-ids", str(stop)], ""),
        (right[0][:at], ["--stop-ids", str(stop)], ""),  # an engine that leaves the stop token out
    ):
        row = {"prompt_ids": PROMPTS[0], "output_ids": output}
        code, document, _ = audit([row], "--max-new-tokens", str(NEW), *arguments)
        assert code == bool(reason)
        assert reason in document["rows"][0]["reason"]


@pytest.mark.slow
def test_log_probabilities_show_a_wrong_cache_behind_right_tokens(audit, model, right):
    tokens = torch.tensor([PROMPTS[0] + right[0]])
    logits = model.module(tokens).logits[0, len(PROMPTS[0]) - 1 : -1].double()
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(right[0])[:, None])[:, 0].tolist()
    row = {"prompt_ids": PROMPTS[0], "output_ids": right[0], "logprobs": logprobs}
    assert audit([row])[0] == 0
    row["logprobs"] = [value - 0.01 * (place == 5) for place, value in enumerate(logprobs)]
    code, document, _ = audit([row])
    assert code == 1
    assert "log-probabilities differ" in document["rows"][0]["reason"]
    assert document["rows"][0]["logprobs"]["position"] == 5
    assert audit([row], "--logprob-tolerance", "0.02")[0] == 0


def test_text_is_judged_in_the_segmentation_of_the_target(audit, model, right, tmp_path):
    prompt, text = ("".join(LETTERS[t] for t in ids) for ids in (PROMPTS[0], right[0]))
    place = next(i for i in range(3, NEW - 1) if len({right[0][i - 1], right[0][i]}) == 2)
    first, second = text[place - 1], text[place]
    unused = next(t for t in range(VOCAB) if t not in [*right[0], *PROMPTS[0]])
    ids = {letter: number for number, letter in enumerate(LETTERS) if number != unused}
    bpe = Tokenizer(models.BPE({**ids, first + second: unused}, [(first, second)]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Split("\n", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    assert unused in tokenizer.encode(text), "the tokenizer would have merged what the target emits as two tokens"
    tokenizer.save_pretrained(tmp_path / "merging")
    merging = ("--tokenizer", str(tmp_path / "merging"))
    code, document, _ = audit([{"prompt": prompt, "output": text}], *merging)
    assert (code, document["counts"]) == (0, {"exact": 1})
    other = LETTERS[next(t for t in range(VOCAB) if t not in (unused, right[0][place + 1], right[0][place]))]
    changed = text[: place + 1] + other + text[place + 2 :]
    code, document, _ = audit([{"prompt": prompt, "output": changed}], *merging)
    assert document["rows"][0]["divergences"][0]["position"] == place + 1
    assert document["rows"][0]["segmentation"] == "assumed"
    _, _, err = audit([{"prompt": prompt, "output": text}], *merging, "--temperature", "1")
    assert "sampled rows need output_ids" in err


GOOD = '{"prompt_ids": [1], "output_ids": [2]}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no row in it"),
        (GOOD + '{"prompt_ids": [1], "outp', "line 2: not JSON"),
        (GOOD + "[1]", "line 2: not a JSON object"),
        ('{"prompt_ids": [1]}', "no output_ids and no output"),
        ('{"prompt_ids": [1], "output_ids": ["2"]}', "output_ids must be a list of integers"),
        ('{"prompt_ids": [], "output_ids": [2]}', "the prompt has no token"),
        (f'{{"prompt_ids": [1], "output_ids": [{VOCAB}]}}', f"outside the target's vocabulary of {VOCAB}"),
        (json.dumps({"prompt_ids": [1] * 250, "output_ids": [1] * 9}), "259 tokens of prompt and output"),
        ('{"prompt_ids": [1], "output_ids": [2], "output": "b"}', "is not the text of output_ids"),
        ('{"prompt_ids": [1], "output": "no letter: \\u00e9"}', "does not survive this tokenizer"),
        ('{"prompt_ids": [1], "output_ids": [2], "logprobs": []}', "0 logprobs for 1 tokens"),
        ('{"prompt_ids": [1], "output_ids": [2], "logprobs": [0.5]}', "above 0"),
    ],
)
def test_broken_lines_are_refused_in_one_line(audit, text, message):
    code, _, err = audit(text)
    assert code == 2
    assert message in err
    if text.startswith(GOOD):
        code, document, _ = audit(text, "--skip-invalid")
        assert (code, document["num_rows"], document["num_invalid"]) == (1, 1, 1), "what is not judged has not passed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", "4"], "set --temperature"),
        (["--stop-ids", "x"], "--stop-ids x"),
        (["--stop-ids", "999"], "outside the target's vocabulary"),
        (["--level", "1"], "--level 1"),
        (["--temperature", "-1"], "temperature=-1"),
        (["--tokenizer", "./nowhere"], "--tokenizer"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(audit, right, arguments, message):
    code, _, err = audit(rows_of(right), *arguments)
    assert code == 2
    assert message in err


def test_an_interrupted_audit_goes_on_with_its_own_settings_only(audit, right, tmp_path):
    kept = tmp_path / "verdicts.jsonl"
    audit(rows_of(right), "--out", str(kept))
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + len(PROMPTS)
    marked = lines[1].replace('"exact"', '"seen before"')
    kept.write_text("".join([lines[0], marked, lines[2][:30]]))
    _, again, _ = audit(rows_of(right), "--out", str(kept))
    assert [row["verdict"] for row in again["rows"]] == ["seen before", *["exact"] * (len(PROMPTS) - 1)]
    code, _, err = audit(rows_of(right), "--out", str(kept), "--noise-factor", "3")
    assert code == 2
    assert "made with another noise_factor" in err


# Sampling -------------------------------------------------------------------------------------------------------------


def flags(params: SamplingParams) -> list[str]:
    top_k = [] if params.top_k is None else ["--top-k", str(params.top_k)]
    return ["--temperature", str(params.temperature), "--top-p", str(params.top_p), *top_k]


def sampled_rows(outputs):
    return [{"prompt_ids": PROMPTS[0], "output_ids": output} for output in outputs]


@pytest.mark.parametrize("name", short_only(SETTINGS, "cool"))
def test_samples_of_the_law_pass_and_those_of_another_temperature_do_not(audit, model, name):
    params = SETTINGS[name]
    outputs = samples(model, params, 60, 15, seed=1)
    code, document, _ = audit(sampled_rows(outputs), *flags(params))
    assert code == 0, document["tests"]
    assert {test["name"] for test in document["tests"]} >= {"support", "ratio", "rows", "likelihood", "ranks", "counts"}
    stated = SamplingParams(params.temperature * 1.35, params.top_k, params.top_p)
    code, document, _ = audit(sampled_rows(outputs), *flags(stated))
    assert code == 1
    assert {test["name"] for test in document["tests"] if test["rejects"]} >= {"likelihood"}


def test_a_token_that_the_settings_exclude_is_named(audit, model):
    outputs = samples(model, SETTINGS["cool"], 8, 10, seed=2)
    law = processed(model.module(torch.tensor([PROMPTS[0]])).logits[:, -1:], [SETTINGS["cool"]])[0, 0]
    outputs[3][0] = int((law == 0).nonzero()[0, 0])
    code, document, _ = audit(sampled_rows(outputs), *flags(SETTINGS["cool"]))
    assert code == 1
    assert document["rows"][3]["impossible"] == [0]
    assert "settings exclude" in document["rows"][3]["reason"]
    assert document["counts"]["failure"] == 1


@pytest.mark.slow
def test_one_row_from_another_model_is_found_among_right_ones(audit, model):
    outputs = samples(model, SETTINGS["plain"], 40, 30, seed=3)
    outputs[7] = samples(CausalLM(small_llama(5, torch.float32)), SETTINGS["plain"], 1, 30, seed=3)[0]
    code, document, _ = audit(sampled_rows(outputs), *flags(SETTINGS["plain"]))
    assert code == 1
    assert [row["verdict"] == "failure" for row in document["rows"]].index(True) == 7
    assert document["counts"]["failure"] == 1
