"""Attention in parts: the merge by log-sum-exp, and shared columns with ragged lengths against one dense attention."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from specdec.models.execution.parts import Part, attend_part, attend_shared, merge, part_levels
from specdec.models.kv import KVStorage
from specdec.models.shared import SharedColumns

K, GROUPS, E = 2, 3, 8
EMPTY = float("-inf")


def drawn_part(seed: int, lse: float, rows: int = 3) -> Part:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, E, generator=generator), lse + torch.rand(rows, generator=generator).double()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-80, 80) | st.just(EMPTY), min_size=2, max_size=6), st.integers(0, 10**6), st.data())
def test_the_merge_is_associative_and_empty_parts_are_neutral(levels, seed, data):
    """Of any number of levels, in any order and any grouping."""
    parts = [drawn_part(seed + i, level) for i, level in enumerate(levels)]
    whole, left = reduce(merge, parts), data.draw(st.permutations(parts))
    while len(left) > 1:
        place = data.draw(st.integers(0, len(left) - 2))
        left[place : place + 2] = [merge(left[place], left[place + 1])]
    for a, b in zip(whole, left[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    one, nothing = parts[0], (torch.zeros(3, E), torch.full((3,), EMPTY, dtype=torch.float64))
    if levels[0] != EMPTY:
        for merged in (merge(one, nothing), merge(nothing, one)):
            assert all(map(torch.equal, merged, one))
    assert all(torch.isfinite(merge(nothing, nothing)[0]).flatten())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12), st.floats(0.1, 80))
def test_parts_in_any_split_are_the_whole(seed, cut, scale):
    """Scores of up to some hundreds: shares from 0 to 1 between the parts."""
    generator = torch.Generator().manual_seed(seed)
    q, keys, values = (torch.randn(1, K, n, E, generator=generator, dtype=torch.float64) for n in (5, 12, 12))
    seen = torch.rand(1, 1, 5, 12, generator=generator) < 0.7
    seen[..., 0] = True
    mask = torch.zeros(1, 1, 5, 12, dtype=torch.float64).masked_fill(~seen, EMPTY)
    parts = [attend_part(q, keys[:, :, s], values[:, :, s], mask[..., s], scale) for s in (slice(cut), slice(cut, 12))
             if keys[:, :, s].shape[2]]  # fmt: skip
    found = parts[0] if len(parts) == 1 else merge(*parts)
    expected = scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "scale"),
    [
        (torch.float64, 1e-11, 20.0),
        (torch.float64, 1e-12, 0.7),
        (torch.float32, 1e-6, 0.7),
        (torch.bfloat16, 2e-2, 0.7),
    ],
)
def test_levels_of_ragged_lengths_equal_dense_attention(dtype, tolerance, scale):
    """A tree of prefixes, rows whose paths end anywhere in it, or are empty; scores of up to some hundreds."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    sizes, starts = [9, 4, 3, 6, 5], [0, 9, 13, 9, 0]  # 0 and 4 are first; 1 and 3 come after 0, and 2 after 1
    paths = [[0, 1, 2], [0], [4], [0, 1], [], [0, 3], [0, 1, 2], [0, 3], [0]]
    lengths, T, S, B = [16, 4, 5, 11, 0, 15, 14, 10, 0], 2, 6, 9
    storages = tuple(KVStorage(random(4, 1, K, size, E), size, ((K, E),) * 4) for size in sizes)
    shared = SharedColumns(storages, starts, paths, torch.tensor(lengths))
    q, keys, values = random(B, K, GROUPS * T, E), random(B, K, S, E), random(B, K, S, E)
    seen_BTS = torch.rand(B, T, S, generator=generator) < 0.6
    seen_BTS[..., -1] = True
    seen = shared.mask(seen_BTS)[:, None, None].expand(B, 1, GROUPS, T, 16 + S).reshape(B, 1, GROUPS * T, 16 + S)
    mask = torch.where(seen, *part_levels(dtype, seen.device))
    found = attend_shared(q, (keys, values), mask, scale, shared, layer=1)
    for b, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        columns = [part.data_NBHSD[2:, 0] for part in (storages[n] for n in path)] if length else []
        own = torch.stack([keys[b], values[b]])
        whole = torch.cat([torch.cat(columns, dim=2)[:, :, :length] if columns else own[:, :, :0], own], dim=2).double()
        own_mask = mask[b, :, :, [*range(length), *range(16, 16 + S)]].double()
        expected = scaled_dot_product_attention(q[b].double(), *whole, attn_mask=own_mask, scale=scale)
        torch.testing.assert_close(found[b].double(), expected, rtol=tolerance, atol=tolerance)
        for i, part in enumerate((keys, values)):
            assert torch.equal(
                shared.joined(2 + i, part)[b, :, [*range(length), *range(16, 16 + S)]].double(), whole[i]
            )
