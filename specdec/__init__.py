"""specdec: batched, lossless speculative decoding of Hugging Face causal language models.

Importing this package imports no torch, so that ``--help`` and ``--cfg`` answer at once.
"""

from specdec.errors import SpecdecError
from specdec.registry import register

__version__ = "0.1.0"
__all__ = ["SpecdecError", "__version__", "register"]
