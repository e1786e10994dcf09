"""The exact expected accepted tokens of a drafted tree, by verifier: an average over its random numbers.

A rule that walks down from the root emits token x at a node with a probability B(x) that depends on p, q and the node's
draws alone. So a node is reached with the product of B along its path, and the sum over nodes is the expected number of
accepted tokens. Traversal verification judges from the leaves, one test after the other; its sum is over its tests.
Source: Thomas et al. 2026, arXiv 2602.16994, section 3 (the estimator of block efficiency); B by the rules in
specdec/verifiers. Shape letters: R combs, M nodes, J draws at a node, A shapes, F forks, K paths, P places of a path,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.core.target_law import TargetLaw
from specdec.errors import ConfigError
from specdec.registry import unknown
from specdec.selectors.combs import CombLayout, Combs
from specdec.trees.base import RowShape
from specdec.verifiers.spectr import SpecTrVerifier
from specdec.verifiers.traversal import Trees

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(M): the probability that a rule emits ``x_M``, given p (M, V), q (M, V) and the draws (M, J), -1 for none."""


def naive(p_MV: Tensor, q_MV: Tensor, draws_MJ: Tensor, x_M: Tensor) -> Tensor:
    """The target's own draw."""
    return _at(p_MV, x_M)


def specinfer(p_MV: Tensor, q_MV: Tensor, draws_MJ: Tensor, x_M: Tensor) -> Tensor:
    """All draws are tested in order, each against what is left of p."""
    return _tested(p_MV, q_MV, draws_MJ, x_M)


def naive_tree(p_MV: Tensor, q_MV: Tensor, draws_MJ: Tensor, x_M: Tensor) -> Tensor:
    """The first draw is tested."""
    first_M1 = draws_MJ.gather(1, (draws_MJ >= 0).long().argmax(1, keepdim=True))
    return _tested(p_MV, q_MV, first_M1, x_M)


def recursive(p_MV: Tensor, q_MV: Tensor, draws_MJ: Tensor, x_M: Tensor) -> Tensor:
    """All different tokens are tested in order of their first draw, as if drawn without replacement."""
    again_MJJ = (draws_MJ[:, :, None] == draws_MJ[:, None]).tril(-1)
    draws_MJ = draws_MJ.masked_fill(again_MJJ.any(-1), -1)
    return _tested(p_MV, q_MV, draws_MJ, x_M, replacement=False)


def spectr(p_MV: Tensor, q_MV: Tensor, draws_MJ: Tensor, x_M: Tensor) -> Tensor:
    """All draws are tested alike, at the division factor."""
    rule, num_M = SpecTrVerifier(), (draws_MJ >= 0).sum(1).double()
    rho_M = rule.division_factor(p_MV, q_MV, num_M, draws_MJ.shape[1])
    open_M, emitted_M = torch.ones_like(rho_M), torch.zeros_like(rho_M)
    for j in range(draws_MJ.shape[1]):
        chance_M = (_at(p_MV, draws_MJ[:, j]) / (rho_M * _at(q_MV, draws_MJ[:, j]))).clamp(max=1)
        passed_M = open_M * torch.where(draws_MJ[:, j] >= 0, chance_M, 0.0)
        emitted_M = emitted_M + torch.where(draws_MJ[:, j] == x_M, passed_M, 0.0)
        open_M = open_M - passed_M
    return emitted_M + open_M * _share(rule.residual(p_MV, q_MV, rho_M, num_M), p_MV, x_M)


RULES: dict[str, Rule] = {
    "naive": naive,
    "naive_tree": naive_tree,
    "specinfer": specinfer,
    "spectr": spectr,
    "recursive": recursive,
}
TRAVERSAL = "traversal"


def check_rule(verifier: str, setting: str) -> None:
    """Refuse a verifier without an exact formula.

    Raises:
        ConfigError: it has none.
    """
    if verifier not in (*RULES, TRAVERSAL):
        raise ConfigError(f"{setting} has no formula for the verifier: {unknown('one', verifier, (*RULES, TRAVERSAL))}")


def expected_accepted(verifier: str, combs: Combs) -> Tensor:
    """(R, A) float64: what the tree of each of the layout's shapes is expected to have accepted, in each comb."""
    if verifier == TRAVERSAL:
        return torch.stack([_traversal(combs, shape) for shape in combs.layout.shapes], dim=1)
    layout, rule = combs.layout, RULES[verifier]
    trunk_RP = _reached(rule, combs, layout, 1, [0])[:, 0, 0]  # a chain from the root
    reached_RP = torch.nn.functional.pad(trunk_RP, (1, 0), value=1.0)
    sums_RP = torch.nn.functional.pad(trunk_RP.cumsum(1), (1, 0))
    below_RFP = {
        paths: _reached(rule, combs, layout, paths, list(range(layout.depth))).sum(2).cumsum(2)
        for paths in range(2, layout.num_paths + 1)
    }
    values = [
        sums_RP[:, shape.depth]
        if shape.width == 1
        else sums_RP[:, shape.trunk]
        + reached_RP[:, shape.trunk] * below_RFP[shape.width][:, shape.trunk, shape.depth - shape.trunk - 1]
        for shape in layout.shapes
    ]
    return torch.stack(values, dim=1)


def _reached(rule: Rule, combs: Combs, layout: CombLayout, num_paths: int, forks: list[int]) -> Tensor:
    """(R, F, K, P): the probability that the walk from a fork reaches each node of its paths; 0 at repeated nodes."""
    depth = layout.depth
    shape = (len(forks), num_paths, depth)
    inside_FKP = torch.tensor([[[f + d < depth for d in range(depth)] for _ in range(num_paths)] for f in forks])
    places = [(f, k, d) for f in forks for k in range(num_paths) for d in range(depth)]
    nodes, columns = (
        torch.tensor([of(*place) if place[0] + place[2] < depth else 0 for place in places]).view(shape)
        for of in (layout.node, layout.column)
    )
    device = combs.tokens_RN.device
    tokens_RFKP = combs.tokens_RN[:, nodes.to(device)]
    equal_RFKKP = tokens_RFKP[:, :, :, None] == tokens_RFKP[:, :, None]
    alike_RFKKP = torch.nn.functional.pad(
        equal_RFKKP.cumprod(-1)[..., :-1], (1, 0), value=1
    ).bool()  # before each place
    factors = []
    for d in range(depth):
        at = [f for f, fork in enumerate(forks) if fork + d < depth]
        columns_FK, tokens_RFK = columns[at][..., d].to(device), tokens_RFKP[:, at][..., d]
        draws_RFKJ = torch.where(alike_RFKKP[:, at][..., d], tokens_RFK[:, :, None], -1)
        p_MV, q_MV = (law_RCV[:, columns_FK].flatten(0, 2) for law_RCV in (combs.p_RCV, combs.q_RCV))
        emitted_M = rule(p_MV, q_MV, draws_RFKJ.flatten(0, 2), tokens_RFK.flatten())
        level_RFK = torch.zeros(tokens_RFKP.shape[:3], dtype=torch.float64, device=device)
        level_RFK[:, at] = emitted_M.view(tokens_RFK.shape)
        factors.append(level_RFK)
    earlier_KK = torch.ones(num_paths, num_paths, dtype=torch.bool, device=device).tril(-1)
    same_RFKKP = alike_RFKKP & equal_RFKKP & earlier_KK[..., None]
    first_RFKP = ~same_RFKKP.any(3) & inside_FKP.to(device)
    return torch.stack(factors, dim=-1).cumprod(-1) * first_RFKP


def _tested(p_MV: Tensor, q_MV: Tensor, draws_MJ: Tensor, x_M: Tensor, replacement: bool = True) -> Tensor:
    """Multi-round rejection (specdec/verifiers/multiround.py): what is left of p stays proportional to (p - c q)+."""
    open_M, emitted_M = torch.ones_like(p_MV[:, 0]), torch.zeros_like(p_MV[:, 0])
    scale_M, mass_M, undrawn_M, rest_MV = torch.zeros_like(open_M), open_M, open_M, p_MV
    undrawn_MV = q_MV
    for j in range(draws_MJ.shape[1]):
        token_M, drawn_M = draws_MJ[:, j], draws_MJ[:, j] >= 0
        q_M = _at(q_MV, token_M)
        chance_M = (_at(rest_MV, token_M) / mass_M / (q_M / undrawn_M)).nan_to_num(nan=0.0, posinf=1.0).clamp(max=1)
        passed_M = open_M * torch.where(drawn_M, chance_M, 0.0)
        emitted_M = emitted_M + torch.where(token_M == x_M, passed_M, 0.0)
        open_M = open_M - passed_M
        scale_M = scale_M + torch.where(drawn_M & (undrawn_M > 0), mass_M / undrawn_M, 0.0)
        rest_MV = (p_MV - scale_M[:, None] * q_MV).clamp(min=0)
        mass_M = rest_MV.sum(1)
        if not replacement:
            # Summed again: subtracting q would leave no digits where one token had nearly all of it.
            left_M1 = torch.where(drawn_M, 0.0, _at(undrawn_MV, token_M))[:, None]
            undrawn_MV = undrawn_MV.scatter(1, token_M.clamp(min=0)[:, None], left_M1)
            undrawn_M = undrawn_MV.sum(1)
    return emitted_M + open_M * _share(rest_MV, p_MV, x_M)


def _traversal(combs: Combs, shape: RowShape) -> Tensor:
    """(R): the sum over the tests of the verifier, each of which is passed or deletes a leaf."""
    if not shape.depth:
        return torch.zeros(len(combs.tokens_RN), dtype=torch.float64)
    draft, p_RTV = combs.drafts(shape)
    trees, rows_R = Trees(draft, TargetLaw.of(p_RTV)), torch.arange(len(combs.tokens_RN))
    open_R, accepted_R = torch.ones(len(rows_R), dtype=torch.float64), torch.zeros(len(rows_R), dtype=torch.float64)
    for step, leaves_R in enumerate(trees.leave_SB):
        trees.enter(step, rows_R)
        passed_R = open_R * torch.where(leaves_R == trees.nowhere, 0.0, trees.weight(rows_R, leaves_R))
        accepted_R += passed_R * trees.depths_BX[rows_R, leaves_R]
        open_R = open_R - passed_R
        trees.delete(rows_R, leaves_R)
    return accepted_R


def _at(law_MV: Tensor, tokens_M: Tensor) -> Tensor:
    """(M): the probability of a token; of any token, if it is -1."""
    return law_MV.gather(1, tokens_M.clamp(min=0)[:, None])[:, 0]


def _share(rest_MV: Tensor, p_MV: Tensor, x_M: Tensor) -> Tensor:
    """(M): the probability that a token is drawn in proportion to the residual, or to p if nothing is left."""
    total_M = rest_MV.sum(1)
    return torch.where(total_M > 0, _at(rest_MV, x_M) / total_M, _at(p_MV, x_M))
