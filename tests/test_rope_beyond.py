"""Target and draft with different scaled rotations, rows longer than the context that these were made from."""

from __future__ import annotations

import pytest
import torch
from conftest import greedy_alone, no_library, small_llama
from harness import make_engine, run_all

import specdec
from specdec.alignment.inplace import InplaceAlignment
from specdec.errors import DataError
from specdec.models.causal_lm import CausalLM

ORIGINAL, VOCAB = 32, 61
OLD = {"original_max_position_embeddings": ORIGINAL}
REACHES = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, **OLD},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **OLD},
}
ENDS = {
    "dynamic": {"factor": 4.0},
    "longrope": {"factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, **OLD},
}
"""Beyond their original length, a longer row changes the rotations of all rows of a forward, and of cached keys."""


def scaled(kind: str, positions: int) -> CausalLM:
    rope = {"rope_type": kind, "rope_theta": 1e4, **{**REACHES, **ENDS}[kind]}
    return CausalLM(small_llama(0, torch.float32, rope_parameters=rope, max_position_embeddings=positions))


CASES = [
    ("linear", "yarn", "eager"),
    ("yarn", "llama3", "fused"),
    ("llama3", "linear", "native"),
    pytest.param("linear", "yarn", "native", marks=pytest.mark.slow),
    pytest.param("yarn", "llama3", "native", marks=pytest.mark.slow),
    pytest.param("llama3", "linear", "eager", marks=pytest.mark.slow),
    pytest.param("linear", "yarn", "fused", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("target", "draft", "execution"), CASES)
def test_rows_beyond_the_original_context_are_those_of_generate(target, draft, execution):
    """The weights are the same, the rotations differ: some drafted tokens are accepted, and some are not."""
    if execution == "native" and no_library() is not None:
        pytest.skip("no library here")
    models = [scaled(kind, 4 * ORIGINAL) for kind in (target, draft)]
    prompts = [[(start + 7 * i + i * i) % VOCAB for i in range(size)] for start, size in ((1, 50), (2, 20), (3, 70))]
    expected = [greedy_alone(models[0], prompt, 24, frozenset()) for prompt in prompts]
    for model in models:
        assert model.context_length == 4 * ORIGINAL
        model.execute(execution)
    engine = make_engine(*models, batch=3, gamma=3, alignment=InplaceAlignment, prefill_chunk=16)
    rows, _ = run_all(engine, prompts, 24)
    assert [row.output_ids for row in rows] == expected
    assert 0 < sum(row.num_accepted for row in rows) < sum(row.num_drafted for row in rows)


@pytest.mark.parametrize(("kind", "role"), [("dynamic", "draft"), ("longrope", "target")])
def test_rows_end_where_their_rotations_would_change(kind, role):
    models = {"target": scaled("linear", 4 * ORIGINAL), "draft": scaled("linear", 4 * ORIGINAL)}
    models[role] = scaled(kind, ORIGINAL if kind == "dynamic" else 4 * ORIGINAL)
    assert models[role].context_length == ORIGINAL
    with pytest.raises(DataError, match=rf"fills the {role}'s context of {ORIGINAL}: shorten it"):
        specdec.generate(models["target"].module, models["draft"].module, [[5] * 40], max_new_tokens=4)
