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
    **model_kwargs: Any,
) -> Tensor | SpeculativeOutput:
    """What ``model.generate`` calls as its decoding method; the draft is ``assistant_model`` or ``draft``.

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
    streamer = outer.get("streamer")
    # Everything is resolved by now: passed by name, None switches a setting off. Rows are repeated, lengths are known.
    settings = {name: getattr(generation_config, name, None) for name in SUPPORTED}
    settings |= {name: outer.get(name) or None for name in GIVEN}
    pad = generation_config._pad_token_tensor
    settings |= {
        "max_new_tokens": generation_config.max_length - input_ids.shape[1],
        "max_length": None,
        "num_return_sequences": None,
        "output_logprobs": output_logprobs,
        "pad_token_id": None if pad is None else int(pad),
    }
    if settings["min_new_tokens"]:
        settings["min_length"] = None  # transformers has set it to the same, for rows as wide as the block
    return generate(
        model,
        outer.get("assistant_model") if draft is None else draft,
        input_ids,
        generation_config,
        attention_mask=model_kwargs.get("attention_mask"),
        draft_tokenizer=draft_tokenizer,
        gamma=gamma,
        verifier=verifier,
        tree=tree,
        tree_settings=tree_settings,
        shared_prefix=shared_prefix,
        seed=seed,
        batch=batch,
        streamer=None if streamer is None else _Prompted(streamer),
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
    """The local variables of the ``generate`` of `transformers` that called."""
    frame = inspect.currentframe()
    caller = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
    if caller is None or caller.f_code.co_name != "generate" or "generation_mode_kwargs" not in caller.f_locals:
        return None
    return dict(caller.f_locals)
