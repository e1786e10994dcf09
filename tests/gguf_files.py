"""Small GGUF files for tests: a random Llama with a byte-level tokenizer and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_llama
from tokenizers import pre_tokenizers
from transformers import LlamaForCausalLM

gguf: Any = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'specdec[gguf]'")

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "bb"]
BOS, EOS = 1, 2
BLOCKS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
BLOCKS |= {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"} | {"attn_output": "self_attn.o_proj"}
BLOCKS |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}


def gguf_llama(seed: int = 0) -> LlamaForCausalLM:
    """A model whose rows are blocks of 32, as quantisation needs them."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": len(TOKENS)}
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    return small_llama(seed, torch.float32, layers=2, **sizes, **special)


def write_gguf(
    path: Path, module: LlamaForCausalLM, kind: str = "F32", architecture: str = "llama", table: bool = False
) -> Path:
    """Write a model; ``kind`` is of its matrices, ``table`` adds scaled rotary frequencies."""
    config = module.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small random model")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
    writer.add_token_merges(["a b", "b b"])  # older versions of transformers do not read one alone
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(EOS)
    writer.add_chat_template(TEMPLATE)
    for name, weights in tensors(module).items():
        quantised = gguf.GGMLQuantizationType[kind if weights.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(weights, quantised), raw_dtype=quantised)
    if table:
        writer.add_tensor("rope_freqs.weight", np.ones(config.head_dim // 2, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(module: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The weights under the file's names, queries and keys in the file's order of rotary pairs."""
    state = {name: weights.numpy() for name, weights in module.state_dict().items()}
    heads = {"attn_q": module.config.num_attention_heads, "attn_k": module.config.num_key_value_heads}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    found["output.weight"] = state["lm_head.weight"]
    for layer in range(module.config.num_hidden_layers):
        for ours, theirs in BLOCKS.items():
            weights = state[f"model.layers.{layer}.{theirs}.weight"]
            if ours in heads:
                weights = weights.reshape(heads[ours], 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)
            found[f"blk.{layer}.{ours}.weight"] = np.ascontiguousarray(weights)
    return found
