"""The cache of a `transformers` model by its name: `past_key_values` before version 5.24, `cache` from then on.

The old name is announced to go in 5.40, and code that comes with a checkpoint keeps the one it was written with. So the
name is read off the model's forward, whatever version is installed.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from specdec.errors import PairError

NAMES = ("cache", "past_key_values")


def cache_argument(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The keyword argument by which this model takes a cache; look it up once where many forwards follow.

    Raises:
        PairError: the model takes none.
    """
    return {_name(module): cache}


def returned_cache(output: Any) -> Any:
    """The cache that a forward returns, in either field."""
    return output.cache if hasattr(output, "cache") else output.past_key_values


def _name(module: nn.Module) -> str:
    """A wrapper (an adapter, a compiled model) names no arguments and hands them on: the model is one of its parts."""
    for part in module.modules():
        parameters = inspect.signature(part.forward).parameters
        name = next((name for name in NAMES if name in parameters), None)
        if name is not None:
            return name
    raise PairError(f"the forward of {type(module).__name__} takes neither {' nor '.join(NAMES)}: it keeps no KV cache")
