"""Published heads: lossless in every batch, and the distribution of what they draft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import short_only
from conftest import VOCAB, greedy_alone, small_llama
from harness import ALIGNMENTS, context_for, make_engine, run_all
from head_folders import KINDS, UNTRAINED, config_of, shapes_of, write
from safetensors.torch import load_file
from torch.nn.functional import silu

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.heads.__main__ import main
from specdec.heads.export import save_head
from specdec.heads.weights import load_head, untrained_head
from specdec.models.causal_lm import CausalLM
from specdec.registry import create

NEW = 14


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64))


@pytest.fixture(scope="module")
def truth(model, prompts) -> list[list[int]]:
    return [greedy_alone(model, prompt, NEW, frozenset()) for prompt in prompts]


def settings_of(name: str, folders: dict[str, str]) -> tuple[str, dict]:
    if name == "specblock tree":
        return "specblock", {"path": folders["specblock"], "nodes": 12}
    return (KINDS[name], {"path": folders[name]}) if name in folders else (name, {"untrained": True})


# --- lossless ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch", "alignment"),
    [
        *(("eagle", 8, "inplace"), ("eagle3", 4, "masked"), ("eagle3", 8, "rollback"), ("medusa", 4, "expansion")),
        *(("dflash", 8, "eqspec"), ("dspark", 4, "inplace"), ("specblock", 4, "masked")),
        *(("specblock tree", 8, "inplace"), ("mimo", 4, "eqspec"), ("peagle", 8, "inplace"), ("mtp", 8, "expansion")),
        *(pytest.param(name, 1, "eqspec", marks=pytest.mark.slow) for name in ("eagle", "specblock tree")),
        pytest.param("dflash", 1, "masked", marks=pytest.mark.slow),
        pytest.param("eagle3", 1, "inplace", marks=pytest.mark.slow),
    ],
)
def test_outputs_are_the_targets_own_at_every_batch_size(model, prompts, truth, folders, name, batch, alignment):
    drafter, settings = settings_of(name, folders)
    drafter = create("drafter", drafter, context_for(model, alignment), **settings)
    scheduler = "continuous" if batch == 4 else "static"
    engine = make_engine(
        model, drafter=drafter, alignment=ALIGNMENTS[alignment], scheduler=scheduler, batch=batch, gamma=3
    )
    budgets = [NEW - i % 4 for i in range(len(prompts))]
    rows, rounds = run_all(engine, prompts, budgets)
    for row, expected in zip(rows, truth, strict=True):
        assert row.output_ids == expected[: row.max_new_tokens]
    assert sum(sum(outcome.num_drafted) for outcome in rounds) > 100


@pytest.mark.parametrize(
    "name", short_only(["eagle3", "peagle", "specblock", "dflash", "dspark", "medusa"], "eagle3", "dflash", "medusa")
)
def test_sampled_rows_keep_the_tokens_of_plain_sampling(model, prompts, folders, name):
    """Chains of every law, beside greedy rows; and rejection takes their laws as they are."""
    outputs = {}
    for drafter, verifier in ((None, "naive"), (name, "naive"), (name, "rejection")):
        made = None
        if drafter is not None:
            kind, settings = settings_of(drafter, folders)
            made = create("drafter", kind, context_for(model), **settings)
        engine = make_engine(
            model,
            drafter=made,
            verifier=create("verifier", verifier),
            alignment=ALIGNMENTS["inplace"],
            batch=4,
            gamma=3,
        )
        rows = [
            Sequence(i, list(prompt), 8, sampling=SamplingParams(temperature=0.9 if i % 2 else 0.0, seed=i))
            for i, prompt in enumerate(prompts[:6])
        ]
        pool = SequencePool(rows)
        while not pool.done:
            engine.step(pool)
        outputs[drafter, verifier] = [row.output_ids for row in rows]
    assert outputs[name, "naive"] == outputs[None, "naive"]
    assert outputs[name, "rejection"][::2] == outputs[None, "naive"][::2], "greedy rows"


def test_a_long_prompt_is_read_in_parts(model, folders, monkeypatch):
    """With the same drafts as at once, beside short rows."""
    monkeypatch.setattr("specdec.heads.steps.MAX_ENTRIES", 4)
    prompts = [[(7 * i) % VOCAB for i in range(count)] for count in (23, 2, 9)]
    drafts = []
    for size in (4, 500):
        monkeypatch.setattr("specdec.heads.steps.MAX_ENTRIES", size)
        engine = make_engine(
            model, drafter=create("drafter", "eagle3", context_for(model), path=folders["eagle3"]), batch=3, gamma=3
        )
        rows, rounds = run_all(engine, prompts, 6)
        drafts.append(([row.output_ids for row in rows], [outcome.num_accepted for outcome in rounds]))
    assert drafts[0] == drafts[1]


def bigram_target() -> CausalLM:
    """Its next token depends on the last one alone: attention and MLP add nothing."""
    module = small_llama(3, torch.float32, layers=2)
    with torch.no_grad():
        for part in module.model.layers:
            part.self_attn.o_proj.weight.zero_()
            part.mlp.down_proj.weight.zero_()
    return CausalLM(module)


def oracle(layout: str, target: CausalLM, folder: Path) -> str:
    """A head that knows the target: its layers add nothing, and its inputs are the token embeddings alone."""
    size, config = 32, config_of(layout, 32, VOCAB)
    embeds_VD, head_VD = target.module.model.embed_tokens.weight, target.module.lm_head.weight
    shapes = shapes_of(layout, size, VOCAB)
    if layout == "dspark":
        config |= {"markov_rank": size, "dflash_config": {"target_layer_ids": [0, 1, 0], "mask_token_id": 7}}
        shapes |= {f"markov_head.markov_w{i}.weight": (VOCAB, size) for i in (1, 2)}
        shapes["confidence_head.proj.weight"] = (1, 2 * size)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    if layout == "dspark":  # the block says nothing, and the bias is the target's law
        tensors["markov_head.markov_w1.weight"] = embeds_VD / embeds_VD.square().mean(-1, keepdim=True).sqrt()
        tensors["markov_head.markov_w2.weight"] = head_VD
    else:
        name, first = ("fc.weight", True) if layout == "eagle" else ("model.mtp_layers.0.input_proj.weight", False)
        eye, nothing = torch.eye(size), torch.zeros(size, size)
        tensors[name] = torch.cat([eye, nothing] if first else [nothing, eye], dim=1)
        tensors |= {key: torch.ones_like(value) for key, value in tensors.items() if "norm" in key}
    return write(folder, config, {key: value.detach().clone() for key, value in tensors.items()})


@pytest.mark.parametrize("layout", ["eagle", "dspark", "mimo"])
def test_a_head_that_knows_the_target_is_accepted_whole(layout, prompts, tmp_path):
    target = bigram_target()
    drafter = create("drafter", KINDS[layout], context_for(target), path=oracle(layout, target, tmp_path))
    rows, rounds = run_all(make_engine(target, drafter=drafter, batch=4, gamma=3), prompts, 13)
    drafted, accepted = (sum(sum(getattr(r, name)) for r in rounds) for name in ("num_drafted", "num_accepted"))
    assert accepted == drafted > 60
    assert [row.output_ids for row in rows] == [greedy_alone(target, prompt, 13, frozenset()) for prompt in prompts]


# --- the law of a draft -------------------------------------------------------------------------------------------


def test_medusa_drafts_by_its_blocks(model, folders):
    drafter = create("drafter", "medusa", context_for(model), path=folders["medusa"])
    tensors = load_file(Path(folders["medusa"]) / "model.safetensors")
    hidden_BD = torch.randn(5, 32, dtype=torch.float64)
    for g in range(3):
        block, bias, head = (
            tensors[f"{g}.{name}"].double() for name in ("0.linear.weight", "0.linear.bias", "1.weight")
        )
        expected = (hidden_BD + silu(hidden_BD @ block.T + bias)) @ head.T
        torch.testing.assert_close(drafter._heads(hidden_BD)[:, g], expected)


def test_a_reduced_vocabulary_has_the_law_of_its_own_softmax(model, folders):
    """Probabilities over the tokens that can be drafted, and zero elsewhere; every draw is one of them."""
    drafter = create("drafter", "eagle3", context_for(model), path=folders["eagle3"])
    states: list[torch.Tensor] = []
    plain = drafter.head.logits
    drafter.head.logits = lambda states_BND: [states.append(states_BND), plain(states_BND)][1]
    rows = [Sequence(i, [3, 1, 4, 1, 5], 9, sampling=SamplingParams(temperature=0.7, seed=i)) for i in range(40)]
    drafter.admit(rows)
    hidden_BTD = torch.randn(1, 4, 3 * 32, dtype=torch.float64).expand(40, -1, -1)
    drafter.observe_hidden(rows, hidden_BTD, [[0, 1, 2, 3]] * 40)
    draft = drafter.propose(rows, [2] * 40)
    tensors = load_file(Path(folders["eagle3"]) / "model.safetensors")
    ids = torch.arange(VOCAB // 2) + tensors["d2t"]
    state_D = states[0][0, 0]
    normed_D = state_D * (state_D.square().mean() + 1e-5).rsqrt() * tensors["norm.weight"].double()
    expected_V = torch.zeros(VOCAB, dtype=torch.float64)
    expected_V[ids] = ((tensors["lm_head.weight"].double() @ normed_D) / 0.7).softmax(-1)
    torch.testing.assert_close(draft.probs_BGV[0, 0], expected_V, atol=1e-6, rtol=1e-5)
    assert len({tokens[0] for tokens in draft.ids}) > 3
    assert {token for tokens in draft.ids for token in tokens} <= set(ids.tolist())


@pytest.mark.parametrize("name", ["eagle", "medusa", *UNTRAINED])
def test_a_saved_head_drafts_the_same_when_it_is_loaded_again(model, folders, tmp_path, name):
    context = context_for(model)
    if name in ("eagle", "medusa"):
        head = load_head(name, folders[name], context)
    else:
        settings = {"mask_token_id": 3} if name in ("peagle", "dflash", "dspark") else {}
        head = untrained_head(name, context, **settings)
    verifier = {"name_or_path": "someone/llama", "architectures": ["LlamaForCausalLM"]}
    save_head(tmp_path, head.spec, head.tensors, num_drafted=3, verifier=verifier, dtype=torch.float32)
    again = load_head(name, str(tmp_path), context)
    assert again.tensors.keys() == head.tensors.keys()
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in head.tensors.items())
    assert again.hidden_layers == head.hidden_layers
    assert again.spec.mask_token_id == head.spec.mask_token_id
    assert main([str(tmp_path)]) == 0
