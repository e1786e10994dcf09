"""Stochastic beam search (RSD-S): of all children, sampled without replacement, those of the largest perturbed values.

Shape letters: B rows, N nodes, J candidates of a node, W width of the beam.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.core.siblings import BEAM
from specdec.trees.base import Children, Tree, at_least
from specdec.trees.drawing import draw_distinct, most_probable
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
        return self._largest(tokens_BNJ, phi_BNJ, value_BNJ)

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
        """(B, N, J) tokens, their phi and their values in descending order; -inf where there is no child."""
        width = self.width
        count = min(width, frontier.scores_BNV.shape[-1])
        places = 1 if frontier.depth == 0 else width
        numbers_B2WJ = frontier.numbers(2 * places * width).unflatten(1, (2, places, width))
        slots_BN = frontier.state.get("slot", torch.zeros_like(frontier.real_BN, dtype=torch.long))
        token_numbers_BNJ, value_numbers_BNJ = (by_place(numbers_B2WJ[:, i], slots_BN)[..., :count] for i in (0, 1))
        probs_BNV = frontier.probs()
        sample = draw_distinct(probs_BNV, token_numbers_BNJ)
        places_BNJ = phi_BN[..., None] + (sample.masses / sample.masses[..., :1]).log()
        values = [value_BN]
        for j in range(1, count):
            place_BN, exponential_BN = places_BNJ[..., j], -torch.log1p(-value_numbers_BNJ[..., j])
            values.append(place_BN - torch.logaddexp(place_BN - values[-1], exponential_BN.log()))
        phi_BNJ = phi_BN[..., None] + probs_BNV.gather(-1, sample.tokens).log()
        return sample.tokens, phi_BNJ, torch.where(sample.real, torch.stack(values, dim=-1), -torch.inf)

    def _largest(self, tokens_BNJ: Tensor, phi_BNJ: Tensor, value_BNJ: Tensor) -> Children:
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
