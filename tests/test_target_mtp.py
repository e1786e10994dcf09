"""MTP layers inside their target's checkpoint: those that `transformers` builds, in batches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import short_only
from conftest import VOCAB, greedy_alone
from harness import ALIGNMENTS, make_engine, run_all
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, Glm4MoeConfig
from transformers.cache_utils import DynamicCache, MtpCache

from specdec.core.clock import Clock
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError
from specdec.heads.__main__ import main
from specdec.heads.target_mtp import forward
from specdec.models.causal_lm import CausalLM
from specdec.registry import create

modeling_layers = pytest.importorskip("transformers.modeling_layers")
if not hasattr(modeling_layers, "MtpModel"):
    pytest.skip("this version of transformers knows no MTP layers", allow_module_level=True)

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
CONFIGS = {
    "glm4_moe": lambda: Glm4MoeConfig(**SIZES, head_dim=8),
    "deepseek_v3": lambda: DeepseekV3Config(**SIZES, **LATENT),
}


@pytest.fixture(params=list(CONFIGS))
def target(request, tmp_path, monkeypatch) -> CausalLM:
    return target_of(CONFIGS[request.param](), tmp_path, monkeypatch)


def target_of(config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> CausalLM:
    """A target in a folder, with MTP layers as its last layers, by the names of its checkpoints."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config).eval()
    # transformers looks for the numbers of the published models' layers.
    monkeypatch.setattr(type(module), "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[2-4]\..*"])
    mtp = modeling_layers.MtpModel(module, config.num_nextn_predict_layers)
    module.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, value in mtp.state_dict().items():
        if name.startswith("layers."):
            number, own = name.removeprefix("layers.").split(".", 1)
            noise = 1 + 0.1 * torch.randn(value.shape) if "norm" in name else 0.3 * torch.randn(value.shape)
            tensors[f"model.layers.{2 + int(number)}.{own.removeprefix('mtp_block.')}"] = noise
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return CausalLM(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


@torch.inference_mode()
def test_an_mtp_layer_drafts_as_transformers_own_does(target, prompts):
    folder = target.module.config.name_or_path
    clock = Clock()
    context = DrafterContext(target, None, lambda other: ALIGNMENTS["inplace"](other, clock), clock)
    drafter = create("drafter", "mtp", context, path=folder)
    drafts, plain = [], drafter.propose
    drafter.propose = lambda rows, gammas: [
        draft := plain(rows, gammas),
        drafts.extend((row.tokens(0), draft.ids[b][: draft.num_drafted[b]]) for b, row in enumerate(rows)),
    ][0]
    few = prompts[:5]
    rows, _ = run_all(make_engine(target, drafter=drafter, batch=4, gamma=3, alignment=ALIGNMENTS["inplace"]), few, 8)
    assert [row.output_ids for row in rows] == [greedy_alone(target, prompt, 8, frozenset()) for prompt in few]
    mtp, module, compared = drafter.head.model.execution._mtp, target.module, 0
    for tokens, drafted in drafts:
        if len(tokens) < 2:
            continue
        hidden = module(torch.tensor([tokens[:-1]]), output_hidden_states=True).hidden_states[-1]
        cache, text, first = DynamicCache(), list(tokens), 0
        for token in drafted:
            embeds = module.get_input_embeddings()(torch.tensor([text[first + 1 :]]))
            positions = torch.arange(first, first + embeds.shape[1])[None]
            seen = torch.ones(embeds.shape[1], first + embeds.shape[1], dtype=torch.bool).tril(first)[None, None]
            outputs = forward(mtp, torch.cat([embeds, hidden], dim=-1), positions, seen, cache)
            assert token == int(module.lm_head(outputs[0, -1]).argmax())
            first, hidden, compared = first + embeds.shape[1], outputs[:, -1:], compared + 1
            text.append(token)
    assert compared > 20


@torch.inference_mode()
@pytest.mark.parametrize("kind", short_only(list(CONFIGS), "deepseek_v3"))
def test_several_layers_draft_a_token_each_as_transformers_own_do(kind, tmp_path, monkeypatch, prompts):
    """Layer after layer over a whole row, by the forward of `MtpModel`; ragged rows, after every kind of acceptance."""
    config = CONFIGS[kind]()
    config.num_nextn_predict_layers = 3
    if kind == "glm4_moe":
        monkeypatch.setattr("specdec.heads.mtp_layers.MAX_ENTRIES", 3)  # prompts are read in parts
    target = target_of(config, tmp_path, monkeypatch)
    clock = Clock()
    context = DrafterContext(target, None, lambda other: ALIGNMENTS["inplace"](other, clock), clock)
    drafter = create("drafter", "mtp", context, path=str(tmp_path))
    drafts, plain = [], drafter.propose
    drafter.propose = lambda rows, gammas: [
        draft := plain(rows, gammas),
        drafts.extend((row.tokens(0), draft.ids[b][: draft.num_drafted[b]]) for b, row in enumerate(rows)),
    ][0]
    few = [*prompts[:5], [7, 3]]
    engine = make_engine(target, drafter=drafter, batch=4, gamma=3, alignment=ALIGNMENTS["inplace"])
    rows, _ = run_all(engine, few, 9)
    assert [row.output_ids for row in rows] == [greedy_alone(target, prompt, 9, frozenset()) for prompt in few]
    mtp, compared = modeling_layers.MtpModel.from_pretrained(target.module).eval(), 0
    assert len(mtp.layers) == 3
    for tokens, drafted in drafts:
        if len(tokens) < 2:
            continue
        hidden = target.module(torch.tensor([tokens[:-1]]), output_hidden_states=True).hidden_states[-1]
        ids, positions = torch.tensor([tokens[1:]]), torch.arange(1, len(tokens))[None]
        cache = MtpCache(config=target.module.config.get_mtp_config())
        expected, _, _ = mtp(ids, hidden, None, positions, cache)
        assert drafted == expected[0, : len(drafted)].tolist()
        compared += len(drafted)
    assert compared > 40
    assert {len(drafted) for _, drafted in drafts} >= {2, 3}  # rows that are nearly done draft fewer
    branching = dataclasses.replace(context, tree=create("tree", "beam", width=2))
    with pytest.raises(ConfigError, match="the 3 MTP layers of this target draft chains: set tree=chain"):
        create("drafter", "mtp", branching, path=str(tmp_path))


def test_it_drafts_for_its_own_target_alone(target, tmp_path, capsys):
    folder = target.module.config.name_or_path
    assert main([folder, "--target", folder]) == 0
    told = capsys.readouterr().out
    assert "in its target" in told
    assert "1, used for every token" in told
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((Path(folder) / "config.json").read_text())
    context = DrafterContext(target, None, lambda model: model, Clock())
    with pytest.raises(ConfigError, match=rf"drafts for that checkpoint alone, .* set pair.target={other}"):
        create("drafter", "mtp", context, path=str(other))
    assert json.loads((other / "config.json").read_text())["num_nextn_predict_layers"] == 1
