"""alignment.shared_prefix: first tokens that rows have in common are held once, computed once, and change no output."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from cases import short_only
from conftest import greedy_alone, no_library
from harness import fresh, make_engine, run_all, the_model
from memory_of_runs import composed
from native_models import build
from pretend_cuda import GPU, PretendCuda
from test_hybrids import target_of

import specdec
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.prefixes import Prefixes
from specdec.conformance.calls import check_program
from specdec.conformance.models import on_device, perturbed, small_llama, small_pair
from specdec.conformance.programs import leaving_program, sharing_programs, wide_program
from specdec.core.clock import Clock
from specdec.core.transfer import to_device
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.pair import load_pair
from specdec.run.factory import build_engine

EXECUTIONS = [
    "eager",
    "fused",
    pytest.param("native", marks=pytest.mark.skipif(bool(no_library()), reason="no library")),
]
SHARED = partial(InplaceAlignment, shared_prefix=8)
PREFIX = [(7 * i + 3) % 61 for i in range(40)]


def prompts(num_rows: int = 6) -> list[list[int]]:
    """Rows of one prefix with endings of several lengths; the last row shares only half of it."""
    rng = random.Random(0)
    rows = [[*PREFIX, *(rng.randrange(61) for _ in range(1 + 3 * b))] for b in range(num_rows - 1)]
    return [*rows, [*PREFIX[:20], 60, 59, 58]]


@pytest.mark.parametrize("execution", short_only(EXECUTIONS, "fused"))
@pytest.mark.parametrize("least", short_only([1, 21], 21))
def test_programs_of_the_contract_are_kept(execution, least):
    with on_device(torch.device("cpu"), execution):
        for program in (*sharing_programs(), leaving_program(), wide_program(trees=True)):
            assert check_program(program, make=partial(InplaceAlignment, shared_prefix=least)) == []


@pytest.mark.parametrize(
    ("scheduler", "batch", "drafts"), [("continuous", 3, True), ("static", 4, False), ("exspec", 4, True)]
)
@pytest.mark.parametrize("dtype", short_only([torch.float32, torch.float64], torch.float32))
def test_every_row_is_exact_with_drafts_refills_and_chunks(scheduler, batch, drafts, dtype):
    module = small_llama(1, dtype)
    target, draft = CausalLM(module), CausalLM(perturbed(module, 0.04)) if drafts else None
    for chunk in (None, 7):
        engine = make_engine(target, draft, scheduler=scheduler, batch=batch, alignment=SHARED)
        engine.prefill._chunk = chunk
        rows, _ = run_all(engine, prompts(), [12, 3, 9, 12, 5, 8])
        for row in rows:
            expected = greedy_alone(target, row.prompt_ids, row.max_new_tokens, frozenset())
            assert row.output_ids == expected, (row.index, chunk)


def test_a_prefix_is_computed_and_kept_once():
    """Six rows of 40 common tokens: one copy, and slots that begin after it; later rows compute only their own."""
    model, fed = the_model(), []
    model.observers.append(lambda _, call: fed.append(call.tokens_BT.numel()) or call)
    alignment = SHARED(model, Clock())
    same = [[*PREFIX, b] for b in range(6)]
    alignment.admit([0, 1, 2, 3, 4, 5], same)
    assert fed == [40, 6]
    assert alignment._prefixes.num_columns == 40
    assert alignment._slots.kv.width == 1
    assert [alignment.shared_length(row) for row in range(6)] == [40] * 6
    alignment.release([0, 1, 2, 3, 4])
    alignment.admit([6], [[*PREFIX[:30], 1, 2]])
    model.observers.clear()
    assert (fed[2:], alignment.shared_length(6), alignment._prefixes.num_columns) == ([2], 30, 40)


def tree_of_prompts() -> list[list[int]]:
    """All begin with the same 20 tokens, four of six with 30 more, of which two with 10 more."""
    every, more = [(7 * i + 3) % 61 for i in range(20)], [(11 * i + 5) % 61 for i in range(30)]
    deep = [*every, *more, *((5 * i + 2) % 61 for i in range(10))]
    return [[*deep, 1], [*deep, 2, 3], [*every, *more, 50], [*every, *more, 51, 52], [*every, 40], [*every, 41, 42]]


def test_a_declared_prefix_is_held_until_the_end():
    """Also for one row, and where nothing else is shared; a shorter row reads what it has of it."""
    alignment = InplaceAlignment(the_model(), Clock())
    alignment.declare(PREFIX)
    assert alignment.hold([]) == []
    alignment.admit([0, 1, 2], [[*PREFIX, 1, 2, 3], [*PREFIX, 1, 2, 4], PREFIX[:9]])
    assert [alignment.shared_length(row) for row in (0, 1, 2)] == [40, 40, 9]
    alignment.release([0, 1, 2])
    alignment.admit([3], [[9, 9]])
    assert (alignment.hold([[*PREFIX, 5]]), alignment._prefixes.num_columns) == ([40], 40)


def test_a_row_that_came_alone_shares_with_the_next():
    """Its columns become the prefix, and are not computed again; a row with tokens that wait for a commit is left."""
    model, fed = the_model(), []
    alignment = SHARED(model, Clock())
    alignment.admit([0], [[*PREFIX, 1, 2]])
    alignment.forward([0], torch.tensor([[3, 4]]))
    model.observers.append(lambda _, call: fed.append(call.tokens_BT.numel()) or call)
    assert alignment.hold([[*PREFIX, 5]]) == [0], "nodes of row 0 are not committed"
    alignment.commit([0], [43])
    content = alignment.content(0)
    assert alignment.hold([[*PREFIX, 5]]) == [40]
    assert (alignment.shared_length(0), fed) == (40, [])
    assert torch.equal(alignment.content(0), content)
    alignment.admit([1], [[*PREFIX, 5]])
    logits_BTV = alignment.forward([1, 0], torch.tensor([[6], [7]]))
    model.observers.clear()
    for b, tokens in enumerate(([*PREFIX, 5, 6], [*PREFIX, 1, 2, 3, 7])):
        torch.testing.assert_close(logits_BTV[b, 0], fresh(*tokens)[0], rtol=0, atol=1e-10)
    alignment.commit([1, 0], [20, 4])
    alignment.admit([2], [[*PREFIX, 8]])
    assert alignment.shared_length(2) == 40


def test_a_prefix_lives_while_it_is_read_and_until_others_come():
    alignment = SHARED(the_model(), Clock())
    alignment.admit([0, 1], [[*PREFIX, 1], [*PREFIX, 2]])
    alignment.release([0])
    alignment.admit([2, 3], [[9] * 20, [9] * 21])
    assert alignment._prefixes.num_columns == 40 + 20, "row 1 reads the first"
    content = alignment.content(1)
    alignment.release([1])
    assert alignment.hold([[*PREFIX, 3], [4]]) == [40, 0], "nobody reads it, but it is still there"
    alignment.admit([1], [[*PREFIX, 2]])
    torch.testing.assert_close(alignment.content(1), content, rtol=0, atol=1e-12)
    alignment.release([1, 2, 3])
    alignment.admit([4], [[1, 2, 3]])
    assert alignment._prefixes.num_columns == 0


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_row_that_is_cut_back_to_nothing_reads_no_prefix(execution):
    """Beside a reader of another prefix: its own has no reader left in the forward."""
    with on_device(torch.device("cpu"), execution):
        model = small_pair(1, "float32")[0]
    alignment = SHARED(model, Clock())
    alignment.admit([0, 1, 2, 3], [[*PREFIX, 1], [*PREFIX, 2], [9] * 20, [9] * 21])
    alignment.commit([0, 1], [0, 0])
    found = alignment.forward([2, 0], torch.tensor([[4, 5], [6, 7]]))
    alone = InplaceAlignment(model, Clock())
    alone.admit([0, 2], [[], [9] * 20])
    torch.testing.assert_close(found, alone.forward([2, 0], torch.tensor([[4, 5], [6, 7]])), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(bool(no_library()), reason="no library")
@pytest.mark.parametrize("shape", ["llama", "mistral, sliding", "forty heads of one key head", "one key head"])
def test_native_bits_do_not_depend_on_who_shares(shape):
    """Alone, beside rows without a common token, and with rows that share all or half of the prefix."""
    model = build(shape)
    model.execute("native")
    rows = [*prompts(), [5, 6, 7], *tree_of_prompts()]
    endings = [[token % 61 for token in range(b, b + 3)] for b in range(len(rows))]

    def logits(alignment: InplaceAlignment, names: list[int]) -> list[torch.Tensor]:
        alignment.admit(names, [rows[b] for b in names])
        tree = [[-1, -1, 0]] * len(names)
        found = list(alignment.forward(names, torch.tensor([endings[b] for b in names]), parents=tree))
        alignment.commit(names, [[0, 2]] * len(names))
        return [
            torch.cat(pair)
            for pair in zip(found, alignment.forward(names, torch.tensor([[1]] * len(names))), strict=True)
        ]

    shared = SHARED(model, Clock())
    together = logits(shared, list(range(len(rows))))
    pairs = SHARED(model, Clock())
    halves = [*logits(pairs, [3, 5]), *logits(pairs, [0, 6])]
    assert (pairs._prefixes.num_columns, pairs.shared_length(0)) == (20, 20)
    assert max(len(end.path()) for end in shared._prefixes._ends.values()) == 3
    for b in range(len(rows)):
        alone = logits(InplaceAlignment(model, Clock()), [b])[0]
        assert torch.equal(together[b], alone), b
        if b in (3, 5, 0, 6):
            assert torch.equal(halves[[3, 5, 0, 6].index(b)], alone), b


@pytest.mark.parametrize("execution", ["eager", "fused"])
def test_on_a_gpu_no_layer_waits_for_the_host(execution):
    """Two groups and a row of neither: their places are uploaded once per forward, without a wait."""
    with PretendCuda() as gpu, on_device(GPU, execution):
        alignment = SHARED(small_pair(1, "float32")[0], Clock())
        contents = [[*PREFIX, 1], [9] * 20, [*PREFIX, 2, 3], [4], [9] * 21]
        alignment.admit([0, 1, 2, 3, 4], contents)
        tokens_BT = to_device([[1, 2]] * 5, GPU)
        gpu.waits.clear()
        found = alignment.forward([0, 1, 2, 3, 4], tokens_BT)
        assert not gpu.num_waits, gpu.waits
        plain = InplaceAlignment(alignment.model, Clock())
        plain.admit([0, 1, 2, 3, 4], contents)
        torch.testing.assert_close(found.cpu(), plain.forward([0, 1, 2, 3, 4], tokens_BT).cpu(), rtol=1e-4, atol=1e-4)


@pytest.fixture
def held(monkeypatch) -> list[int]:
    """The lengths of the prefixes that are made."""
    lengths, make = [], Prefixes._make

    def recorded(self: Prefixes, tokens: np.ndarray, alone: list[int]) -> None:
        lengths.append(len(tokens))
        make(self, tokens, alone)

    monkeypatch.setattr(Prefixes, "_make", recorded)
    return lengths


def test_samples_of_one_prompt_share_it_and_draw_the_same_tokens(held):
    module = small_llama(1, torch.float64)
    call = {"do_sample": True, "num_return_sequences": 4, "seed": 3, "max_new_tokens": 9, "pad_token_id": 0}
    plain, shared = (specdec.generate(module, "self", [PREFIX], **call, shared_prefix=least) for least in (0, 8))
    assert torch.equal(plain, shared)
    assert held == [len(PREFIX) - 1] * 2, "the target's and the draft's"


@pytest.mark.parametrize("draft", [None, "self"])
def test_a_prefix_does_not_outlive_the_weights_that_it_was_made_with(draft, held):
    """An engine serves calls between training steps: a later call shares nothing with an earlier one."""
    module = small_llama(1, torch.float64)
    engine = specdec.Engine(module, draft, shared_prefix=8)
    for scale in (1.0, 1.5):
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(scale)
        found = engine.generate([[*PREFIX, b] for b in range(3)], max_new_tokens=12, pad_token_id=0, eos_token_id=None)
        assert set(held) == {len(PREFIX)}
        held.clear()
        target = CausalLM(module)
        for b, row in enumerate(found[:, len(PREFIX) + 1 :].tolist()):
            assert row == greedy_alone(target, [*PREFIX, b], 12, frozenset()), (scale, b)
        assert [part._prefixes.num_columns for part in engine._idle[0].alignments] == [0] * (1 if draft is None else 2)


def test_two_rows_that_came_alone_share_and_leave_nothing():
    """The first had nodes of a round when the second came; no row awaits the prefix that they make later."""
    alignment = SHARED(the_model(), Clock())
    alignment.admit([0], [[*PREFIX, 1]])
    alignment.forward([0], torch.tensor([[3]]))
    alignment.admit([1], [[*PREFIX, 2]])
    alignment.commit([0], [42])
    alignment.admit([2], [[5, 6]])
    assert [alignment.shared_length(row) for row in (0, 1, 2)] == [40, 40, 0]
    alignment.release([0, 1, 2])
    assert alignment.hold([[7]]) == [0]
    assert alignment._prefixes.num_columns == 0


def test_a_drafter_that_reads_the_states_of_every_prompt_token_is_refused():
    cfg = composed(
        "pair=tiny", "drafter.untrained=true", "drafter=medusa", "alignment=inplace", "alignment.shared_prefix=64"
    )
    with pytest.raises(ConfigError, match=r"alignment.shared_prefix=64: drafter=medusa reads the target's hidden"):
        build_engine(cfg, load_pair(cfg), Clock())


def test_what_cannot_share_is_refused_in_one_line():
    model = the_model()
    with pytest.raises(ConfigError, match=r"alignment.shared_prefix=-1: it must be 0"):
        InplaceAlignment(model, Clock(), shared_prefix=-1)
    model = CausalLM(small_llama(1, torch.float64))
    model.execute("eager", "invariant")
    with pytest.raises(ConfigError, match=r"alignment.shared_prefix=8: .*set execution=native, numerics=default"):
        SHARED(model, Clock())
    with pytest.raises(ConfigError, match=r"alignment.shared_prefix=8: Lfm2ForCausalLM has layers with a recurrent"):
        SHARED(target_of("Lfm2"), Clock())
