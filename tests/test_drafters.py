"""Drafters: what they propose, that it depends on the row alone, and that every output stays the target's."""

from __future__ import annotations

import random

import pytest
import torch
from cases import nightly_but, short_only
from conftest import VOCAB, greedy_alone, small_llama
from harness import make_engine, run_all
from tokenizers import Tokenizer, decoders, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.eqspec import EqspecAlignment
from specdec.conformance.models import LETTERS, letter_tokenizer
from specdec.core.clock import Clock
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.drafters.early_exit import SelfDrafter, first_layers
from specdec.drafters.retokenize import RetokenizeDrafter
from specdec.drafters.trigram import relative_frequencies
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.registry import create

NEW = 24


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64))


@pytest.fixture(scope="module")
def expected(model, prompts) -> list[list[int]]:
    return [greedy_alone(model, prompt, NEW, frozenset()) for prompt in prompts]


def context_of(target: CausalLM, draft: CausalLM | None = None, **tools) -> DrafterContext:
    clock = Clock()
    return DrafterContext(target, draft, lambda wrapped: EqspecAlignment(wrapped, clock), clock, **tools)


def proposals(drafter: Drafter, rows: list[Sequence], gamma: int = 5) -> list[list[int]]:
    draft = drafter.propose(rows, [gamma] * len(rows))
    assert draft.probs_BGV is None
    return [draft.tokens_BG[b, :n].tolist() for b, n in enumerate(draft.num_drafted)]


def exact(drafter: Drafter, model, prompts, expected, scheduler="exspec"):
    rows, rounds = run_all(make_engine(model, drafter=drafter, scheduler=scheduler), prompts, NEW)
    assert [row.output_ids for row in rows] == expected
    return rows, rounds


# --- prompt lookup -------------------------------------------------------------------------------------------------


def test_lookup_copies_what_followed_the_longest_match(model):
    drafter = create("drafter", "prompt_lookup", context_of(model), max_ngram=3)
    rows = [
        Sequence(0, [1, 2, 3, 9, 8, 7, 2, 3, 5, 1, 2, 3], 9),  # 1 2 3 -> 9, although 2 3 -> 5 is nearer
        Sequence(1, [2, 3, 5, 6, 2, 3], 9),
        Sequence(2, [1, 2, 3], 9),  # nothing occurred before
        Sequence(3, [4], 9),
        Sequence(4, [1, 5, 1, 6, 1], 9),  # the last occurrence counts
        Sequence(5, [7, 8, 7, 8], 9),  # a loop goes on
    ]
    drafter.admit(rows)
    assert proposals(drafter, rows) == [[9, 8, 7, 2, 3], [5, 6, 2, 3, 5], [], [], [6, 1, 6, 1, 6], [7, 8, 7, 8, 7]]
    rows[2].emit([9, 1])
    drafter.commit(rows)
    assert proposals(drafter, rows[2:3]) == [[2, 3, 9, 1, 2]]


def test_lookup_equals_a_search_from_the_end(model):
    rng = random.Random(0)
    for trial in range(50):
        drafter = create("drafter", "prompt_lookup", context_of(model), max_ngram=3, min_ngram=2)
        row = Sequence(trial, [rng.randrange(3) for _ in range(rng.randint(1, 30))], 99)
        drafter.admit([row])
        row.emit([rng.randrange(3) for _ in range(rng.randint(0, 9))])
        drafter.commit([row])
        text = row.tokens(0)
        start = None
        for size in (3, 2):
            places = [i for i in range(len(text) - size) if text[i : i + size] == text[-size:]]
            if start is None and places:
                start = places[-1] + size
        found = proposals(drafter, [row], gamma=1)[0]
        assert found == ([] if start is None else [text[start]])


# --- trigrams ------------------------------------------------------------------------------------------------------


def test_trigrams_follow_the_heaviest_successor(model):
    drafter = create("drafter", "trigram", context_of(model))
    rows = [Sequence(0, [1, 2, 3, 1, 2, 4, 1, 2, 4, 5, 1, 2], 9), Sequence(1, [1, 2], 9), Sequence(2, [1], 9)]
    drafter.admit(rows)
    assert proposals(drafter, rows) == [[4, 1, 2, 4, 1], [], []]


def test_a_trigram_gains_for_every_step_in_the_window_up_to_the_cap(model):
    drafter = create("drafter", "trigram", context_of(model), window=4, gain=0.5, cap=1.4)
    row = Sequence(0, [1, 2, 3, 4, 5, 1, 2, 3], 9)
    drafter.admit([row])
    weights = drafter._overlay[0]
    assert weights[(2, 3)][4] == 1.0  # two windows of four tokens hold 2 3 4
    assert weights[(1, 2)][3] == 1.4  # twice for each of two occurrences, and once in a window that ends
    assert weights[(5, 1)][2] == 1.0


def test_a_rows_trigrams_do_not_reach_its_neighbours(model, prompts):
    together, alone = create("drafter", "trigram", context_of(model)), create("drafter", "trigram", context_of(model))
    rows = [Sequence(i, list(prompt) * 3, 9) for i, prompt in enumerate(prompts)]
    together.admit(rows)
    for row, draft in zip(rows, proposals(together, rows), strict=True):
        alone.admit([row])
        assert proposals(alone, [row]) == [draft]
        alone.release([row])


def test_a_corpus_gives_relative_frequencies(tmp_path, model):
    store = relative_frequencies([[1, 2, 3], [1, 2, 3], [1, 2, 4], [1, 2, 5, 6]], keep=2)
    assert store == {(1, 2): {3: 0.5, 4: 0.25}, (2, 5): {6: 1.0}}
    tokenizer = letter_tokenizer()
    (tmp_path / "corpus.txt").write_text("abc\nabc\nabd\n")
    drafter = create("drafter", "trigram", context_of(model, tokenizer=tokenizer), corpus=str(tmp_path / "corpus.txt"))
    a, b, c, d = tokenizer.encode("abcd")
    row = Sequence(0, [a, b], 9)
    drafter.admit([row])
    assert proposals(drafter, [row]) == [[c]]
    row.emit([d, a, b, d, a, b])
    drafter.commit([row])
    assert proposals(drafter, [row], gamma=1) == [[d]], "what the row says outweighs the corpus"
    assert drafter._base[(a, b)] == {c: 2 / 3, d: 1 / 3}, "and leaves it as it was"


@pytest.mark.parametrize("drafter", ["prompt_lookup", "trigram"])
@pytest.mark.parametrize("scheduler", short_only(["static", "exspec"], "exspec"))
def test_text_drafters_are_exact_and_right_sometimes(model, prompts, expected, drafter, scheduler):
    # A prompt that already holds the output is one that a text drafter can draft well.
    known = [prompt + output + prompt for prompt, output in zip(prompts, expected, strict=True)]
    wanted = [greedy_alone(model, prompt, NEW, frozenset()) for prompt in known]
    rows, _ = exact(create("drafter", drafter, context_of(model)), model, known, wanted, scheduler)
    assert sum(row.num_accepted for row in rows) > 0
    assert sum(row.num_accepted for row in rows) < sum(row.num_drafted for row in rows)


# --- scripted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.7, 1.0])
def test_a_scripted_draft_is_right_at_the_set_rate(model, prompts, expected, rate):
    drafter = create("drafter", "scripted", context_of(model, known_output=lambda row: expected[row.index]), rate=rate)
    rows, rounds = exact(drafter, model, prompts, expected)
    accepted = sum(row.num_accepted for row in rows)
    rejected = sum(
        accepted < drafted for r in rounds for accepted, drafted in zip(r.num_accepted, r.num_drafted, strict=True)
    )
    assert accepted / (accepted + rejected) == pytest.approx(rate, abs=0.1 if 0 < rate < 1 else 0)


def test_a_script_does_not_depend_on_the_batch(model, prompts, expected):
    lengths = []
    for batch in (1, 4):
        drafter = create(
            "drafter", "scripted", context_of(model, known_output=lambda row: expected[row.index]), rate=0.6
        )
        rows, _ = run_all(make_engine(model, drafter=drafter, batch=batch), prompts, NEW)
        lengths.append([row.accepted_lengths for row in rows])
    assert lengths[0] == lengths[1]


def test_a_script_needs_known_outputs(model):
    with pytest.raises(ConfigError, match="reference=true"):
        create("drafter", "scripted", context_of(model)).admit([Sequence(0, [1], 3)])


# --- the target's own layers ---------------------------------------------------------------------------------------


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.25)
    return GPT2LMHeadModel(config).double().eval()


def qwen3() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.25,
    )
    return Qwen3ForCausalLM(config).double().eval()


ARCHITECTURES = {"llama": lambda: small_llama(0, torch.float64), "gpt2": gpt2, "qwen3": qwen3}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_layers_share_the_targets_memory_and_leave_it_alone(architecture):
    module = ARCHITECTURES[architecture]()
    tokens = torch.arange(7)[None]
    before = module(tokens).logits
    short = first_layers(module, 1)
    assert {id(p) for p in short.parameters()} < {id(p) for p in module.parameters()}
    assert short.config.num_hidden_layers == 1
    assert module.config.num_hidden_layers == 3
    assert torch.equal(module(tokens).logits, before)
    hidden = module(tokens, output_hidden_states=True).hidden_states[1]  # after the first layer, before the norm
    norm = module.model.norm if hasattr(module, "model") else module.transformer.ln_f
    torch.testing.assert_close(short(tokens).logits, module.lm_head(norm(hidden)))


@pytest.mark.parametrize("architecture", short_only(ARCHITECTURES, "gpt2", ci=["qwen3"]))
def test_early_exit_is_exact(architecture, prompts):
    target = CausalLM(ARCHITECTURES[architecture]())
    wanted = [greedy_alone(target, prompt, NEW, frozenset()) for prompt in prompts]
    rows, _ = exact(SelfDrafter(context_of(target), num_layers=1), target, prompts, wanted)
    rows, _ = exact(SelfDrafter(context_of(target), num_layers=3), target, prompts, wanted)
    assert all(row.num_accepted == row.num_drafted for row in rows), "all layers are the target itself"


@pytest.mark.parametrize("num_layers", [0, 4])
def test_layers_that_do_not_exist_are_refused(model, num_layers):
    with pytest.raises(ConfigError, match=f"drafter.num_layers={num_layers}: choose 1 to 3"):
        SelfDrafter(context_of(model), num_layers=num_layers)


# --- another tokenizer -----------------------------------------------------------------------------------------------


def pairs_of_letters() -> PreTrainedTokenizerFast:
    """Other words altogether: single letters, and many pairs as one token."""
    singles = list(LETTERS)
    merges = [(a, b) for a in LETTERS[::2] for b in LETTERS[1::3]]
    vocab = {piece: i for i, piece in enumerate(singles + [a + b for a, b in merges])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_the_same_model_with_its_ids_shuffled_drafts_everything(model, prompts, expected):
    """Translation by text is exact here, so a draft that is the target itself must be right throughout."""
    order = list(range(VOCAB))
    random.Random(2).shuffle(order)
    shuffled = small_llama(0, torch.float64)
    with torch.no_grad():
        for weight, source in (
            (shuffled.model.embed_tokens.weight, model.module.model.embed_tokens.weight),
            (shuffled.lm_head.weight, model.module.lm_head.weight),
        ):
            weight[torch.tensor(order)] = source
    tools = {"tokenizer": letter_tokenizer(), "draft_tokenizer": letter_tokenizer(order)}
    drafter = RetokenizeDrafter(context_of(model, CausalLM(shuffled), **tools))
    rows, _ = exact(drafter, model, prompts, expected)
    assert all(row.num_accepted == row.num_drafted > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", nightly_but(["static", "exspec"], "exspec"))
def test_a_draft_with_other_words_is_exact(model, prompts, expected, scheduler):
    theirs = pairs_of_letters()
    config = small_llama(0, torch.float64).config
    config.vocab_size = len(theirs)
    torch.manual_seed(3)
    draft = CausalLM(type(model.module)(config).double().eval())
    assert len(theirs.encode("".join(LETTERS))) < VOCAB, "the two must cut text differently"
    tools = {"tokenizer": letter_tokenizer(), "draft_tokenizer": theirs}
    rows, rounds = exact(RetokenizeDrafter(context_of(model, draft, **tools)), model, prompts, expected, scheduler)
    assert sum(row.num_drafted for row in rows) > 0
    assert all(sum(map(len, r.emitted)) > 0 for r in rounds)


def test_retokenizing_needs_both_tokenizers(model):
    with pytest.raises(ConfigError, match="drafter=retokenize needs"):
        RetokenizeDrafter(context_of(model, model))
