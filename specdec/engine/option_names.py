"""The names of options: those that are implemented, those that change nothing, and what to write in place of others."""

from __future__ import annotations

from typing import Any

PROCESSING = (
    *("sequence_bias", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_eos_token_id", "exponential_decay_length_penalty", "remove_invalid_values"),
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "renormalize_logits"),
    *("logits_processor", "prefix_allowed_tokens_fn"),
)
"""Options that change scores by a processor of `transformers`: see specdec.engine.processors."""

OUTPUTS = ("output_scores", "output_logits", "output_logprobs")
"""What is returned beside the sequences. The last is specdec's own."""

SUPPORTED = (
    *("max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("eos_token_id", "pad_token_id", "bos_token_id", "stop_strings", "return_dict_in_generate"),
    *("num_return_sequences", "stopping_criteria", *OUTPUTS, *PROCESSING),
)
"""Options that are implemented (bos_token_id has no effect: a prompt always has tokens)."""

DEFAULTS: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0} | {
    "repetition_penalty": 1.0,
    "return_dict_in_generate": False,
}
NUM_DEFAULT_TOKENS = 20  # new tokens where neither the caller nor the model sets a limit

NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "min_length": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1,
    "min_new_tokens": 0,
    "num_assistant_tokens": 20,
    "assistant_confidence_threshold": 0.4,
    "num_assistant_tokens_schedule": "constant",
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
}
"""Values, other than None and False, at which an option that is not implemented has no effect."""

HOW_TO_RUN = (
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
    *("compile_config", "disable_compile", "continuous_batching_config", "is_assistant", "use_mtp"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "assistant_ensemble_weight", "speculation_type", "early_stopping", "length_penalty"),
    *("decoder_start_token_id", "forced_bos_token_id"),
)
"""Ignored in the target's own configuration: they say how transformers runs it, and change no token of a decoder (a
forced first token could, after a prompt of one token: specdec.engine.call refuses that)."""

ARGUMENTS = (
    *("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "output_logprobs", "synced_gpus"),
    *(
        "assistant_model",
        "assistant_tokenizer",
        "negative_prompt_ids",
        "negative_prompt_attention_mask",
        "custom_generate",
    ),
    *("inputs_embeds", "position_ids", "token_type_ids", "past_key_values", "cache", "trust_remote_code"),
)
"""Further arguments of ``transformers.generate``; None and False mean the same as leaving them out."""

INSTEAD = {
    "assistant_model": "pass it as draft, the second argument",
    "assistant_tokenizer": "pass it as draft_tokenizer=",
    "prompt_lookup_num_tokens": "pass draft='prompt_lookup' and gamma=",
    "num_assistant_tokens": "set gamma=",
    "assistant_confidence_threshold": "set gamma=, or leave both out: it then follows from the models' sizes",
    "assistant_early_exit": "pass draft='self'",
    "custom_generate": "pass it to model.generate, or call specdec.generate itself",
    "logit_bias": "set sequence_bias={(token,): bias}",
    "logprobs": "set output_logprobs=True and return_dict_in_generate=True",
    "inputs_embeds": "pass token ids or texts",
    "past_key_values": "pass the whole prompt; its cache is made in the call",
    "cache": "pass the whole prompt; its cache is made in the call",
    "max_time": "pass stopping_criteria=[transformers.generation.MaxTimeCriteria(seconds)]",
    "num_beams": "it searches, which no draft can shorten: leave it out",
    "position_ids": "pass attention_mask= alone; positions follow from it",
    "generator": "set seed=",
    "batch_size": "set batch=",
    "max_tokens": "set max_new_tokens=",
    "num_speculative_tokens": "set gamma=",
    "prompt": "pass the prompts as inputs, the third argument",
    "prompts": "pass the prompts as inputs, the third argument",
    "messages": "pass tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors='pt')",
    "stop": "set stop_strings=",
}
"""What takes the place of an option that is refused, here or in other libraries."""

OF_ENGINE = ("tokenizer", "draft_tokenizer", "gamma", "verifier", "tree", "tree_settings", "shared_prefix")
"""Arguments of `specdec.generate` that an Engine is made with."""

OWN = ("inputs", "input_ids", "attention_mask", "generation_config", "streamer", "seed", "batch", *OF_ENGINE)
"""Arguments of `specdec.generate` that are no options of `transformers`."""

WITH_DO_SAMPLE = {"temperature": (1.0, 0), "top_k": (50, 0), "top_p": (1.0,), "min_p": (0.0,)}
"""Options that act on sampling only, with their neutral values, which greedy decoding accepts."""
