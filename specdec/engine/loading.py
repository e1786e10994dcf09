"""`specdec.load`: an engine from checkpoints."""

from __future__ import annotations

from typing import Any

import torch

from specdec.config.schema import PairConfig
from specdec.engine.api import Engine
from specdec.errors import ConfigError
from specdec.models.checkpoints import load_model, load_tokenizer
from specdec.models.pair import DTYPES, choose_device
from specdec.registry import names, unknown


def load(
    target: str,
    draft: str | None = None,
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    attention: str = "sdpa",
    **engine: Any,
) -> Engine:
    """An `Engine` of models by path or Hub name, with their tokenizer.

    Args:
        target: a Hub name, a local folder, a GGUF file, "asset:tiny/target" or "fetched:NAME".
        draft: likewise; the name of a drafter that needs no model ("prompt_lookup", "trigram", "self"); or None.
        tokenizer: a tokenizer, or where one is; None: the target's.
        dtype: "auto" keeps each checkpoint's. device: "auto", "cpu" or "cuda". attention: "sdpa" or "eager".
        engine: further arguments of `Engine`.

    Raises:
        PairError, ConfigError: a model cannot be loaded, cannot be run in aligned batches, or a setting is wrong.
    """
    if isinstance(dtype, str) and dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, ["auto", *DTYPES]))
    config = PairConfig(name=target, target=target, draft=draft, attention=attention)
    number_type: Any = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    place = choose_device(device)
    models = {"target": load_model("target", target, config, number_type, place)}
    models["draft"] = draft
    if draft is not None and draft not in names("drafter"):
        models["draft"] = load_model("draft", draft, config, number_type, place)
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer or target, config)
    return Engine(models["target"], models["draft"], tokenizer=tokenizer, **engine)
