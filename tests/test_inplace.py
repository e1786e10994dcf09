"""alignment=inplace: nothing moves, slots are used again, and idle ones between fed rows change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from harness import fresh, the_model

from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.slots import idle_are_cheap
from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.base import Call


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return the_model()


@pytest.fixture
def calls(model) -> Iterator[list[Call]]:
    """The forwards of the model."""
    seen: list[Call] = []

    def see(_: CausalLM, call: Call) -> Call:
        seen.append(call)
        return call

    model.observers.append(see)
    yield seen
    model.observers.remove(see)


def test_inplace_moves_nothing_and_copies_nothing_in_the_common_case(model, calls):
    """Commits touch no column; a forward over all rows, in any order, reads the storage itself."""
    alignment = InplaceAlignment(model, Clock())
    alignment.admit([7, 8, 9], [[1, 2, 3], [4], [5, 6]])
    for rows, kept in (([7, 8, 9], [4, 3, 2]), ([9, 7, 8], [[0], [0, 1], []])):
        alignment.forward(rows, torch.tensor([[1, 2], [3, 4], [5, 6]]))
        before = alignment._slots.kv.data_NBHSD.clone()
        alignment.commit(rows, kept)
        assert torch.equal(alignment._slots.kv.data_NBHSD, before)
    assert all(isinstance(call.writer.slots, slice) for call in calls)


@pytest.mark.parametrize("cheap", [True, False], ids=["fed along", "copied around"])
@pytest.mark.parametrize("released", [True, False], ids=["free slot", "idle row"])
def test_idle_slots_between_the_rows_change_nothing(model, calls, monkeypatch, cheap, released):
    """Rows of slots 0 and 2 decode; slot 1 is free, or its row waits with tokens that are not committed yet."""
    monkeypatch.setattr("specdec.alignment.inplace.idle_are_cheap", lambda *_: cheap)
    alignment = InplaceAlignment(model, Clock())
    alignment.admit([7, 8, 9], [[1, 2, 3], [4, 5, 6, 7, 8], [5, 6]])
    if released:
        alignment.release([8])
        alignment.admit([10], [[1, 2]])  # takes the free slot, so that the forward below is over some rows only
        alignment.release([10])
        alignment.admit([11, 12], [[2], [3]])
        alignment.release([11])
    else:
        alignment.forward([8], torch.tensor([[9, 10]]))
        before = alignment.content(8)
    logits_BTV = alignment.forward([9, 7], torch.tensor([[1, 2], [3, 4]]))
    assert (len(calls[-1].tokens_BT), type(calls[-1].writer.slots)) == ((3, slice) if cheap else (2, torch.Tensor))
    assert int(calls[-1].positions().max()) == 4, "the rows' own: an idle row's would change some rotary embeddings"
    for b, tokens in enumerate(((5, 6, 1, 2), (1, 2, 3, 3, 4))):
        torch.testing.assert_close(logits_BTV[b, 1], fresh(*tokens)[0], rtol=0, atol=1e-10)
    alignment.commit([9, 7], [[0, 1], [0]])
    torch.testing.assert_close(alignment.content(9), fresh(5, 6, 1, 2)[1], rtol=0, atol=1e-10)
    if not released:
        assert torch.equal(alignment.content(8), before)
        alignment.commit([8], [[0, 1]])
        torch.testing.assert_close(alignment.content(8), fresh(4, 5, 6, 7, 8, 9, 10)[1], rtol=0, atol=1e-10)


def test_idle_slots_are_fed_along_with_embeddings_too(model, monkeypatch):
    """Drafters over hidden states feed embeddings (B, T, D) instead of ids."""
    monkeypatch.setattr("specdec.alignment.inplace.idle_are_cheap", lambda *_: True)
    logits = []
    for embed in (lambda ids: ids, model.module.get_input_embeddings()):
        alignment = InplaceAlignment(model, Clock())
        alignment.admit([7, 8, 9], [[1, 2, 3], [4, 5, 6, 7, 8], [5, 6]])
        with torch.inference_mode():
            logits.append(alignment.forward([9, 7], embed(torch.tensor([[1, 2], [3, 4]]))))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-12)


def test_idle_slots_never_make_the_storage_grow_nor_outnumber_the_rows(model, calls, monkeypatch):
    """The memory that a run is planned with counts neither."""
    alignment = InplaceAlignment(model, Clock())
    alignment.admit([7, 8, 9], [[1, 2, 3], [4] * 126, [5, 6]])
    num_columns = alignment._slots.kv.data_NBHSD.shape[3]
    assert 126 < num_columns < 130
    with monkeypatch.context() as patched:
        patched.setattr("specdec.alignment.inplace.idle_are_cheap", lambda *_: True)
        alignment.forward([7, 9], torch.tensor([[1, 2, 3, 4], [3, 4, 5, 6]]))
    assert len(calls[-1].tokens_BT) == 2
    assert alignment._slots.kv.data_NBHSD.shape[3] == num_columns
    assert idle_are_cheap(model, num_rows=2, num_idle=2, num_new=1, num_columns=10**6, num_columns_with_idle=10**6)
    assert not idle_are_cheap(model, num_rows=2, num_idle=3, num_new=1, num_columns=10**6, num_columns_with_idle=10**6)
    assert not idle_are_cheap(model, num_rows=2, num_idle=1, num_new=1, num_columns=10, num_columns_with_idle=1000)
    assert not idle_are_cheap(model, num_rows=2, num_idle=1, num_new=10**6, num_columns=100, num_columns_with_idle=100)


def test_inplace_reuses_slots_and_closes_up(model):
    """A newcomer takes a freed slot; a hole that nobody takes is closed by one row's move."""
    alignment = InplaceAlignment(model, Clock())
    alignment.admit([0, 1, 2, 3], [[1, 2], [3], [4, 5, 6], [7]])
    alignment.release([1])
    alignment.admit([4], [[8, 9]])
    assert alignment._slots.slot == {0: 0, 4: 1, 2: 2, 3: 3}
    alignment.release([0, 4])
    kept = alignment.content(3)
    logits_BTV = alignment.forward([2, 3], torch.tensor([[1], [2]]))
    assert sorted(alignment._slots.slot.values()) == [0, 1]
    assert torch.equal(alignment.content(3), kept)
    torch.testing.assert_close(logits_BTV[1, 0], fresh(7, 2)[0], rtol=0, atol=1e-10)
    assert alignment._slots.kv.num_rows == 4
