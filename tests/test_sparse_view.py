"""The target drafts for itself with a sparse view of its own cache: drafter=self drafter.window=W."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import no_library, small_llama
from harness import ALIGNMENTS, make_engine, run_all

from specdec.alignment.checked import CheckedAlignment
from specdec.alignment.inplace import InplaceAlignment
from specdec.config.windows import check_self
from specdec.conformance import conformance
from specdec.core.clock import Clock
from specdec.core.outputs import LOGITS
from specdec.drafters.context import DrafterContext
from specdec.drafters.early_exit import SelfDrafter
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.sparse_view import SparseView
from specdec.trees.beam import BeamTree

VOCAB, WINDOW, SINKS = 61, 5, 2
NATIVE = pytest.param("native", marks=pytest.mark.skipif(no_library() is not None, reason="none here"))


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64, max_position_embeddings=512))


def made(start: int, size: int) -> list[int]:
    return [(start + 7 * i + i * i) % VOCAB for i in range(size)]


def seen_in_view(size: int) -> torch.Tensor:
    """(S, S): which tokens of a row each token of it sees."""
    places = torch.arange(size)
    return (places <= places[:, None]) & ((places > places[:, None] - WINDOW) | (places < SINKS))


def in_view(model: CausalLM, tokens: list[int], committed: int) -> torch.Tensor:
    """Logits (n, V) after the uncommitted tokens, which see their row through the view; the others saw all of it."""
    seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    seen[committed:] = seen_in_view(len(tokens))[committed:]
    with torch.inference_mode():
        return model.module(torch.tensor([tokens]), attention_mask=seen[None, None], use_cache=False).logits[
            0, committed:
        ]


def drafter_of(model: CausalLM, align=InplaceAlignment, tree=None, **settings) -> SelfDrafter:
    clock = Clock()
    context = DrafterContext(model, None, lambda model: align(model, clock), clock)
    context = context if tree is None else replace(context, tree=tree)
    return SelfDrafter(context, **{"window": WINDOW, "sinks": SINKS, **settings})


VIEWED = [name for name, alignment in ALIGNMENTS.items() if alignment.feeds_given_only]


@pytest.mark.parametrize("execution", ["eager", "fused", NATIVE])
@pytest.mark.parametrize("alignment", VIEWED)
def test_queries_see_sinks_and_window_in_every_alignment_and_execution(alignment, execution):
    """Ragged rows, a chain of two forwards and a tree; afterwards the rows are what they were."""
    model = CausalLM(small_llama(0, torch.float32, max_position_embeddings=512))
    model.execute(execution)
    rows, texts = [3, 1, 2], [made(1, 60), made(2, 3), made(3, 17)]
    target = ALIGNMENTS[alignment](model, Clock())
    target.admit(rows, texts)
    before = [target.content(row) for row in rows]
    fed = torch.tensor([made(row, 4) for row in rows])
    with model.call_options(LOGITS, view=SparseView(WINDOW, SINKS, 4)):
        first = target.forward(rows, fed[:, :1])
        rest = target.forward(rows, fed[:, 1:], [3, 2, 1])
        target.commit(rows, [len(text) for text in texts])
        tree = target.forward(rows, fed, parents=[[-1, 0, 0, 2]] * 3)
        target.commit(rows, [len(text) for text in texts])
    for b, text in enumerate(texts):
        expected = in_view(model, text + fed[b].tolist(), len(text))
        torch.testing.assert_close(first[b, 0], expected[0], rtol=0, atol=2e-4)
        torch.testing.assert_close(rest[b, : 3 - b], expected[1 : 4 - b], rtol=0, atol=2e-4)
        for node, path in ((1, [0, 1]), (3, [0, 2, 3])):
            expected_V = in_view(model, text + [int(fed[b, n]) for n in path], len(text))[-1]
            torch.testing.assert_close(tree[b, node], expected_V, rtol=0, atol=2e-4)
        assert torch.equal(target.content(rows[b]), before[b])


@pytest.mark.parametrize(
    ("alignment", "tree"),
    [
        ("inplace", BeamTree(width=2)),
        ("eqspec", None),
        pytest.param("masked", None, marks=pytest.mark.slow),
        pytest.param("expansion", BeamTree(width=2), marks=pytest.mark.slow),
    ],
)
def test_rows_stay_those_of_the_target(model, alignment, tree):
    """Ragged rows that outgrow the view, refilled, with checks of all that the target is fed."""
    prompts, budgets = [made(1, 40), made(2, 1), made(3, 20), made(5, 30)], [9, 5, 9, 9]

    def align(model: CausalLM, clock: Clock):
        return CheckedAlignment(ALIGNMENTS[alignment](model, clock), model, every=6)

    plain, _ = run_all(make_engine(model, batch=3, scheduler="continuous", alignment=align), prompts, budgets)
    settings = {"batch": 3, "gamma": 3, "scheduler": "continuous", "alignment": align}
    rows, _ = run_all(make_engine(model, drafter=drafter_of(model, tree=tree), **settings), prompts, budgets)
    assert [row.output_ids for row in rows] == [row.output_ids for row in plain]
    # A row whose tokens are all in the view drafts what the target says.
    assert rows[1].num_accepted == rows[1].num_drafted if tree is None else rows[1].num_accepted
    assert sum(row.num_accepted for row in rows) < sum(row.num_drafted for row in rows), "the view has changed no draft"


def test_drafts_do_not_depend_on_neighbours_or_on_what_the_cache_held_before(model):
    prompts, drafts = [made(start, 30 + 9 * start) for start in range(3)], {}
    for batch in (1, 2):
        engine = make_engine(
            model, drafter=drafter_of(model), batch=batch, gamma=4, scheduler="continuous", alignment=InplaceAlignment
        )
        rows, _ = run_all(engine, prompts, 10)
        drafts[batch] = [(row.drafted_lengths, row.accepted_lengths) for row in rows]
    assert drafts[1] == drafts[2]


def test_nothing_is_kept_per_row(model):
    """The target's columns are as many as without a draft, and the drafter has none."""
    sizes = {}
    for drafter in (None, drafter_of(model)):
        engine = make_engine(model, drafter=drafter, batch=2, gamma=4, alignment=InplaceAlignment)
        run_all(engine, [made(1, 120), made(2, 100)], 20)
        sizes[drafter] = engine.target._slots.kv.data_NBHSD.nbytes
    assert len(set(sizes.values())) == 1


@pytest.mark.nightly
def test_the_kit_finds_nothing():
    conformance(drafter="self", params={"window": 4, "sinks": 1}, scale=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": None, "window": 0, "sinks": 4}, "drafter.window=0: it must be at least 1"),
        ({"num_layers": None, "window": 8, "sinks": 9}, "drafter.sinks=9 with drafter.window=8"),
        ({"num_layers": 2, "window": 8, "sinks": 1}, "drafter.num_layers=2 with drafter.window=8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_self(**settings)


def test_an_alignment_that_feeds_tokens_again_is_refused(model):
    """Committed tokens would be computed with the view: debug=invariants found it in rollback."""
    with pytest.raises(ConfigError, match="set alignment=inplace"):
        make_engine(model, drafter=drafter_of(model), alignment=ALIGNMENTS["rollback"])


def test_a_target_with_windows_of_its_own_is_refused():
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=6)
    with pytest.raises(ConfigError, match="the target has windows or chunks of its own"):
        drafter_of(CausalLM(MistralForCausalLM(config).eval()))
