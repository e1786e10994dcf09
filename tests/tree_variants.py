"""Wrong rules for trees: published ones and those that are easily written. The enumeration must reject them all.

`PlainTraversal` is also the rule as its paper states it, with copies of p, q and w: what the verifier must equal.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise
from specdec.core.target_law import TargetLaw
from specdec.verifiers import decisions
from specdec.verifiers.base import LawVerifier
from specdec.verifiers.gbv import GbvVerifier, Place, SkewedLaw
from specdec.verifiers.multiround import multi_round
from specdec.verifiers.recursive import RecursiveVerifier
from specdec.verifiers.specinfer import SpecInferVerifier
from specdec.verifiers.spectr import SpecTrVerifier
from specdec.verifiers.walk import Site, WalkVerifier

# --- independent draws, top-down ------------------------------------------------------------------------------------


class Deduplicated(SpecInferVerifier):
    """A token that was drawn twice is tested once."""

    repeats = False


class DeduplicatedSpecTr(SpecTrVerifier):
    """The same; K is then the number of different tokens."""

    repeats = False


class Renormalised(SpecInferVerifier):
    """The draft's distribution loses every rejected token, though it may be drawn again."""

    def emit(self, site: Site) -> Tensor:
        return multi_round(site, replacement=False)


class ByToken(SpecInferVerifier):
    """Candidates are tested in the order of their tokens."""

    def emit(self, site: Site) -> Tensor:
        keys_BW = torch.where(site.tokens_RW < 0, 99, site.tokens_RW)
        return super().emit(in_order(site, keys_BW.argsort(dim=1, stable=True)))


class Grouped(SpecInferVerifier):
    """Repeats are tested right after the token's first draw."""

    def emit(self, site: Site) -> Tensor:
        same_BWW = site.tokens_RW[:, :, None] == site.tokens_RW[:, None, :]
        first_BW = torch.nn.functional.pad(same_BWW, (0, 1)).int().argmax(2)
        return super().emit(in_order(site, torch.where(site.tokens_RW < 0, 99, first_BW).argsort(dim=1, stable=True)))


class FromTarget(SpecInferVerifier):
    """The correction is drawn from p."""

    def emit(self, site: Site) -> Tensor:
        token_B = super().emit(site)
        accepted_B = (site.drawn() & (site.tokens_RW == token_B[:, None])).any(1)
        return decisions.draws(site.open_R & ~accepted_B, site.p_RV, site.draw_R, token_B)


class GlobalK(SpecTrVerifier):
    """Every node is taken to have as many candidates as the draft has paths."""

    def division_factor(self, p_BV: Tensor, q_BV: Tensor, num_B: Tensor, most: int) -> Tensor:
        return super().division_factor(p_BV, q_BV, torch.full_like(num_B, self.num_paths), self.num_paths)

    def residual(self, p_BV: Tensor, q_BV: Tensor, rho_B: Tensor, num_B: Tensor) -> Tensor:
        return super().residual(p_BV, q_BV, rho_B, torch.where(num_B > 0, self.num_paths, 0).double())

    num_paths = 3


class NoDivision(SpecTrVerifier):
    """Division factor 1."""

    def division_factor(self, p_BV: Tensor, q_BV: Tensor, num_B: Tensor, most: int) -> Tensor:
        return torch.ones_like(num_B)


class LowDivision(SpecTrVerifier):
    """A division factor below the root: the residual would be negative somewhere."""

    def division_factor(self, p_BV: Tensor, q_BV: Tensor, num_B: Tensor, most: int) -> Tensor:
        return (1 + super().division_factor(p_BV, q_BV, num_B, most)) / 2


class PlainResidual(SpecTrVerifier):
    """The residual of a single candidate, (p - q)+."""

    def residual(self, p_BV: Tensor, q_BV: Tensor, rho_B: Tensor, num_B: Tensor) -> Tensor:
        return torch.where(num_B[:, None] > 0, (p_BV - q_BV).clamp(min=0), p_BV)


def in_order(site: Site, order_BW: Tensor) -> Site:
    """The candidates in another order."""
    changed = {name: getattr(site, name).gather(1, order_BW) for name in ("nodes_RW", "tokens_RW", "tests_RW")}
    return replace(site, **changed)


# --- siblings without replacement, top-down ---------------------------------------------------------------------------


class NotRenormalised(RecursiveVerifier):
    """The draft's distribution keeps the siblings that were rejected."""

    def emit(self, site: Site) -> Tensor:
        return multi_round(site, replacement=True)


class FirstSiblingOnly(RecursiveVerifier):
    """Later siblings are tested against p again."""

    def emit(self, site: Site) -> Tensor:
        token_B, open_B = site.columns_R, site.open_R
        for j in range(site.tokens_RW.shape[1]):
            x_B1 = site.tokens_RW[:, j, None].clamp(min=0)
            chance_B = (site.p_RV.gather(1, x_B1) / site.q().gather(1, x_B1))[:, 0]
            passed_B = decisions.passes(open_B & site.drawn()[:, j], site.tests_RW[:, j], chance_B)
            token_B, open_B = torch.where(passed_B, x_B1[:, 0], token_B), open_B & ~passed_B
        rest_BV = (site.p_RV - site.q()).clamp(min=0)
        return decisions.draws(open_B, decisions.with_mass(rest_BV, rest_BV.sum(1), site.p_RV), site.draw_R, token_B)


# --- paths as blocks -----------------------------------------------------------------------------------------------


class TiesByDrawing(GbvVerifier):
    """The ratio is clamped at 1. Its ties go by token in the law, and by drawing order in the choice, as published."""

    def rank_values(self, p_BV: Tensor, q_BV: Tensor) -> Tensor:
        return super().rank_values(p_BV, q_BV).clamp(max=1)

    def preference(self, site: Site, skewed: SkewedLaw) -> Tensor:
        x_BW = site.tokens_RW.clamp(min=0)
        ratio_BW = self.rank_values(site.p_RV, site.q()).gather(1, x_BW)
        return ratio_BW - torch.arange(x_BW.shape[1]) * 1e-9


class NotSkewed(GbvVerifier):
    """The winner is judged as if it had been drawn from q."""

    def skewed_law(self, p_BV: Tensor, q_BV: Tensor, place: Place, most_draws: int) -> SkewedLaw:
        return replace(super().skewed_law(p_BV, q_BV, place, most_draws), probs_BV=q_BV)


class FirstPath(GbvVerifier):
    """The first path is kept, and judged as if it were the best."""

    def preference(self, site: Site, skewed: SkewedLaw) -> Tensor:
        return -torch.arange(site.tokens_RW.shape[1]).expand_as(site.tokens_RW)


class ForgetsBelow(GbvVerifier):
    """Paths that rank below the winner's are forgotten: A = 0 everywhere."""

    def skewed_law(self, p_BV: Tensor, q_BV: Tensor, place: Place, most_draws: int) -> SkewedLaw:
        return super().skewed_law(p_BV, q_BV, replace(place, below=torch.zeros_like(place.below)), most_draws)


class GbvWeight(GbvVerifier):
    """Accepts with w where h belongs."""

    def chance(self, place: Place, surplus_B: Tensor) -> Tensor:
        return place.weight


class GbvPlainResidual(GbvVerifier):
    """The residual of token verification, p - q^G."""

    def residual(self, place: Place, p_BV: Tensor, skewed_BV: Tensor) -> tuple[Tensor, Tensor]:
        rest_BV = (p_BV - skewed_BV).clamp(min=0)
        return rest_BV, super().residual(place, p_BV, skewed_BV)[1]


# --- bottom-up -----------------------------------------------------------------------------------------------------


class PlainTraversal(LawVerifier):
    """The rule as stated, one row after the other; ``flaw`` names what is done wrong."""

    def __init__(self, flaw: str | None = None) -> None:
        self.flaw = flaw

    def verify_law(self, draft: Draft, law: TargetLaw, noise: Noise) -> Verdict:
        verdicts = [self._row(draft, law.whole()[b], noise, b) for b in range(len(draft.num_drafted))]
        return Verdict([path for path, _ in verdicts], [token for _, token in verdicts])

    def _row(self, draft: Draft, p_TV: Tensor, noise: Noise, b: int) -> tuple[list[int], int]:
        parents, tokens = draft.parents[b], draft.tokens_BG[b].tolist()
        p, q, w = list(p_TV.clone()), list(draft.probs_BGV[b].double().clone()), {-1: 1.0}
        children: dict[int, list[int]] = {g: [] for g in range(-1, len(parents))}
        for g, parent in enumerate(parents):
            children[parent].append(g)
        if self.flaw == "siblings from the last":
            children = {g: below[::-1] for g, below in children.items()}

        def weigh(m: int) -> None:
            for x in children[m]:
                chance = w[m] * float(p[m + 1][tokens[x]]) / max(float(q[m + 1][tokens[x]]), 1e-300)
                w[x] = min(1.0, chance)
                weigh(x)

        weigh(-1)
        while True:
            n = -1
            while children[n]:
                n = children[n][0]
            one = torch.ones((), dtype=torch.bool)
            weight = torch.tensor(w[n], dtype=torch.float64)
            if n == -1 or bool(decisions.passes(one, noise.tests_BG[b, n], weight)):
                path = draft.path(b, n)
                law_V = p[n + 1][None] if self.flaw != "bonus from the target's own" else p_TV[n + 1][None]
                draw_B = noise.draws_BT[b, len(path)][None]
                return path, int(decisions.draws(one[None], law_V, draw_B, torch.zeros(1, dtype=torch.long)))
            m = parents[n]
            self._delete(m, tokens[n], p, q, w)
            children[m].remove(n)
            if self.flaw == "ancestors weighed again":
                w[-1] = 1.0 if m != -1 else w[-1]
                weigh(-1)
            elif self.flaw != "descendants not weighed again":
                weigh(m)

    def _delete(self, m: int, x: int, p: list[Tensor], q: list[Tensor], w: dict[int, float]) -> None:
        old = 1.0 if self.flaw == "plain residual" else w[m]
        rest = (old * p[m + 1] - q[m + 1]).clamp(min=0)
        s = float(rest.sum())
        new = s / (s + 1 - w[m]) if s > 0 else 0.0
        if self.flaw == "the new weight in the residual":
            rest = (new * p[m + 1] - q[m + 1]).clamp(min=0)
        if self.flaw != "the weight stays":
            w[m] = new
        if float(rest.sum()) > 0 and self.flaw != "the target's law stays":
            p[m + 1] = rest / rest.sum()
        if self.flaw != "the draft's law stays":
            q[m + 1] = q[m + 1].clone()
            q[m + 1][x] = 0
            if float(q[m + 1].sum()) > 0 and self.flaw != "not renormalised":
                q[m + 1] = q[m + 1] / q[m + 1].sum()


FLAWS = [
    "plain residual",
    "the new weight in the residual",
    "the weight stays",
    "the target's law stays",
    "the draft's law stays",
    "not renormalised",
    "siblings from the last",
    "ancestors weighed again",
    "descendants not weighed again",
    "bonus from the target's own",
]


class BestChild(WalkVerifier):
    """Each node draws its own token from p for every sibling: several chances for one place (algorithms.md 6.1)."""

    def emit(self, site: Site) -> Tensor:
        token_B, open_B = site.columns_R, site.open_R
        for j in range(site.tokens_RW.shape[1]):
            x_B1 = site.tokens_RW[:, j, None].clamp(min=0)
            chance_B = site.p_RV.gather(1, x_B1)[:, 0]
            passed_B = decisions.passes(open_B & site.drawn()[:, j], site.tests_RW[:, j], chance_B)
            token_B, open_B = torch.where(passed_B, x_B1[:, 0], token_B), open_B & ~passed_B
        return decisions.draws(open_B, site.p_RV, site.draw_R, token_B)


TOP_DOWN = [Deduplicated, DeduplicatedSpecTr, Renormalised, ByToken, Grouped, FromTarget, GlobalK, NoDivision]
TOP_DOWN += [LowDivision, PlainResidual, BestChild]
PATHS = [TiesByDrawing, NotSkewed, FirstPath, ForgetsBelow, GbvWeight, GbvPlainResidual]
ORDERED = [NotRenormalised, FirstSiblingOnly, BestChild]
