"""The round loop, and the library API on top of it: `generate`, `stream`, `Engine`.

Names are imported when they are first asked for: importing this package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec.core.round import Round
    from specdec.engine.api import Engine, generate, stream
    from specdec.engine.output import Event, SpeculativeOutput

__all__ = ["Engine", "Event", "Round", "SpeculativeOutput", "generate", "stream"]

_LAZY = {
    "Engine": "specdec.engine.api",
    "generate": "specdec.engine.api",
    "stream": "specdec.engine.api",
    "Round": "specdec.core.round",
    "Event": "specdec.engine.output",
    "SpeculativeOutput": "specdec.engine.output",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'specdec.engine' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
