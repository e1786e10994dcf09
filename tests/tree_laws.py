"""All drafts of a tree shape with their probabilities, and the law of what a verifier makes of them.

Texts are numbered by length and then by their tokens, so that p and q are tables by text, and a shape is built once for
all laws. Shape letters: R drafts, G nodes, C columns, V vocabulary, X texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy
import torch
from branches import Leaves, branches
from enumeration import Context, Laws

from specdec.core.round import Draft
from specdec.verifiers.base import Verifier

Array = numpy.ndarray
Node = tuple[int, Context]  # parent, text up to the node
Prune = Callable[[list[Context]], list[int]]


def number(text: Context, vocab: int) -> int:
    """The place of a text among all: shorter ones first."""
    place = 0
    for token in text:
        place = place * vocab + token + 1
    return place


def table(laws: dict[Context, Array], vocab: int) -> Array:
    """(X, V): the laws by text."""
    values = numpy.zeros((max(number(text, vocab) for text in laws) + 1, vocab))
    for text, law in laws.items():
        values[number(text, vocab)] = law
    return values


@dataclass(frozen=True)
class Drafts:
    """All drafts of one shape; ``weights`` and the law tables make them the drafts of a pair."""

    vocab: int
    draft: Draft  # without probabilities
    texts_RC: Array  # the number of the text up to each column
    depths_RC: Array
    weights_R: Array


def independent(laws: Laws, trunk: int, paths: int, length: int) -> Drafts:
    """A trunk of so many tokens, then independent paths of ``length`` tokens."""
    shape = _independent(laws.vocab, trunk, paths, length)
    q_XV = table(laws.q, laws.vocab)
    weights_R = q_XV[shape.drawn_after, shape.drawn_tokens].prod(1)
    return drafts_of(laws.vocab, shape.nodes, shape.draws, weights_R)


@dataclass(frozen=True)
class Independent:
    """Every outcome of the draws: the nodes and draws that it makes, and after which text which token was drawn."""

    nodes: list[list[Node]]
    draws: list[list[int]]
    drawn_after: Array
    drawn_tokens: Array


@cache
def _independent(vocab: int, trunk: int, paths: int, length: int) -> Independent:
    made = Independent([], [], [], [])  # type: ignore[arg-type]
    for tokens in itertools.product(range(vocab), repeat=trunk + paths * length):
        stem, rest = tokens[:trunk], tokens[trunk:]
        texts = [(*stem, *rest[k * length : (k + 1) * length]) for k in range(paths)]
        drawn = [stem[: i + 1] for i in range(trunk)]
        drawn += [text[: depth + 1] for depth in range(trunk, trunk + length) for text in texts]
        names: dict[Context, int] = {(): -1}
        nodes, draws = [], []
        for text in drawn:
            if text not in names:
                names[text] = len(nodes)
                nodes.append((names[text[:-1]], text))
            draws.append(names[text])
        made.nodes.append(nodes)
        made.draws.append(draws)
        made.drawn_after.append([number(text[:-1], vocab) for text in drawn])
        made.drawn_tokens.append([text[-1] for text in drawn])
    return Independent(made.nodes, made.draws, numpy.array(made.drawn_after), numpy.array(made.drawn_tokens))


def without_replacement(
    laws: Laws, widths: tuple[int, ...], in_order: bool = True, prune: Prune | None = None
) -> Drafts:
    """So many children per node and level, or as many as q supports.

    Args:
        in_order: siblings stand as they were drawn (False: by token, which is wrong).
        prune: given the texts of all nodes, the leaves to drop.
    """
    grown = list(_grown(laws, widths, [((), 0)], [], in_order))
    trees = [nodes for nodes, _ in grown]
    if prune is not None:
        dropped = [prune([text for _, text in nodes]) for nodes in trees]
        trees = [renumbered(nodes, leaves) for nodes, leaves in zip(trees, dropped, strict=True)]
    return drafts_of(laws.vocab, trees, None, numpy.array([weight for _, weight in grown]))


def renumbered(nodes: list[Node], dropped: list[int]) -> list[Node]:
    """The tree without some leaves."""
    kept = [node for node in range(len(nodes)) if node not in dropped]
    names = {-1: -1, **{node: place for place, node in enumerate(kept)}}
    return [(names[nodes[node][0]], nodes[node][1]) for node in kept]


def _grown(
    laws: Laws, widths: tuple[int, ...], front: list, nodes: list[Node], in_order: bool
) -> Iterator[tuple[list[Node], float]]:
    """Every tree that continues ``nodes`` below the nodes of ``front`` (text, column), with its probability."""
    if not widths:
        yield nodes, 1.0
        return
    choices = [list(ordered_samples(laws.q[text], widths[0])) for text, _ in front]
    for chosen in itertools.product(*choices):
        more, below, weight = list(nodes), [], 1.0
        for (text, column), (tokens, chance) in zip(front, chosen, strict=True):
            weight *= chance
            for token in tokens if in_order else sorted(tokens):
                below.append(((*text, token), len(more) + 1))
                more.append((column - 1, (*text, token)))
        for tree, chance in _grown(laws, widths[1:], below, more, in_order):
            yield tree, weight * chance


def ordered_samples(q: Array, count: int) -> Iterator[tuple[Context, float]]:
    """Every ordered sample of ``count`` different tokens, or of all that q supports, with its probability."""
    support = [int(v) for v in numpy.flatnonzero(q)]
    for tokens in itertools.permutations(support, min(count, len(support))):
        left, chance = dict.fromkeys(support), 1.0
        for token in tokens:
            chance *= q[token] / sum(q[v] for v in left)
            del left[token]
        yield tokens, chance


def drafts_of(vocab: int, trees: list[list[Node]], draws: list[list[int]] | None, weights_R: Array) -> Drafts:
    """The trees that can occur, as the rows of one draft."""
    kept = numpy.flatnonzero(weights_R > 0)
    trees = [trees[i] for i in kept]
    width = max(len(nodes) for nodes in trees)
    tokens, texts, depths = (numpy.zeros((len(trees), width + extra), int) for extra in (0, 1, 1))
    for b, nodes in enumerate(trees):
        for node, (_, text) in enumerate(nodes):
            tokens[b, node], texts[b, node + 1], depths[b, node + 1] = text[-1], number(text, vocab), len(text)
    draft = Draft(
        torch.from_numpy(tokens),
        [len(nodes) for nodes in trees],
        [[parent for parent, _ in nodes] for nodes in trees],
        draws=None if draws is None else [draws[i] for i in kept],
    )
    return Drafts(vocab, draft, texts, depths, weights_R[kept])


@dataclass(frozen=True)
class Result:
    """What a verifier makes of all drafts of a pair of laws."""

    distance: float  # total variation between the emitted law, continued with p, and the target's
    mass: float
    accepted: float  # expected accepted tokens
    first: float  # probability that at least one token is accepted


def judge(verifier: Verifier, laws: Laws, drafts: Drafts, seed: int = 0) -> Result:
    """The exact law of one round."""
    p_XV, leaves = table(laws.p, laws.vocab), leaves_of(verifier, laws, drafts, seed)
    masses_R = leaves.masses() * drafts.weights_R[leaves.drafts_R]
    depths_R = drafts.depths_RC[leaves.drafts_R, leaves.ends_R]
    emitted_XV = numpy.zeros_like(p_XV)
    numpy.add.at(emitted_XV, (drafts.texts_RC[leaves.drafts_R, leaves.ends_R], leaves.tokens_R), masses_R)
    distance = 0.5 * numpy.abs(completed(emitted_XV, p_XV, laws) - target(p_XV, laws)).sum()
    return Result(distance, masses_R.sum(), (masses_R * depths_R).sum(), masses_R[depths_R > 0].sum())


def leaves_of(verifier: Verifier, laws: Laws, drafts: Drafts, seed: int = 0) -> Leaves:
    """All branches of all drafts."""
    p_XV, q_XV = table(laws.p, laws.vocab), table(laws.q, laws.vocab)
    drafts.draft.probs_BGV = torch.from_numpy(q_XV[drafts.texts_RC[:, :-1]])
    probs_RCV = torch.from_numpy(p_XV[drafts.texts_RC])
    return branches(verifier, drafts.draft, probs_RCV, int(drafts.depths_RC.max()) + 1, seed)


def emitted_by_draft(verifier: Verifier, laws: Laws, drafts: Drafts) -> Array:
    """(R, X, V): the probability of each text and the token after it, given the draft."""
    leaves = leaves_of(verifier, laws, drafts)
    emitted_RXV = numpy.zeros((len(drafts.weights_R), *table(laws.p, laws.vocab).shape))
    texts = drafts.texts_RC[leaves.drafts_R, leaves.ends_R]
    numpy.add.at(emitted_RXV, (leaves.drafts_R, texts, leaves.tokens_R), leaves.masses())
    return emitted_RXV


def completed(emitted_XV: Array, p_XV: Array, laws: Laws) -> Array:
    """The law of the first ``length + 1`` tokens: what was emitted, then plain sampling."""
    vocab, start = laws.vocab, 0
    carried = numpy.zeros(1)  # the mass of texts that were emitted whole, by text of the present length
    for size in range(laws.length + 1):
        count = vocab**size
        carried = (carried[:, None] * p_XV[start : start + count] + emitted_XV[start : start + count]).ravel()
        start += count
    return carried


def target(p_XV: Array, laws: Laws) -> Array:
    """The target's own law of the first ``length + 1`` tokens."""
    nothing = numpy.zeros_like(p_XV)
    nothing[0] = p_XV[0]
    return completed(nothing, p_XV, laws)
