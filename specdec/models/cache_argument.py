"""The name of the cache argument of a `transformers` model: `past_key_values` before version 5.24, `cache` since.

The old name will be removed in 5.40, and code that comes with a checkpoint keeps the name it was written with. So the
name is read from the signature of the model's forward, whatever version is installed.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from specdec.errors import PairError

NAMES = ("cache", "past_key_values")


def cache_argument(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The keyword argument by which this model takes a cache; look it up once for many forwards.

    Raises:
        PairError: the model takes no cache.
    """
    return {_name(module): cache}


def returned_cache(output: Any) -> Any:
    """The cache that a forward returns, under either name."""
    return output.cache if hasattr(output, "cache") else output.past_key_values


def _name(module: nn.Module) -> str:
    """The name, searched in all parts: a wrapper (adapter, compiled model) passes arguments on without naming them."""
    for part in module.modules():
        parameters = inspect.signature(part.forward).parameters
        name = next((name for name in NAMES if name in parameters), None)
        if name is not None:
            return name
    raise PairError(f"the forward of {type(module).__name__} takes neither {' nor '.join(NAMES)}: it keeps no KV cache")
