"""Every branch of a verifier's random decisions, each with its exact probability, through the production code itself.

A verifier's random numbers form a cube; within a box of it all comparisons turn out alike, and so does the verdict. A
run at one point of a box records each comparison that counts, with its threshold (`specdec.verifiers.decisions`); the
comparisons that turn out otherwise give the boxes to explore next. All boxes of a generation are the rows of one call.
A number that decided two things would be seen to do so: the boxes are those of the numbers, not of the decisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy
import torch
from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise
from specdec.verifiers import decisions
from specdec.verifiers.base import Verifier

DRAWS = decisions.draws
NEGLIGIBLE = 1e-15  # the narrowest side of a box that is explored
Array = numpy.ndarray


@dataclass
class Leaves:
    """The boxes within which nothing changes: R of them, N random numbers."""

    drafts_R: Array  # which draft
    low_RN: Array
    high_RN: Array
    ends_R: Array  # column of the last accepted node
    tokens_R: Array  # the token after it

    def masses(self) -> Array:
        """(R): their volumes, which are the probabilities of the branches, given the draft."""
        return (self.high_RN - self.low_RN).prod(1)


@dataclass
class Boxes:
    """Boxes that wait for their run."""

    drafts: list[Array] = field(default_factory=list)
    low: list[Array] = field(default_factory=list)
    high: list[Array] = field(default_factory=list)

    def add(self, drafts_R: Array, low_RN: Array, high_RN: Array) -> None:
        """More of them, if there are any."""
        if len(drafts_R):
            self.drafts.append(drafts_R)
            self.low.append(low_RN)
            self.high.append(high_RN)


def shares_a_value(points_RN: Array) -> Array:
    """(R): rows that must wait, so that every number of a call has a value by which it is known."""
    _, first, inverse = numpy.unique(points_RN, return_index=True, return_inverse=True)
    return (first[inverse].reshape(points_RN.shape) != numpy.arange(points_RN.size).reshape(points_RN.shape)).any(1)


def branches(verifier: Verifier, draft: Draft, probs_BTV: Tensor, num_draws: int, seed: int = 0) -> Leaves:
    """All branches of every row of ``draft``; ``num_draws`` is the number of depths."""
    num_tests = max([draft.tokens_BG.shape[1], *map(len, draft.draws or ())])
    num_rows, num_numbers = len(draft.num_drafted), num_tests + num_draws
    rng = numpy.random.default_rng(seed)
    waiting = Boxes(
        [numpy.arange(num_rows)], [numpy.zeros((num_rows, num_numbers))], [numpy.ones((num_rows, num_numbers))]
    )
    found: list[Leaves] = []
    while waiting.drafts:
        drafts_R, low_RN, high_RN = (numpy.concatenate(part) for part in (waiting.drafts, waiting.low, waiting.high))
        points_RN = low_RN + (high_RN - low_RN) * rng.uniform(0.2, 0.8, low_RN.shape)
        later_R = shares_a_value(points_RN)
        recorder = Recorder(points_RN[~later_R], drafts_R[~later_R], low_RN[~later_R], high_RN[~later_R])
        recorder.others.add(drafts_R[later_R], low_RN[later_R], high_RN[later_R])
        drafts_R, low_RN, high_RN, points_RN = (
            drafts_R[~later_R],
            recorder.low_RN,
            recorder.high_RN,
            points_RN[~later_R],
        )
        with recorder.recording():
            verdict = run(verifier, draft, probs_BTV, drafts_R, points_RN, num_tests)
        ends_R = numpy.array([path[-1] + 1 if path else 0 for path in verdict.paths])
        found.append(Leaves(drafts_R, low_RN, high_RN, ends_R, numpy.array(verdict.next_tokens)))
        waiting = recorder.others
    return Leaves(*(numpy.concatenate([getattr(part, name) for part in found]) for name in Leaves.__dataclass_fields__))


def run(
    verifier: Verifier, draft: Draft, probs_BTV: Tensor, drafts_R: Array, points_RN: Array, num_tests: int
) -> Verdict:
    """The verdict on some drafts, each with random numbers of its own."""
    rows_R = torch.from_numpy(drafts_R)
    points = torch.from_numpy(points_RN)
    draws_RT = torch.nn.functional.pad(points[:, num_tests:], (0, probs_BTV.shape[1]), value=0.5)
    return verifier.verify_sampled(rows_of(draft, drafts_R), probs_BTV[rows_R], Noise(draws_RT, points[:, :num_tests]))


def rows_of(draft: Draft, rows_R: Array) -> Draft:
    """Some rows of a batch, in any number."""
    chosen, index = torch.from_numpy(rows_R), rows_R.tolist()

    def taken(values):
        return None if values is None else [values[b] for b in index]

    probs = None if draft.probs_BGV is None else draft.probs_BGV[chosen]
    counts = [draft.num_drafted[b] for b in index]
    return replace(
        draft,
        tokens_BG=draft.tokens_BG[chosen],
        num_drafted=counts,
        parents=taken(draft.parents),
        probs_BGV=probs,
        draws=taken(draft.draws),
    )


class Recorder:
    """Stands in for the decisions, makes them as they do, and narrows each row's box to what was decided."""

    def __init__(self, points_RN: Array, drafts_R: Array, low_RN: Array, high_RN: Array) -> None:
        self.drafts_R, self.low_RN, self.high_RN = drafts_R, low_RN, high_RN
        self.others = Boxes()
        order = points_RN.argsort(None)
        self._sorted, self._order, self._width = points_RN.ravel()[order], order, points_RN.shape[1]

    @contextmanager
    def recording(self) -> Iterator[None]:
        original = decisions.passes, decisions.draws
        decisions.passes, decisions.draws = self.passes, self.draws
        try:
            yield
        finally:
            decisions.passes, decisions.draws = original

    def passes(self, is_open: Tensor, numbers: Tensor, chances: Tensor) -> Tensor:
        wide = torch.broadcast_tensors(is_open, numbers, chances)
        counts, values, chance = (t.numpy().ravel() for t in wide)
        at = numpy.flatnonzero(counts)
        chance = numpy.nan_to_num(chance[at], nan=0.0).clip(0, 1)
        edges = numpy.stack([numpy.zeros_like(chance), chance, numpy.ones_like(chance)], 1)
        passed = is_open & (numbers < chances)
        self._decided(values[at], edges, (~passed).numpy().ravel()[at].astype(int))
        return passed

    def draws(self, open_B: Tensor, weights_BV: Tensor, numbers_B: Tensor, otherwise_B: Tensor) -> Tensor:
        tokens_B = DRAWS(open_B, weights_BV, numbers_B, otherwise_B)
        at = numpy.flatnonzero(open_B.numpy())
        steps = weights_BV.numpy()[at].cumsum(1)
        edges = numpy.concatenate([numpy.zeros((len(at), 1)), steps / steps[:, -1:]], 1)
        self._decided(numbers_B.numpy()[at], edges, tokens_B.numpy()[at])
        return tokens_B

    def _decided(self, values_E: Array, edges_EM: Array, chosen_E: Array) -> None:
        """The E numbers lie in the intervals ``chosen_E`` of their own edges."""
        places = numpy.searchsorted(self._sorted, values_E).clip(max=len(self._sorted) - 1)
        assert (self._sorted[places] == values_E).all(), "a number that is none of the given ones"
        rows_E, names_E = numpy.divmod(self._order[places], self._width)
        # One row may decide several numbers in one call: one after the other, so that their boxes do not overlap.
        order = numpy.argsort(rows_E, kind="stable")
        turns = numpy.arange(len(rows_E)) - numpy.searchsorted(rows_E[order], rows_E[order])
        for turn in range(int(turns.max(initial=-1)) + 1):
            now = order[turns == turn]
            self._narrow(rows_E[now], names_E[now], edges_EM[now], chosen_E[now])

    def _narrow(self, rows: Array, names: Array, edges: Array, chosen: Array) -> None:
        low, high = self.low_RN[rows, names], self.high_RN[rows, names]
        for interval in range(edges.shape[1] - 1):
            below, above = numpy.maximum(low, edges[:, interval]), numpy.minimum(high, edges[:, interval + 1])
            mine = chosen == interval
            self.low_RN[rows[mine], names[mine]], self.high_RN[rows[mine], names[mine]] = below[mine], above[mine]
            other = ~mine & (above - below > NEGLIGIBLE)
            lows, highs, each = self.low_RN[rows[other]], self.high_RN[rows[other]], numpy.arange(other.sum())
            lows[each, names[other]], highs[each, names[other]] = below[other], above[other]
            self.others.add(self.drafts_R[rows[other]], lows, highs)
