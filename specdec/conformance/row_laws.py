"""The exact distribution of the next three tokens of a row whose draft is verified to some depth.

Two tokens, drafts of two levels: a chain, or two i.i.d. paths that are merged where they agree. Every draft of a row is
listed with its probability, and what is emitted follows from it in closed form: token by token (multi-round rejection,
which for a chain is standard speculative sampling), or by integrating the tests of ``verifier=block``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from specdec.core.round import Draft
from specdec.verifiers.chain import ChainVerifier

LEVELS, VOCAB = 2, 2
CHAIN, PATHS = "a chain", "two i.i.d. paths"
Text = tuple[int, ...]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RowLaws:
    """The target's distribution after every text of up to two tokens, and the draft's after those of up to one."""

    p: dict[Text, Array]
    q: dict[Text, Array]

    @staticmethod
    def random(rng: np.random.Generator) -> RowLaws:
        """Two probabilities that are seldom extreme."""

        def laws(longest: int) -> dict[Text, Array]:
            texts = [text for size in range(longest + 1) for text in itertools.product(range(VOCAB), repeat=size)]
            return {text: np.array([share, 1 - share]) for text in texts for share in [rng.uniform(0.02, 0.98)]}

        return RowLaws(laws(LEVELS), laws(LEVELS - 1))

    def acceptance(self, text: Text) -> float:
        """The chance that a token drawn after ``text`` is accepted: 1 - TV(p, q)."""
        return float(np.minimum(self.p[text], self.q[text]).sum())

    def plain(self, text: Text) -> Array:
        """What the target emits after ``text``, up to three tokens in all."""
        if len(text) > LEVELS:
            return np.ones(1)
        return np.concatenate([self.p[text][v] * self.plain((*text, v)) for v in range(VOCAB)])

    def __str__(self) -> str:
        def listed(laws: dict[Text, Array]) -> str:
            return ", ".join(f"{''.join(map(str, text)) or '-'}: {law[0]:.2f}" for text, law in laws.items())

        return f"p(0) after {listed(self.p)}; q(0) after {listed(self.q)}"


@dataclass(frozen=True, slots=True)
class RowDraft:
    """The texts of all draws of a row's draft, level by level, and the draft's probability."""

    drawn: tuple[Text, ...]
    weight: float

    @property
    def nodes(self) -> list[Text]:
        """Each drawn text once."""
        return list(dict.fromkeys(self.drawn))


def row_drafts(laws: RowLaws, kind: str) -> Iterator[RowDraft]:
    """Every draft that can be drawn."""
    num_paths = 1 if kind == CHAIN else 2
    for tokens in itertools.product(range(VOCAB), repeat=LEVELS * num_paths):
        paths = [tokens[LEVELS * k : LEVELS * (k + 1)] for k in range(num_paths)]
        weight = float(np.prod([laws.q[path[:i]][path[i]] for path in paths for i in range(LEVELS)]))
        yield RowDraft(tuple(path[: i + 1] for i in range(LEVELS) for path in paths), weight)


def draft_of(rows: list[tuple[RowLaws, RowDraft]], kind: str, *, with_probs: bool = True, told: bool = False) -> Draft:
    """The rows' drafts as a budget gets them; ``told``: with a drafter's own predictions of acceptance."""
    nodes = [draft.nodes for _, draft in rows]
    width = max(map(len, nodes))
    tokens_BG = torch.zeros(len(rows), width, dtype=torch.long)
    probs_BGV = torch.zeros(len(rows), width, VOCAB, dtype=torch.float64)
    chances_BG = torch.zeros(len(rows), width, dtype=torch.float64)
    for b, (laws, _) in enumerate(rows):
        tokens_BG[b, : len(nodes[b])] = torch.tensor([text[-1] for text in nodes[b]])
        for column, text in enumerate([(), *nodes[b]][:width]):
            if text in laws.q:
                probs_BGV[b, column] = torch.from_numpy(laws.q[text])
                chances_BG[b, column] = laws.acceptance(text)
    parents = [[texts.index(text[:-1]) if len(text) > 1 else -1 for text in texts] for texts in nodes]
    draws = [[texts.index(text) for text in draft.drawn] for texts, (_, draft) in zip(nodes, rows, strict=True)]
    entropy_BG = torch.special.entr(probs_BGV).sum(-1)
    return Draft(
        tokens_BG,
        [len(texts) for texts in nodes],
        None if kind == CHAIN else parents,
        probs_BGV if with_probs else None,
        draws if kind == PATHS else None,
        certainty_BG2=torch.stack([probs_BGV.amax(-1), entropy_BG], dim=-1),
        chances_BG=chances_BG if told else None,
    )


def by_token(laws: RowLaws, draft: RowDraft, depth: int, text: Text = ()) -> Array:
    """What multi-round rejection emits after ``text``, if the draft is verified to a depth."""
    if len(text) > LEVELS:
        return np.ones(1)
    children = [drawn[-1] for drawn in draft.drawn if drawn[:-1] == text] if len(text) < depth else []
    law = _multi_round(laws.p[text], laws.q[text], children) if children else laws.p[text]
    parts = []
    for token in range(VOCAB):
        longer = (*text, token)
        rest = by_token(laws, draft, depth, longer) if token in children else laws.plain(longer)
        parts.append(law[token] * rest)
    return np.concatenate(parts)


def _multi_round(p: Array, q: Array, drawn: list[int]) -> Array:
    """Draws are tested one after the other against what is left of p. Source: Miao et al. 2023, arXiv 2305.09781."""
    emitted, left = np.zeros(VOCAB), 1.0
    for token in drawn:
        accept = min(1.0, p[token] / q[token])
        emitted[token] += left * accept
        left *= 1 - accept
        rest = (p - q).clip(0)
        p = rest / rest.sum() if rest.sum() > 0 else p
    return emitted + left * p


def of_chains(verifier: ChainVerifier, laws: RowLaws, drafts: list[RowDraft], depth: int) -> list[Array]:
    """What a verifier of chains emits, of each draft: all patterns of its tests, weighted with their chances."""
    if depth == 0:
        return [laws.plain(()) for _ in drafts]
    draft = draft_of([(laws, one) for one in drafts], CHAIN)
    assert draft.probs_BGV is not None
    draft.num_drafted = [depth] * len(drafts)
    draft.tokens_BG, draft.probs_BGV = draft.tokens_BG[:, :depth], draft.probs_BGV[:, :depth]
    texts = [[(), *one.nodes][: depth + 1] for one in drafts]
    probs_BTV = torch.tensor(np.array([[laws.p[text] for text in row] for row in texts]))
    acceptance = verifier.acceptance(draft, probs_BTV)
    found = [np.zeros(VOCAB ** (LEVELS + 1)) for _ in drafts]
    for pattern in itertools.product([True, False], repeat=depth):
        passed_BG = torch.tensor(pattern).expand(len(drafts), -1)
        tau_B = verifier.num_accepted(passed_BG)
        next_BV = verifier.next_probs(draft, probs_BTV, acceptance, tau_B).numpy()
        accept_BG = acceptance.accept_BG.clamp(max=1)
        mass_B = torch.where(passed_BG, accept_BG, 1 - accept_BG).prod(1).tolist()
        for b, tau in enumerate(tau_B.tolist()):
            for token in range(VOCAB):
                text = (*texts[b][tau], token)
                start = int("".join(map(str, text)), VOCAB) * VOCAB ** (LEVELS + 1 - len(text))
                rest = laws.plain(text)
                found[b][start : start + len(rest)] += mass_B[b] * next_BV[b, token] * rest
    return found
