"""`specdec.custom_generate`: batched speculative decoding behind ``model.generate`` of `transformers`.

    target.generate(**inputs, custom_generate=specdec.custom_generate, assistant_model=draft, max_new_tokens=100)

`transformers` prepares the call and hands it over. It does not hand everything to a function (5.24: no assistant_model,
no streamer, no tokenizer, and the caller's own processors only among its own), so these are read from its frame. A
folder with a ``custom_generate/generate.py`` gets all of it: `as_folder`.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from specdec.engine.api import generate
from specdec.engine.option_names import SUPPORTED
from specdec.engine.output import SpeculativeOutput
from specdec.errors import ConfigError

REFUSED = ("negative_prompt_ids", "negative_prompt_attention_mask", "synced_gpus")
GIVEN = ("logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria")


class _Prompted:
    """A streamer that `transformers` has already given the prompt."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._prompted = False

    def put(self, tokens: Tensor) -> None:
        if self._prompted:
            self._streamer.put(tokens)
        self._prompted = True

    def end(self) -> None:
        self._streamer.end()


def custom_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    draft: Any = None,
    gamma: int | None = None,
    verifier: str = "block",
    tree: str = "chain",
    tree_settings: Any = None,
    shared_prefix: int = 0,
    seed: Any = None,
    batch: int | None = None,
    draft_tokenizer: Any = None,
    output_logprobs: bool = False,
    streamers: Any = None,
    **model_kwargs: Any,
) -> Tensor | SpeculativeOutput:
    """What ``model.generate`` calls as its decoding method; the draft is ``assistant_model`` or ``draft``.

    Args:
        streamers: a list with one streamer per row, where `transformers` takes only one ``streamer``, for one row.

    Returns:
        What `specdec.generate` returns: ids (B, W + N), or with return_dict_in_generate=True a SpeculativeOutput.

    Raises:
        ConfigError: an option is not supported, or it is called by something else than ``model.generate``.
    """
    outer = _frame_of_generate()
    if generation_config is None or outer is None:
        raise ConfigError("custom_generate: pass it as model.generate(..., custom_generate=specdec.custom_generate)")
    if outer.get("assistant_model") is not None and draft is not None:
        raise ConfigError("assistant_model and draft are both given: leave one out")
    if streamers is None and outer.get("streamer") is not None:
        if len(input_ids) > 1:
            raise ConfigError(f"streamer: one for {len(input_ids)} rows; pass streamers=[...] with one per row")
        streamers = _Prompted(outer["streamer"])
    # Everything is resolved by now: passed by name, None switches a setting off. Rows are repeated, lengths are known.
    settings = {name: getattr(generation_config, name, None) for name in SUPPORTED}
    settings |= {name: outer.get(name) or None for name in GIVEN}
    settings |= {name: outer[name] for name in REFUSED if outer[name] is not None}
    settings |= {name: value for name, value in outer["kwargs"].items() if not hasattr(generation_config, name)}
    settings.pop("input_ids", None), settings.pop("attention_mask", None)
    pad = generation_config._pad_token_tensor
    copies, allowed = generation_config.num_return_sequences or 1, settings["prefix_allowed_tokens_fn"]
    settings |= {
        "num_return_sequences": None,
        "output_logprobs": output_logprobs,
        "pad_token_id": None if pad is None else int(pad),
        "prefix_allowed_tokens_fn": allowed and (lambda row, ids: allowed(row // copies, ids)),
    }
    if settings["max_new_tokens"] is not None:
        settings["max_length"] = None  # transformers has set it
    elif outer["has_default_max_length"]:
        settings |= {"max_new_tokens": generation_config.max_length - input_ids.shape[1], "max_length": None}
    return generate(
        model,
        outer.get("assistant_model") if draft is None else draft,
        input_ids,
        generation_config,
        attention_mask=model_kwargs.get("attention_mask"),
        tokenizer=outer.get("tokenizer"),
        draft_tokenizer=draft_tokenizer or outer.get("assistant_tokenizer"),
        gamma=gamma,
        verifier=verifier,
        tree=tree,
        tree_settings=tree_settings,
        shared_prefix=shared_prefix,
        seed=seed,
        batch=batch,
        streamer=streamers,
        **settings,
    )


def as_folder(model: Any, *, assistant_model: Any = None, draft: Any = None, **call: Any) -> Tensor | SpeculativeOutput:
    """What ``custom_generate/generate.py`` of a Hub repository calls: it gets the arguments of ``model.generate``."""
    if assistant_model is not None and draft is not None:
        raise ConfigError("assistant_model and draft are both given: leave one out")
    call = {name: value for name, value in call.items() if value is not None}
    call["draft_tokenizer"] = call.pop("assistant_tokenizer", call.get("draft_tokenizer"))
    return generate(model, assistant_model if draft is None else draft, **call)


def _frame_of_generate() -> dict[str, Any] | None:
    """The local variables of the ``generate`` of `transformers` that called, and the tokenizers that it was given."""
    frame = inspect.currentframe()
    caller = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
    if caller is None or caller.f_code.co_name != "generate" or "generation_mode_kwargs" not in caller.f_locals:
        return None
    given = caller.f_back.f_locals.get("kwargs", {}) if caller.f_back is not None else {}  # its decorator has them all
    return {name: given.get(name) for name in ("tokenizer", "assistant_tokenizer")} | dict(caller.f_locals)
