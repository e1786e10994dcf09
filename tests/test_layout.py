"""Masks from explicit lengths."""

from __future__ import annotations

import random

import pytest
import torch

from specdec.alignment import layout
from specdec.alignment.content import Content


@pytest.mark.parametrize("seed", range(20))
def test_masks_of_long_chains_are_those_of_lists_of_pairs(seed, monkeypatch):
    """Ragged chains over nodes in any columns, with padding; some rows are fed nothing."""
    rng, B = random.Random(seed), 3
    width = rng.randint(1, 9)
    counts, before = [rng.randint(0, width) for _ in range(B)], [rng.randint(0, 3) for _ in range(B)]
    contents, columns = [Content(5) for _ in range(B)], []
    for content, old, new in zip(contents, before, counts, strict=True):
        content.feed(old + new, None)
        columns.append(sorted(rng.sample(range(5, 20), old)) + list(range(20, 20 + new)))
    committed_BS = torch.rand(B, 20 + width, generator=torch.Generator().manual_seed(seed)) < 0.5
    committed_BS[:, 20:] = False
    arguments = {"contents": contents, "node_columns": columns, "num_tokens": counts, "num_new": width}
    found = []
    for most_listed in (100, -1):
        monkeypatch.setattr(layout, "MOST_LISTED", most_listed)
        found.append(layout.attention_mask(committed_BS=committed_BS, **arguments))
    assert torch.equal(*found)
