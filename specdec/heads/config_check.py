"""The fields of a head's config.json that are read here: their kinds, checked before anything is made of them.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specdec.errors import ConfigError

Test = Callable[[Any], bool]


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _integers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_integer, value))


def _positives(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_positive, value))


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _few(value: Any) -> bool:
    return _count(value) and value <= 1000  # names and slots are listed


_KINDS: dict[str, tuple[Test, tuple[str, ...]]] = {
    "an integer of at least 1": (
        _count,
        (
            *("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
            *("head_dim", "draft_vocab_size", "target_hidden_size"),
            "max_position_embeddings",
        ),
    ),
    "an integer from 1 to 1000": (
        _few,
        ("num_hidden_layers", "block_size", "medusa_num_layers", "speculative_tokens"),
    ),
    "an integer of at least 0": (
        _integer,
        ("markov_rank", "mask_token_id", "dspark_noise_token_id", "pard_token", "ptd_token_id"),
    ),
    "a number above 0": (
        _positive,
        ("rms_norm_eps", "rope_theta", "output_multiplier", "logit_scale", "input_embedding_scale"),
    ),
    "a number of at least 0": (lambda value: value == 0 or _positive(value), ("final_logit_softcapping",)),
    "a list of integers": (
        _integers,
        ("eagle_aux_hidden_state_layer_ids", "aux_hidden_state_layer_ids", "target_layer_ids"),
    ),
    "a list of numbers above 0": (_positives, ("confidence_temperatures",)),
    "true or false": (
        lambda value: isinstance(value, bool),
        (
            *("fc_norm", "norm_before_fc", "norm_before_residual", "norm_output", "sample_from_anchor"),
            *("is_causal", "causal", "use_swa", "sliding_window_non_causal", "dspark_bonus_anchor"),
            *("enable_confidence_head", "confidence_head_with_markov"),
        ),
    ),
    "a list of names": (_words, ("layer_types", "architectures")),
    "an object": (
        lambda value: isinstance(value, dict),
        (
            *("dflash_config", "eagle_config", "speculators_config", "transformer_layer_config", "verifier"),
            *("rope_scaling", "rope_parameters"),
        ),
    ),
    "a list of objects": (
        lambda value: isinstance(value, list) and all(isinstance(part, dict) for part in value),
        ("proposal_methods",),
    ),
}
_WANTED = {name: (test, wanted) for wanted, (test, names) in _KINDS.items() for name in names}


def checked(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The config without its nulls, which say the same as a missing field.

    Args:
        where: names the folder in error messages.

    Raises:
        ConfigError: a field that is read is of another kind than it must be.
    """
    found = {}
    for name, value in config.items():
        if value is None:
            continue
        test, wanted = _WANTED.get(name, (None, ""))
        if test is not None and not test(value):
            raise ConfigError(f"{where}: {name} in its config.json is {_shown(value)}, and it must be {wanted}")
        found[name] = checked(value, where) if isinstance(value, dict) else value
        if name == "proposal_methods":
            found[name] = [checked(part, where) for part in value]
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
