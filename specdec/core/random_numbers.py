"""Stateless random numbers: hashes of seed, row, position, purpose and offset.

A row's numbers depend on (seed, prompt index, position, purpose, offset) only, so a row gets the same ones alone and in
any batch, under any scheduler, on any device. A number must decide one thing only. The purposes, with the reason why no
key is used twice:

- ``DRAW``: the token emitted at ``position``, however a verifier chooses it. Every position is emitted once; the number
  of a position that a round does not reach is not used.
- ``TEST``: the acceptance test of a drafted token. Block verification uses the tests of tokens that it then rejects, so
  the position is that of the round's start, and the offset is the token's index in the draft.
- ``DRAFT``: the token that a draft model samples; keyed like the tests, for the same reason.
- ``SCRIPT``: whether the scripted drafter is right at a position.
- ``SEARCH``: a drafter's search for a tree. What it finds is only proposed, so one number per step of a round's search.

The hash is a chain of splitmix64 finalisers (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators"), each a bijection of 64 bits. Shape letters: B rows, N numbers per row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DRAW, TEST, DRAFT, SCRIPT, SEARCH = range(5)


def uniforms(
    keys: Sequence[tuple[int, int]], positions: Sequence[Sequence[int]], purpose: int, offsets: Sequence[int]
) -> Tensor:
    """Float64 numbers in [0, 1), multiples of 2**-53, on the CPU.

    Args:
        keys: seed and prompt index of each of the B rows; any integers.
        positions: (B, N) positions, or (B, 1): one for all numbers of a row. offsets: N offsets, the same for all rows.

    Returns:
        (B, N) numbers.
    """
    shape = (len(keys), len(offsets))
    width = len(positions[0]) if positions else 0
    seeds_B1, indices_B1 = (torch.tensor([_signed(key[i]) for key in keys]).reshape(-1, 1) for i in (0, 1))
    state = _mix(seeds_B1)
    for word in (
        indices_B1,
        torch.tensor(positions).reshape(len(keys), width),
        torch.tensor(purpose),
        torch.tensor(offsets),
    ):
        state = _mix(state ^ word.to(torch.int64))  # chained, because the order of the words must count
    return _shift(state, 11).to(torch.float64).expand(shape) * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """splitmix64's step and finaliser; int64 arithmetic wraps like the unsigned one."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros (torch's own shift copies the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The same 64 bits as a signed integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
