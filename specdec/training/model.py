"""Building, loading and saving the two Llama models. Weights ship as bfloat16 and are loaded as float32."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from specdec.training.config import ModelConfig
from specdec.training.stages import write_json
from specdec.training.tokenizer import END_OF_TEXT_ID, PAD_ID


def build_model(shape: ModelConfig, vocab_size: int, context_length: int, seed: int) -> LlamaForCausalLM:
    """A float32 Llama with tied embeddings and seeded random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.hidden_size // shape.num_heads,
        max_position_embeddings=context_length,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config)


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config, generation config and bfloat16 safetensors; the config asks for float32 on loading."""
    rounded = LlamaForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    torch.nn.Module.to(rounded, torch.bfloat16)
    rounded.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=END_OF_TEXT_ID, eos_token_id=END_OF_TEXT_ID, pad_token_id=PAD_ID
    )
    rounded.save_pretrained(str(folder))
    config_path = folder / "config.json"
    # A plain from_pretrained takes the dtype named here: half the bytes on disk, exact arithmetic in use.
    write_json(config_path, {**json.loads(config_path.read_text()), "dtype": "float32"})


def load_model(folder: Path) -> LlamaForCausalLM:
    """What ships, as it is decoded: bfloat16 weights in float32 arithmetic, evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    assert isinstance(model, LlamaForCausalLM)
    return model


def num_parameters(model: LlamaForCausalLM) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
