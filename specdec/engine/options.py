"""The settings of a call of `specdec.generate`, with the meaning, defaults and precedence of `transformers`.

A keyword takes precedence over the GenerationConfig that is passed, that over the target's own, and that over the
defaults of ``transformers``; a keyword of None switches a setting off. An option that would change the output and is
not implemented is refused by name. Settings of the target's own configuration that only say how ``transformers`` runs
it (caches, compilation, assistants) are ignored: they change no token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specdec.core.sampling_params import SamplingParams
from specdec.core.stop_strings import check_stop_strings
from specdec.engine.option_names import (
    ARGUMENTS,
    DEFAULTS,
    HOW_TO_RUN,
    INSTEAD,
    NEUTRAL,
    OF_ENGINE,
    OUTPUTS,
    OWN,
    PROCESSING,
    SUPPORTED,
    WITH_DO_SAMPLE,
)
from specdec.errors import ConfigError
from specdec.registry import unknown


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
    num_return_sequences: int  # rows per prompt
    processing: dict[str, Any]  # of PROCESSING, what has an effect
    criteria: list[Callable[..., Any]]  # stopping criteria
    outputs: frozenset[str]  # of OUTPUTS

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.sampling is not None and not self.sampling.greedy


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
    stop_ids, strings = token_ids("eos_token_id", values["eos_token_id"]), _strings(values["stop_strings"])
    return Options(
        max_new_tokens,
        max_length,
        stop_ids,
        _pad(values["pad_token_id"]),
        strings,
        _sampling(values, sources),
        bool(values["return_dict_in_generate"]),
        _copies(values),
        _processing(values),
        _criteria(values["stopping_criteria"], stop_ids, strings),
        _outputs(values),
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
            if name in INSTEAD:
                raise ConfigError(f"{name} is no option of specdec.generate: {INSTEAD[name]}")
            if name in OF_ENGINE:
                raise ConfigError(f"{name} belongs to an Engine's making: specdec.Engine(target, draft, {name}=...)")
            raise ConfigError(unknown("option of specdec.generate", name, {*SUPPORTED, *OWN}))
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
        way_out = INSTEAD.get(name, f"leave it out (or set {neutral!r})")
        raise ConfigError(f"{name}={shown} is not supported by specdec.generate: {way_out}")


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


def _copies(values: Mapping[str, Any]) -> int:
    count = whole_number("num_return_sequences", values["num_return_sequences"] or 1, 1)
    if count > 1 and not values["do_sample"]:
        raise ConfigError(f"num_return_sequences={count}: greedy rows of one prompt are equal: set do_sample=True")
    return count


def _processing(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: values[name] for name in PROCESSING}
    found["logits_processor"] = _functions("logits_processor", found["logits_processor"])
    if found["min_new_tokens"] is not None:
        found["min_length"] = None  # as in transformers
    allowed = found["prefix_allowed_tokens_fn"]
    if allowed is not None and not callable(allowed):
        raise ConfigError(f"prefix_allowed_tokens_fn: give a function, not {type(allowed).__name__}")
    # "is not": token 0 may be forced, and 0 == False.
    given = {name: value for name, value in found.items() if value is not None and value is not False and value != []}
    return {name: value for name, value in given.items() if value != NEUTRAL.get(name)}


def _functions(name: str, value: Any) -> list[Callable[..., Any]]:
    """A list of functions, as given."""
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(map(callable, value)):
        raise ConfigError(f"{name}: give a list of functions, not {type(value).__name__}")
    return list(value)


def _criteria(value: Any, stop_ids: tuple[int, ...], strings: tuple[str, ...]) -> list[Callable[..., Any]]:
    """Stopping criteria, but for those that would replace an option in ``transformers``, which go by their type."""
    criteria = _functions("stopping_criteria", value)
    replaced = {"MaxLengthCriteria": "max_length"}
    replaced |= {"EosTokenCriteria": "eos_token_id"} if stop_ids else {}
    replaced |= {"StopStringCriteria": "stop_strings"} if strings else {}
    for one in criteria:
        if (option := replaced.get(type(one).__name__)) is not None:
            raise ConfigError(f"stopping_criteria: set {option} in place of {type(one).__name__}")
    return criteria


def _outputs(values: Mapping[str, Any]) -> frozenset[str]:
    wanted = frozenset(name for name in OUTPUTS if values[name])
    if wanted and not values["return_dict_in_generate"]:
        raise ConfigError(f"{min(wanted)}=True needs return_dict_in_generate=True, which has room for it")
    return wanted


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
