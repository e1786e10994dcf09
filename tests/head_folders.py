"""Folders of heads in published layouts, with weights that need no file."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VECTORS = Path(__file__).parent / "data" / "heads"
KINDS = {
    "eagle": "eagle",
    "eagle3": "eagle3",
    "medusa": "medusa",
    "dflash": "dflash",
    "dspark": "dspark",
    "mimo": "mtp",
    "specblock": "specblock",
}
"""The drafter of each layout."""
UNTRAINED = ("eagle3", "peagle", "specblock", "dflash", "dspark", "mtp")


def numbers(name: str, shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    """The same float32 numbers for a name everywhere; scripts/make_head_vectors.py has the same function."""
    phase = zlib.crc32(name.encode()) % 1000
    values = [math.sin(phase + 12.9898 * i + 0.07 * i * i) for i in range(math.prod(shape))]
    return (scale * torch.tensor(values, dtype=torch.float64)).float().view(shape)


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return 1 + numbers(name, shape, 0.3) if "norm" in name else numbers(name, shape, 0.4)


def golden(name: str) -> dict[str, Any]:
    """What the package `speculators` wrote and computed."""
    found: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    return found


def write_golden(vectors: dict[str, Any], folder: Path) -> str:
    """The folder that `speculators` wrote."""
    tensors = {}
    for name, (shape, dtype) in vectors["tensors"].items():
        known = vectors["integers"].get(name)
        tensors[name] = (
            weight(name, tuple(shape)) if known is None else torch.tensor(known, dtype=getattr(torch, dtype))
        )
    return write(folder, vectors["config"], tensors)


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def layer(prefix: str, size: int, inputs: int, heads: int, keys: int, head_dim: int, inner: int) -> dict[str, Any]:
    """Shapes of a Llama layer."""
    return {
        f"{prefix}.self_attn.q_proj.weight": (heads * head_dim, inputs),
        f"{prefix}.self_attn.k_proj.weight": (keys * head_dim, inputs),
        f"{prefix}.self_attn.v_proj.weight": (keys * head_dim, inputs),
        f"{prefix}.self_attn.o_proj.weight": (size, heads * head_dim),
        f"{prefix}.mlp.gate_proj.weight": (inner, size),
        f"{prefix}.mlp.up_proj.weight": (inner, size),
        f"{prefix}.mlp.down_proj.weight": (size, inner),
        f"{prefix}.post_attention_layernorm.weight": (size,),
    }


SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24}
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256, **SIZES}


def shapes_of(kind: str, size: int, vocab: int, reads: int = 3) -> dict[str, tuple[int, ...]]:
    """The tensors of a published layout, as the authors' code saves them."""
    sizes = (SIZES["num_attention_heads"], SIZES["num_key_value_heads"], SIZES["head_dim"], SIZES["intermediate_size"])
    if kind == "eagle":
        return {"fc.weight": (size, 2 * size), "fc.bias": (size,), **layer("layers.0", size, size, *sizes)}
    if kind in ("eagle3", "peagle", "specblock"):
        first = "layers.0" if kind == "specblock" else "midlayer"
        shapes = layer(first, size, 2 * size, *sizes)
        norms = (f"{first}.input_layernorm.weight", f"{first}.hidden_norm.weight", "norm.weight")
        shapes |= {**dict.fromkeys(norms, (size,)), "fc.weight": (size, reads * size)}
        if kind != "eagle3":
            shapes |= {**layer("layers.1", size, size, *sizes), "layers.1.input_layernorm.weight": (size,)}
        if kind == "specblock":
            shapes |= {"shifts.0.weight": (size, 2 * size), "rank_head.weight": (4, size + 15), "rank_head.bias": (4,)}
        if kind == "peagle":
            shapes["mask_hidden"] = (1, 1, reads * size)
        return {**shapes, "lm_head.weight": (vocab // 2, size)}
    if kind == "medusa":
        blocks = {f"{g}.0.linear.weight": (size, size) for g in range(3)}
        biases = {f"{g}.0.linear.bias": (size,) for g in range(3)}
        return {**blocks, **biases, **{f"{g}.1.weight": (vocab, size) for g in range(3)}}
    if kind == "mimo":
        shapes = layer("model.mtp_layers.0", size, size, *sizes)
        names = ("input_layernorm", "token_layernorm", "hidden_layernorm", "final_layernorm")
        shapes |= {f"model.mtp_layers.0.{name}.weight": (size,) for name in names}
        return {**shapes, "model.mtp_layers.0.input_proj.weight": (size, 2 * size), "model.norm.weight": (size,)}
    shapes = {"fc.weight": (size, reads * size), "hidden_norm.weight": (size,), "norm.weight": (size,)}
    for number in range(2):
        name = f"layers.{number}"
        shapes |= {**layer(name, size, size, *sizes), f"{name}.input_layernorm.weight": (size,)}
        shapes |= {f"{name}.self_attn.{part}_norm.weight": (SIZES["head_dim"],) for part in "qk"}
    if kind == "dspark":
        shapes |= {"markov_head.markov_w1.weight": (vocab, 4), "markov_head.markov_w2.weight": (vocab, 4)}
        shapes |= {"confidence_head.proj.weight": (1, size + 4), "confidence_head.proj.bias": (1,)}
    return shapes


def config_of(kind: str, size: int, vocab: int) -> dict[str, Any]:
    """The config.json of a published layout."""
    config = {**LLAMA, "hidden_size": size, "vocab_size": vocab, "num_hidden_layers": 1}
    if kind in ("eagle3", "peagle"):
        own = {"parallel_drafting": True, "ptd_token_id": 7, "num_hidden_layers": 2} if kind == "peagle" else {}
        return {**config, **own, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": vocab // 2}
    if kind == "medusa":
        return {"medusa_num_heads": 5, "medusa_num_layers": 1, "base_model_name_or_path": "someone/llama"}
    if kind == "mimo":
        return {**config, "model_type": "mimo", "num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    if kind == "specblock":
        names = {"speculators_model_type": kind, "draft_vocab_size": vocab // 2, "block_size": 3}
        return {**names, "transformer_layer_config": {**config, "num_hidden_layers": 2}}
    if kind in ("dflash", "dspark"):
        own = {"target_layer_ids": [1, 0, 2], "mask_token_id": 7}
        kinds = {"num_hidden_layers": 2, "model_type": "qwen3", "block_size": 4}
        name = {"dflash": "DFlashDraftModel", "dspark": "DSparkDraftModel"}[kind]
        extra = {"markov_rank": 4} if kind == "dspark" else {}
        return {**config, **kinds, **extra, "architectures": [name], "dflash_config": own}
    return config


def published(kind: str, folder: Path, size: int = 32, vocab: int = 61) -> str:
    """A folder in the layout of its authors; every second token can be drafted where the vocabulary is reduced."""
    tensors = {name: weight(name, shape) for name, shape in shapes_of(kind, size, vocab).items()}
    if kind in ("eagle3", "peagle", "specblock"):
        ids = torch.arange(vocab // 2) * 2 + 1
        tensors |= {"d2t": ids - torch.arange(len(ids)), "t2d": torch.isin(torch.arange(vocab), ids)}
    return write(folder, config_of(kind, size, vocab), tensors)
