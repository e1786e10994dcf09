"""Small random models with recurrent states: in float32 the tokens of transformers' own generation, or a refusal."""

from __future__ import annotations

import copy
import random
from functools import cache

import families
import pytest
import torch
import transformers
from cases import nightly_but, short_only
from conftest import greedy_alone, perturbed
from families import VOCAB
from harness import make_engine, run_all

import specdec
from specdec.alignment.eqspec import EqspecAlignment
from specdec.alignment.inplace import InplaceAlignment
from specdec.core.clock import Clock
from specdec.drafters.context import DrafterContext
from specdec.drafters.lookup import PromptLookupDrafter
from specdec.errors import ConfigError, PairError
from specdec.models.causal_lm import CausalLM
from specdec.models.compatibility import supported

NEW = 20
SIZES = families.SIZES | families.SPECIAL | {"num_hidden_layers": 4, "max_position_embeddings": 256}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
MAMBA_2 = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8}
MIXED = {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 4, "num_experts_per_tok": 2}
# The least time step bounds the chunked form alone: where it shows, the model has no defined output.
NEMOTRON = {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8}
FAMILIES = {
    "Qwen3Next": {"head_dim": 16, **DELTA, **EXPERTS, "moe_intermediate_size": 24},
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "Lfm2": {"full_attn_idxs": [1, 3]},
    "Qwen3_5": {"head_dim": 16, **DELTA},
    "Bamba": {"attn_layer_indices": [1, 3], **MAMBA},
    "GraniteMoeHybrid": {**MIXED, **MAMBA, "shared_intermediate_size": 24},
    "FalconH1": {"mamba_d_ssm": 64, **MAMBA},
    "NemotronH": {"hybrid_override_pattern": "M*M-", **NEMOTRON, "time_step_min": 1e-9},
    "Mamba2": {**MAMBA_2, "expand": 2},
    "FalconMamba": {"state_size": 8, "initializer_range": 0.5},
    "OlmoHybrid": {},
}
NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in list(FAMILIES)[3:]]


@cache
def target_of(name: str) -> CausalLM:
    config = getattr(transformers, f"{name}TextConfig" if name == "Qwen3_5" else f"{name}Config")
    torch.manual_seed(0)
    return supported(getattr(transformers, f"{name}ForCausalLM")(config(**SIZES | FAMILIES[name])).eval(), name)


@cache
def draft_of(name: str) -> CausalLM:
    target = target_of(name)
    return CausalLM(perturbed(target.module, 0.04), target.architecture.mask_form)


def made_prompts() -> list[list[int]]:
    """Ragged ones; the longest is read in the chunked form even where it continues a row."""
    rng = random.Random(5)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in (1, 9, 4, 17, 9, 2, 80, 11)]


@cache
def expected_of(name: str) -> tuple[list[list[int]], frozenset[int]]:
    """Outputs of each row alone up to the first stop token, and the stop tokens, which end rows at different times."""
    outputs = [greedy_alone(target_of(name), prompt, NEW, frozenset()) for prompt in made_prompts()]
    assert sum(len(set(output)) > 4 for output in outputs) >= 3, "an oracle of one repeated token is worth nothing"
    stops = frozenset({outputs[1][7], outputs[3][12]})
    ends = [next((i + 1 for i, token in enumerate(output) if token in stops), NEW) for output in outputs]
    assert len(set(ends)) > 2
    return [output[:end] for output, end in zip(outputs, ends, strict=True)], stops


@pytest.mark.parametrize("name", nightly_but([*list(FAMILIES)[:3], *NIGHTLY], "Lfm2"))
def test_tokens_equal_transformers_own(name):
    """Target and draft both have states; rows are ragged, end at different times, and are refilled."""
    expected, stops = expected_of(name)
    for batch, scheduler in ((1, "static"), (4, "continuous"), (8, "static")):
        engine = make_engine(
            target_of(name), draft_of(name), scheduler=scheduler, batch=batch, gamma=4, alignment=InplaceAlignment
        )
        rows, _ = run_all(engine, made_prompts(), NEW, stops)
        assert [row.output_ids for row in rows] == expected, f"batch {batch}"
        assert 0 < sum(row.num_accepted for row in rows) < sum(row.num_drafted for row in rows)


@pytest.mark.slow
def test_prompts_read_in_parts_and_a_drafter_without_a_model():
    target, (expected, stops) = target_of("Qwen3Next"), expected_of("Qwen3Next")
    settings = {"batch": 3, "gamma": 4, "scheduler": "continuous", "alignment": InplaceAlignment, "prefill_chunk": 70}
    context = DrafterContext(target, None, lambda model: InplaceAlignment(model, Clock()), Clock())
    drafter = PromptLookupDrafter(context, max_ngram=2, min_ngram=1, matches=1)
    engine = make_engine(target, drafter=drafter, **settings)
    rows, _ = run_all(engine, made_prompts(), NEW, stops)
    assert [row.output_ids for row in rows] == expected


@pytest.mark.slow
def test_trees_and_the_api():
    """A node of a tree starts from its parent's checkpoint."""
    prompts, (expected, stops) = made_prompts()[:4], expected_of("Jamba")
    out = specdec.generate(
        target_of("Jamba"),
        draft_of("Jamba"),
        prompts,
        tree="beam",
        tree_settings={"width": 3},
        gamma=3,
        max_new_tokens=NEW,
        eos_token_id=sorted(stops),
        pad_token_id=0,
        return_dict_in_generate=True,
    )
    start = max(map(len, prompts))
    for row, output in zip(out.sequences.tolist(), expected, strict=False):
        assert row[start : start + len(output)] == output


@pytest.mark.parametrize("name", short_only(["Jamba", "Lfm2"], "Lfm2"))
def test_the_first_layers_of_a_target_draft(name):
    """Of a config that derives the kinds of its layers, and of one that lists them; both models share mixers."""
    expected, stops = expected_of(name)
    settings = {"max_new_tokens": NEW, "eos_token_id": sorted(stops), "pad_token_id": 0}
    out = specdec.generate(target_of(name), "self", made_prompts(), gamma=3, batch=3, **settings)
    start = max(map(len, made_prompts()))
    for row, output in zip(out.tolist(), expected, strict=True):
        assert row[start : start + len(output)] == output


@pytest.mark.slow
def test_sampled_rows_are_those_of_plain_sampling():
    settings = {"do_sample": True, "temperature": 0.8, "seed": 3, "max_new_tokens": 12, "pad_token_id": 0}
    models, prompts = (target_of("Lfm2"), draft_of("Lfm2")), made_prompts()[:5]
    plain = specdec.generate(models[0], None, prompts, batch=1, **settings)
    drafted = specdec.generate(*models, prompts, gamma=3, verifier="naive", **settings)
    assert drafted.tolist() == plain.tolist()
    rejected = specdec.generate(*models, prompts, gamma=3, verifier="rejection", **settings)
    assert (
        rejected.tolist()
        == specdec.generate(*models, prompts, gamma=3, verifier="rejection", batch=2, **settings).tolist()
    )


def test_a_forward_that_another_library_replaced_stays():
    """Hooks that spread a model over devices, and patches of kernels, are attributes of a module."""
    module, calls = copy.deepcopy(target_of("Lfm2").module), []
    mixer = module.model.layers[0].conv
    own = mixer.forward

    def replaced(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    mixer.forward = replaced
    model = CausalLM(module, target_of("Lfm2").architecture.mask_form)
    rows, _ = run_all(make_engine(model, alignment=InplaceAlignment, gamma=0), [[3, 1, 4]], 5)
    assert mixer.forward is replaced
    assert len(calls) > 5
    assert rows[0].output_ids == greedy_alone(target_of("Lfm2"), [3, 1, 4], 5, frozenset())


def test_numerics_are_not_invariant():
    with pytest.raises(ConfigError, match="recurrent states of a Lfm2ForCausalLM are computed by kernels that are not"):
        target_of("Lfm2").execute("auto", "invariant")


def test_other_alignments_refuse():
    with pytest.raises(PairError, match="only alignment=inplace restores them"):
        run_all(make_engine(target_of("Lfm2"), alignment=EqspecAlignment), [[1, 2]], 2)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    short_only(
        [
            ("Zamba2", {"mamba_headdim": 8, "n_mamba_heads": 8, "mamba_d_state": 8}, "no defined reference output"),
            ("NemotronH", FAMILIES["NemotronH"] | {"time_step_min": 0.001}, "no defined reference output"),
            ("RecurrentGemma", {"lru_width": 32, "block_types": ["recurrent", "attention"]}, "outside of the cache"),
        ],
        "NemotronH",
        "RecurrentGemma",
    ),
)
def test_what_cannot_be_restored_is_refused(name, settings, reason):
    torch.manual_seed(0)
    more = {"layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]} if name == "Zamba2" else {}
    config = getattr(transformers, f"{name}Config")(**SIZES, **settings, **more)
    with pytest.raises(PairError, match=reason):
        supported(getattr(transformers, f"{name}ForCausalLM")(config).eval(), name)
