"""A draft that sees the first and the last tokens of a row, in a cache of constant size."""

from __future__ import annotations

import pytest
import torch
from conftest import no_library, perturbed, small_llama
from harness import make_engine, run_all

import specdec.alignment.windowed as windowed_module
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.reader import Reader
from specdec.alignment.windowed import MARGIN, ROOM, windowed
from specdec.config.windows import check_sizes
from specdec.conformance import conformance
from specdec.core.clock import Clock
from specdec.core.sequence import Sequence
from specdec.drafters.context import DrafterContext
from specdec.drafters.model import ModelDrafter
from specdec.errors import ConfigError, ContractError
from specdec.models.causal_lm import CausalLM
from specdec.trees.beam import BeamTree

VOCAB, WINDOW, SINKS = 61, 9, 2


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64, max_position_embeddings=1024))


def alone(model: CausalLM, tokens: list[int], window: int = WINDOW) -> torch.Tensor:
    """Logits (n, V) of a row alone, of a query that sees the sinks and the window."""
    places = torch.arange(len(tokens))
    seen = (places <= places[:, None]) & ((places > places[:, None] - window) | (places < SINKS))
    with torch.inference_mode():
        return model.module(torch.tensor([tokens]), attention_mask=seen[None, None], use_cache=False).logits[0]


def made(start: int, size: int) -> list[int]:
    return [(start + 7 * i + i * i) % VOCAB for i in range(size)]


def test_logits_are_those_of_the_masked_row(model):
    """Prompts shorter and longer than the cache, ragged feeds, commits that cut back, a tree at the end."""
    rows, prompts = [0, 1, 2], [made(1, 400), made(2, 7), made(3, WINDOW + ROOM + MARGIN + SINKS + 1)]
    alignment = windowed(WINDOW, SINKS)(model, Clock())
    alignment.admit(rows, prompts)
    texts = {row: list(prompt) for row, prompt in zip(rows, prompts, strict=True)}
    for turn in range(60):
        fed = [made(5 * turn + row, 5) for row in rows]
        counts = [5, 1 + turn % 4, 3]
        logits_BTV = alignment.forward(rows, torch.tensor(fed), counts)
        if turn % 12 == 0:
            for b, row in enumerate(rows):
                expected = alone(model, texts[row] + fed[b][: counts[b]])[-counts[b] :]
                torch.testing.assert_close(logits_BTV[b, : counts[b]], expected, rtol=0, atol=1e-8)
        for b, row in enumerate(rows):
            texts[row] += fed[b][: max(counts[b] - 1 - (turn + b) % 2, 1)]
        alignment.commit(rows, [len(texts[row]) for row in rows])
    assert alignment._dropped[0] > 400
    assert alignment._slots.kv.data_NBHSD.shape[3] <= SINKS + WINDOW + MARGIN + 3 * ROOM
    tree_BT, parents = torch.tensor([made(9, 4)] * 3), [[-1, 0, 0, 2]] * 3
    logits_BTV = alignment.forward(rows, tree_BT, parents=parents)
    for b, row in enumerate(rows):
        for node, path in ((1, [0, 1]), (3, [0, 2, 3])):
            expected_V = alone(model, texts[row] + [tree_BT[b, n].item() for n in path])[-1]
            torch.testing.assert_close(logits_BTV[b, node], expected_V, rtol=0, atol=1e-8)
    alignment.commit(rows, [[0, 2, 3]] * 3)
    logits_BTV = alignment.forward(rows, torch.tensor([[5]] * 3))
    for b, row in enumerate(rows):
        expected_V = alone(model, texts[row] + [tree_BT[b, n].item() for n in (0, 2, 3)] + [5])[-1]
        torch.testing.assert_close(logits_BTV[b, 0], expected_V, rtol=0, atol=1e-8)
    with pytest.raises(ContractError, match="further than its window"):
        alignment.commit([0], [60])


@pytest.mark.parametrize(
    "execution",
    ["fused", pytest.param("native", marks=pytest.mark.skipif(no_library() is not None, reason="none here"))],
)
def test_positions_beyond_the_columns_in_other_executions(execution):
    """A row of 900 tokens in 285 columns: rotations are made by position."""
    model, tokens = CausalLM(small_llama(0, torch.float32, max_position_embeddings=1024)), made(1, 900)
    model.execute(execution)
    alignment = windowed(WINDOW, SINKS)(model, Clock())
    alignment.admit([0], [tokens[:-1]])
    logits_V = alignment.forward([0], torch.tensor([tokens[-1:]]))[0, 0]
    torch.testing.assert_close(logits_V, alone(model, tokens)[-1], rtol=0, atol=1e-3)


def test_a_row_that_is_read_on_takes_the_columns_of_a_row_that_decodes(model):
    """A row that lacks much is fed in parts: its cache never grows to hold all that is missing."""
    alignment = windowed(WINDOW, SINKS)(model, Clock())
    reader, row = Reader(alignment), Sequence(0, made(1, 700), 4)
    reader.read([row], [5])
    reader.read([row], [650])
    assert alignment.length(0) == 650
    assert alignment._slots.kv.data_NBHSD.shape[3] <= SINKS + WINDOW + MARGIN + 3 * ROOM
    logits_V = alignment.forward([0], torch.tensor([row.prompt_ids[650:651]]))[0, 0]
    torch.testing.assert_close(logits_V, alone(model, row.prompt_ids[:651])[-1], rtol=0, atol=1e-8)


def test_first_tokens_of_a_short_row_are_sinks_in_a_tree_too(model):
    """A tree deeper than the window: the row's second token is a sink, in whatever column it is."""
    alignment, chain = windowed(2, 2)(model, Clock()), made(1, 6)
    alignment.admit([0], [chain[:1]])
    fed = torch.tensor([[9, *chain[1:]]])  # the first node is a sibling that moves the others by a column
    logits_BTV = alignment.forward([0], fed, parents=[[-1, -1, 1, 2, 3, 4]])
    torch.testing.assert_close(logits_BTV[0, 1:], alone(model, chain, 2)[1:], rtol=0, atol=1e-8)


@pytest.mark.parametrize("tree", [pytest.param(None, marks=pytest.mark.slow), BeamTree(width=2)])
def test_rows_stay_those_of_the_target(model, tree):
    """Ragged rows that outgrow the window, refilled; the window changes drafts and never outputs."""
    prompts, budgets = [made(1, 300), made(2, 5), made(3, 150), made(4, 40), made(5, 260)], [24, 12, 24, 24, 24]
    draft = CausalLM(perturbed(model.module, 0.04))
    found = {}
    for window in (None, WINDOW):
        clock = Clock()
        context = DrafterContext(model, draft, lambda model, clock=clock: InplaceAlignment(model, clock), clock)
        if tree is not None:
            object.__setattr__(context, "tree", tree)
        drafter = ModelDrafter(context, window=window, sinks=SINKS)
        engine = make_engine(
            model, drafter=drafter, batch=3, gamma=3, scheduler="continuous", alignment=InplaceAlignment
        )
        rows, _ = run_all(engine, prompts, budgets)
        found[window] = [row.output_ids for row in rows], [row.drafted_lengths for row in rows], rows
    assert found[WINDOW][0] == found[None][0]
    accepted = {window: sum(row.num_accepted for row in parts[2]) for window, parts in found.items()}
    assert accepted[WINDOW] != accepted[None], "the window has changed no draft"


@pytest.mark.nightly
def test_the_kit_finds_nothing(monkeypatch):
    """A draft is the same as if its row had just been admitted, whatever was dropped and whoever is beside it."""
    monkeypatch.setattr(windowed_module, "ROOM", 3)
    monkeypatch.setattr(windowed_module.WindowedAlignment, "reads_at_once", 3)
    conformance(drafter="model", params={"window": 6, "sinks": 2}, scale=0.05)


@pytest.mark.parametrize(
    ("window", "sinks", "message"),
    [
        (0, 4, "drafter.window=0: it must be at least 1"),
        (-3, 0, "drafter.window=-3"),
        (8, 9, "drafter.sinks=9 with drafter.window=8"),
        (8, -1, "drafter.sinks=-1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(window, sinks, message):
    with pytest.raises(ConfigError, match=message):
        check_sizes(window, sinks)


def test_a_draft_with_windows_of_its_own_is_refused(model):
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=6)
    context = DrafterContext(model, CausalLM(MistralForCausalLM(config).eval()), lambda model: None, Clock())
    with pytest.raises(ConfigError, match="windows or chunks of its own"):
        ModelDrafter(context, window=8)
