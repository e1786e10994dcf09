"""A model that does more than its weights say is never fused: it runs eagerly with its adapter, hook or replacement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import small_llama
from tampering import (
    FAST,
    IDS,
    KV_SHAPES,
    TAMPERINGS,
    Linear,
    aligned_logits,
    own_logits,
    replace,
    tampered,
)
from torch import nn
from transformers import AttentionInterface
from transformers.models.llama import modeling_llama

from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.linear import PACK_FROM_WEIGHTS


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", TAMPERINGS)
def test_what_a_module_adds_is_never_lost(name):
    model, reason = tampered(name), TAMPERINGS[name][1]
    bare = CausalLM(small_llama(3, torch.float32))
    execution = model.execute("auto")
    torch.testing.assert_close(aligned_logits(model, IDS), own_logits(model, IDS), atol=1e-4, rtol=1e-4)
    if not reason:
        assert execution.name in FAST
        return
    assert (own_logits(model, IDS) - own_logits(bare, IDS)).abs().max() > 1e-2, "tampered with in vain"
    assert execution.name == "eager"
    assert execution.note is not None
    assert execution.note.startswith("execution=auto runs a LlamaForCausalLM eagerly: ")
    for asked in ("fused", "native", "compiled"):
        with pytest.raises(ConfigError, match=reason) as refusal:
            model.execute(asked)
        assert str(refusal.value).startswith(f"execution={asked} cannot run this model: ")
        assert "\n" not in str(refusal.value)


def test_global_hooks_are_not_passed_by():
    model = CausalLM(small_llama(3, torch.float32))
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, gave: gave * 1.1 if isinstance(module, nn.Linear) else None
    )
    try:
        assert model.execute("auto").name == "eager"
        torch.testing.assert_close(aligned_logits(model, IDS), own_logits(model, IDS), atol=1e-4, rtol=1e-4)
        with pytest.raises(ConfigError, match="torch holds a global forward hook"):
            model.execute("fused")
    finally:
        handle.remove()
    assert model.execute("fused").name == "fused"


def test_replaced_classes_and_forwards_of_transformers_are_seen(monkeypatch):
    """What kernel libraries do to a whole class, and to its name in transformers."""

    class LlamaMLP(modeling_llama.LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.1

    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "LlamaMLP", LlamaMLP)
        module = small_llama(3, torch.float32)
        with pytest.raises(
            ConfigError, match=r"model.layers.0.mlp is a test_fusable.*LlamaMLP, in place of transformers' own"
        ):
            CausalLM(module).execute("fused")
    with monkeypatch.context() as patch:
        plain = modeling_llama.LlamaRMSNorm.forward
        patch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: plain(self, x) * 1.1)
        model = CausalLM(small_llama(3, torch.float32))
        with pytest.raises(ConfigError, match=r"model.norm is a LlamaRMSNorm whose forward was replaced by"):
            model.execute("fused")
        assert model.execute("auto").name == "eager"


def test_a_registered_attention_is_not_replaced_by_ours():
    def sharper(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        return modeling_llama.eager_attention_forward(module, query, key, value, attention_mask, 2 * scaling)

    AttentionInterface.register("sharper", sharper)
    module = small_llama(3, torch.float32)
    module.config._attn_implementation = "sharper"
    with pytest.raises(ConfigError, match="its attention is computed by 'sharper'"):
        CausalLM(module).execute("fused")


def test_weights_elsewhere_or_in_other_numbers_are_refused():
    module = small_llama(3, torch.float32)
    module.model.layers[2].mlp.down_proj.to("meta")
    with pytest.raises(ConfigError, match=r"layers.2.mlp.down_proj has a weight on meta, the model is on cpu"):
        CausalLM(module, kv_shapes=KV_SHAPES).execute("fused")
    module = small_llama(3, torch.bfloat16)
    module.lm_head.float()
    with pytest.raises(ConfigError, match=r"lm_head has a weight in torch.float32, the model is in torch.bfloat16"):
        CausalLM(module, kv_shapes=KV_SHAPES).execute("fused")


@pytest.mark.filterwarnings("ignore")  # torch moves its quantisation elsewhere
def test_quantised_matrices_are_refused():
    quantise = torch.ao.quantization.quantize_dynamic
    module = quantise(small_llama(3, torch.float32), {nn.Linear}, dtype=torch.qint8)
    model = CausalLM(module)
    assert model.execute("auto").name == "eager"
    with pytest.raises(ConfigError, match=r"lm_head is a torch.ao.nn.quantized.dynamic.modules.linear.Linear"):
        model.execute("fused")


@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload"])
def test_offloaded_models_are_refused(how, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    module = small_llama(3, torch.float32)
    cpu = torch.device("cpu")
    if how == "cpu_offload":
        accelerate.cpu_offload(module, execution_device=cpu)
    else:
        accelerate.disk_offload(module, tmp_path / "offloaded", execution_device=cpu)
    model = CausalLM(module, kv_shapes=KV_SHAPES)
    with pytest.raises(ConfigError, match="is placed or offloaded by accelerate"):
        model.execute("fused")


# --- PEFT itself ------------------------------------------------------------------------------------------------------


def lora(peft: Any, targets: list[str], layers: list[int] | None = None) -> Any:
    return peft.LoraConfig(
        r=2, target_modules=targets, layers_to_transform=layers, init_lora_weights=False, task_type="CAUSAL_LM"
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what PEFT calls
@pytest.mark.parametrize("how", ["get_peft_model", "inject_adapter_in_model", "add_adapter"])
@pytest.mark.parametrize("targets", [["v_proj"], ["q_proj"], ["up_proj"], ["lm_head"]])
def test_adapters_of_peft_are_computed(how, targets):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    module = small_llama(3, torch.float32)
    bare = own_logits(CausalLM(module), IDS)
    config = lora(peft, targets, None if targets == ["lm_head"] else [1, 2])
    if how == "add_adapter":
        try:
            module.add_adapter(config)
        except ValueError as error:  # transformers wants a newer one
            pytest.skip(str(error))
    else:
        module = getattr(peft, how)(*((module, config) if how == "get_peft_model" else (config, module)))
    model = CausalLM(module)
    assert model.execute("auto").name == "eager"
    ours = aligned_logits(model, IDS)
    torch.testing.assert_close(ours, own_logits(model, IDS), atol=1e-4, rtol=1e-4)
    assert (ours - bare).abs().max() > 0.1
    with pytest.raises(ConfigError, match=r"cannot run this model: (the model|model.layers.1|lm_head).* is a peft\."):
        model.execute("fused")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_merged_adapter_is_fused():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    module = peft.get_peft_model(small_llama(3, torch.float32), lora(peft, ["q_proj", "v_proj"])).merge_and_unload()
    model = CausalLM(module)
    assert model.execute("fused").name == "fused"
    torch.testing.assert_close(aligned_logits(model, IDS), own_logits(model, IDS), atol=1e-4, rtol=1e-4)


# --- what changes after the preparation -------------------------------------------------------------------------------


def test_an_adapter_that_comes_later_is_seen_by_the_next_run():
    model = CausalLM(small_llama(3, torch.float32))
    assert model.execute("auto").name in FAST
    replace("model.layers.1.self_attn.k_proj", Linear)(model.module)
    assert model.execute("auto").name == "eager"
    torch.testing.assert_close(aligned_logits(model, IDS), own_logits(model, IDS), atol=1e-4, rtol=1e-4)


def test_other_products_see_changes_of_their_weights_by_themselves():
    model = CausalLM(small_llama(3, torch.float32))
    first = model.execute("fused")
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.mul_(1.1)
    assert model.execute("fused") is first
    torch.testing.assert_close(aligned_logits(model, IDS), own_logits(model, IDS), atol=1e-4, rtol=1e-4)


def test_weights_that_change_are_packed_again_and_biases_are_shared():
    size = 1024
    wide = {"hidden_size": size, "intermediate_size": PACK_FROM_WEIGHTS // size, "num_attention_heads": 16}
    narrow = {"num_key_value_heads": 16, "initializer_range": 0.02, "attention_bias": True}
    model = CausalLM(small_llama(0, torch.float32, layers=1, **wide, **narrow))
    first = model.execute("fused")
    assert first.packed_bytes > 0
    assert model.execute("fused") is first
    attention = model.module.model.layers[0].self_attn
    with torch.no_grad():
        attention.o_proj.weight.mul_(3)
        attention.q_proj.bias.normal_()
    assert model.execute("fused") is not first
    torch.testing.assert_close(aligned_logits(model, IDS), own_logits(model, IDS), atol=1e-4, rtol=1e-4)
