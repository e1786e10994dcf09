"""A model that `transformers` splits over processes by its own plan, but for its embeddings and its head of logits.

Those are whole in every process, as drafters that begin as copies of them, or read them, need them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from specdec.errors import ConfigError, PairError

WHOLE = "replicate"


def split_arguments(role: str, name: str, config: Any, num_parts: int) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that split a model; none for one part.

    Raises:
        PairError: its heads cannot be shared, or it has no plan.
        ConfigError: `accelerate` is missing.
    """
    if num_parts == 1:
        return {}
    if find_spec("accelerate") is None:
        raise ConfigError("runner.tensor_parallel=true needs accelerate: pip install 'specdec[parallel]'")
    text = config.get_text_config()
    heads = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if any(count % num_parts for count in heads):
        raise PairError(
            f"pair.{role}={name} has {heads[0]} attention and {heads[1]} key-value heads, which {num_parts} processes "
            "cannot share: set runner.devices to a divisor of both"
        )
    if not getattr(text, "base_model_tp_plan", None):
        raise PairError(
            f"pair.{role}={name} ({text.model_type}) has no tensor-parallel plan in transformers: set "
            "runner.tensor_parallel=false"
        )
    from transformers import AutoModelForCausalLM
    from transformers.distributed.configuration_utils import DistributedConfig

    with torch.device("meta"):
        module: Any = AutoModelForCausalLM.from_config(config)
    own = _ends(module)
    plan = {name: WHOLE for name, part in module.named_modules() if any(part is end for end in own)}
    return {"distributed_config": DistributedConfig(tp_size=num_parts, tp_plan=plan)}


def unwrap_ends(module: Any) -> None:
    """Take the wrappers, which pass everything through, off the embeddings and the head."""
    for end in _ends(module):
        vars(end).pop("forward", None)


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it is in one process; all of them must ask for it."""
    split: Any = getattr(tensor, "full_tensor", None)  # a DTensor's, whose import takes a while
    return tensor if split is None else split()


def _ends(module: Any) -> tuple[Any, Any]:
    return module.get_input_embeddings(), module.get_output_embeddings()
