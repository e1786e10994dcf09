"""Whether the loaded model gives the same bits alone and in a batch: tried on itself, before a run.

The classes are measured on the model's operations one by one. The trial runs the whole model, so that it also finds
what is computed between them: three ragged rows in a batch, with rejected tokens and a tree, against each row alone,
one token at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specdec.core.outputs import LOGITS
from specdec.models.architecture import Architecture
from specdec.models.execution.base import Call, Chains, Execution, Given
from specdec.models.kv import KVStorage

LENGTHS, STEPS = (21, 9, 14), (5, 3, 4)
"""Tokens of each row, and tokens per forward of the batch in turn."""


@torch.inference_mode()
def difference(execution: Execution, module: Any, architecture: Architecture) -> str | None:
    """Where bits differ, by the name of the first module that is known to; None if they are all equal."""
    vocab = architecture.vocab_size
    rows = [[(7919 * (i + 1) + 104729 * b) % vocab for i in range(length)] for b, length in enumerate(LENGTHS)]
    with _outputs(module) as alone:
        expected = [torch.cat([step[0] for step in _alone(execution, module, architecture, row)]) for row in rows]
    with _outputs(module) as batched:
        found = _batched(execution, module, architecture, rows)
    if all(torch.equal(one, other) for one, other in zip(expected, found, strict=True)):
        return None
    return _first_difference(alone, batched) or "the logits"


def _storage(module: Any, architecture: Architecture, num_rows: int, columns: int) -> KVStorage:
    sizes = architecture
    shape = (len(sizes.kv_shapes), num_rows, sizes.num_kv_heads, columns, sizes.head_dim)
    return KVStorage(torch.zeros(shape, dtype=sizes.dtype, device=module.device), 0, sizes.kv_shapes)


def _alone(execution: Execution, module: Any, architecture: Architecture, row: list[int]) -> Iterator[Tensor]:
    """A row's logits (1, 1, V), token by token."""
    kv = _storage(module, architecture, 1, len(row))
    for place, token in enumerate(row):
        writer = kv.append(1)
        layout = Chains(writer, 1, place, module.device)
        yield execution.run(Call(torch.tensor([[token]], device=module.device), layout, writer, 0, LOGITS))


def _batched(execution: Execution, module: Any, architecture: Architecture, rows: list[list[int]]) -> list[Tensor]:
    """The same logits from a batch whose rows advance unevenly, in columns with holes between a row's tokens."""
    kv = _storage(module, architecture, len(rows), 0)
    columns: list[list[int]] = [[] for _ in rows]
    parts: list[list[Tensor]] = [[] for _ in rows]
    turn = 0
    while any(len(own) < len(row) for own, row in zip(columns, rows, strict=True)):
        width = STEPS[turn % len(STEPS)]
        # Every row feeds two unlike continuations: the right tokens, and a wrong branch beside them.
        counts = [min((width, 1, width - 1)[(b + turn) % 3], len(r) - len(columns[b])) for b, r in enumerate(rows)]
        T = width + 1
        tokens_BT = torch.zeros(len(rows), T, dtype=torch.long)
        positions_BT = torch.zeros_like(tokens_BT)
        writer, start = kv.append(T), kv.width - T
        mask_BTS = torch.zeros(len(rows), T, kv.width, dtype=torch.bool)
        real_BT = torch.zeros(len(rows), T, dtype=torch.bool)
        for b, (row, own, count) in enumerate(zip(rows, columns, counts, strict=True)):
            first = len(own)
            fed = [*row[first : first + count], (row[0] + 1) % architecture.vocab_size]
            real_BT[b, : len(fed)] = bool(count)
            for t, token in enumerate(fed):
                before = own + [start + i for i in range(t if t < count else 0)]
                tokens_BT[b, t], positions_BT[b, t] = token, len(before)
                mask_BTS[b, t, [*before, start + t]] = True
            for t in range(len(fed), T):
                mask_BTS[b, t, start + t] = True
        device = module.device
        layout = Given(positions_BT.to(device), mask_BTS.to(device))
        call = Call(tokens_BT.to(device), layout, writer, 0, LOGITS, real_BT.to(device))
        logits_BTV = execution.run(call)
        for b, count in enumerate(counts):
            parts[b].append(logits_BTV[b, :count])
            columns[b] += range(start, start + count)
        turn += 1
    return [torch.cat(part) for part in parts]


Outputs = dict[str, set[bytes]]


@contextmanager
def _outputs(module: Any) -> Iterator[Outputs]:
    """The outputs of every module that is called within the block, token by token, as bytes."""
    seen: Outputs = {}

    def note(part: Any, inputs: Any, output: Any, name: str) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.dim() == 3 and first.is_floating_point():
            rows = first.flatten(0, 1).cpu().view(torch.uint8).numpy()
            seen.setdefault(name, set()).update(row.tobytes() for row in rows)

    handles = [part.register_forward_hook(partial(note, name=name)) for name, part in module.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _first_difference(alone: Outputs, batched: Outputs) -> str | None:
    """The first module that gave a token alone what it gave to none in the batch."""
    return next((name for name, seen in alone.items() if not seen <= batched.get(name, set())), None)
