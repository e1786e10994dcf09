"""Sampling, verifiers and drafters from the command line: tables, references, and errors of one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cases import nightly_but, short_only
from conftest import last_document, small_llama
from test_cli import SMALL

from specdec import registry
from specdec.conformance.models import letter_tokenizer
from specdec.core.files import read_lines
from specdec.verifiers.base import Verifier, longest_match

SAMPLED = [*SMALL, "runner.dtype=float64", "temperature=0.8", "top_k=5", "pair.synthetic.residual_scale=0.5"]


def samples(point: dict) -> list[dict]:
    return list(read_lines(Path(point["path"]) / "samples.jsonl"))


def output_ids(point: dict) -> list[list[int]]:
    return [row["output_ids"] for row in samples(point)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    nightly_but(
        [
            ("temperature=-1", "temperature=-1.0: it must be 0 .greedy. or more"),
            ("temperature=0.8", r"temperature=0.8 with verifier=greedy: set verifier=rejection\|block"),
            ("temperature=0.8 verifier=block top_p=0", "top_p=0.0: it must be above 0 and at most 1"),
            ("top_p=1.5", "top_p=1.5: it must be above 0 and at most 1"),
            ("top_k=0", "top_k=0: it must be at least 1"),
            ("min_p=2", "min_p=2.0: it must be from 0 to 1"),
            ("repetition_penalty=0", "repetition_penalty=0.0: it must be above 0"),
            ("temprature=1", "unknown setting 'temprature'.*did you mean 'temperature'"),
            ("stop_strings=['']", "stop_strings: an empty string"),
            ("verifier=typical temperature=0.8", "verifier=typical is lossy.*allow_lossy=true"),
            ("verifier=typical allow_lossy=true temperature=1 verifier.epsilon=0", "verifier.epsilon=0.0: it must be"),
            ("verifier=dsd allow_incorrect=true temperature=0.5", "verifier=dsd supports greedy decoding only"),
            ("drafter=scripted reference=false", "drafter=scripted replays the reference outputs: set reference=true"),
            (
                "drafter=scripted temperature=1 verifier=block",
                "drafter=scripted with temperature=1.0: only verifier=naive",
            ),
            ("drafter=scripted drafter.rate=2", "drafter.rate=2.0: it must be from 0 to 1"),
            ("drafter=self drafter.num_layers=9", "drafter.num_layers=9: choose 1 to 3"),
            ("drafter=prompt_lookup drafter.min_ngram=4", "drafter.min_ngram=4, drafter.max_ngram=3"),
            ("drafter=trigram drafter.corpus=nowhere.txt", "drafter.corpus=nowhere.txt: not a readable text file"),
        ],
        "min_p=2",
        "stop_strings=['']",
        "verifier=typical temperature=0.8",
    ),
)
def test_bad_settings_are_refused_in_one_line(run, arguments, expected):
    code, _, err = run(*SMALL, *arguments.split())
    assert code == 1
    assert len(err.strip().splitlines()) == 1, err
    assert re.search(expected, err), err


@pytest.mark.nightly
def test_a_sweep_over_verifiers_shows_what_sampling_costs_and_gains(run):
    code, out, _ = run(*SAMPLED, "verifier=rejection,block,naive", "batch=1,4", "data.num_prompts=6", "-m")
    assert code == 0
    points = {(p["verifier"], p["batch"]): p for p in last_document(out)["points"]}
    assert len(points) == 6
    for (verifier, batch), point in points.items():
        assert point["exact_match"] == 1.0, "the same method, or plain sampling, at batch 1"
        assert point["temperature"] == 0.8
        assert 0 < point["acceptance_rate"] < 1
        alone = points[verifier, 1]
        assert (point["num_drafted"], point["num_accepted"]) == (alone["num_drafted"], alone["num_accepted"]), batch
    assert len({p["baseline"] for p in points.values()}) == 2, "one baseline per batch size, whatever the verifier"
    for heading in ("accept", "tokens/call", "tokens/s", "vs plain"):
        assert heading in out
    assert "temperature 0.8" in out


@pytest.mark.slow
def test_naive_is_compared_with_plain_sampling_and_other_verifiers_with_themselves(run):
    arguments = [*SAMPLED, "batch=4", "baseline=false"]
    outputs, references = {}, {}
    for method in ("drafter=none verifier=naive", "verifier=naive", "verifier=block"):
        code, out, _ = run(*arguments, *method.split())
        assert code == 0
        point = last_document(out)
        references[method] = point["reference"]
        outputs[method] = output_ids(point)
    assert references["drafter=none verifier=naive"] == references["verifier=naive"] != references["verifier=block"]
    assert outputs["drafter=none verifier=naive"] == outputs["verifier=naive"] != outputs["verifier=block"]


@pytest.mark.slow
def test_a_draft_length_that_looks_at_the_batch_has_no_reference_when_it_samples(run):
    arguments = [*SAMPLED, "verifier=block", "draft_length=lockstep", "baseline=false"]
    code, out, _ = run(*arguments)
    assert code == 0
    assert last_document(out)["exact_match"] is None
    assert " exact" not in out
    code, out, _ = run(*arguments)
    assert last_document(out)["skipped"], "no reference is asked for, so the result answers"


@pytest.mark.slow
def test_another_seed_samples_other_tokens(run):
    texts = []
    for seed in (0, 1):
        # The synthetic pair's weights follow the seed too, so the pair that is loaded from disk is used here.
        code, out, _ = run(*SMALL[3:], "temperature=1", "verifier=block", "baseline=false", f"seed={seed}")
        assert code == 0
        texts.append(output_ids(last_document(out)))
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    "drafter", short_only(["self", "prompt_lookup", "trigram", "scripted", "retokenize"], "trigram", ci=["self"])
)
def test_every_drafter_runs_and_is_exact(run, drafter):
    code, out, err = run(*SMALL, "runner.dtype=float64", f"drafter={drafter}", "scheduler=exspec")
    assert code == 0, err
    point = last_document(out)
    assert point["exact_match"] == 1.0
    assert point["drafter"] == drafter


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["scripted", "trigram"])
def test_chosen_drafts_are_plain_samplings_own_tokens_under_naive(run, drafter):
    code, out, err = run(*SAMPLED, f"drafter={drafter}", "verifier=naive", "baseline=false")
    assert code == 0, err
    point = last_document(out)
    assert point["exact_match"] == 1.0
    assert drafter == "trigram" or point["acceptance_rate"] > 0.4


@pytest.mark.slow
def test_typical_runs_when_it_is_asked_for(run):
    code, out, _ = run(*SAMPLED, "verifier=typical", "allow_lossy=true", "baseline=false")
    assert code == 0
    assert last_document(out)["status"] == "done"


def test_stop_strings_end_rows_and_reach_the_reference(run):
    arguments = [*SMALL, "runner.dtype=float64", "baseline=false", "max_new_tokens=40"]
    code, out, _ = run(*arguments, "stop_strings=[e,a]", "scheduler=exspec")
    assert code == 0
    point = last_document(out)
    assert point["exact_match"] == 1.0
    stopped = [row for row in samples(point) if row["stop_reason"] == "stop_string"]
    assert stopped
    for row in stopped:
        assert re.search("[ea]", row["text"])


@pytest.mark.slow
def test_greedy_with_a_repetition_penalty_is_exact_and_differs(run):
    outputs = []
    for penalty in ("1.0", "1.5"):
        arguments = [*SMALL, "runner.dtype=float64", "baseline=false", f"repetition_penalty={penalty}"]
        code, out, _ = run(*arguments)
        assert code == 0
        point = last_document(out)
        assert point["exact_match"] == 1.0
        outputs.append(output_ids(point))
    assert outputs[0] != outputs[1]


@pytest.mark.slow
def test_a_draft_with_another_vocabulary_runs_by_way_of_text(run, tmp_path):
    folder = tmp_path / "draft"
    small_llama(1, torch.float32, layers=1).save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    arguments = [*SMALL[3:], "runner.dtype=float64", "baseline=false", f"pair.draft={folder}"]
    code, _, err = run(*arguments)
    assert code == 1
    assert re.search("vocabulary sizes differ: target [0-9]+, draft 61.*or drafter=retokenize", err), err
    code, out, err = run(*arguments, "drafter=retokenize")
    assert code == 0, err
    point = last_document(out)
    assert point["exact_match"] == 1.0
    assert point["num_drafted"] > 0


def test_a_third_party_verifier_that_cannot_sample_is_refused_before_the_first_round(run, own_plugins):
    """It need not declare that: a class without ``verify_sampled`` says so itself."""

    @registry.register("verifier", "test_greedy_only")
    class GreedyOnly(Verifier):
        """The longest match."""

        def verify(self, draft, logits_BTV):
            return longest_match(draft, logits_BTV.argmax(-1))

    code, _, err = run("verifier=test_greedy_only", "temperature=0.5", "data.num_prompts=1")
    assert code == 1
    assert "temperature=0.5 with verifier=test_greedy_only: set verifier=rejection" in err
