"""What a head's config asks for and is not implemented here: each a line, without the target. Imports no torch."""

from __future__ import annotations

from specdec.heads.shapes import NUM_WIDE, head_dim, num_heads
from specdec.heads.spec import FULL, IN_TARGET, SLIDING, SPECDEC, HeadSpec

LAYERS = ("llama", "mimo", "mistral", "qwen2", "qwen3")
"""Model types whose decoder layers are a Llama's, with biases or norms of queries and keys or without."""
WINDOWED = ("eagle3", "peagle", "dflash", "dspark")
SCALES = ("output_multiplier", "logit_scale", "final_logit_softcapping")
SEQUENTIAL = ("vanilla", "gated", "rnn")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def unsupported(spec: HeadSpec) -> list[str]:
    """Why a published head cannot draft for any target; empty if nothing is known against it."""
    if spec.layout in (SPECDEC, IN_TARGET):
        return []
    found = [] if spec.kind == "medusa" else _layers(spec)
    if quantized := spec.config.get("quantization_config") or spec.layer.get("quantization_config"):
        method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else quantized
        found.append(f"its weights are quantised ({method}), and only plain numbers are read")
    if (sequential := spec.config.get("markov_head_type", SEQUENTIAL[0])) not in SEQUENTIAL:
        found.append(f"its sequential head is of the type {sequential}, and known are {', '.join(SEQUENTIAL)}")
    if spec.kind in ("peagle", "dflash", "dspark"):
        mask = spec.mask_token_id
        if mask is None:
            found.append("its config.json names no mask_token_id")
        elif not 0 <= mask < spec.vocab_size:
            found.append(f"its mask_token_id is {mask}, and its vocabulary has {spec.vocab_size} tokens")
        if spec.kind == "dspark" and any(spec.setting(name) for name in SCALES):
            found.append("it scales or bounds its logits, which is known of dflash alone")
        told = spec.config.get("confidence_temperatures")
        if told is not None and len(told) < spec.block_size - (not spec.setting("sample_from_anchor", True)):
            found.append(f"it has {len(told)} confidence_temperatures, and its block has {spec.block_size} slots")
        if spec.block_size < 2:
            found.append(f"its block has {spec.block_size} slots, and at least 2 are needed")
    if spec.kind == "specblock":
        if (count := spec.draft_vocab_size or spec.vocab_size) < NUM_WIDE:
            found.append(f"it can draft {count} tokens, and its rank head reads the {NUM_WIDE} most probable")
        if spec.block_size < 1:
            found.append(f"its block has {spec.block_size} slots, and at least 1 is needed")
    return found


def _layers(spec: HeadSpec) -> list[str]:
    """Of its decoder layers."""
    found, layer = list[str](), spec.layer
    if (of := layer.get("model_type", LAYERS[0])) not in LAYERS:
        found.append(f"its layers are those of {of}, and known are {', '.join(LAYERS)}")
    known = (FULL, SLIDING) if spec.kind in WINDOWED else (FULL,)
    if kinds := set(layer.get("layer_types") or ()) - {*known}:
        found.append(f"its layers are of the kind {sorted(kinds)[0]}, and known is {' or '.join(known)}")
    elif spec.kind in WINDOWED and any(not isinstance(window, int) for window in spec.windows if window is not None):
        found.append("its sliding_window is no number")
    elif spec.kind in WINDOWED and any(window is not None and window < 1 for window in spec.windows):
        found.append(f"its layers are of the kind {SLIDING}, and its config.json has no sliding_window")
    elif spec.kind in WINDOWED and any(spec.windows):
        count = len(layer.get("layer_types") or spec.windows)
        if count != spec.num_layers:
            found.append(f"its layer_types are those of {count} layers, and it has {spec.num_layers}")
    if (activation := layer.get("hidden_act", "silu")) != "silu":
        found.append(f"its activation is {activation}, and known is silu")
    queries, keys = num_heads(layer)
    if queries % keys or head_dim(layer) % 2:
        found.append(f"{queries} query heads of {head_dim(layer)} numbers cannot share {keys} key heads")
    rope = {**(layer.get("rope_scaling") or {}), **(layer.get("rope_parameters") or {})}
    if (rotated := layer.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1))) != 1:
        found.append(f"it rotates {rotated} of a head's numbers, and known is all of them")
    if "mrope_section" in rope or (kind := rope.get("rope_type", rope.get("type", "default"))) not in ROPE_TYPES:
        named = "in sections (mrope)" if "mrope_section" in rope else f"of the type {kind}"
        found.append(f"its rotary positions are {named}, and known are {', '.join(ROPE_TYPES)}")
    if (scaled := spec.setting("attention_value_scale", 1)) not in (1, None):
        found.append(f"its attention_value_scale is {scaled}, and known is 1")
    return found
