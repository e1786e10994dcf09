"""The walk down a tree, one depth at a time and all rows at once, which the top-down verifiers share.

The target's distribution is asked for at one column per row and depth, so a wide tree costs no more than a chain of its
depth. Shape letters: B rows, C columns, D depths, W candidates under one column, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise, one_hot
from specdec.core.target_law import TargetLaw
from specdec.core.transfer import to_device
from specdec.errors import ContractError
from specdec.verifiers.base import LawVerifier
from specdec.verifiers.children import children_of


@dataclass(frozen=True, slots=True)
class Site:
    """Where the rows stand: each at a column of its own, all at one depth."""

    draft: Draft
    depth: int
    open_B: Tensor  # rows whose walk has not ended
    columns_B: Tensor
    p_BV: Tensor  # the target's distribution there
    nodes_BW: Tensor  # the candidates in drawing order; -1: none
    tokens_BW: Tensor  # -1: none
    tests_BW: Tensor  # the random number of each candidate
    draw_B: Tensor  # the random number that draws a token here

    @property
    def on_host(self) -> bool:
        """Whether asking for a value waits for no device."""
        return self.columns_B.device.type == "cpu"

    def drawn(self) -> Tensor:
        """(B, W) bool: which places hold a candidate of an open row."""
        return (self.nodes_BW >= 0) & self.open_B[:, None]

    def q(self) -> Tensor:
        """(B, V): the distribution that the candidates were drawn from; anything where there are none."""
        rows_B = torch.arange(len(self.columns_B), device=self.columns_B.device)
        return draft_law(self.draft, rows_B, self.columns_B, self.tokens_BW, self.p_BV)


def draft_law(draft: Draft, rows_R: Tensor, columns_R: Tensor, tokens_RW: Tensor, p_RV: Tensor) -> Tensor:
    """(R, V) float64: what the children of some rows' columns, which are ``tokens_RW``, were drawn from.

    A child that was chosen has a one-hot law. Where there are no children, the law is anything.

    Raises:
        ContractError: siblings without probabilities.
    """
    if draft.probs_BGV is None and tokens_RW.shape[1] > 1:
        raise ContractError(
            "this verifier compares probabilities, and the draft is a tree that has none: set verifier=naive"
        )
    if draft.tokens_BG.shape[1] == 0 or tokens_RW.shape[1] == 0:
        return p_RV
    if draft.probs_BGV is None:
        return one_hot(tokens_RW[:, 0].clamp(min=0), p_RV.shape[-1])
    return draft.probs_BGV[rows_R, columns_R.clamp(max=draft.probs_BGV.shape[1] - 1)].double()


def walk(
    draft: Draft, law: TargetLaw, noise: Noise, follow: Callable[[Site], Tensor], repeats: bool = True
) -> tuple[Tensor, Tensor]:
    """Let ``follow`` choose a token (B) at each site, and go to the child that holds it until there is none.

    Args:
        repeats: a node is a candidate as often as it was drawn (False: once).

    Returns:
        (B, D) the nodes that were reached, -1 after the end of a row's walk; and (B, D) what was chosen.
    """
    children, device = children_of(draft, repeats), draft.tokens_BG.device
    nodes_BCW, tests_BCW = to_device(np.stack([children.nodes_BCW, children.tests_BCW]), device).unbind(0)
    rows_B = torch.arange(len(draft.num_drafted), device=device)
    columns_B = torch.zeros_like(rows_B)
    open_B = torch.ones_like(rows_B, dtype=torch.bool)
    reached, chosen = [], []
    for depth, width in enumerate(children.widths):
        nodes_BW, places_BW = nodes_BCW[rows_B, columns_B, :width], tests_BCW[rows_B, columns_B, :width]
        tokens_BW = torch.where(nodes_BW >= 0, draft.tokens_BG.gather(1, nodes_BW.clamp(min=0)), -1)
        tests_BW = noise.tests_BG.gather(1, places_BW)
        p_BV = law.at(columns_B[:, None])[:, 0]
        draw_B = noise.draws_BT[:, depth]
        token_B = follow(Site(draft, depth, open_B, columns_B, p_BV, nodes_BW, tokens_BW, tests_BW, draw_B))
        found_BW = torch.where(open_B[:, None] & (tokens_BW == token_B[:, None]), nodes_BW, -1)
        child_B = torch.nn.functional.pad(found_BW, (0, 1), value=-1).amax(1)
        open_B = child_B >= 0
        columns_B = torch.where(open_B, child_B + 1, columns_B)
        reached.append(child_B)
        chosen.append(token_B)
        if device.type == "cpu" and not open_B.any():
            break
    return torch.stack(reached, dim=1), torch.stack(chosen, dim=1)


def verdict(draft: Draft, reached_BD: Tensor, next_B: Tensor) -> Verdict:
    """The nodes of each row's path, which -1 ends, and its next token, brought to the host."""
    decided = draft.fetch(torch.cat([reached_BD, next_B[:, None]], dim=1))
    return Verdict([[node for node in row[:-1] if node >= 0] for row in decided], [row[-1] for row in decided])


class WalkVerifier(LawVerifier):
    """Emits one token per visited node, and goes on with the child that holds it, if there is one."""

    repeats = True
    """Whether a node that was drawn several times is that many candidates."""

    def verify_law(self, draft: Draft, law: TargetLaw, noise: Noise) -> Verdict:
        reached_BD, chosen_BD = walk(draft, law, noise, self.emit, self.repeats)
        lengths_B1 = (reached_BD >= 0).sum(1, keepdim=True)
        return verdict(draft, reached_BD, chosen_BD.gather(1, lengths_B1)[:, 0])

    @abstractmethod
    def emit(self, site: Site) -> Tensor:
        """(B): the token after each row's path, distributed as ``site.p_BV`` over drafts and random numbers."""
