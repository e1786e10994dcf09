"""The alignment contract, call by call, against fresh forwards over single rows in float64."""

from __future__ import annotations

import random

import pytest
import torch
from cases import nightly_but
from conftest import VOCAB
from harness import ALIGNMENTS, fresh, the_model
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.alignment.checked import CheckedAlignment
from specdec.alignment.content import Content
from specdec.alignment.expansion import ExpansionAlignment
from specdec.alignment.masked import MaskedAlignment
from specdec.alignment.rollback import RollbackAlignment
from specdec.core.clock import Clock
from specdec.errors import ConfigError, ContractError
from specdec.models.causal_lm import CausalLM


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return the_model()


def ancestors(parents: list[int], node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


@pytest.mark.parametrize("name", ALIGNMENTS)
@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize("seed", nightly_but(range(6), 0))
def test_random_interleavings_keep_every_promise(model, name, trees, seed):
    """Admit, release, feed ragged chains and trees in several forwards, commit paths, cut back, change rows."""
    rng = random.Random(seed)
    alignment = ALIGNMENTS[name](model, Clock())
    held: dict[int, list[int]] = {}
    counter = 0
    for _ in range(25):
        if len(held) < 2 or rng.random() < 0.2:
            fresh_rows = list(range(counter, counter + rng.randint(1, 3)))
            counter = fresh_rows[-1] + 1
            contents = [[rng.randrange(VOCAB) for _ in range(rng.randint(0, 9))] for _ in fresh_rows]
            alignment.admit(fresh_rows, contents)
            held.update(zip(fresh_rows, contents, strict=True))
        if len(held) > 3 and rng.random() < 0.3:
            gone = rng.sample(sorted(held), 1)
            alignment.release(gone)
            del held[gone[0]]
        rows = rng.sample(sorted(held), rng.randint(1, len(held)))
        nodes: dict[int, list[int]] = {row: [] for row in rows}
        parents: dict[int, list[int]] = {row: [] for row in rows}
        for _ in range(rng.randint(1, 3)):
            width = rng.randint(1, 5)
            counts = [rng.randint(0, width) for _ in rows]
            counts[0] = width
            feed = [[rng.randrange(VOCAB) for _ in range(width)] for _ in rows]
            linked = []
            for row, tokens, count in zip(rows, feed, counts, strict=True):
                start = len(nodes[row])
                nodes[row] += tokens[:count]
                if trees:
                    parents[row] += [rng.randint(-1, start + i - 1) for i in range(count)]
                else:
                    parents[row] += [start + i - 1 for i in range(count)]
                linked.append(parents[row][start:])
            logits_BTV = alignment.forward(rows, torch.tensor(feed), counts, linked if trees else None)
            for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
                for t in range(count):
                    path = ancestors(parents[row], len(nodes[row]) - count + t)
                    logits_V, _ = fresh(*held[row], *(nodes[row][node] for node in path))
                    torch.testing.assert_close(logits_BTV[b, t], logits_V, rtol=0, atol=1e-10)
        kept = []
        for row in rows:
            chain = parents[row] == list(range(-1, len(nodes[row]) - 1))
            if chain and rng.random() < 0.6:
                length = rng.randint(max(0, len(held[row]) - 2), len(held[row]) + len(nodes[row]))
                held[row] = (held[row] + nodes[row])[:length]
                kept.append(length)
            else:
                path = ancestors(parents[row], rng.randint(-1, len(nodes[row]) - 1))
                held[row] = held[row] + [nodes[row][node] for node in path]
                kept.append(path)
        alignment.commit(rows, kept)
        for row, tokens in held.items():
            assert alignment.length(row) == len(tokens)
            content = alignment.content(row)
            assert content.shape[2] == len(tokens)
            if tokens:
                torch.testing.assert_close(content, fresh(*tokens)[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_padding_content_cannot_reach_a_row(model, name):
    """What stands behind num_tokens is never fed: changing it changes no logit that counts."""
    outputs = []
    for filler in (0, 7, 42):
        alignment = ALIGNMENTS[name](model, Clock())
        alignment.admit([0, 1], [[3, 4, 5], [6]])
        first = alignment.forward([0, 1], torch.tensor([[8, 9], [1, filler]]), [2, 1])
        second = alignment.forward([0, 1], torch.tensor([[2], [5]]))
        outputs.append(torch.cat([first[0].flatten(), first[1, :1].flatten(), second.flatten()]))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_misuse_is_refused(model, name):
    alignment = ALIGNMENTS[name](model, Clock())
    alignment.admit([0, 1], [[3, 4], [5]])
    with pytest.raises(ContractError, match="admitted twice"):
        alignment.admit([0], [[1]])
    alignment.forward([0, 1], torch.tensor([[1, 2], [3, 4]]), parents=[[-1, -1], [-1, 0]])
    with pytest.raises(ContractError, match="not a path"):
        alignment.commit([0], [[0, 1]])
    with pytest.raises(ContractError, match="keeps 9 tokens"):
        alignment.commit([1], [9])
    with pytest.raises(ContractError, match="not admitted"):
        alignment.commit([5], [1])


@given(st.lists(st.integers(-1, 6), max_size=8), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_content_positions_are_length_plus_depth(parents, length):
    parents = [min(parent, node - 1) for node, parent in enumerate(parents)]
    content = Content(length)
    positions = content.feed(len(parents), parents)
    for node, position in enumerate(positions):
        assert position == length + len(ancestors(parents, node)) - 1
        assert sorted(content.ancestors(node)) == ancestors(parents, node)


def test_masked_squeezes_holes_out_when_they_exceed_the_share(model):
    for share, widest in ((0.0, 22), (0.5, 44), (1.0, 82)):
        alignment = MaskedAlignment(model, Clock(), max_hole_share=share)
        alignment.admit([0, 1], [[1, 2], [3]])
        for _ in range(20):
            alignment.forward([0, 1], torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
            alignment.commit([0, 1], [[0], [0]])
        assert alignment._batch.kv.width <= widest
        assert share < 1 or alignment._batch.kv.width == widest, "nothing is ever squeezed out"
    with pytest.raises(ConfigError, match="max_hole_share=2"):
        MaskedAlignment(model, Clock(), max_hole_share=2)


def test_rollback_cuts_the_batch_to_its_shortest_acceptance(model):
    """Row 0 keeps four, row 1 one: three tokens of row 0 are fed again, and its content is whole all the time."""
    alignment = RollbackAlignment(model, Clock())
    alignment.admit([0, 1], [[1, 2], [3, 4]])
    alignment.forward([0, 1], torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]]))
    alignment.commit([0, 1], [[0, 1, 2, 3], [0]])
    assert alignment._batch.kv.width == 3
    assert [alignment.length(row) for row in (0, 1)] == [6, 3]
    torch.testing.assert_close(alignment.content(0), fresh(1, 2, 5, 6, 7, 8)[1], rtol=0, atol=1e-10)
    assert alignment._batch.kv.width == 3, "reading changes nothing"
    alignment.forward([0, 1], torch.tensor([[9], [9]]))
    assert alignment._batch.kv.width == 3 + 3 + 1


def test_expansion_makes_one_copy_per_path(model):
    """A chain of three is three rows, a tree one per node; a second forward copies the nodes' own copies."""
    sizes = []
    model.observers.append(lambda _, call: sizes.append(tuple(call.tokens_BT.shape)) or call)
    alignment = ExpansionAlignment(model, Clock())
    alignment.admit([0, 1], [[1, 2], [3, 4]])
    alignment.forward([0, 1], torch.tensor([[5, 6, 7], [5, 6, 7]]), parents=[[-1, 0, 1], [-1, -1, 1]])
    alignment.forward([0, 1], torch.tensor([[8], [8]]), parents=[[2], [0]])
    model.observers.clear()
    assert sizes == [(2, 2), (6, 3), (2, 1)]
    alignment.commit([0, 1], [6, [0, 3]])
    torch.testing.assert_close(alignment.content(1), fresh(3, 4, 5, 8)[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("strategy", sorted(ALIGNMENTS))
def test_a_newcomer_may_bear_the_number_of_a_row_that_has_left(model, strategy):
    alignment = CheckedAlignment(ALIGNMENTS[strategy](model, Clock()), model, every=1)
    alignment.admit([0, 1], [[1, 2, 3, 4, 5], [6, 7]])
    alignment.forward([0, 1], torch.tensor([[8], [9]]))
    alignment.commit([0, 1], [6, 3])
    alignment.release([0, 1])
    alignment.admit([0], [[3, 1]])
    alignment.forward([0], torch.tensor([[4]]))
    alignment.commit([0], [3])
    alignment.admit([1], [[5]])
    alignment.forward([1, 0], torch.tensor([[4], [2]]))
    alignment.commit([1, 0], [2, 4])
