"""Gradient checkpointing: what a layer or a loss keeps for the backward pass is computed again instead of being held.

The same operations on the same numbers: gradients are equal to the bit. Source: Chen et al. 2016, arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from specdec.training import TrainingError

P = ParamSpec("P")
R = TypeVar("R")
_ON: ContextVar[bool] = ContextVar("recompute", default=False)


@contextmanager
def recomputing(enabled: bool) -> Iterator[None]:
    """Within the block, `recomputed` calls keep their inputs alone."""
    token = _ON.set(enabled)
    try:
        yield
    finally:
        _ON.reset(token)


def recomputed(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function without random numbers and side effects; within `recomputing` it runs again in backward."""
    if not (_ON.get() and torch.is_grad_enabled()):
        return function(*args, **kwargs)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, **kwargs}
    found: R = checkpoint(function, *args, **options)
    return found


def enable_in(model: Any) -> None:
    """Let the layers of a model of `transformers` do the same; other modules call `recomputed` themselves.

    Raises:
        TrainingError: its code has no gradient checkpointing.
    """
    if not isinstance(model, PreTrainedModel):
        return
    if not model.supports_gradient_checkpointing:
        raise TrainingError(
            f"gradient_checkpointing=true: transformers has none for a {type(model).__name__}; set it to false"
        )
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.24 on
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
