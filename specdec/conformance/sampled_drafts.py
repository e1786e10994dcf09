"""Drafts of every kind of siblings, one per row, over random distributions of three tokens in a row.

Each row drafts two levels: a chain of two tokens, or two children of the last committed token and at most two below.
Shape letters: R rows, G nodes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.round import Draft
from specdec.core.siblings import BEAM, CHAIN, CHOSEN, IID

Text = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Distributions:
    """Distributions of a first token, of the second after each first, and of the third after each pair."""

    first_V: Tensor
    second_VV: Tensor
    third_VVV: Tensor

    @staticmethod
    def random(vocab: int, generator: torch.Generator) -> Distributions:
        """Uniform over the simplex."""

        def draw(*contexts: int) -> Tensor:
            weights = -torch.rand(*contexts, vocab, generator=generator, dtype=torch.float64).log()
            return weights / weights.sum(-1, keepdim=True)

        return Distributions(draw(), draw(vocab), draw(vocab, vocab))

    def after(self, texts: list[list[Text]]) -> Tensor:
        """(R, N, V): the distributions after N texts per row, of up to two tokens; rows may have fewer texts."""
        width, vocab = max(map(len, texts)), len(self.first_V)
        flat_CV = torch.cat([self.first_V[None], self.second_VV, self.third_VVV.flatten(0, 1)])
        numbers: dict[Text, int] = {(): 0, **{(i,): 1 + i for i in range(vocab)}}
        numbers.update({(i, j): 1 + vocab + vocab * i + j for i in range(vocab) for j in range(vocab)})
        return flat_CV[torch.tensor([[numbers[text] for text in row] + [0] * (width - len(row)) for row in texts])]


@dataclass(frozen=True, slots=True)
class Drafts:
    """Each row's draft, and the text that each of its columns stands for."""

    draft: Draft
    texts: list[list[Text]]


def sampled_drafts(
    siblings: str, drafting: Distributions, num_rows: int, generator: torch.Generator, with_probs: bool = True
) -> Drafts:
    """Drafts of ``num_rows`` rows whose siblings are of one kind; ``with_probs`` only matters for a chain."""
    drawn = [[*one, *two] for one, two in zip(*_drawn(siblings, drafting, num_rows, generator), strict=True)]
    nodes = [list(dict.fromkeys(texts)) for texts in drawn]
    width = max(map(len, nodes))
    probabilities = with_probs and siblings != CHOSEN
    parents = [[row.index(text[:-1]) if len(text) > 1 else -1 for text in row] for row in nodes]
    draws = [[row.index(text) for text in texts] for row, texts in zip(nodes, drawn, strict=True)]
    draft = Draft(
        torch.tensor([[text[-1] for text in row] + [0] * (width - len(row)) for row in nodes]),
        [len(row) for row in nodes],
        None if siblings == CHAIN else parents,
        drafting.after([[(), *row[: width - 1]] for row in nodes])[:, :width] if probabilities else None,
        draws if siblings == IID else None,
    )
    return Drafts(draft, [[(), *row] for row in nodes])


def _drawn(
    siblings: str, drafting: Distributions, num_rows: int, generator: torch.Generator
) -> tuple[list[list[Text]], list[list[Text]]]:
    """Of each row the texts of one token, and those of two, in the order in which they are drawn."""
    first_RV = drafting.first_V.expand(num_rows, -1)
    vocab = first_RV.shape[1]
    if siblings in (CHAIN, IID):
        one_RN = torch.multinomial(first_RV, 1 + (siblings == IID), replacement=True, generator=generator)
    elif siblings == CHOSEN:  # by a rule that does not look at the distribution
        one_R = torch.multinomial(first_RV, 1, generator=generator)[:, 0]
        other_R = (one_R + torch.randint(1, vocab, (num_rows,), generator=generator)) % vocab
        one_RN = torch.stack([one_R, other_R], dim=1)
    else:
        value_RN, one_RN = (first_RV.log() + _gumbel(first_RV, generator)).topk(2)
    one: list[list[Text]] = [[(token,) for token in row] for row in one_RN.tolist()]
    if siblings == BEAM:
        return one, _beam(one_RN, value_RN, drafting, generator)
    two_RN = torch.multinomial(drafting.second_VV[one_RN].flatten(0, 1), 1, generator=generator).view(one_RN.shape)
    pairs = torch.stack([one_RN, two_RN], dim=-1).tolist()
    ends = (
        [2] * num_rows if siblings in (CHAIN, IID) else torch.randint(1, 3, (num_rows,), generator=generator).tolist()
    )
    return one, [[(i, j) for i, j in row[:end]] for row, end in zip(pairs, ends, strict=True)]


def _beam(one_RN: Tensor, value_RN: Tensor, drafting: Distributions, generator: torch.Generator) -> list[list[Text]]:
    """The two children of the largest perturbed values (stochastic beam search), those of one parent together."""
    logs_RNV = drafting.first_V[one_RN].log()[..., None] + drafting.second_VV[one_RN].log()
    noisy_RNV = logs_RNV + _gumbel(logs_RNV, generator)
    most_RN1 = noisy_RNV.amax(-1, keepdim=True)
    # Conditional on the largest being the parent's value: Kool et al. 2019, arXiv 1903.06059, section 4.1.
    value_RNV = -((-value_RN).exp()[..., None] - (-most_RN1).exp() + (-noisy_RNV).exp()).log()
    chosen = value_RNV.flatten(1).topk(2).indices.tolist()
    vocab = len(drafting.first_V)
    placed = [sorted(row, key=lambda place: place // vocab) for row in chosen]  # stable: values descend per parent
    return [
        [(parents[place // vocab], place % vocab) for place in row]
        for parents, row in zip(one_RN.tolist(), placed, strict=True)
    ]


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    return -(-torch.rand(like.shape, generator=generator, dtype=torch.float64).log()).log()
