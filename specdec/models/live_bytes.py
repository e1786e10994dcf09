"""The memory that a model's own code takes in a forward, seen on the meta device: shapes alone, nothing is computed.

For code whose memory does not follow from the sizes of its layers: the chunked form of a scan has matrices of chunk by
chunk tokens, and states of every chunk, in as many copies as its author made.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import ceil
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specdec.models.cache_argument import cache_argument
from specdec.models.small_copy import field
from specdec.models.states import state_cache

USUAL_CHUNK = 64  # tokens, where a config names none
FEW, FEW_CHUNKED = 64, 256  # tokens of the shorter forward: with fewer, other parts of a layer take most


@dataclass(frozen=True, slots=True)
class ScanBytes:
    """Of a forward over known tokens: a fixed part, and a part per token, in whole chunks per row."""

    fixed: float = 0
    per_token: float = 0
    chunk: int = 1

    def of(self, rows: int, new: int) -> float:
        """Bytes of a forward of ``new`` tokens of each row."""
        return self.fixed + self.per_token * rows * ceil(new / self.chunk) * self.chunk


class LiveBytes(TorchDispatchMode):
    """Within its block: the most bytes of tensors, made there, that exist at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak: int = 0
        self._now: int = 0
        self._made: dict[int, tuple[Any, int]] = {}  # storages and their bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and count what it made."""
        if func is torch.ops.aten._grouped_mm.default and args[0].is_meta:  # there it knows bfloat16 only
            out = args[0].new_empty(args[0].shape[0], args[1].shape[-1])
        else:
            out = func(*args, **(kwargs or {}))
        for part in tree_leaves(out):
            if isinstance(part, Tensor):
                self._add(StorageWeakRef(part.untyped_storage()), part.untyped_storage().nbytes())
        return out

    def _add(self, reference: Any, size: int) -> None:
        known = self._made.get(reference.cdata)
        if known is not None and not known[0].expired():
            return
        self._now += size - (known[1] if known else 0)
        self._made[reference.cdata] = reference, size
        if self._now > self.peak:  # what is gone matters only here
            self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
            self._now = sum(size for _, size in self._made.values())
            self.peak = max(self.peak, self._now)


_known: WeakKeyDictionary[nn.Module, ScanBytes] = WeakKeyDictionary()


def scan_bytes(module: Any, token_bytes: int, chunked: bool) -> ScanBytes:
    """What reading prompts takes in a model with recurrent states, by forwards of one row of two lengths.

    Args:
        token_bytes: of a token's keys and values, which are not counted.
        chunked: whether many tokens are one operation; others go through Python one by one, and fewer are enough.

    Returns:
        Nothing at all if the model's code cannot run without numbers.
    """
    if module not in _known:
        config = module.config.get_text_config()
        sizes = (field(config, "mamba_chunk_size"), field(config, "chunk_size"), USUAL_CHUNK)
        chunk = next(size for size in sizes if isinstance(size, int) and size > 0)
        try:
            with torch.device("meta"):
                twin = type(module)(copy.deepcopy(module.config)).to(module.dtype).eval()
                count = ceil((FEW_CHUNKED if chunked else FEW) / chunk) * chunk
                one, two = _peak(twin, count), _peak(twin, 2 * count)
            per_token = (two - one) / count
            _known[module] = ScanBytes(max(one - per_token * count, 0), max(per_token - token_bytes, 0), chunk)
        except Exception:  # any code may ask for a number
            _known[module] = ScanBytes()
    return _known[module]


@torch.inference_mode()
def _peak(twin: Any, num_tokens: int) -> int:
    cache = state_cache(twin)
    live = LiveBytes()
    with live:
        ids = torch.zeros(1, num_tokens, dtype=torch.long)
        twin(ids, **cache_argument(twin, cache), use_cache=True, logits_to_keep=1)
    return live.peak
