"""The tensors that a head must have, and their shapes, from its config. Imports no torch.

Shape letters as dimensions: D hidden size, H target's hidden size, V vocabulary, N draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specdec.heads.spec import OF_LAYERS, HeadSpec

NUM_CLASSES, NUM_TOP, NUM_WIDE = 4, 10, 20
"""Of SpecBlock's rank head: ranks 1, 2 to 4, 5 to 10, and beyond; the logarithms of probabilities that it reads beside
a state; and the tokens among which its last two figures are taken."""
NUM_FIGURES = NUM_TOP + 5

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(spec: HeadSpec, target_hidden_size: int, num_hidden: int) -> Shapes:
    """The tensors that drafting needs, by name, of a published layout.

    Args:
        target_hidden_size: of one of the target's layers. num_hidden: layers whose hidden states the head reads.
    """
    if spec.kind == "medusa":
        return _medusa(spec, target_hidden_size)
    size, count = spec.hidden_size, num_hidden * target_hidden_size
    shapes: Shapes = {}
    optional: Shapes = {}
    for number in range(spec.num_layers):
        wide = number == 0 and spec.kind in OF_LAYERS
        shapes |= _layer(spec.layer, f"layers.{number}", 2 * size if wide else size)
        if wide:
            shapes[f"layers.{number}.hidden_norm.weight"] = (size,)
    if spec.kind == "mtp":
        shapes["layers.0.input_proj.weight"] = (size, size + target_hidden_size)
        shapes |= {f"layers.0.{part}_layernorm.weight": (size,) for part in ("token", "hidden", "final")}
    elif spec.kind == "eagle":
        shapes["fc.weight"] = (size, size + target_hidden_size)
        optional["fc.bias"] = (size,)
        del shapes["layers.0.input_layernorm.weight"]
    else:
        shapes |= {"fc.weight": (size, count), "norm.weight": (size,)}
    if spec.kind in OF_LAYERS:
        shapes |= _norms_before_projection(spec.config, target_hidden_size, num_hidden)
    if spec.kind in OF_LAYERS or (spec.kind in ("dflash", "dspark") and spec.draft_vocab_size):
        shapes["lm_head.weight"] = (spec.draft_vocab_size or spec.vocab_size, size)
    if spec.kind == "peagle":
        shapes["mask_hidden"] = (1, 1, count)
    if spec.kind == "specblock":
        shapes |= {f"shifts.{number}.weight": (size, 2 * size) for number in range(spec.num_layers - 1)}
        shapes |= {"rank_head.weight": (NUM_CLASSES, size + NUM_FIGURES), "rank_head.bias": (NUM_CLASSES,)}
    if spec.kind in ("dflash", "dspark"):
        shapes["hidden_norm.weight"] = (size,)
        optional["lm_head.weight"] = (spec.draft_vocab_size or spec.vocab_size, size)
    if spec.kind == "dspark":
        shapes |= _dspark(spec)
    if spec.draft_vocab_size:
        shapes["d2t"] = (spec.draft_vocab_size,)
        optional["t2d"] = (spec.vocab_size,)
    optional["embed_tokens.weight"] = (spec.vocab_size, size)
    return shapes | {name: shape for name, shape in optional.items() if name in spec.tensors} | _biases(spec, shapes)


def _norms_before_projection(config: Mapping[str, Any], size: int, num_hidden: int) -> Shapes:
    """EAGLE-3.1's norm of each layer's hidden states, or one of all of them together."""
    if config.get("fc_norm"):
        return {f"fc_norm.{i}.weight": (size,) for i in range(num_hidden)}
    return {"input_norm.weight": (num_hidden * size,)} if config.get("norm_before_fc") else {}


def _layer(layer: Mapping[str, Any], name: str, inputs: int) -> Shapes:
    size, inner, width = layer["hidden_size"], layer["intermediate_size"], head_dim(layer)
    queries, keys = (count * width for count in num_heads(layer))
    shapes = {
        "input_layernorm.weight": (size,),
        "post_attention_layernorm.weight": (size,),
        "self_attn.q_proj.weight": (queries, inputs),
        "self_attn.k_proj.weight": (keys, inputs),
        "self_attn.v_proj.weight": (keys, inputs),
        "self_attn.o_proj.weight": (size, queries),
        "mlp.gate_proj.weight": (inner, size),
        "mlp.up_proj.weight": (inner, size),
        "mlp.down_proj.weight": (size, inner),
    }
    if layer.get("model_type") == "qwen3":
        shapes |= {"self_attn.q_norm.weight": (width,), "self_attn.k_norm.weight": (width,)}
    return {f"{name}.{part}": shape for part, shape in shapes.items()}


def head_dim(layer: Mapping[str, Any]) -> int:
    """Width of an attention head."""
    return int(layer.get("head_dim") or layer["hidden_size"] // layer["num_attention_heads"])


def num_heads(layer: Mapping[str, Any]) -> tuple[int, int]:
    """Query heads, and key heads."""
    count = int(layer["num_attention_heads"])
    return count, int(layer.get("num_key_value_heads") or count)


def _biases(spec: HeadSpec, shapes: Shapes) -> Shapes:
    """Biases of products: there, or not, whatever the config calls them."""
    named = ((name.removesuffix("weight") + "bias", shape) for name, shape in shapes.items() if "_proj" in name)
    return {name: shape[:1] for name, shape in named if name in spec.tensors}


def _dspark(spec: HeadSpec) -> Shapes:
    rank, size = int(spec.config.get("markov_rank", 256)), spec.hidden_size
    shapes: Shapes = {}
    if rank:
        shapes["markov_head.markov_w1.weight"] = (spec.vocab_size, rank)
        shapes["markov_head.markov_w2.weight"] = (spec.draft_vocab_size or spec.vocab_size, rank)
        own = {"gated": ("gate_proj", rank, size + rank), "rnn": ("joint_proj", 3 * rank, 2 * rank + size)}
        if spec.config.get("markov_head_type") in own:
            name, outputs, inputs = own[spec.config["markov_head_type"]]
            shapes |= {f"markov_head.{name}.weight": (outputs, inputs), f"markov_head.{name}.bias": (outputs,)}
    if spec.config.get("enable_confidence_head", True):
        with_markov = spec.config.get("confidence_head_with_markov", True)
        shapes["confidence_head.proj.weight"] = (1, size + (rank if with_markov else 0))
        shapes["confidence_head.proj.bias"] = (1,)
    return shapes


def _medusa(spec: HeadSpec, size: int) -> Shapes:
    """Of each head its residual blocks, then its projection."""
    num_blocks = int(spec.config.get("medusa_num_layers", 1))
    shapes: Shapes = {}
    for g in range(num_medusa_heads(spec)):
        for block in range(num_blocks):
            shapes |= {f"{g}.{block}.linear.weight": (size, size), f"{g}.{block}.linear.bias": (size,)}
        shapes[f"{g}.{num_blocks}.weight"] = (spec.vocab_size, size)
    return shapes


def num_medusa_heads(spec: HeadSpec) -> int:
    """Heads that there are: published configs name other numbers."""
    return 1 + max((int(name.partition(".")[0]) for name in spec.tensors), default=-1)
