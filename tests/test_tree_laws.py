"""Losslessness of the verifiers of trees by exact enumeration, and the wrong rules that it must reject."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import tree_variants as variants
from beams import sampled_beams, worst_cell
from cases import nightly_but, short_only
from enumeration import Context, Laws
from scipy.optimize import brentq
from tree_laws import Drafts, independent, judge, without_replacement

from specdec.core.siblings import BEAM, IID, WITHOUT_REPLACEMENT
from specdec.registry import create, lookup, names
from specdec.verifiers.spectr import SpecTrVerifier

EXACT = 1e-12
# Vocabulary, depth, and the shape of the draft.
PATHS = [
    (3, 2, (0, 2, 2)),
    (2, 3, (0, 3, 3)),
    (3, 3, (1, 2, 2)),
    (4, 2, (0, 2, 2)),
    (2, 3, (1, 3, 2)),
    (3, 2, (0, 3, 2)),
]
SEEDS = short_only(range(42), *range(6), ci=range(18))
"""Each shape with flat and peaky laws, with and without zeros; short tests take every shape once, CI three times."""
ORDERED = [(3, 2, (2, 2)), (2, 3, (2, 2, 1)), (4, 2, (2, 1)), (3, 3, (1, 3, 1)), (4, 1, (3,)), (3, 3, (2, 1, 1))]


def laws_of(seed: int, vocab: int, length: int) -> Laws:
    """Flat and peaky ones, a third with zeros."""
    return Laws.random(seed, vocab, length, (1.0, 0.4)[seed % 2], seed % 3 == 2)


def verifiers(kind: str) -> list[str]:
    """Those that judge such siblings and are lossless."""
    entries = [lookup("verifier", name) for name in names("verifier")]
    return [
        e.name for e in entries if e.samples and not e.lossy and kind in e.judges and not e.name.startswith("test_")
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", verifiers(IID))
def test_independent_paths_leave_the_targets_law(name, seed):
    vocab, length, shape = PATHS[seed % len(PATHS)]
    laws = laws_of(seed, vocab, length)
    result = judge(create("verifier", name), laws, independent(laws, *shape))
    assert result.mass == pytest.approx(1, abs=EXACT)
    assert result.distance < EXACT


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", verifiers(WITHOUT_REPLACEMENT))
def test_siblings_without_replacement_leave_the_targets_law(name, seed):
    vocab, length, widths = ORDERED[seed % len(ORDERED)]
    laws = laws_of(seed, vocab, length)
    result = judge(create("verifier", name), laws, without_replacement(laws, widths))
    assert result.mass == pytest.approx(1, abs=EXACT)
    assert result.distance < EXACT


# --- stochastic beams ----------------------------------------------------------------------------------------------


def by_values(texts: list[Context]) -> bool:
    """As a beam may: by what is known before the second grandchildren, of both subtrees."""
    first, second, child, _, other, _ = (text[-1] for text in texts)
    return (3 * first + 5 * second + 7 * child + 11 * other) % 4 < 2


def by_own_token(texts: list[Context]) -> bool:
    """By which token the grandchild is: biased."""
    return texts[3][-1] > texts[5][-1]


@pytest.mark.parametrize("name", verifiers(BEAM))
def test_what_a_beam_keeps_may_depend_on_other_subtrees(name):
    """Of two pairs of grandchildren one loses its second, by a rule that looks at both subtrees and both siblings.

    A beam keeps a child by its perturbed value, whose law depends on the tokens of the siblings before it and of the
    nodes above, and on the values of other subtrees; but not on the child's own token.
    """
    for seed in range(6):
        laws = Laws.random(seed, 3, 2, (1.0, 0.4)[seed % 2])
        assert judge(create("verifier", name), laws, pruned(laws, by_values)).distance < EXACT
    if name not in ("naive", "naive_tree"):  # they look at no second child's probability
        biased = [Laws.random(seed, 3, 2, 1.0) for seed in range(4)]
        assert max(judge(create("verifier", name), laws, pruned(laws, by_own_token)).distance for laws in biased) > 1e-3


def pruned(laws: Laws, keeps_first: Callable[[list[Context]], bool]) -> Drafts:
    """Two children with two children each, of which the first's or the second's second child is dropped."""
    return without_replacement(laws, (2, 2), prune=lambda texts: [5] if keeps_first(texts) else [3])


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "width"), nightly_but([(0, 3), (3, 3), (1, 4)], (0, 3)))
def test_stochastic_beams_leave_the_targets_law(seed, width):
    """The trees by Monte Carlo, what the verifiers make of each exactly: every cell within 5 standard errors."""
    laws, size = Laws.random(seed, 3, 2, 0.4), 400_000
    drafts, by_token = (sampled_beams(laws, width, size, seed, in_order) for in_order in (True, False))
    for name in verifiers(BEAM):
        assert worst_cell(create("verifier", name), laws, drafts, size) < 5
        if name != "naive":
            assert worst_cell(create("verifier", name), laws, by_token, size) > 50


# --- what is known of each rule ------------------------------------------------------------------------------------


def single(seed: int, vocab: int, count: int) -> tuple[Laws, Drafts]:
    """One level of ``count`` independent draws."""
    laws = laws_of(seed, vocab, 1)
    return laws, independent(laws, 0, count, 1)


def specinfer_accepts(p, q, count):
    """1 - prod (1 - sum min(r, q)) over the rounds."""
    rest, rejected = p, 1.0
    for _ in range(count):
        rejected *= 1 - numpy.minimum(rest, q).sum()
        left = numpy.maximum(rest - q, 0)
        rest = left / left.sum() if left.sum() > 0 else rest
    return 1 - rejected


def naive_tree_accepts(p, q, count):
    return numpy.minimum(p, q).sum() + (numpy.maximum(p - q, 0) * (1 - (1 - q) ** (count - 1))).sum()


def naive_accepts(p, q, count):
    return (p * (1 - (1 - q) ** count)).sum()


def spectr_accepts(p, q, count):
    """pacc at the division factor where pacc = rho beta; found here by another method than the verifier's."""

    def beta(rho):
        return numpy.minimum(p / rho, q).sum()

    def excess(rho):
        return 1 - (1 - beta(rho)) ** count - rho * beta(rho)

    rho = brentq(excess, 1, count, xtol=1e-15) if count > 1 and excess(1) > 1e-15 else 1.0
    pacc = 1 - (1 - beta(rho)) ** count
    rest = numpy.maximum(p - numpy.minimum(p / rho, q) * pacc / beta(rho), 0) if beta(rho) > 0 else p
    rest = rest / rest.sum() if rest.sum() > 1e-14 else rest
    unseen = numpy.maximum(q - p / rho, 0) / (1 - beta(rho)) if beta(rho) < 1 else numpy.zeros_like(q)
    return pacc + (1 - pacc) * (rest * (1 - (1 - unseen) ** count)).sum()


FORMULAS = {
    "specinfer": specinfer_accepts,
    "naive_tree": naive_tree_accepts,
    "naive": naive_accepts,
    "spectr": spectr_accepts,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_acceptance_is_what_the_papers_say(name):
    for seed in range(40):
        vocab, count = 2 + seed % 3, 1 + seed // 3 % 3
        laws, drafts = single(seed, vocab, count)
        expected = FORMULAS[name](laws.p[()], laws.q[()], count)
        # SpecTr's division factor is found to ten digits: exactness does not depend on it, acceptance does.
        assert judge(create("verifier", name), laws, drafts).first == pytest.approx(expected, abs=1e-8)


class WholeDivision(SpecTrVerifier):
    """The division factor K, the largest: exact too, but it accepts less."""

    def division_factor(self, p_BV, q_BV, num_B, most):
        return num_B.clamp(min=1)


@pytest.mark.nightly
def test_spectr_is_exact_at_every_factor_from_the_root_to_k():
    """The root passes most tests, but a token of the residual may be another child: K may accept more in all."""
    gains = []
    for seed in range(12):
        vocab, length, shape = PATHS[seed % len(PATHS)]
        laws = laws_of(seed, vocab, length)
        drafts = independent(laws, *shape)
        whole = judge(WholeDivision(), laws, drafts)
        assert whole.distance < EXACT
        gains.append(whole.accepted - judge(SpecTrVerifier(), laws, drafts).accepted)
    assert min(gains) < -0.01
    assert max(gains) > 0.01


def test_children_that_cover_the_vocabulary_are_accepted_for_certain():
    for seed in range(12):
        vocab = 2 + seed % 3
        laws = Laws.random(seed, vocab, 1, 0.4)
        for name in ("recursive", "traversal"):
            result = judge(create("verifier", name), laws, without_replacement(laws, (vocab,)))
            assert result.accepted == pytest.approx(1, abs=EXACT)


@pytest.mark.slow
def test_traversal_accepts_more_than_recursive_rejection_of_the_same_trees():
    gains = []
    for seed in range(24):
        vocab, length, widths = ORDERED[seed % len(ORDERED)]
        laws = laws_of(seed, vocab, length)
        drafts = without_replacement(laws, widths)
        traversal, recursive = (judge(create("verifier", n), laws, drafts).accepted for n in ("traversal", "recursive"))
        gains.append(traversal - recursive)
    assert min(gains) > -EXACT
    assert sum(gain > 1e-4 for gain in gains) > len(gains) / 2


@pytest.mark.slow
def test_the_best_of_two_paths_does_not_always_beat_one():
    gains = []
    for seed in range(24):
        laws = laws_of(seed, 2, 3)
        best, one = (judge(create("verifier", "gbv"), laws, independent(laws, 0, k, 3)).accepted for k in (2, 1))
        gains.append(best - one)
    assert min(gains) < -1e-3
    assert max(gains) > 1e-2


# --- wrong rules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    short_only(
        [*variants.TOP_DOWN, *variants.PATHS],
        variants.Deduplicated,
        variants.Renormalised,
        variants.ByToken,
        variants.Grouped,
        variants.FromTarget,
        *variants.PATHS,
    ),
)
def test_wrong_rules_for_independent_paths_are_rejected(rule):
    assert max(distances(rule(), PATHS, independent, range(len(PATHS)))) > 1e-3


@pytest.mark.parametrize("rule", short_only(variants.ORDERED, variants.NotRenormalised, variants.FirstSiblingOnly))
def test_wrong_rules_for_siblings_without_replacement_are_rejected(rule):
    assert max(distances(rule(), ORDERED, without_replacement, range(len(ORDERED)))) > 1e-3


@pytest.mark.parametrize("name", ["recursive", "traversal"])
def test_siblings_in_the_order_of_their_tokens_are_rejected(name):
    """The tree is the same, but not the order in which its siblings were drawn."""

    def sorted_siblings(laws: Laws, *widths: int) -> Drafts:
        return without_replacement(laws, widths, in_order=False)

    assert min(distances(create("verifier", name), [(3, 2, (2, 2)), (4, 1, (3,))], sorted_siblings, range(4))) > 1e-3


@pytest.mark.parametrize("name", ["specinfer", "spectr", "gbv"])
def test_rules_for_independent_draws_reject_siblings_without_replacement(name):
    assert max(distances(create("verifier", name), ORDERED, without_replacement, range(len(ORDERED)))) > 1e-3


SMALL = [(3, 2, (2, 2)), (4, 1, (3,)), (4, 2, (2, 1))]


@pytest.mark.parametrize("flaw", nightly_but([None, *variants.FLAWS], None, "not renormalised"))
def test_flaws_of_traversal_are_rejected(flaw):
    found = max(distances(variants.PlainTraversal(flaw), SMALL, without_replacement, range(1 if flaw else 3)))
    assert found < EXACT if flaw is None else found > 1e-3


def distances(verifier, shapes, drafts_of, seeds) -> list[float]:
    """What the verifier is off by, for a few pairs of laws."""
    found = []
    for seed in seeds:
        vocab, length, shape = shapes[seed % len(shapes)]
        laws = laws_of(seed, vocab, length)
        drafts = drafts_of(laws, shape) if drafts_of is without_replacement else drafts_of(laws, *shape)
        found.append(judge(verifier, laws, drafts).distance)
    return found
