"""Small random models of many families of architectures."""

from __future__ import annotations

import torch
import transformers

from specdec.models.causal_lm import CausalLM
from specdec.models.compatibility import supported

VOCAB, NEW = 61, 16
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
}
SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SLIDING = {"sliding_window": 6, "head_dim": 8, "tie_word_embeddings": False}
FAMILIES = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "glm4": ("Glm4", {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, sliding": ("Mistral", {"sliding_window": 6}),
    "gemma2": ("Gemma2", SLIDING),
    "gemma3": ("Gemma3Text", SLIDING),
    "gpt2": (
        "GPT2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": VOCAB, "initializer_range": 0.25},
    ),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.25}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5}),
}


def build(family: str, seed: int = 0) -> CausalLM:
    name, own = FAMILIES[family]
    sizes = {} if name == "GPT2" else dict(SIZES)
    if name in ("OPT", "GPTNeoX"):  # every head has keys of its own
        del sizes["num_key_value_heads"]
    model = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(name, f"{name}ForCausalLM")
    config = getattr(transformers, f"{name}Config")(**{**sizes, **own, **SPECIAL})
    torch.manual_seed(seed)
    module = getattr(transformers, model)(config)
    return supported(module.to(torch.float64).eval(), family)
