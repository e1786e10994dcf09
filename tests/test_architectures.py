"""Small random models of many families: in float64 the tokens of transformers' own generation, or a clear refusal."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
import transformers
from cases import all_pairs, short_only
from conftest import greedy_alone, perturbed
from families import FAMILIES, NEW, SIZES, SPECIAL, VOCAB, build
from harness import make_engine, run_all

from specdec.alignment.checked import CheckedAlignment
from specdec.alignment.eqspec import EqspecAlignment
from specdec.alignment.inplace import InplaceAlignment
from specdec.errors import PairError
from specdec.models.causal_lm import CausalLM
from specdec.models.compatibility import supported

STRATEGIES = {"eqspec": EqspecAlignment, "inplace": InplaceAlignment}


@pytest.fixture(scope="module", params=FAMILIES)
def target(request: pytest.FixtureRequest) -> CausalLM:
    return cached_target(request.param)


cached_target = cache(build)  # the cases of several families take turns


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in (1, 9, 4, 17, 9, 2)]


@pytest.fixture(scope="module")
def expected(target: CausalLM, prompts: list[list[int]]) -> list[list[int]]:
    return expected_of(target, tuple(map(tuple, prompts)))


@cache
def expected_of(target: CausalLM, prompts: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    outputs = [greedy_alone(target, list(prompt), NEW, frozenset()) for prompt in prompts]
    assert sum(len(set(output)) > 4 for output in outputs) >= 3, "an oracle of one repeated token is worth nothing"
    return outputs


@pytest.mark.parametrize(
    ("target", "strategy", "scheduler"),
    short_only(
        all_pairs(list(FAMILIES), list(STRATEGIES), ["static", "exspec"]),
        ("llama", "inplace", "exspec"),
        ("qwen3", "inplace", "static"),
        ("mistral, sliding", "inplace", "exspec"),
        ("gpt2", "eqspec", "static"),
        ("opt", "inplace", "exspec"),
        ci=[(family, "inplace", "exspec") for family in ("gemma3", "gemma2", "gpt_neox")],
    ),
    indirect=["target"],
)
def test_tokens_equal_transformers_own(target, prompts, expected, strategy, scheduler):
    """Every call of target and draft is checked against the contract too."""
    draft = CausalLM(perturbed(target.module, 0.04))

    def align(model, clock):
        return CheckedAlignment(STRATEGIES[strategy](model, clock), model, every=4)

    engine = make_engine(target, draft, scheduler=scheduler, batch=3, gamma=4, alignment=align)
    rows, _ = run_all(engine, prompts, NEW)
    assert [row.output_ids for row in rows] == expected


def test_the_window_of_sliding_layers_matters(prompts):
    """Otherwise the sliding families above would prove nothing."""
    sliding, full = build("mistral, sliding"), build("mistral")
    full.module.load_state_dict(sliding.module.state_dict())
    assert greedy_alone(sliding, prompts[3], NEW, frozenset()) != greedy_alone(full, prompts[3], NEW, frozenset())


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("Rwkv", {}, "takes no position ids"),
        ("RecurrentGemma", {"lru_width": 32, "block_types": ["recurrent", "attention"]}, "state outside of the cache"),
        ("Bloom", {"n_head": 4, "n_layer": 2}, "takes no position ids"),
        ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "takes no position ids"),
        ("Falcon", {"alibi": True}, r"biases \(ALiBi\) from the columns"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(name, config, reason):
    known = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **config,
        **SPECIAL,
    }
    module = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**known))
    with pytest.raises(PairError, match=reason) as refusal:
        supported(module.eval(), f"pair.target={name}")
    assert str(refusal.value).count("\n") == 0
    assert name in str(refusal.value)


def test_rows_of_a_longrope_model_end_where_its_rotations_would_change(prompts):
    """Beyond, one long row rotates its neighbours by other frequencies."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}
    config = transformers.Phi3Config(
        **{**SIZES, "rope_parameters": rope, "original_max_position_embeddings": 32, **SPECIAL}
    )
    torch.manual_seed(0)
    model = CausalLM(transformers.Phi3ForCausalLM(config).eval())
    assert model.context_length == 32
    short, long = torch.tensor([prompts[1][:6]]), torch.tensor([[5] * 40])
    both = torch.cat([torch.nn.functional.pad(short, (0, 34)), long])
    with torch.inference_mode():
        alone, together = model.module(short).logits[0, 5], model.module(both).logits[0, 5]
    assert (alone - together).abs().max() > 1e-3, "or there would be nothing to guard against"
