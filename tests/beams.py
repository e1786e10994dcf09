"""Stochastic beam search as its paper states it, with Gumbel noise for every token, for laws of small vocabularies.

Shape letters: N beams, S nodes of a level, V vocabulary.
"""

from __future__ import annotations

from collections import Counter

import numpy
from enumeration import Context, Laws
from tree_laws import Drafts, Node, completed, drafts_of, emitted_by_draft, table, target

from specdec.verifiers.base import Verifier


def sampled_beams(laws: Laws, width: int, size: int, seed: int, in_order: bool = True) -> Drafts:
    """The trees of so many beams, weighted by how often each occurred.

    Source of the formula: Kool et al. 2019, arXiv 1903.06059, algorithm 1.
    """
    rng, vocab = numpy.random.default_rng(seed), laws.vocab
    log_q_XV = numpy.log(numpy.maximum(table(laws.q, vocab), 1e-300))
    texts_NS, phi_NS, value_NS = numpy.zeros((size, 1), int), numpy.zeros((size, 1)), numpy.zeros((size, 1))
    levels = []
    for _ in range(laws.length):
        phi_NSV = phi_NS[:, :, None] + log_q_XV[texts_NS]
        g_NSV = phi_NSV + rng.gumbel(size=phi_NSV.shape)
        largest_NS1 = g_NSV.max(2, keepdims=True)
        with numpy.errstate(divide="ignore"):
            v_NSV = value_NS[:, :, None] - g_NSV + numpy.log1p(-numpy.exp(g_NSV - largest_NS1))
        cut_NSV = value_NS[:, :, None] - numpy.maximum(v_NSV, 0) - numpy.log1p(numpy.exp(-numpy.abs(v_NSV)))
        order_NS = numpy.argsort(-cut_NSV.reshape(size, -1), 1)[:, :width]
        parents_NS = numpy.take_along_axis(texts_NS, order_NS // vocab, 1)
        texts_NS = parents_NS * vocab + order_NS % vocab + 1
        phi_NS, value_NS = (numpy.take_along_axis(a.reshape(size, -1), order_NS, 1) for a in (phi_NSV, cut_NSV))
        levels.append(texts_NS)
    found, counts = numpy.unique(numpy.concatenate(levels, 1), axis=0, return_counts=True)
    trees: Counter[tuple[Node, ...]] = Counter()
    for numbers, count in zip(found.tolist(), counts.tolist(), strict=True):
        trees[tree_of([text_of(n, vocab) for n in numbers], in_order)] += count
    weights = numpy.array(list(trees.values())) / size
    return drafts_of(vocab, [list(nodes) for nodes in trees], None, weights)


def tree_of(texts: list[Context], in_order: bool) -> tuple[Node, ...]:
    """The nodes of a beam, level by level; one parent after the other, its children in descending order of value."""
    names: dict[Context, int] = {(): -1}
    nodes: list[Node] = []
    if not in_order:
        texts = sorted(texts, key=lambda text: text[-1])
    for length in range(1, max(map(len, texts)) + 1):
        level = [text for text in texts if len(text) == length]
        for text in sorted(level, key=lambda text: names[text[:-1]]):
            names[text] = len(nodes)
            nodes.append((names[text[:-1]], text))
    return tuple(nodes)


def text_of(number: int, vocab: int) -> Context:
    """The text with this number (`tree_laws.number`)."""
    tokens: Context = ()
    while number:
        number, token = divmod(number - 1, vocab)
        tokens = (token, *tokens)
    return tokens


def worst_cell(verifier: Verifier, laws: Laws, drafts: Drafts, size: int) -> float:
    """The largest deviation of the emitted law from the target's, in standard errors of ``size`` sampled trees."""
    p_XV = table(laws.p, laws.vocab)
    laws_RY = numpy.array([completed(emitted, p_XV, laws) for emitted in emitted_by_draft(verifier, laws, drafts)])
    mean_Y = drafts.weights_R @ laws_RY
    variance_Y = (drafts.weights_R @ laws_RY**2 - mean_Y**2).clip(1e-12) / size
    return float((numpy.abs(mean_Y - target(p_XV, laws)) / numpy.sqrt(variance_Y)).max())
