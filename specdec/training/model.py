"""Building, loading and saving models. Weights are stored as bfloat16 and loaded as float32."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from specdec import assets
from specdec.core.files import let_others_read, write_json
from specdec.models.checkpoints import missing_weights
from specdec.training import TrainingError
from specdec.training.config import ModelConfig
from specdec.training.tokenizer import END_OF_TEXT_ID, PAD_ID


def build_model(
    shape: ModelConfig,
    vocab_size: int,
    context_length: int,
    seed: int,
    special_ids: tuple[int | None, int | None, int | None] = (END_OF_TEXT_ID, END_OF_TEXT_ID, PAD_ID),
) -> LlamaForCausalLM:
    """A float32 Llama with tied embeddings and seeded random weights; ``special_ids`` begin, end and pad its texts."""
    begin, end, pad = special_ids
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
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def save_model(model: Any, folder: Path) -> None:
    """Write config, generation config and bfloat16 safetensors; the config asks for float32 on loading."""
    rounded = copy.deepcopy(model).to(device="cpu", dtype=torch.bfloat16)
    rounded.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    rounded.save_pretrained(str(folder))
    let_others_read(*folder.glob("*.safetensors"))
    config_path = folder / "config.json"
    # from_pretrained takes the dtype from here: half the bytes on disk, float32 arithmetic in use.
    write_json(config_path, {**json.loads(config_path.read_text()), "dtype": "float32"})


def num_parameters(model: Any) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_weights(name: str, setting: str, vocab_size: int) -> Any:
    """A causal language model in a local folder, to train further or to measure; float32.

    Raises:
        TrainingError: it cannot be loaded, or its vocabulary has another size.
    """
    folder = assets.resolve(name)
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise TrainingError(f"{setting}={name} is no folder of a model that can be loaded: {reason}") from error
    model, loaded = found
    if missing := missing_weights(loaded):
        raise TrainingError(
            f"{setting}={name}: the checkpoint lacks {missing}, which would be random: give a complete one"
        )
    found_size = model.config.get_text_config().vocab_size
    if found_size != vocab_size:
        raise TrainingError(f"{setting}={name} has a vocabulary of {found_size} tokens, the target one of {vocab_size}")
    return model
