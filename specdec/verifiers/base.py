"""The Verifier contract: a pure function of tensors, without model, cache or global random state.

Shape letters: B rows, G drafted nodes (the most of any row), T = G + 1 positions, V vocabulary. Column 0 of a T is the
position after the last committed token, column g + 1 that after drafted node g; columns from ``num_drafted[b] + 1`` on
are padding.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from specdec.core.round import Draft, Verdict
from specdec.core.siblings import CHAIN
from specdec.errors import ContractError

if TYPE_CHECKING:
    from torch import Tensor

    from specdec.core.sampling import Noise
    from specdec.core.target_law import TargetLaw

__all__ = ["Draft", "LawVerifier", "Verdict", "Verifier", "descend", "longest_match", "parents_of"]


class Verifier:
    """Decides a round. Pure, so that a test can enumerate its output distribution exactly.

    Promises, which ``python -m specdec.conformance verifier=NAME`` checks: accepted nodes form a path from the last
    committed token; greedy rows, and sampled rows at one-hot distributions, emit the longest match and the target's
    token after it; columns after ``num_drafted`` change nothing; a row's verdict does not depend on its neighbours;
    emitted tokens of sampled rows follow the target's distribution (unless ``lossy``); arguments and the global random
    state are left alone.

    The constructor of a plug-in gets its settings by keyword, and nothing by position. Properties that are declared
    where it is registered (see `specdec.registry.Entry`): ``lossy``, ``samples``, ``follows_plain``,
    ``judges``.
    """

    judges: tuple[str, ...] = (CHAIN,)
    """The kinds of siblings (`specdec.core.siblings`) that it can judge in sampled rows. Greedy rows may be drafted as
    trees of any kind under any verifier: a drafted token is right or not. Declared where it is registered too, unless
    the class itself is registered."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Refuse a class that decides nothing, for example because a method's name is misspelt."""
        super().__init_subclass__(**kwargs)
        if cls.verify is Verifier.verify and cls.verify_sampled is Verifier.verify_sampled:
            raise ContractError(f"{cls.__name__} defines neither verify nor verify_sampled, so it decides nothing")

    @property
    def samples(self) -> bool:
        """Whether it decides sampled rows; a verifier without ``verify_sampled`` decides greedy ones only."""
        return type(self).verify_sampled is not Verifier.verify_sampled

    def verify(self, draft: Draft, logits_BTV: Tensor) -> Verdict:
        """Decide for rows that are all greedy: by default the longest match with the argmax, which is exact.

        A verifier must define this or ``verify_sampled``.

        Args:
            draft: what was proposed; row b has ``num_drafted[b]`` nodes.
            logits_BTV: the target's logits after the rows' repetition penalties; float32 or 16-bit, never float64.
        """
        from specdec.core.sampling import argmax  # torch takes seconds to import

        return longest_match(draft, argmax(logits_BTV))

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        """Decide where at least one row samples.

        Args:
            draft: as above; its probabilities are those that the tokens were drawn from.
            probs_BTV: the target's distributions after temperature, top-p and the like, which the output must have;
                float64, one-hot for a greedy row. A token of probability 0 must never be emitted.
            noise: each row's uniform random numbers for this round: ``draws_BT`` decide the token after each depth of
                the draft, ``tests_BG`` test each drafted node (each draw, if the draft has ``draws``).
        """
        raise ContractError(f"{type(self).__name__} decides greedy rows only: set temperature=0, or another verifier")

    def verify_law(self, draft: Draft, law: TargetLaw, noise: Noise) -> Verdict:
        """The same, by a law that computes the distribution of a column when it is asked for.

        The engine calls this one. A verifier that needs few columns of a large tree overrides it; by default all are
        computed.
        """
        return self.verify_sampled(draft, law.whole(), noise)


class LawVerifier(Verifier):
    """Asks for the distributions that it needs, through ``verify_law``."""

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        from specdec.core.target_law import TargetLaw  # torch takes seconds to import

        return self.verify_law(draft, TargetLaw.of(probs_BTV), noise)

    @abstractmethod
    def verify_law(self, draft: Draft, law: TargetLaw, noise: Noise) -> Verdict: ...


def longest_match(draft: Draft, chosen_BT: Tensor) -> Verdict:
    """Follow each row's draft, a chain or a tree, for as long as it holds the token chosen at each position.

    The chosen token at the end of the path is the round's next token.
    """
    chosen = draft.fetch(chosen_BT)
    drafted = draft.ids
    paths, next_tokens = [], []
    for b, num_drafted in enumerate(draft.num_drafted):
        if draft.parents:
            parents = draft.parents[b]
            accepts = [drafted[b][child] == chosen[b][parents[child] + 1] for child in range(num_drafted)]
            path = descend(parents, accepts)
        else:
            match = 0
            while match < num_drafted and drafted[b][match] == chosen[b][match]:
                match += 1
            path = list(range(match))
        paths.append(path)
        next_tokens.append(chosen[b][path[-1] + 1 if path else 0])
    return Verdict(paths, next_tokens)


def descend(parents: list[int], accepts: list[bool]) -> list[int]:
    """The path from the root that takes, at each node, the first child that is acceptable after its parent."""
    path: list[int] = []
    node = -1
    for child, parent in enumerate(parents):  # parents come before children, so one pass follows the path down
        if parent == node and accepts[child]:
            path.append(child)
            node = child
    return path


def parents_of(draft: Draft, b: int) -> list[int]:
    """Row b's parent of each node, -1 for the last committed token."""
    return draft.parents[b] if draft.parents else list(range(-1, draft.num_drafted[b] - 1))
