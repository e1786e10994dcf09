"""Every execution computes what transformers' own code computes, under every alignment strategy."""

from __future__ import annotations

import random

import pytest
import torch
from cases import all_pairs, short_only
from conftest import greedy_alone, perturbed
from families import FAMILIES, NEW, VOCAB, build
from harness import make_engine, run_all
from torch import nn
from transformers import AutoModelForCausalLM

from specdec.alignment.checked import CheckedAlignment
from specdec.alignment.eqspec import EqspecAlignment
from specdec.alignment.expansion import ExpansionAlignment
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.masked import MaskedAlignment
from specdec.alignment.rollback import RollbackAlignment
from specdec.core.clock import Clock
from specdec.core.outputs import LOGITS, NORMED, Outputs
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.linear import PACK_FROM_WEIGHTS, Linear, joined

FUSED = ("llama", "qwen3", "mistral", "mistral, sliding")
STRATEGIES = {
    "eqspec": EqspecAlignment,
    "inplace": InplaceAlignment,
    "masked": MaskedAlignment,
    "rollback": RollbackAlignment,
    "expansion": ExpansionAlignment,
}
PROMPTS = [[random.Random(length).randrange(VOCAB) for _ in range(length)] for length in (1, 9, 4, 17, 9, 2)]


GIVEN = {
    "logits": LOGITS,
    "hidden": Outputs(logits=False, hidden=(1, NORMED, 0)),
    "both": Outputs(hidden=(NORMED,)),
}


def logits_of(model: CausalLM, execution: str, gives: str = "logits") -> list[torch.Tensor]:
    """Logits of ragged forwards, with rejected tokens and rows in another order."""
    model.execute(execution)
    alignment = InplaceAlignment(model, Clock())
    alignment.admit([0, 1, 2], PROMPTS[1:4])
    with model.call_options(GIVEN[gives]):
        first = alignment.forward([0, 1, 2], torch.arange(15).view(3, 5))
        alignment.commit([0, 1, 2], [10, 9, 19])
        second = alignment.forward([2, 0], torch.arange(4).view(2, 2))
        alone = alignment.forward([1], torch.arange(3).view(1, 3))
    model.execute("eager")
    return [first, second, alone]


@pytest.mark.parametrize("gives", short_only(GIVEN, "both"))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("family", FUSED)
def test_fused_logits_equal_eager_logits(family, dtype, tolerance, gives):
    model = CausalLM(build(family).module.to(dtype))
    for eager, fused in zip(logits_of(model, "eager", gives), logits_of(model, "fused", gives), strict=True):
        size = float(eager.abs().max())  # of hidden states before a norm: far above 1
        torch.testing.assert_close(fused, eager, atol=tolerance * size, rtol=tolerance)


@pytest.mark.parametrize(
    ("strategy", "scheduler", "dtype"),
    short_only(
        all_pairs(list(STRATEGIES), ["static", "exspec"], [torch.float64, torch.float32]),
        ("inplace", "exspec", torch.float64),
        ci=["masked"],
    ),
)
def test_fused_tokens_equal_transformers_own_under_every_strategy(strategy, scheduler, dtype):
    target = CausalLM(build("llama").module.to(dtype))
    draft = CausalLM(perturbed(target.module, 0.04))
    expected = [greedy_alone(target, prompt, NEW, frozenset()) for prompt in PROMPTS]
    target.execute("fused")
    draft.execute("fused")

    def align(model, clock):
        return CheckedAlignment(STRATEGIES[strategy](model, clock), model, every=4)

    rows, _ = run_all(make_engine(target, draft, scheduler=scheduler, batch=3, gamma=4, alignment=align), PROMPTS, NEW)
    assert [row.output_ids for row in rows] == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", pytest.param("qwen3", marks=pytest.mark.nightly)])
def test_compiled_tokens_equal_transformers_own(family):
    target = CausalLM(build(family).module)
    draft = CausalLM(perturbed(target.module, 0.04))
    expected = [greedy_alone(target, prompt, NEW, frozenset()) for prompt in PROMPTS]
    assert target.execute("compiled").prepare_s > 0
    rows, _ = run_all(
        make_engine(target, draft, scheduler="static", batch=3, gamma=4, alignment=InplaceAlignment), PROMPTS, NEW
    )
    assert [row.output_ids for row in rows] == expected


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(FUSED)))
def test_auto_runs_other_architectures_eagerly_and_fused_says_why_not(family):
    model = build(family)
    assert model.execute("auto").name == "eager"
    with pytest.raises(ConfigError, match=r"execution=fused cannot run this model: it knows .* set execution=eager"):
        model.execute("fused")


def test_an_unknown_execution_lists_the_known_ones():
    with pytest.raises(ConfigError, match="did you mean 'fused'"):
        build("llama").execute("fuzed")


def test_fusing_keeps_one_copy_of_the_weights_which_the_model_still_shares_and_saves(tmp_path):
    model = build("llama")
    before = {name: weight.clone() for name, weight in model.module.state_dict().items()}
    model.execute("fused")
    attention = model.module.model.layers[0].self_attn
    assert attention.k_proj.weight.untyped_storage().data_ptr() == attention.q_proj.weight.untyped_storage().data_ptr()
    with torch.no_grad():
        attention.v_proj.weight.mul_(2)  # as an optimizer would: seen by both executions
    for eager, fused in zip(logits_of(model, "eager"), logits_of(model, "fused"), strict=True):
        torch.testing.assert_close(fused, eager, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        attention.v_proj.weight.div_(2)
    model.module.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in before.items())


def test_joining_again_finds_the_joined_weights():
    parts = [nn.Linear(8, size, bias=False) for size in (8, 4, 4)]
    first, again = joined(*parts), joined(*parts)
    assert first.weight_OI.data_ptr() == again.weight_OI.data_ptr()
    assert torch.equal(again.weight_OI, torch.cat([part.weight for part in parts]))


@torch.inference_mode()
def test_large_float32_weights_are_packed_and_say_what_that_holds():
    torch.manual_seed(0)
    big, bias = torch.randn(1024, PACK_FROM_WEIGHTS // 1024), torch.randn(1024)
    packed, plain = Linear(big, bias), Linear(big, bias, may_pack=False)
    assert packed.packed_bytes == 4 * PACK_FROM_WEIGHTS
    assert plain.packed_bytes == Linear(big.double(), bias.double()).packed_bytes == 0
    for num_rows in (1, 5, 16, 64):
        x, residual = torch.randn(num_rows, big.shape[1]), torch.randn(num_rows, 1024)
        torch.testing.assert_close(packed(x), plain(x), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(packed.added_to(residual, x), plain.added_to(residual, x), atol=1e-3, rtol=1e-4)
