"""A model that does more than its weights say is never fused: it runs eagerly with its adapter, hook or replacement."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import small_llama
from test_execution import logits_of
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from specdec.core.clock import Clock
from specdec.drafters.context import DrafterContext
from specdec.drafters.early_exit import first_layers
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.execution import agreement
from specdec.models.execution.agreement import disagreement
from specdec.models.execution.fused import FusedExecution
from specdec.models.execution.linear import PACK_FROM_WEIGHTS
from specdec.registry import create

VOCAB = 61
KV_SHAPES = ((2, 8),) * 6  # of small_llama, for those that cannot be asked by a forward


class Linear(nn.Linear):
    """A low-rank adapter by inheritance; called as PEFT calls its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, dtype=base.weight.dtype)
        self.load_state_dict(base.state_dict())
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Parameter(0.2 * torch.randn(2, base.in_features, generator=generator).to(base.weight.dtype))
        self.up = nn.Parameter(0.2 * torch.randn(base.out_features, 2, generator=generator).to(base.weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Wrapper(nn.Module):
    """An adapter around a module, whose weight and shape it hands on as PEFT's layers do."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.1 * self.base_layer(x)


Wrapper.__name__ = Wrapper.__qualname__ = "Linear"


class LargerNorm(modeling_llama.LlamaRMSNorm):
    """Weights around 0, as some families have them."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * 1.2


def replace(path: str, make: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    """Put another module in the place of one."""

    def tamper(module: Any) -> None:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, make(module.get_submodule(path)))

    return tamper


def larger(module: Any, given: Any, gave: Any) -> Any:
    return (gave[0] * 1.1, *gave[1:]) if isinstance(gave, tuple) else gave * 1.1


def hooked(path: str, before: bool = False) -> Callable[[Any], None]:
    """A hook that changes what goes in or comes out."""

    def tamper(module: Any) -> None:
        part = module.get_submodule(path)
        if before:
            part.register_forward_pre_hook(lambda module, given: (given[0] * 1.1, *given[1:]))
        else:
            part.register_forward_hook(larger)

    return tamper


def hooked_logits(module: Any) -> None:
    def hook(module: Any, given: Any, gave: Any) -> Any:
        gave.logits = gave.logits * 1.1
        return gave

    module.register_forward_hook(hook)


def patched(path: str) -> Callable[[Any], None]:
    """Replace the forward of one instance, as accelerate and others do."""

    def tamper(module: Any) -> None:
        part = module.get_submodule(path)
        before = part.forward
        part.forward = lambda *given, **named: larger(part, given, before(*given, **named))

    return tamper


def normed(module: Any) -> None:
    nn.utils.weight_norm(module.model.layers[2].mlp.up_proj)
    with torch.no_grad():
        module.model.layers[2].mlp.up_proj.weight_g.mul_(1.2)


def pruned(module: Any) -> None:
    prune.random_unstructured(module.model.layers[1].mlp.down_proj, "weight", amount=0.3)


def mixed_numbers(module: Any) -> None:
    class Upcast(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.double()).to(x.dtype) * 1.1

    module.lm_head.__class__ = Upcast
    module.lm_head.double()


TAMPERINGS: dict[str, tuple[Callable[[Any], None], str]] = {
    "adapter, last layer's v_proj": (
        replace("model.layers.2.self_attn.v_proj", Linear),
        r"model.layers.2.self_attn.v_proj is a test_fusable.Linear, not a torch.nn.modules.linear.Linear",
    ),
    "wrapper, second layer's up_proj": (
        replace("model.layers.1.mlp.up_proj", Wrapper),
        r"model.layers.1.mlp.up_proj is a test_fusable.Linear, not a torch",
    ),
    "adapter on the head": (replace("lm_head", Linear), "lm_head is a test_fusable.Linear"),
    "wrapped attention": (replace("model.layers.2.self_attn", copy.deepcopy), ""),  # the same class: fused, and right
    "another norm": (
        replace("model.layers.1.post_attention_layernorm", lambda norm: changed_class(norm, LargerNorm)),
        "model.layers.1.post_attention_layernorm is a test_fusable.LargerNorm",
    ),
    "hook on the model": (hooked_logits, "the model has a forward hook"),
    "hook on a layer": (hooked("model.layers.1"), r"model.layers.1 has a forward hook \(test_fusable.larger\)"),
    "hook on an MLP": (hooked("model.layers.2.mlp"), "model.layers.2.mlp has a forward hook"),
    "hook before a matrix": (hooked("model.layers.2.self_attn.q_proj", True), "q_proj has a forward hook"),
    "hook before the head": (hooked("lm_head", True), "lm_head has a forward hook"),
    "a forward of its own": (patched("model.layers.0.mlp"), "model.layers.0.mlp has a forward of its own"),
    "weight_norm": (normed, "up_proj has a forward hook"),
    "parametrization": (
        lambda module: spectral_norm(module.model.layers[1].self_attn.o_proj) and None,
        "o_proj is a torch.nn.utils.parametrize.ParametrizedLinear",
    ),
    "pruning": (pruned, "down_proj has a forward hook"),
}


def changed_class(module: Any, kind: type) -> Any:
    module.__class__ = kind
    return module


def tampered(name: str, dtype: torch.dtype = torch.float32) -> CausalLM:
    module = small_llama(3, dtype)
    TAMPERINGS[name][0](module)
    return CausalLM(module)


def own_logits(model: CausalLM, ids: list[int]) -> torch.Tensor:
    """As transformers computes them."""
    with torch.inference_mode():
        logits: torch.Tensor = model.module(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def aligned_logits(model: CausalLM, ids: list[int]) -> torch.Tensor:
    """By the execution that the model has now."""
    alignment = create("alignment", "inplace", model, Clock())
    alignment.admit([0], [[]])
    with torch.inference_mode():
        logits: torch.Tensor = alignment.forward([0], torch.tensor([ids]))[0]
    return logits


IDS = [5, 60, 1, 17, 17, 33, 2, 48, 9, 10, 11]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", TAMPERINGS)
def test_what_a_module_adds_is_never_lost(name):
    model, reason = tampered(name), TAMPERINGS[name][1]
    bare = CausalLM(small_llama(3, torch.float32))
    execution = model.execute("auto")
    torch.testing.assert_close(aligned_logits(model, IDS), own_logits(model, IDS), atol=1e-4, rtol=1e-4)
    if not reason:
        assert execution.name == "fused"
        return
    assert (own_logits(model, IDS) - own_logits(bare, IDS)).abs().max() > 1e-2, "tampered with in vain"
    assert execution.name == "eager"
    assert execution.note is not None
    assert execution.note.startswith("execution=auto runs a LlamaForCausalLM eagerly: ")
    for asked in ("fused", "compiled"):
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
            ConfigError, match=r"model.layers.0.mlp is a test_fusable.*LlamaMLP, in the place of transformers' own"
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
    assert model.execute("auto").name == "fused"
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
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=size,
        intermediate_size=PACK_FROM_WEIGHTS // size,
        num_hidden_layers=1,
        num_attention_heads=16,
        attention_bias=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = CausalLM(LlamaForCausalLM(config).eval())
    first = model.execute("fused")
    assert first.packed_bytes > 0
    assert model.execute("fused") is first
    attention = model.module.model.layers[0].self_attn
    with torch.no_grad():
        attention.o_proj.weight.mul_(3)
        attention.q_proj.bias.normal_()
    assert model.execute("fused") is not first
    torch.testing.assert_close(aligned_logits(model, IDS), own_logits(model, IDS), atol=1e-4, rtol=1e-4)


# --- variants that stay fused, and right ------------------------------------------------------------------------------


def biased(module: Any) -> None:
    with torch.no_grad():
        for name, bias in module.named_parameters():
            if name.endswith("bias"):
                bias.normal_()


def without_one_bias(module: Any) -> None:
    biased(module)
    module.model.layers[1].self_attn.k_proj.bias = None
    module.model.layers[1].mlp.gate_proj.bias = None


def one_layer_less(module: Any) -> None:
    module.config.num_hidden_layers -= 1


def other_activation(module: Any) -> None:
    module.model.layers[1].mlp.act_fn = nn.GELU()


def other_scale(module: Any) -> None:
    module.model.layers[1].self_attn.scaling *= 2


def other_eps(module: Any) -> None:
    module.model.layers[1].input_layernorm.variance_epsilon = 0.5


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "biases everywhere": ({"attention_bias": True, "mlp_bias": True}, biased),
    "a part without a bias": ({"attention_bias": True, "mlp_bias": True}, without_one_bias),
    "fewer layers run than there are": ({}, one_layer_less),
    "another activation in one layer": ({}, other_activation),
    "another scale in one layer": ({}, other_scale),
    "another epsilon in one norm": ({}, other_eps),
    "tied head": ({"tie_word_embeddings": True}, lambda module: None),
    "heads wider than the hidden size": ({"head_dim": 24}, lambda module: None),
    "linear rotations": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
        lambda module: None,
    ),
    "dynamic rotations": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        lambda module: None,
    ),
    "yarn": (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        lambda module: None,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_family_are_fused_and_right(variant, dtype):
    settings, change = VARIANTS[variant]
    module = LlamaForCausalLM(LlamaConfig(**{**SIZES, **settings})).eval()
    change(module)
    model = CausalLM(module.to(dtype))
    assert model.execute("auto").name == "fused"
    theirs = own_logits(model, IDS)
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-4}.get(dtype, 0.1 * float(theirs.abs().max()))
    torch.testing.assert_close(aligned_logits(model, IDS), theirs, atol=tolerance, rtol=tolerance)


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}


def test_joined_weights_and_biases_are_saved_as_they_were(tmp_path):
    module = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)).eval()
    biased(module)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    assert CausalLM(module).execute("fused").name == "fused"
    module.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in before.items())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("Qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "head_dim": 8}),
        ("Qwen2", {"use_sliding_window": False, "sliding_window": 4}),
        ("Mistral", {"sliding_window": 4}),
        ("Llama", {"sliding_window": 4}),  # left over in the config: the model makes no window mask
    ],
)
def test_windows_are_those_that_the_family_makes(name, settings):
    """Straight from the decoder, with a window shorter than the rows that are compared."""
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    torch.manual_seed(0)
    model = CausalLM(getattr(transformers, f"{name}ForCausalLM")(config).eval())
    execution = model.execute("fused")
    assert disagreement(execution) is None
    for layer in execution.layers:
        layer.window = 3 if layer.window is None else None
    assert "layer 0 differs" in str(disagreement(execution))


# --- the comparison ---------------------------------------------------------------------------------------------------


def test_transformers_own_hooks_do_not_stand_in_the_way():
    model = CausalLM(small_llama(3, torch.float32))
    with model.giving("hidden"):
        aligned_logits(model, IDS)
    assert model.execute("auto").name == "fused"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", ["qkv", "out", "gate_up", "down", "norm", "scale", "eps", "head"])
def test_a_fault_in_one_place_of_one_layer_is_found(place, dtype):
    """In what was prepared, at a size that 16-bit rounding cannot have."""
    module = small_llama(3, dtype)
    model = CausalLM(module)
    execution = FusedExecution(model)
    assert disagreement(execution) is None
    layer = execution.layers[1]
    if place == "head":
        execution.head.weight_OI = execution.head.weight_OI * 1.1
    elif place == "norm":
        layer.norm_mlp.weight = layer.norm_mlp.weight * 1.2
    elif place == "scale":
        layer.scale *= 3
    elif place == "eps":
        layer.norm_in.eps, layer.norm_in._eps = 20.0, torch.tensor(20.0)
    else:
        product = getattr(layer, place)
        product.weight_OI = product.weight_OI * 1.2
    assert ("the head" if place == "head" else "layer 1") in str(disagreement(execution))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arithmetic_that_only_numbers_show_is_found(dtype, monkeypatch):
    """A function that was replaced in transformers' module, as kernel libraries do: 0.5% in the rotation."""
    plain = modeling_llama.apply_rotary_pos_emb

    def turned(q, k, cos, sin, *rest, **named):
        q, k = plain(q, k, cos, sin, *rest, **named)
        return q * 1.005, k

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", turned)
    model = CausalLM(small_llama(3, dtype))
    with pytest.raises(ConfigError, match=r"layer 0 differs from transformers' own by .* in float(32|64) explains"):
        model.execute("fused")
    execution = model.execute("auto")
    assert execution.name == "eager"
    assert "layer 0 differs" in str(execution.note)


def test_a_run_says_once_why_it_is_not_fused(run, monkeypatch):
    plain = modeling_llama.rotate_half
    monkeypatch.setattr(modeling_llama, "rotate_half", lambda x: 1.01 * plain(x))
    small = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=2", "data.num_prompts=2"]
    code, out, _ = run(
        *small, "data.max_input_tokens=20", "data.overlong=truncate", "max_new_tokens=6", "baseline=false"
    )
    assert code == 0
    reason = "execution=auto runs a LlamaForCausalLM eagerly: layer 0 differs from transformers' own"
    assert out.count(f"note: target: {reason}") == out.count(f"note: draft: {reason}") == 1
    document = json.loads(out.strip().splitlines()[-1])
    assert document["num_exact"] == 2
    environment = json.loads((Path(document["path"]) / "env.json").read_text())
    assert environment["execution"]["target"] == environment["execution"]["draft"] == "eager"
    code, _, err = run(*small, "execution=fused", "max_new_tokens=6", "data.max_input_tokens=20")
    assert code != 0
    assert err.count("\n") == 1
    assert "execution=fused cannot run this model: layer 0 differs" in err


def test_large_layers_are_converted_only_if_they_look_wrong(monkeypatch):
    monkeypatch.setattr(agreement, "FINER_BYTES", 10)
    converted, plain = [], agreement._in_finer_numbers

    def convert(decoder: Any, number: int, seen: Any) -> Any:
        converted.append(number)
        return plain(decoder, number, seen)

    monkeypatch.setattr(agreement, "_in_finer_numbers", convert)
    assert CausalLM(small_llama(3, torch.bfloat16)).execute("fused").name == "fused"
    assert not converted
    execution = FusedExecution(CausalLM(small_llama(3, torch.bfloat16)))
    execution.layers[1].scale *= 2
    assert "layer 1 differs" in str(disagreement(execution))
    assert converted == [1]


# --- who else reads the target's weights ------------------------------------------------------------------------------


def context_of(model: CausalLM) -> DrafterContext:
    clock = Clock()

    def align(part: CausalLM) -> Any:
        part.execute("auto")
        return create("alignment", "inplace", part, clock)

    return DrafterContext(model, None, align, clock)


@pytest.mark.parametrize("name", ["adapter, last layer's v_proj", "hook on an MLP", "adapter on the head"])
def test_a_draft_of_the_targets_own_layers_has_its_adapter(name):
    target = tampered(name)
    draft = CausalLM(first_layers(target.module, 3))
    assert draft.execute("auto").name == "eager"
    torch.testing.assert_close(aligned_logits(draft, IDS), own_logits(target, IDS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("drafter", ["medusa", "early_exit"])
@pytest.mark.parametrize("name", ["adapter on the head", "hook before the head"])
def test_heads_are_no_copies_of_a_head_that_is_more_than_its_matrix(drafter, name):
    with pytest.raises(ConfigError, match=r"heads that begin as copies of the target's own cannot: it (is a|has a)"):
        create("drafter", drafter, context_of(tampered(name)), untrained=True)


def test_an_eagle_layer_over_an_adapted_head_is_not_fused():
    for name, execution in (("adapter on the head", "eager"), ("wrapped attention", "fused")):
        model = create("drafter", "eagle", context_of(tampered(name)), untrained=True)._model
        assert model.execute("auto").name == execution


def test_fused_and_eager_agree_after_all_this():
    """The machinery of the other tests, on a model that nothing was done to."""
    model = CausalLM(small_llama(3, torch.float32))
    for eager, fused in zip(logits_of(model, "eager"), logits_of(model, "fused"), strict=True):
        torch.testing.assert_close(fused, eager, atol=1e-4, rtol=1e-4)
