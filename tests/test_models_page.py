"""The table of architectures: a sample of its rows, and that it would notice a wrong token or a model that hangs."""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import make_models_page
import model_check
import pytest
import transformers
from cases import short_only
from model_check import EXACT, REFUSED, STRATEGIES, TRACEBACK, WRONG, Result
from model_reference import find_bites, find_reference, generate_alone
from model_zoo import Entry, build, entries

ROOT = Path(__file__).parent.parent

EXACT_FAMILIES = [
    *("llama", "mistral", "qwen3 (window)", "gpt2", "gpt_neox", "gemma3_text", "falcon", "mixtral (window)"),
    *("qwen3_moe", "phi3", "granite", "llama4_text (no temperature)", "deepseek_v3", "mimo_v2_flash"),
    *("xglm", "roberta"),
]
REFUSED_FAMILIES = ["llama4_text", "llama (window left over)", "gpt_neo", "bloom", "moshi"]
"""A left-over window: transformers' own forward ignores it, and its own cache does not."""
BY_NAME = {entry.name: entry for entry in entries()}


IN_CI = ["llama", "qwen3 (window)", "moshi"]


@pytest.mark.parametrize("name", short_only([*EXACT_FAMILIES, *REFUSED_FAMILIES], "gpt2", "bloom", ci=IN_CI))
def test_every_strategy_says_what_the_model_itself_says(name):
    result = model_check.check(BY_NAME[name])
    right = EXACT if name in EXACT_FAMILIES else REFUSED
    assert set(result.outcomes) == set(STRATEGIES)
    assert set(result.outcomes.values()) == {right}, f"{result.outcomes}: {result.remark}"
    assert EXACT not in result.outcomes.values() or 0 < result.acceptance < 1


@pytest.mark.slow
def test_the_sample_bites():
    """Windows, chunks and scales begin within the fifty tokens, or they would prove nothing."""
    names = ("mistral", "llama4_text")
    bites = {name: find_bites(BY_NAME[name], find_reference(BY_NAME[name])) for name in names}
    assert bites == {"mistral": ["sliding_window"], "llama4_text": ["attention_chunk_size", "floor_scale"]}


@pytest.fixture(scope="module")
def misled():
    """A model, and what the same weights would say with a window twice as long."""
    reference = find_reference(BY_NAME["mistral"])
    longer = build(BY_NAME["mistral"], sliding_window=16)
    longer.load_state_dict(reference.module.state_dict())
    return replace(reference, outputs=[generate_alone(longer, row)[0] for row in reference.prompts])


@pytest.mark.slow
def test_a_wrong_token_is_found(misled):
    result = Result("mistral")
    model_check.decode_all(misled, misled.module, result)
    assert set(result.outcomes.values()) == {WRONG}
    assert result.failed
    assert "differs from new token" in result.remark


@pytest.mark.slow
def test_a_near_tie_is_decided_in_float64(misled, monkeypatch):
    monkeypatch.setattr(model_check, "MARGIN", math.inf)  # so that the difference counts as a near tie
    monkeypatch.setattr(model_check, "STRATEGIES", ("inplace",))
    result = Result("mistral")
    model_check.decode_all(misled, misled.module, result)
    assert result.outcomes == {"inplace": EXACT}
    assert "float64" in result.remark


@pytest.mark.nightly
def test_a_model_that_hangs_or_dies_costs_its_own_row(monkeypatch):
    check = model_check.check

    def checked(entry):
        if entry.model_type == "gpt2":
            time.sleep(60)
        if entry.model_type == "opt":
            os._exit(1)
        return check(entry)

    monkeypatch.setattr(model_check, "check", checked)
    results = make_models_page.run_all([Entry("gpt2"), Entry("opt"), Entry("llama")], jobs=2, limit_s=12)
    assert [make_models_page.verdict(result) for result in results] == [TRACEBACK, TRACEBACK, EXACT]
    assert [result.remark for result in results] == ["no result after 12 s", "the process died", ""]


def test_the_page_has_a_row_for_every_architecture():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," not in text:
        pytest.skip("the page was made with another release of transformers")
    rows = re.findall(r"^\| (.+?) \| ", text, re.MULTILINE)
    assert rows[1:] == list(BY_NAME), "run `python scripts/make_models_page.py`"


@pytest.mark.nightly
def test_no_architecture_is_wrong(tmp_path):
    assert make_models_page.main(["--page", str(tmp_path / "models.md")]) == 0
