"""Greedy multi-path block verification: of K independent paths the best is kept, and block verification judges it.

At every node the vocabulary is ordered by p / q (to three digits), ties by token id; the best path goes to the
highest-ranked child at each node. Its law is not q but, along the path,
    q^G(x) = (hi(x)^K - lo(x)^K) / ((A + pi)^K - A^K),   lo(x) = A + pi Q(ranked below x),   hi(x) = lo(x) + pi q(x),
where pi is the draft's probability of the path so far, and A that of all paths of its length that rank below it. Block
verification (see specdec.verifiers.block) with q^G in place of q then decides.
Lossless only if one strict order makes both the choice and the law: a ratio that is clamped has ties, which a stable
sort and the order of drawing break differently. So nothing is clamped, and one rank serves for both.
On a delayed tree the K draws begin at the fork: before it the law is q (K = 1), and pi and A start there.
Source: Thomas and Pal 2026, arXiv 2602.16961. It does not accept more than block for every p and q.
Shape letters as in specdec.verifiers.walk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise
from specdec.core.siblings import CHAIN, IID
from specdec.core.target_law import TargetLaw
from specdec.verifiers import decisions
from specdec.verifiers.base import LawVerifier
from specdec.verifiers.walk import Site, draft_law, verdict, walk


@dataclass(frozen=True, slots=True)
class Place:
    """A place on the winner's path, each (B): what its law and block's residual depend on."""

    columns: Tensor
    num_draws: Tensor  # K, counted at the last fork
    below: Tensor  # A / (A + pi); the law depends on no more of A and pi, which would underflow
    weight: Tensor  # w of block verification
    is_leaf: Tensor


@dataclass(frozen=True, slots=True)
class SkewedLaw:
    """q^G at one column of each row."""

    probs_BV: Tensor
    low_BV: Tensor  # lo and hi, divided by A + pi
    high_BV: Tensor
    rank_BV: Tensor


class GbvVerifier(LawVerifier):
    """Lossless; with one path it is block."""

    judges = (CHAIN, IID)

    def verify_law(self, draft: Draft, law: TargetLaw, noise: Noise) -> Verdict:
        winner = Winner(self, len(draft.num_drafted), draft.tokens_BG.device)
        reached_BD, chosen_BD = walk(draft, law, noise, winner.visit, all_rows=True)
        depths_D = torch.arange(reached_BD.shape[1], device=reached_BD.device)
        tau_B1 = (torch.stack(winner.passed, dim=1) * depths_D).amax(1, keepdim=True)  # the last test that was passed
        end = winner.place_at(tau_B1)
        p_BV = law.at(end.columns[:, None])[:, 0]
        rows_B = torch.arange(len(p_BV), device=p_BV.device)
        q_BV = draft_law(draft, rows_B, end.columns, chosen_BD.gather(1, tau_B1), p_BV)
        rest_BV, rest_mass_B = self.residual(end, p_BV, self.skewed_law(p_BV, q_BV, end, winner.most_draws).probs_BV)
        weights_BV = torch.where(end.is_leaf[:, None], p_BV, decisions.with_mass(rest_BV, rest_mass_B, p_BV))
        draws_B, every_B = noise.draws_BT.gather(1, tau_B1)[:, 0], torch.ones_like(end.is_leaf)
        next_B = decisions.draws(every_B, weights_BV, draws_B, end.columns)
        return verdict(draft, torch.where(depths_D < tau_B1, reached_BD, -1), next_B)

    def skewed_law(self, p_BV: Tensor, q_BV: Tensor, place: Place, most_draws: int) -> SkewedLaw:
        """The law of the winner's next token; ``most_draws``: the largest K that a row may have, known to the host.

        hi^K - lo^K is (hi - lo) times a sum of products, without cancellation, and hi - lo is proportional to q.
        """
        if most_draws == 1:
            return SkewedLaw(q_BV, q_BV, q_BV, torch.zeros_like(q_BV, dtype=torch.long))
        order_BV = ascending(self.rank_values(p_BV, q_BV))
        places_BV = torch.arange(p_BV.shape[1], device=p_BV.device).expand_as(order_BV)
        rank_BV = torch.empty_like(order_BV).scatter_(1, order_BV, places_BV)
        below_B1 = place.below[:, None]
        steps_BV = q_BV.gather(1, order_BV).cumsum(1).mul_(1 - below_B1).add_(below_B1)
        low_BV = torch.cat([below_B1, steps_BV[:, :-1]], dim=1).gather(1, rank_BV)
        high_BV = torch.mul(q_BV, 1 - below_B1, out=steps_BV).add_(low_BV)
        power_BV = torch.ones_like(q_BV)  # hi^(k - 1)
        sums_BV = torch.ones_like(q_BV)  # the sum over i < k of hi^i lo^(k - 1 - i)
        for k in range(2, most_draws + 1):
            power_BV.mul_(high_BV)
            sums_BV = torch.where(place.num_draws[:, None] >= k, sums_BV * low_BV + power_BV, sums_BV)
        weights_BV = sums_BV.mul_(q_BV)
        total_B1 = weights_BV.sum(1, keepdim=True)
        is_plain_B1 = (place.num_draws[:, None] == 1) | (total_B1 <= 0)
        return SkewedLaw(torch.where(is_plain_B1, q_BV, weights_BV / total_B1), low_BV, high_BV, rank_BV)

    def rank_values(self, p_BV: Tensor, q_BV: Tensor) -> Tensor:
        """p / q, with 0 for 0 / 0: what the order goes by, never clamped."""
        return (p_BV / q_BV).nan_to_num(nan=0.0, posinf=torch.inf)

    def preference(self, site: Site, skewed: SkewedLaw) -> Tensor:
        """(B, W): the child with the largest value is on the best path."""
        return skewed.rank_BV.gather(1, site.tokens_RW.clamp(min=0))

    def chance(self, place: Place, surplus_B: Tensor) -> Tensor:
        """(B): h, of a node that is no leaf."""
        mass_B = surplus_B + 1 - place.weight
        # 0 / 0: there w = 1 and p = q^G, so the node is accepted for certain.
        return torch.where(mass_B > 0, surplus_B / mass_B, 1.0)

    def residual(self, place: Place, p_BV: Tensor, skewed_BV: Tensor) -> tuple[Tensor, Tensor]:
        """(w p - q^G)+ and its mass."""
        rest_BV = (place.weight[:, None] * p_BV - skewed_BV).clamp(min=0)
        return rest_BV, rest_BV.sum(1)


def ascending(values_BV: Tensor) -> Tensor:
    """(B, V): the order of non-negative values by their first three digits, ties by token id.

    Any order that p and q decide is lossless. Sixteen bits of a float32 are sorted forty times as fast as a float64.
    """
    keys_BV = values_BV.float().view(torch.int32) >> 16
    if keys_BV.device.type == "cpu":
        return torch.from_numpy(keys_BV.numpy().astype(np.uint16).argsort(1, kind="stable"))
    return keys_BV.sort(dim=1, stable=True).indices


class Winner:
    """Follows the best path to its leaf, and tests each node on it as block verification does."""

    def __init__(self, verifier: GbvVerifier, num_rows: int, device: torch.device) -> None:
        self._verifier = verifier
        self.places: list[Place] = []
        self.passed: list[Tensor] = []
        self.most_draws = 1
        one = torch.ones(num_rows, dtype=torch.float64, device=device)
        self._num_made = self._num_draws = torch.ones(num_rows, dtype=torch.long, device=device)
        self._below, self._weight = torch.zeros_like(one), one
        self._test = torch.zeros_like(one)

    def visit(self, site: Site) -> Tensor:
        """(B): the token of the best child, -1 at a leaf."""
        drawn_BW, p_BV, q_BV = site.drawn(), site.p_RV, site.q()
        num_B = drawn_BW.sum(1)
        forked_B = num_B > self._num_made
        num_draws_B = torch.where(forked_B, num_B, self._num_draws)
        below_B = torch.where(forked_B, 0.0, self._below)
        place = Place(site.columns_R, num_draws_B, below_B, self._weight, num_B == 0)
        self.most_draws = max(self.most_draws, site.tokens_RW.shape[1])
        skewed = self._verifier.skewed_law(p_BV, q_BV, place, self.most_draws)
        self.places.append(place)
        self.passed.append(self._pass(site, place, skewed.probs_BV))
        if site.tokens_RW.shape[1] == 0:
            return torch.full_like(site.columns_R, -1)
        x_BW = site.tokens_RW.clamp(min=0)
        best_B1 = torch.where(drawn_BW, self._verifier.preference(site, skewed), -1).argmax(1, keepdim=True)
        x_B1 = x_BW.gather(1, best_B1)
        high_B1, low_B1 = skewed.high_BV.gather(1, x_B1), skewed.low_BV.gather(1, x_B1)
        self._num_made = (drawn_BW & (x_BW == x_B1)).sum(1)
        self._num_draws = num_draws_B
        self._below = torch.where(high_B1 > 0, low_B1 / high_B1, 0.0)[:, 0]
        ratio_B1 = self._weight[:, None] * p_BV.gather(1, x_B1) / skewed.probs_BV.gather(1, x_B1)
        self._weight = ratio_B1[:, 0].nan_to_num(nan=0.0, posinf=1.0).clamp(max=1)
        self._test = site.tests_RW.gather(1, best_B1)[:, 0]
        return torch.where(num_B > 0, x_B1[:, 0], -1)

    def _pass(self, site: Site, place: Place, skewed_BV: Tensor) -> Tensor:
        if site.depth == 0:
            return site.open_R
        chance_B = self._verifier.chance(place, self._verifier.residual(place, site.p_RV, skewed_BV)[1])
        return decisions.passes(site.open_R, self._test, torch.where(place.is_leaf, place.weight, chance_B))

    def place_at(self, depth_B1: Tensor) -> Place:
        """Each row's place at its own depth."""
        at = [
            torch.stack([getattr(place, name) for place in self.places], dim=1).gather(1, depth_B1)[:, 0]
            for name in ("columns", "num_draws", "below", "weight", "is_leaf")
        ]
        return Place(*at)
