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
    **_named(WIDTH, "output_embedding_size word_embed_proj_dim lru_width dim_model_base"),
    **_named(MLP, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner dff dim_ff ffn_hidden_size d_inner"),
    **_named(MLP, "intermediate_size_mlp dense_intermediate_size prefix_dense_intermediate_size feed_forward_size"),
    **_named(EXPERT_MLP, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    **_named(EXPERT_MLP, "shared_intermediate_size shared_experts_intermediate_size"),
    **_named(EXPERT_MLP, "moe_shared_expert_intermediate_size router_hidden_size"),
    **_named(4, "num_attention_heads n_head n_heads attention_heads encoder_attention_heads decoder_attention_heads"),
    **_named(4, "num_decoder_attention_heads num_encoder_attention_heads num_heads swa_num_attention_heads"),
    **_named(2, "num_key_value_heads num_kv_heads swa_num_key_value_heads kv_n_heads num_global_key_value_heads"),
    **_named(16, "head_dim swa_head_dim global_head_dim dim_head swa_v_head_dim"),
    **_named(CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions model_max_length"),
    **_named(CONTEXT, "context_length position_bias_max_distance rel_extent relative_max_distance"),
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
    **_named(2, "index_n_heads o_groups"),
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
    **_named(None, "bos_token_id eos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens"),
    **_named(None, "sep_token_id cls_token_id mask_token_id"),
    **_named(False, "add_cross_attention is_encoder_decoder"),
    **_named(True, "is_decoder use_cache"),
    "encoder_no_repeat_ngram_size": 0,
}
"""What is no part of the architecture, or belongs to a model with an encoder."""

PADDED = ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "data2vec-text", "xmod")
"""Their positions are counted from the padding id on, which they therefore need."""

OWN: dict[str, dict[str, Any]] = {}
"""Settings of one model type that the rules above do not give."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {}
"""Further rows of the table: label -> settings on top of those of the model type."""
