"""Chains of tokens that were chosen, not drawn: drafts without probabilities."""

from __future__ import annotations

import torch

from specdec.alignment.layout import padded
from specdec.core.round import Draft


def chosen_chains(chains: list[list[int]], device: torch.device) -> Draft:
    """One chain of tokens per row."""
    return Draft(padded(chains, device), [len(chain) for chain in chains])
