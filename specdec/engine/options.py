"""The settings of a call of `specdec.generate`, with the meaning, defaults and precedence of `transformers`.

A keyword takes precedence over the GenerationConfig that is passed, that over the target's own, and that over the
defaults of ``transformers``; a keyword of None switches a setting off. An option that would change the output and is
not implemented is refused by name. Settings of the target's own configuration that only say how ``transformers`` runs
it (caches, compilation, assistants) are ignored: they change no token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specdec.core.sampling_params import SamplingParams
from specdec.core.stop_strings import check_stop_strings
from specdec.errors import ConfigError
from specdec.registry import unknown

SUPPORTED = (
    *("max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("eos_token_id", "pad_token_id", "bos_token_id", "stop_strings", "return_dict_in_generate"),
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
    *("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model"),
    *("assistant_tokenizer", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate"),
    *("inputs_embeds", "position_ids", "token_type_ids", "past_key_values", "cache", "trust_remote_code"),
)
"""Further arguments of ``transformers.generate``; None and False mean the same as leaving them out."""

WITH_DO_SAMPLE = {"temperature": (1.0, 0), "top_k": (50, 0), "top_p": (1.0,), "min_p": (0.0,)}
"""Options that act on sampling only, with their neutral values, which greedy decoding accepts."""


@dataclass(frozen=True, slots=True)
class Options:
    """One call's settings, checked."""

    max_new_tokens: int | None  # None: max_length decides
    max_length: int | None  # of prompt and new tokens of each row alone, its padding not counted
    stop_ids: tuple[int, ...]
    pad_token_id: int | None
    stop_strings: tuple[str, ...]
    sampling: SamplingParams | None  # None: the target's plain argmax
    return_dict: bool


def read_options(own: Any, passed: Any, keywords: Mapping[str, Any]) -> Options:
    """Resolve a call's settings.

    Args:
        own: the target's GenerationConfig, or None. passed: the caller's, or None. keywords: the caller's settings.

    Raises:
        ConfigError: an option is unknown, not supported, out of range, or at odds with another.
    """
    if passed is not None and not hasattr(passed, "max_new_tokens"):
        raise ConfigError(f"generation_config: a {type(passed).__name__} is no GenerationConfig of transformers")
    config = {} if passed is None else _fields(passed)
    model = {} if own is None else {name: value for name, value in _fields(own).items() if name not in HOW_TO_RUN}
    _check_names(keywords, config)
    sources = [keywords, config, model]
    values = {name: _resolve(name, sources, DEFAULTS.get(name)) for name in SUPPORTED}
    _refuse_unsupported(sources)
    max_new_tokens, max_length = _lengths(sources)
    return Options(
        max_new_tokens,
        max_length,
        token_ids("eos_token_id", values["eos_token_id"]),
        _pad(values["pad_token_id"]),
        _strings(values["stop_strings"]),
        _sampling(values, sources),
        bool(values["return_dict_in_generate"]),
    )


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """The value, if it is an integer of at least ``least``; a ConfigError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        bound = "" if least is None else f", at least {least}"
        raise ConfigError(f"{name}={value!r}: it must be a whole number{bound}")
    return value


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """One id, several, a tensor of them, or None, as a tuple."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    ids = [] if value is None else list(value) if isinstance(value, Iterable) else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise ConfigError(f"{name}={value!r}: give a token id from 0 on, or a list of them")
    return tuple(ids)


def _fields(config: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if value is not None and not name.startswith("_")}


def _resolve(name: str, sources: list[Mapping[str, Any]], default: Any) -> Any:
    """The value of the first source that has the option, which may be None."""
    return next((source[name] for source in sources if name in source), default)


def _known() -> set[str]:
    from transformers import GenerationConfig

    return {name for name in vars(GenerationConfig()) if not name.startswith("_")} | {*SUPPORTED, *NEUTRAL}


def _check_names(keywords: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    known = _known()
    for name in keywords:
        if name not in known and name not in ARGUMENTS:
            raise ConfigError(unknown("option of specdec.generate", name, SUPPORTED))
    for name in config:
        if name not in known:
            raise ConfigError(unknown("field of the GenerationConfig", name, SUPPORTED))


def _refuse_unsupported(sources: list[Mapping[str, Any]]) -> None:
    names = {name for source in sources for name in source} - {*SUPPORTED, "transformers_version"}
    known = _known() | set(ARGUMENTS)  # further entries of a model's own file have no effect in transformers either
    for name in sorted(names & known):
        value, neutral = _resolve(name, sources, None), NEUTRAL.get(name)
        if value is None or (value is False and neutral is not True) or (neutral is not None and value == neutral):
            continue
        shown = repr(value) if isinstance(value, (int, float, str, bool)) else type(value).__name__
        raise ConfigError(f"{name}={shown} is not supported by specdec.generate: leave it out (or set {neutral!r})")


def _lengths(sources: list[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """``max_new_tokens`` and ``max_length``, of which at most one is set; a total beside new tokens is refused."""
    new, total = (_resolve(name, sources, None) for name in ("max_new_tokens", "max_length"))
    for name, value in (("max_new_tokens", new), ("max_length", total)):
        if value is not None:
            whole_number(name, value, 1)
    if new is None or _resolve("max_length", sources[:-1], None) is None:
        return new, None if new is not None else total
    if _resolve("max_new_tokens", sources[:-1], None) is None:
        raise ConfigError(
            f"max_length={total} has no effect beside the model's own max_new_tokens={new}: set max_new_tokens, or set "
            "it to None"
        )
    raise ConfigError(f"max_new_tokens={new} and max_length={total} are both set: leave one out")


def _pad(value: Any) -> int | None:
    ids = token_ids("pad_token_id", value)
    if len(ids) > 1:
        raise ConfigError(f"pad_token_id={value!r}: it must be one token id")
    return ids[0] if ids else None


def _strings(value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else tuple(value or ())
    if not all(isinstance(string, str) and string for string in strings):
        raise ConfigError(f"stop_strings={value!r}: give a text or a list of texts, none of them empty")
    check_stop_strings(strings)
    return strings


def _sampling(values: Mapping[str, Any], sources: list[Mapping[str, Any]]) -> SamplingParams | None:
    """Checks all ranges, and refuses a setting that would have no effect."""
    numbers: dict[str, Any] = {}
    for name in (*WITH_DO_SAMPLE, "repetition_penalty"):
        value = 0 if values[name] is None and name == "top_k" else values[name]
        value = DEFAULTS[name] if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{name}={value!r}: it must be a number")
        numbers[name] = value
    if not isinstance(numbers["top_k"], int) or numbers["top_k"] < 0:
        raise ConfigError(f"top_k={numbers['top_k']}: it must be a whole number, at least 1 (0 or None: no limit)")
    sampling = SamplingParams(**{**numbers, "top_k": numbers["top_k"] or None})
    if values["do_sample"]:
        if sampling.greedy:
            raise ConfigError("temperature=0 with do_sample=True: set do_sample=False for greedy decoding")
        return sampling
    keywords, config, model = sources
    for name, silent in WITH_DO_SAMPLE.items():
        value = _resolve(name, [keywords, config], None)
        if value is not None and value not in silent and value != model.get(name):
            raise ConfigError(f"{name}={value} has no effect without do_sample=True: set that, or leave {name} out")
    greedy = SamplingParams(temperature=0.0, repetition_penalty=sampling.repetition_penalty)
    return greedy if greedy.penalizes else None
