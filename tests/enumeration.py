"""The exact law of a round: every draft and every branch of the production verifier, each with its probability.

A small vocabulary; every context has its own random target law p and draft law q. For a fixed draft the verifier's
random numbers are integrated exactly: the chances of the tests come from the verifier itself (``acceptance``), every
pattern of passed and failed tests is run through ``verify_sampled`` with numbers at both ends of each interval, and
so is every token that can follow. Both ends must decide alike, or the interval is not what it is said to be. What is
emitted is completed with p to the full length, and compared with the target's joint law.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy
import torch

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise
from specdec.verifiers.base import Verifier
from specdec.verifiers.chain import ChainVerifier

ALMOST_ONE = 1 - 2.0**-53
EDGE = 1e-13  # how close the tests' numbers come to the chances, relatively (sums in larger batches round otherwise)
MARGIN = 1e-15  # how far from the ends of a token's share the numbers stand, because sums of shares are rounded
NEGLIGIBLE = 1e-14  # shares too narrow for that; what they would add is far below the tolerance
Context = tuple[int, ...]


@dataclass(frozen=True)
class Laws:
    """p and q at every context of up to ``length`` tokens, and the draft's own choice where it does not sample."""

    vocab: int
    length: int
    p: dict[Context, numpy.ndarray]
    q: dict[Context, numpy.ndarray]

    @staticmethod
    def random(seed: int, vocab: int, length: int, alpha: float, cut: bool = False) -> Laws:
        """Dirichlet laws; ``cut`` sets some probabilities to zero, as top-k does."""
        rng = numpy.random.default_rng(seed)
        contexts = [c for n in range(length + 1) for c in itertools.product(range(vocab), repeat=n)]

        def law() -> numpy.ndarray:
            values = rng.dirichlet([alpha] * vocab) + 1e-6
            if cut:
                values[rng.permutation(vocab)[: rng.integers(0, vocab - 1)]] = 0
            return values / values.sum()

        return Laws(vocab, length, {c: law() for c in contexts}, {c: law() for c in contexts})

    def joint(self) -> dict[Context, float]:
        """The target's law of the next ``length + 1`` tokens."""
        return self.completed({(): 1.0})

    def completed(self, emitted: dict[Context, float]) -> dict[Context, float]:
        """What is emitted, continued by plain sampling up to ``length + 1`` tokens."""
        for size in range(self.length + 1):
            longer: dict[Context, float] = {}
            for text, mass in emitted.items():
                if len(text) > size:
                    longer[text] = longer.get(text, 0.0) + mass
                    continue
                for token, chance in enumerate(self.p[text]):
                    longer[(*text, token)] = longer.get((*text, token), 0.0) + mass * chance
            emitted = longer
        return emitted

    def drafts(self) -> Iterator[tuple[Context, float]]:
        """Every draft that can be sampled, with its probability."""
        for tokens in itertools.product(range(self.vocab), repeat=self.length):
            mass = float(numpy.prod([self.q[tokens[:i]][token] for i, token in enumerate(tokens)]))
            if mass > 0:
                yield tokens, mass


@dataclass
class Outcome:
    """The emitted law, completed, and the expected number of accepted tokens."""

    law: dict[Context, float]
    accepted: float

    def distance(self, other: dict[Context, float]) -> float:
        """Total variation."""
        return 0.5 * sum(abs(self.law.get(t, 0.0) - other.get(t, 0.0)) for t in self.law.keys() | other.keys())


def chain_draft(laws: Laws, drafts: list[Context], with_probs: bool) -> tuple[Draft, torch.Tensor]:
    """All drafts as the rows of one batch, with the target's probabilities."""
    probs = [[laws.q[tokens[:i]] for i in range(laws.length)] for tokens in drafts]
    target = [[laws.p[tokens[:i]] for i in range(laws.length + 1)] for tokens in drafts]
    draft = Draft(
        torch.tensor(drafts).reshape(len(drafts), laws.length),
        [laws.length] * len(drafts),
        probs_BGV=torch.tensor(numpy.array(probs)) if with_probs else None,
    )
    return draft, torch.tensor(numpy.array(target))


def integrate(verifier: ChainVerifier, laws: Laws, greedy_draft: bool = False, claims_probs: bool = True) -> Outcome:
    """The exact outcome of a round with a chain verifier.

    Args:
        greedy_draft: the draft takes argmax q instead of sampling.
        claims_probs: it hands over q as the law of its tokens (False: it says that they were chosen).
    """
    weighted = [(laws_argmax(laws), 1.0)] if greedy_draft else list(laws.drafts())
    drafts = [tokens for tokens, _ in weighted]
    draft, probs = chain_draft(laws, drafts, claims_probs)
    acceptance = verifier.acceptance(draft, probs)
    weights = torch.tensor([mass for _, mass in weighted], dtype=torch.float64)
    chance = settled(acceptance.accept_BG)
    masses, taus, tests, draws, tokens_wanted = [], [], [], [], []
    for pattern in itertools.product([True, False], repeat=laws.length):
        passed = torch.tensor(pattern).expand(len(drafts), -1)
        tau = verifier.num_accepted(passed)
        following = verifier.next_probs(draft, probs, acceptance, tau)
        mass = torch.where(passed, chance, 1 - chance).prod(1) * weights
        ends = (  # of the interval in which each test is decided so
            torch.where(passed, chance * (1 - EDGE), chance + (1 - chance) * EDGE),
            torch.where(passed, 0.0, torch.full_like(chance, ALMOST_ONE)),
        )
        above = following.cumsum(1)
        for token in range(laws.vocab):
            shares = (above[:, token] - following[:, token] + MARGIN, above[:, token] - MARGIN)
            for end, share in zip(ends, shares, strict=True):
                tests.append(end)
                draws.append(share)
            masses.append(mass * following[:, token] * (following[:, token] > NEGLIGIBLE))
            taus.append(tau)
            tokens_wanted.append(token)
    verdict = verifier.verify_sampled(*repeated(draft, probs, len(tests)), noise(torch.cat(tests), torch.cat(draws)))
    emitted: dict[Context, float] = {}
    for case, (mass, tau, token) in enumerate(zip(masses, taus, tokens_wanted, strict=True)):
        for b, (share, count) in enumerate(zip(mass.tolist(), tau.tolist(), strict=True)):
            if share == 0:
                continue
            for end in (2 * case, 2 * case + 1):
                row = end * len(drafts) + b
                assert verdict.paths[row] == list(range(count)), "a test was decided by another number"
                assert verdict.next_tokens[row] == token, "a token was drawn outside its share"
            text = (*drafts[b][: len(verdict.paths[row])], verdict.next_tokens[row])
            emitted[text] = emitted.get(text, 0.0) + share
    return Outcome(laws.completed(emitted), sum(float((m * t).sum()) for m, t in zip(masses, taus, strict=True)))


def settled(chance: torch.Tensor) -> torch.Tensor:
    """Chances within rounding of 0 and 1 are those: no number can be placed on the other side for certain."""
    return torch.where(chance < NEGLIGIBLE, 0.0, torch.where(chance > 1 - NEGLIGIBLE, 1.0, chance))


def repeated(draft: Draft, probs: torch.Tensor, times: int) -> tuple[Draft, torch.Tensor]:
    """The same rows again and again, for different random numbers."""
    again = Draft(
        draft.tokens_BG.repeat(times, 1),
        draft.num_drafted * times,
        probs_BGV=None if draft.probs_BGV is None else draft.probs_BGV.repeat(times, 1, 1),
    )
    return again, probs.repeat(times, 1, 1)


def laws_argmax(laws: Laws) -> Context:
    """The draft that takes the most probable token at each step."""
    tokens: Context = ()
    for _ in range(laws.length):
        tokens = (*tokens, int(laws.q[tokens].argmax()))
    return tokens


def noise(tests_BG: torch.Tensor, draws_B: torch.Tensor) -> Noise:
    """The same draw at every depth: only the last one is looked at."""
    return Noise(draws_B.clamp(0, ALMOST_ONE)[:, None].repeat(1, tests_BG.shape[1] + 1), tests_BG)


def integrate_draws(verifier: Verifier, draft: Draft, laws: Laws, contexts: list[Context]) -> Outcome:
    """The exact outcome of a verifier that draws a target token at every node, for one fixed draft (chain or tree).

    Args:
        contexts: the text at each of the T positions of the draft's only row.
    """
    depth = laws.length + 1
    probs = torch.tensor(numpy.array([[laws.p[c] for c in contexts]]))
    # Cutting [0, 1) at the shares of all laws of a depth makes cells within which no draw there can change.
    cells = []
    for level in range(depth):
        shares = [numpy.cumsum(laws.p[c])[:-1] for c in contexts if len(c) == level]
        cuts = numpy.unique(numpy.concatenate([[0.0, 1.0], *shares]))
        cells.append([(low, high) for low, high in itertools.pairwise(cuts) if high - low > NEGLIGIBLE])
    emitted: dict[Context, float] = {}
    accepted = 0.0
    choices = list(itertools.product(*cells))
    many = Draft(
        draft.tokens_BG.expand(len(choices), -1),
        draft.num_drafted * len(choices),
        draft.parents * len(choices) if draft.parents else None,
    )
    draws = torch.tensor([[(low + high) / 2 for low, high in choice] for choice in choices]).double()
    draws = torch.nn.functional.pad(draws, (0, max(len(contexts) - depth, 0)), value=0.5)[:, : len(contexts)]
    tests = torch.full((len(choices), draft.tokens_BG.shape[1]), 0.5).double()
    verdict: Verdict = verifier.verify_sampled(many, probs.expand(len(choices), -1, -1), Noise(draws, tests))
    for b, choice in enumerate(choices):
        mass = float(numpy.prod([high - low for low, high in choice]))
        path = [int(draft.tokens_BG[0, node]) for node in verdict.paths[b]]
        text = (*path, verdict.next_tokens[b])
        emitted[text] = emitted.get(text, 0.0) + mass
        accepted += mass * len(path)
    return Outcome(laws.completed(emitted), accepted)
