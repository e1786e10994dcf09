"""Stochastic beam search (RSD-S): of all children, sampled without replacement, those of the largest perturbed values.

Shape letters: B rows, N nodes, M = B N, J candidates of a node, D nodes at which a child is drawn, W width of the beam.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.siblings import BEAM
from specdec.trees.base import Children, Tree, at_least
from specdec.trees.drawing import Urns, most_probable
from specdec.trees.frontier import Frontier, by_place


class BeamTree(Tree):
    """Up to W nodes per level. Greedy rows: beam search by the draft's own probabilities.

    Every node has a log-probability phi and a perturbed value G, the largest of phi + Gumbel noise among its
    descendants. Its children are sampled from the top: the first child's value is G itself; each next one is a Gumbel
    variable at phi + log(probability left), cut off at the value before it, and its token is drawn from what is left.
    So the values of the whole vocabulary (Kool et al. 2019, arXiv 1903.06059) need not be drawn.
    Source: Jeon et al. 2024, arXiv 2402.14160, RSD-S.
    """

    siblings = BEAM

    def __init__(self, *, width: int) -> None:
        self.width = at_least("width", width)

    def num_nodes(self, depth: int) -> int:
        return self.width * depth

    def grow(self, frontier: Frontier) -> Children:
        phi_BN, value_BN = (self._state(frontier, name) for name in ("phi", "value"))
        if not frontier.samples:
            found = self._chosen(frontier, phi_BN)
        elif not frontier.chooses:
            found = self._drawn(frontier, phi_BN, value_BN)
        else:
            greedy_B11 = frontier.greedy_B[:, None, None]
            both = zip(self._chosen(frontier, phi_BN), self._drawn(frontier, phi_BN, value_BN), strict=True)
            found = tuple(torch.where(greedy_B11, chosen, drawn) for chosen, drawn in both)
        tokens_BNJ, phi_BNJ, value_BNJ = found
        value_BNJ = torch.where(frontier.real_BN[..., None], value_BNJ, -torch.inf)
        return self._best(tokens_BNJ, phi_BNJ, value_BNJ)

    def _chosen(self, frontier: Frontier, phi_BN: Tensor) -> tuple[Tensor, ...]:
        """(B, N, J) most probable tokens, and their phi twice: it is their value."""
        tokens_BNJ = most_probable(frontier.scores_BNV, self.width)
        phi_BNJ = frontier.log_probs().gather(-1, tokens_BNJ).double() + phi_BN[..., None]
        return tokens_BNJ, phi_BNJ, phi_BNJ

    def _state(self, frontier: Frontier, name: str) -> Tensor:
        """(B, N): phi or value; zeros at the root, whose shift does not matter."""
        zeros_BN = torch.zeros(frontier.real_BN.shape, dtype=torch.float64, device=frontier.real_BN.device)
        return frontier.state.get(name, zeros_BN)

    def _drawn(self, frontier: Frontier, phi_BN: Tensor, value_BN: Tensor) -> tuple[Tensor, ...]:
        """(B, N, J) tokens, their phi and their values in descending order; -inf where there is no child.

        Where j children of a node are among the W largest, at most W // j nodes have so many. So child j + 1 is only
        drawn at the W // j nodes of the largest j-th children: in all about W log W draws, not W * W.
        """
        count = min(self.width, frontier.scores_BNV.shape[-1])
        token_numbers_MJ, value_numbers_MJ = (part.flatten(0, 1) for part in self._numbers(frontier))
        noise_MJ, probs_BNV = (-torch.log1p(-value_numbers_MJ)).log(), frontier.probs()
        phi_BN = torch.where(frontier.real_BN, phi_BN, 0.0)
        every_BN = torch.arange(phi_BN.numel(), device=phi_BN.device).view_as(phi_BN)
        urns = Urns(probs_BNV)
        tokens_M, whole_M = urns.draw(every_BN.flatten(), token_numbers_MJ[:, 0])
        start_M = phi_BN.flatten() - whole_M.log()
        tokens_MJ = tokens_M[:, None].repeat(1, count)
        value_MJ = torch.full_like(tokens_MJ, -torch.inf, dtype=torch.float64)
        value_MJ[:, 0] = torch.where(frontier.real_BN, value_BN, -torch.inf).flatten()
        for j in range(1, count):
            before_BN = value_MJ[:, j - 1].view_as(phi_BN)
            order_BK = before_BN.argsort(dim=1, descending=True, stable=True)[:, : self.width // j]
            at_D = every_BN.gather(1, order_BK).flatten()
            tokens_MJ[at_D, j], left_D = urns.draw(at_D, token_numbers_MJ[at_D, j])
            place_D = start_M[at_D] + left_D.log()
            value_D = place_D - torch.logaddexp(place_D - value_MJ[at_D, j - 1], noise_MJ[at_D, j])
            value_MJ[at_D, j] = torch.where(left_D > 0, value_D, -torch.inf)
        urns.restore()
        tokens_BNJ, value_BNJ = (part.view(*phi_BN.shape, count) for part in (tokens_MJ, value_MJ))
        return tokens_BNJ, phi_BN[..., None] + probs_BNV.gather(-1, tokens_BNJ).log(), value_BNJ

    def _numbers(self, frontier: Frontier) -> tuple[Tensor, ...]:
        """(B, N, W), twice: each child's random numbers for its token and for its value."""
        places = 1 if frontier.depth == 0 else self.width
        numbers_B2SW = frontier.numbers(2 * places * self.width).unflatten(1, (2, places, self.width))
        slots_BN = frontier.state.get("slot", torch.zeros_like(frontier.real_BN, dtype=torch.long))
        return tuple(by_place(numbers_SW, slots_BN) for numbers_SW in numbers_B2SW.unbind(1))

    def _best(self, tokens_BNJ: Tensor, phi_BNJ: Tensor, value_BNJ: Tensor) -> Children:
        """The W candidates of the largest values; children of one node keep their order."""
        count = tokens_BNJ.shape[-1]
        values_BW, order_BW = value_BNJ.flatten(1).sort(dim=1, descending=True, stable=True)
        values_BW, order_BW = values_BW[:, : self.width], order_BW[:, : self.width]
        slots_BW = torch.arange(order_BW.shape[1], device=order_BW.device).expand(len(order_BW), -1)
        phi_BW = phi_BNJ.flatten(1).gather(1, order_BW)
        return Children(
            tokens_BNJ.flatten(1).gather(1, order_BW),
            order_BW // count,
            values_BW > -torch.inf,
            state={"phi": phi_BW, "value": values_BW, "slot": slots_BW},
        )
