"""specdec: batched, lossless speculative decoding of Hugging Face causal language models.

Importing this package imports no torch, so that ``--help`` and ``--cfg`` answer at once; the library API
(`generate`, `stream`, `Engine`) is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from specdec.errors import SpecdecError
from specdec.registry import register

if TYPE_CHECKING:
    from specdec.engine.api import Engine, generate, stream
    from specdec.engine.custom import custom_generate
    from specdec.engine.loading import load
    from specdec.engine.output import Event, SpeculativeOutput

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "Event",
    "SpecdecError",
    "SpeculativeOutput",
    "__version__",
    "custom_generate",
    "generate",
    "load",
    "register",
    "stream",
]

_LAZY = {
    "Engine": "specdec.engine.api",
    "generate": "specdec.engine.api",
    "stream": "specdec.engine.api",
    "custom_generate": "specdec.engine.custom",
    "load": "specdec.engine.loading",
    "Event": "specdec.engine.output",
    "SpeculativeOutput": "specdec.engine.output",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'specdec' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
