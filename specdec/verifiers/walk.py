"""The walk down a tree, one depth at a time and all rows at once, which the top-down verifiers share.

The target's distribution is asked for at one column per row and depth, so a wide tree costs no more than a chain of its
depth. Shape letters: B rows, R rows of a site, C columns, D depths, W candidates under one column, V vocabulary.
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
    """Where some rows stand: each at a column of its own, all at one depth."""

    draft: Draft
    depth: int
    rows_R: Tensor
    open_R: Tensor  # rows whose walk has not ended; on a GPU the others are computed along with them
    columns_R: Tensor
    p_RV: Tensor  # the target's distribution there
    nodes_RW: Tensor  # the candidates in drawing order; -1: none
    tokens_RW: Tensor  # -1: none
    tests_RW: Tensor  # the random number of each candidate
    draw_R: Tensor  # the random number that draws a token here

    @property
    def on_host(self) -> bool:
        """Whether asking for a value waits for no device."""
        return self.columns_R.device.type == "cpu"

    def drawn(self) -> Tensor:
        """(R, W) bool: which places hold a candidate of an open row."""
        return (self.nodes_RW >= 0) & self.open_R[:, None]

    def q(self) -> Tensor:
        """(R, V): the distribution that the candidates were drawn from; anything where there are none."""
        return draft_law(self.draft, self.rows_R, self.columns_R, self.tokens_RW, self.p_RV)


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
    draft: Draft,
    law: TargetLaw,
    noise: Noise,
    follow: Callable[[Site], Tensor],
    *,
    repeats: bool = True,
    all_rows: bool = False,
) -> tuple[Tensor, Tensor]:
    """Let ``follow`` choose a token (R) at each site, and go to the child that holds it until there is none.

    Args:
        repeats: a node is a candidate as often as it was drawn (False: once).
        all_rows: every site has all rows. By default rows whose walk has ended are left out, on a CPU.

    Returns:
        (B, D) the nodes that were reached, -1 after the end of a row's walk; and (B, D) what was chosen.
    """
    children, device = children_of(draft, repeats), draft.tokens_BG.device
    nodes_BCW, tests_BCW = to_device(np.stack([children.nodes_BCW, children.tests_BCW]), device).unbind(0)
    rows_R = torch.arange(len(draft.num_drafted), device=device)
    rows, columns_R, open_R = rows_R.tolist() if device.type == "cpu" else None, torch.zeros_like(rows_R), rows_R >= 0
    reached_BD = torch.full((len(draft.num_drafted), len(children.widths)), -1, device=device)
    chosen_BD = torch.zeros_like(reached_BD)
    for depth, width in enumerate(children.widths):
        nodes_RW, places_RW = nodes_BCW[rows_R, columns_R, :width], tests_BCW[rows_R, columns_R, :width]
        tokens_RW = torch.where(nodes_RW >= 0, draft.tokens_BG[rows_R[:, None], nodes_RW.clamp(min=0)], -1)
        tests_RW, draw_R = noise.tests_BG[rows_R[:, None], places_RW], noise.draws_BT[rows_R, depth]
        p_RV = law.at(columns_R[:, None], rows)[:, 0]
        site = Site(draft, depth, rows_R, open_R, columns_R, p_RV, nodes_RW, tokens_RW, tests_RW, draw_R)
        token_R = follow(site)
        found_RW = torch.where(open_R[:, None] & (tokens_RW == token_R[:, None]), nodes_RW, -1)
        child_R = torch.nn.functional.pad(found_RW, (0, 1), value=-1).amax(1)
        reached_BD[rows_R, depth], chosen_BD[rows_R, depth] = child_R, token_R
        open_R = child_R >= 0
        columns_R = torch.where(open_R, child_R + 1, columns_R)
        if device.type == "cpu" and not all_rows:
            if not open_R.any():
                break
            rows_R, columns_R, open_R = rows_R[open_R], columns_R[open_R], open_R[open_R]
            rows = rows_R.tolist()
    return reached_BD, chosen_BD


def verdict(draft: Draft, reached_BD: Tensor, next_B: Tensor) -> Verdict:
    """The nodes of each row's path, which -1 ends, and its next token, brought to the host."""
    decided = draft.fetch(torch.cat([reached_BD, next_B[:, None]], dim=1))
    return Verdict([[node for node in row[:-1] if node >= 0] for row in decided], [row[-1] for row in decided])


class WalkVerifier(LawVerifier):
    """Emits one token per visited node, and goes on with the child that holds it, if there is one."""

    repeats = True
    """Whether a node that was drawn several times is that many candidates."""

    def verify_law(self, draft: Draft, law: TargetLaw, noise: Noise) -> Verdict:
        reached_BD, chosen_BD = walk(draft, law, noise, self.emit, repeats=self.repeats)
        lengths_B1 = (reached_BD >= 0).sum(1, keepdim=True)
        return verdict(draft, reached_BD, chosen_BD.gather(1, lengths_B1)[:, 0])

    @abstractmethod
    def emit(self, site: Site) -> Tensor:
        """(R): the token after each row's path, distributed as ``site.p_RV`` over drafts and random numbers."""
