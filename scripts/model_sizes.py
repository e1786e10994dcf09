"""How small the configs of `scripts/make_models_page.py` are made: values by setting name, and what one model needs.

A window, a chunk or a scale has to begin within the fifty tokens that are decoded, otherwise it would prove nothing.
"""

from __future__ import annotations

from typing import Any

VOCAB, WIDTH, MLP, EXPERT_MLP, CONTEXT, WINDOW, ORIGINAL = 96, 32, 48, 24, 64, 8, 16
MOST_LAYERS, FEWEST_LAYERS = 6, 3


def _named(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


SMALL: dict[str, Any] = {
    **_named(VOCAB, "vocab_size vocab_size_per_layer_input unpadded_vocab_size output_vocab_size"),
    **_named(WIDTH, "hidden_size d_model n_embd emb_dim embedding_dim embedding_size input_embedding_size"),
    **_named(WIDTH, "output_embedding_size word_embed_proj_dim lru_width dim_model_base hidden_size_global"),
    **_named(
        MLP, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner dff dim_ff ffn_hidden_size d_inner"
    ),
    **_named(MLP, "intermediate_size_mlp dense_intermediate_size prefix_dense_intermediate_size feed_forward_size"),
    **_named(EXPERT_MLP, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    **_named(EXPERT_MLP, "shared_intermediate_size shared_experts_intermediate_size"),
    **_named(EXPERT_MLP, "moe_shared_expert_intermediate_size router_hidden_size"),
    **_named(4, "num_attention_heads n_head n_heads attention_heads encoder_attention_heads decoder_attention_heads"),
    **_named(4, "num_decoder_attention_heads num_encoder_attention_heads num_heads swa_num_attention_heads"),
    **_named(2, "num_key_value_heads num_kv_heads kv_n_heads"),
    **_named(1, "swa_num_key_value_heads num_global_key_value_heads"),
    **_named(16, "head_dim swa_head_dim dim_head swa_v_head_dim kv_channels"),
    **_named(32, "global_head_dim"),
    **_named(CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions model_max_length"),
    **_named(CONTEXT, "context_length"),
    **_named(2 * WINDOW, "position_bias_max_distance rel_extent relative_max_distance"),
    **_named(WINDOW, "position_bias_num_buckets num_buckets"),
    **_named(ORIGINAL, "original_max_position_embeddings"),
    **_named(WINDOW, "sliding_window sliding_window_size window_size attention_window_size attention_chunk_size"),
    **_named(WINDOW, "keep_window_size floor_scale log_scaling_n_floor index_topk local_attention_window_len"),
    **_named(0.5, "attn_scale log_scaling_alpha"),
    **_named(2 * WINDOW, "local_attention"),
    **_named(WINDOW, "chunk_size mamba_chunk_size block_size"),
    # mixtures of experts
    **_named(8, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_named(2, "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts n_group num_expert_group"),
    **_named(1, "topk_group n_shared_experts num_shared_experts moe_num_shared_experts"),
    **_named(1, "first_k_dense_replace num_dense_layers moe_layer_start_index zero_expert_num"),
    **_named(2, "decoder_sparse_step"),
    # latent attention: the keys are wider than the values
    **_named(12, "q_lora_rank v_head_dim"),
    **_named(16, "kv_lora_rank qk_nope_head_dim index_head_dim o_lora_rank"),
    **_named(8, "qk_rope_head_dim"),
    **_named(2, "o_groups"),
    **_named(16, "index_n_heads"),  # fewer give scores of exactly 0, and with them ties
    **_named(4, "rotary_dim"),
    # recurrent parts
    **_named(2, "linear_num_key_heads mamba_ngroups mamba_n_groups n_groups mamba_expand expand"),
    **_named(4, "linear_num_value_heads mamba_n_heads n_mamba_heads linear_num_heads mamba_num_heads"),
    **_named(8, "linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_state state_size ssm_state_size"),
    **_named(16, "mamba_d_head mamba_headdim mamba_head_dim"),
    **_named(4, "mamba_dt_rank time_step_rank laurel_rank gated_norm_rank d_rel"),
    **_named(8, "hidden_size_per_layer_input embedding_per_layer adapter_rank"),
}
"""By setting name; a setting that the model's own config leaves at None stays None."""

PER_LAYER = (
    *("layer_types", "mlp_layer_types", "no_rope_layers", "layer_rope_theta", "layers_block_type", "indexer_types"),
    *("activation_sparsity_pattern", "num_attention_heads_per_layer", "attention_layers"),
)
"""Lists with an entry per layer: the layers kept are one of each kind, so that every kind occurs."""

LAYER_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_blocks"),
    *("num_decoder_layers", "num_encoder_layers"),
)

NEUTRAL: dict[str, Any] = {
    **_named(None, "forced_eos_token_id suppress_tokens begin_suppress_tokens"),
    **_named(False, "add_cross_attention is_encoder_decoder tie_word_embeddings"),
    **_named(True, "is_decoder use_cache"),
    "encoder_no_repeat_ngram_size": 0,
}
"""What is no part of the architecture, or belongs to a model with an encoder."""

PADDED = {
    **_named(1, "roberta camembert xlm-roberta xlm-roberta-xl roberta-prelayernorm data2vec-text xmod"),
    **_named(0, "prophetnet"),
}
"""Their positions are counted from the padding id on, which they therefore need."""

THETA = 10000.0
HYBRID = ["linear_attention", "full_attention", "linear_attention"]
QSA = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8}
QSA |= {"indexer_compress_ratio": 2}
ASSISTANT = {
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "enable_moe_block": False,
    "use_double_wide_mlp": False,
}
"""Gemma 4's assistants read the keys and values of their target."""

OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        **{f"{part}_config": {"head_dim": 8} for part in ("patcher", "encoder", "decoder", "global")},
        "encoder_hash_byte_group_vocab": 64,
        "num_hidden_layers": 3,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": THETA}}},
    "dbrx": {"attn_config": {"rope_theta": THETA, "kv_n_heads": 2, "clip_qkv": 4.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"n_input_layers": 1, "n_output_layers": 1, "n_recurrent_layers": 2, "num_hidden_layers": 4},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_expand": 2, "mamba_n_heads": 4},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gemma4": {"text": {"pad_token_id": 0}},
    "gemma4_assistant": {"default": {"text_config": ASSISTANT}, "text": ASSISTANT},
    "gemma4_unified": {"text": {"pad_token_id": 0}},
    "gpt_bigcode": {"num_key_value_heads": 1},
    "granitemoehybrid": {"layer_types": HYBRID, "num_hidden_layers": 3},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "hrm_text": {"num_layers_per_stack": None, "num_hidden_layers": 1},
    "laguna": {"num_attention_heads_per_layer": [4, 8, 4, 8]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen4_exp": {"text": QSA},
    "qwen4_exp_text": QSA,
    "reformer": {"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (8, 24)},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "xlm": {"causal": True, "mask_token_id": 0, "pad_token_id": 2},
    "xlstm": {"qk_dim_factor": 1.0, "hidden_size": 64, "embedding_dim": 64},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""Settings of one model type that the rules above do not give."""

WINDOWED = {"use_sliding_window": True, "sliding_window": WINDOW}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}
FULL = {"layer_types": ["full_attention"] * 3, "num_hidden_layers": 3}
EAGER = {"attn_implementation": "eager"}
EXTENDED = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "rope_theta": THETA}


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, **EXTENDED, **settings}}


LONGER = {"original_max_position_embeddings": CONTEXT, "max_position_embeddings": 2 * CONTEXT}
LONGROPE = _rope("longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4)
NOT_REACHED = {**LONGER, "rope_parameters": LONGROPE["rope_parameters"] | LONGER}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "cohere": {"normalised queries and keys": {"use_qk_norm": True}},
    "cohere_compass_text": {
        "window": {
            **MIXED,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": THETA} for kind in ("full_attention", "sliding_attention")
            },
        }
    },
    "deepseek_v2": {"expert groups": {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}},
    "deepseek_v3": {"full query": {"q_lora_rank": None}, "yarn": _rope("yarn")},
    "doge": {"window": {"sliding_window": WINDOW}, "mixture": {"is_moe": True, "num_experts": 16}},
    "dots1": {"window": MIXED},
    "falcon": {
        "new decoder": {"new_decoder_architecture": True},
        "all heads": {"multi_query": False, "num_kv_heads": 4},
        "ALiBi": {"alibi": True},
    },
    "gemma4_text": {
        "mixture": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
        "shared keys": {"num_kv_shared_layers": 2},
        "keys are values": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    },
    "gpt_bigcode": {"all heads": {"multi_query": False, "num_key_value_heads": 4}},
    "granitemoehybrid": {"attention only": FULL, "attention only, rope": {**FULL, "position_embedding_type": "rope"}},
    "laguna": {"window": MIXED},
    "lfm2": {"convolutions": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3}},
    "lfm2_moe": {"attention only": FULL},
    "llama": {
        "window left over": {"sliding_window": WINDOW, "use_sliding_window": False},
        "linear": _rope("linear"),
        "yarn": _rope("yarn"),
        "llama3": _rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0),
        "yarn at the trained length": _rope("yarn") | {"max_position_embeddings": ORIGINAL},
        "dynamic": _rope("dynamic") | {"max_position_embeddings": ORIGINAL},
        "longrope": LONGROPE | {"head_dim": 8},
        "eager attention": EAGER,
    },
    "llama4_text": {
        "no temperature": {"attn_temperature_tuning": False},
        "no chunks": {"layer_types": ["full_attention"] * 4},
    },
    "mellum": {"window": MIXED},
    "minimax_m3_vl_text": {
        "sparse": {
            "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
            "num_hidden_layers": 4,
            "index_n_heads": 2,
            "index_block_size": 4,
            "index_topk_blocks": 2,
        }
    },
    "mistral": {"no window": {"sliding_window": None}, "eager attention": EAGER},
    "mixtral": {"window": {"sliding_window": WINDOW}},
    "minimax": {"attention only": FULL},
    "mpt": {"no ALiBi": {"attn_config": {"alibi": False}}},
    "opt": {"norm after": {"do_layer_norm_before": False}},
    "phi": {"normalised queries and keys": {"qk_layernorm": True}},
    "phi3": {"window": {"sliding_window": WINDOW}, "longrope": LONGROPE, "longrope, not reached": NOT_REACHED},
    "phimoe": {"window": {"sliding_window": WINDOW}},
    "qwen2": {"window": {**WINDOWED, **MIXED}, "yarn": _rope("yarn")},
    "qwen2_moe": {"window": {**WINDOWED, **MIXED}},
    "qwen3": {"window": {**WINDOWED, **MIXED}},
    "qwen3_moe": {"window": WINDOWED},
    "qwen3_next": {"attention only": FULL},
    "smollm3": {"window": {**WINDOWED, **MIXED}},
    "stablelm": {"normalised queries and keys": {"qk_layernorm": True, "use_parallel_residual": True}},
    "starcoder2": {"window": {"sliding_window": WINDOW}},
}
"""Further rows of the table: label -> settings on top of those of the model type."""
