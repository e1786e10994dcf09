"""What a token is chosen from is, bit for bit, what ``transformers.generate`` chooses from, with ties of all kinds."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch
from conftest import small_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import their_scores
from transformers import GenerationConfig

import specdec
from specdec.core.round import Draft
from specdec.core.sampling import draw, penalized, processed, scores_of, seen_tokens, settings_of, warped
from specdec.core.sampling_params import GREEDY, SamplingParams
from specdec.core.sequence import Sequence
from specdec.engine.options import read_options
from specdec.equivalence.near_ties import NEAR_TIE, classify_divergence
from specdec.errors import ConfigError, PairError
from specdec.models.causal_lm import CausalLM

TEMPERATURES, PENALTIES = [0.0, 0.1, 0.3, 0.7, 1.0, 1.1, 1.7], [1.0, 1.05, 1.1, 1.2, 1.25, 1.3, 0.7]
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from(TEMPERATURES),
    top_k=st.sampled_from([None, 1, 2, 3, 7, 50, 400]),
    top_p=st.sampled_from([1.0, 0.99, 0.95, 0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.3, 0.25, 0.1, 0.01]),
    min_p=st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.5, 1.0]),
    repetition_penalty=st.sampled_from(PENALTIES),
    seed=st.integers(0, 3),
)


def tied_logits(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Few different values: quarters, of which a penalty or a temperature makes others (2.75 / 1.1 = 2.5)."""
    generator = torch.Generator().manual_seed(seed)
    span = (1, 2, 6, 40)[seed % 4]
    return (torch.randint(-span, span + 1, shape, generator=generator) / 4).to(dtype)


def twice_each(module: torch.nn.Module, factor: float = 1.0) -> None:
    """Let ids 2n and 2n + 1 have the same logit, or one that is larger by this factor."""
    with torch.no_grad():
        head = module.lm_head.weight
        head[1::2] = head[:-1:2] * factor


CASES = (
    st.integers(0, 10**6),
    st.sampled_from([2, 10, 23, 300]),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    st.lists(PARAMS, min_size=1, max_size=4),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(*CASES)
def test_the_tokens_that_survive_are_those_of_transformers(seed, vocab, dtype, params):
    logits = tied_logits(seed, (len(params), 1, vocab), dtype)
    rows = [Sequence(b, [b % vocab, seed % vocab, 1], 20, sampling=own) for b, own in enumerate(params)]
    law = processed(penalized(logits, params, seen_tokens(rows, None, logits)), params)
    for b, own in enumerate(params):
        theirs = their_scores(own, rows[b].prompt_ids, logits[b, 0])
        expected = [int(theirs.argmax())] if own.greedy else torch.nonzero(theirs > -torch.inf)[:, 0].tolist()
        assert torch.nonzero(law[b, 0])[:, 0].tolist() == expected, own


@settings(max_examples=150, deadline=None, derandomize=True)
@given(*CASES)
def test_scores_are_those_of_transformers_processors_to_the_bit(seed, vocab, dtype, params):
    rng = random.Random(seed)
    rows = [
        Sequence(b, [rng.randrange(vocab) for _ in range(rng.randint(1, 9))], 20, sampling=own)
        for b, own in enumerate(params)
    ]
    lengths = [rng.randint(0, 2) for _ in rows]
    draft = Draft(torch.tensor([[rng.randrange(vocab) for _ in range(2)] for _ in rows]), lengths)
    logits = tied_logits(seed, (len(rows), 3, vocab), dtype)
    scores = penalized(logits, params, seen_tokens(rows, draft, logits))
    ours = warped(scores.float(), params)
    for b, own in enumerate(params):
        for t in range(lengths[b] + 1):
            context = rows[b].tokens(0) + draft.tokens_BG[b, :t].tolist()
            assert torch.equal(ours[b, t], their_scores(own, context, logits[b, t])), (own, b, t)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("penalty", [1.0, 1.05, 1.1, 1.15, 1.2, 1.3])
def test_greedy_choice_between_equal_scores_is_that_of_transformers(penalty, dtype):
    """Seen x / penalty against unseen y, where both are equal or differ in the last bit, at ids on either side."""
    values = torch.arange(1, 513) / 16
    values = values[values.bfloat16() == values]
    pairs = torch.nonzero(((values / penalty)[:, None] / values - 1).abs() < 1e-5).tolist()
    assert len(pairs) >= 5
    params = SamplingParams(temperature=0, repetition_penalty=penalty)
    for x, y in pairs:
        logits = torch.full((1, 1, 9), -3.0)
        logits[..., 4], logits[..., [2, 6]] = values[x], values[y]
        for lost in (2, 6):  # against a smaller id, and against a larger one
            one = logits.to(dtype)
            one[..., lost] = -3
            row = Sequence(0, [4, 4], 9, sampling=params)
            scores = penalized(one, [params], seen_tokens([row], None, one))
            theirs = their_scores(params, [4, 4], one[0, 0])
            assert scores.argmax() == theirs.argmax(), (float(values[x]), float(values[y]))


def test_a_float64_model_is_decided_in_float32_as_transformers_does():
    logits = torch.tensor([[[1.0, 1.0 + 1e-12, 0.5]]], dtype=torch.float64)
    assert scores_of(logits).argmax() == logits.float().argmax() == 0
    module = small_llama(3, torch.float64)
    twice_each(module, 1 + 1e-12)
    prompts = [[1, 5, 9], [4, 4], [30, 2, 8, 8]]
    for prompt, ours in zip(
        prompts, specdec.generate(module, None, prompts, max_new_tokens=12, pad_token_id=0).tolist(), strict=True
    ):
        theirs = module.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert ours[-12:] == theirs[0, len(prompt) :].tolist()


def test_a_tie_in_float32_explains_a_difference_of_a_float64_model():
    """The run took the first of two ids that are equal in float32; the reference the one that is larger in float64."""
    module = small_llama(3, torch.float64)
    twice_each(module, 1 + 1e-12)
    with torch.inference_mode():
        logits_V = module(torch.tensor([[1, 5, 9]])).logits[0, -1]
    larger = int(logits_V.argmax())
    assert int(logits_V.float().argmax()) == larger - 1
    told = classify_divergence(
        CausalLM(module), [1, 5, 9], [larger - 1], [larger], logits_V.float().double(), batch=2, chunk=3
    )
    assert told["kind"] == NEAR_TIE, told["reason"]
    assert 0 < told["margin"] < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},  # as in Qwen's files
        {"temperature": 0.6, "top_p": 0.9, "top_k": 0},  # as in Llama's
        {"temperature": 1.0, "min_p": 0.1, "top_k": 7},
        {"temperature": 1.5, "top_p": 0.5, "min_p": 0.05, "repetition_penalty": 1.3},
    ],
)
def test_scores_are_those_that_generate_returns(dtype, options):
    """Order, dtype and defaults as ``generate`` composes them: its own logits through our steps give its own scores."""
    module = small_llama(5, dtype)
    twice_each(module)
    torch.manual_seed(0)
    prompt = [3, 9, 9, 14]
    output = module.generate(
        torch.tensor([prompt]),
        do_sample=True,
        max_new_tokens=12,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **options,
    )
    params = SamplingParams(**{"top_k": 50, **options, **({"top_k": None} if options.get("top_k") == 0 else {})})
    ids = output.sequences[0].tolist()
    for step, (logits, theirs) in enumerate(zip(output.logits, output.scores, strict=True)):
        row = Sequence(0, ids[: len(prompt) + step], 9, sampling=params)
        raw = logits.to(dtype)[None]  # as the model gives them
        ours = warped(penalized(raw, [params], seen_tokens([row], None, raw)).float(), [params])
        assert torch.equal(ours[0], theirs)


@pytest.mark.slow
def test_greedy_generation_of_a_16_bit_model_with_ties_and_a_penalty_equals_transformers():
    module = small_llama(7, torch.bfloat16)
    twice_each(module)
    prompts = [[1, 5, 9], [4, 4], [30, 2, 8, 8]]
    for penalty in (1.0, 1.1, 1.3):
        own = {"max_new_tokens": 12, "pad_token_id": 0, "repetition_penalty": penalty}
        for prompt in prompts:  # one by one: a batch of 16-bit rows may round otherwise, in transformers too
            ours = specdec.generate(module, None, [prompt], **own)
            assert ours.tolist() == module.generate(torch.tensor([prompt]), do_sample=False, **own).tolist()


# --- probabilities ---------------------------------------------------------------------------------------------------


def test_probabilities_are_the_float64_softmax_of_the_float32_scores():
    logits = tied_logits(2, (1, 2, 23), torch.bfloat16)
    params = [SamplingParams(temperature=0.7, top_p=0.8)]
    expected = torch.stack([their_scores(params[0], [0], row) for row in logits[0]]).double().softmax(-1)
    assert torch.equal(processed(logits, params)[0], expected)


def test_nan_draws_no_token_and_ends_the_run_in_one_line():
    nan = torch.full((1, 3), torch.nan, dtype=torch.float64)
    assert draw(nan, torch.tensor([0.3], dtype=torch.float64)).tolist() == [3]
    module = small_llama(1, torch.float32)
    with torch.no_grad():
        module.lm_head.weight[5] = torch.nan
    with pytest.raises(PairError, match="NaN among the logits"):
        specdec.generate(CausalLM(module), None, [[1, 2]], max_new_tokens=4, do_sample=True, pad_token_id=0)
    draft, healthy = CausalLM(module), CausalLM(small_llama(1, torch.float32))
    with pytest.raises(PairError, match="NaN among the logits"):
        specdec.generate(healthy, draft, [[1, 2]], max_new_tokens=4, do_sample=True, pad_token_id=0, gamma=2)


def test_rows_with_other_settings_do_not_matter():
    rows = [Sequence(b, [b, 3], 9, sampling=s) for b, s in enumerate([SamplingParams(0.5, 3), SamplingParams(0.9)] * 2)]
    logits = tied_logits(2, (4, 1, 23), torch.bfloat16)
    together = processed(logits, settings_of(rows))
    alone = torch.cat([processed(logits[b : b + 1], [row.sampling]) for b, row in enumerate(rows)])
    assert torch.equal(together, alone)


# --- what a call asks for --------------------------------------------------------------------------------------------

VALUES = {
    "do_sample": [True, False],
    "temperature": [0.7, 1.0],
    "top_k": [20, 50, 0],
    "top_p": [0.8, 1.0],
    "min_p": [0.1, 0.0],
    "repetition_penalty": [1.05, 1.0],
    "max_new_tokens": [5],
    "max_length": [30],
    "eos_token_id": [3, [3, 4]],
}
FIELDS = st.dictionaries(st.sampled_from(sorted(VALUES)), st.integers(0, 2), max_size=6).map(
    lambda drawn: {name: (VALUES[name] + [None] * 2)[index] for name, index in drawn.items()}
)
MODULE = small_llama(0, torch.float32)


@pytest.mark.filterwarnings("ignore:Passing `generation_config` together:FutureWarning")  # supported here
@settings(max_examples=300, deadline=None, derandomize=True)
@given(FIELDS, st.none() | FIELDS, FIELDS)
def test_a_call_means_what_it_means_in_transformers_or_is_refused(own, passed, keywords):
    """The model's own generation_config.json, a GenerationConfig and keywords, against how ``generate`` merges them."""
    config = None if passed is None else GenerationConfig(**passed)
    try:
        ours = read_options(GenerationConfig(**own), config, keywords)
    except ConfigError:
        return
    MODULE.generation_config = GenerationConfig(**own)
    theirs, _ = MODULE._prepare_generation_config(copy.deepcopy(config), **keywords)
    fields = (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0), ("repetition_penalty", 1.0))
    effective = {name: neutral if getattr(theirs, name) is None else getattr(theirs, name) for name, neutral in fields}
    if theirs.do_sample:
        assert ours.sampling == SamplingParams(**{**effective, "top_k": effective["top_k"] or None})
    else:
        assert (ours.sampling or GREEDY) == replace(GREEDY, repetition_penalty=effective["repetition_penalty"])
    eos = theirs.eos_token_id
    assert ours.stop_ids == (() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos))
    assert ours.max_new_tokens == theirs.max_new_tokens
    if theirs.max_new_tokens is None and ours.max_length is not None:
        assert ours.max_length == theirs.max_length


def test_a_total_beside_the_models_own_number_of_new_tokens_is_refused():
    """transformers lets the model's own number win over the caller's total."""
    own = GenerationConfig(max_new_tokens=5)
    with pytest.raises(ConfigError, match="max_length=30 has no effect beside the model's own max_new_tokens=5"):
        read_options(own, None, {"max_length": 30})
    assert read_options(own, None, {"max_length": 30, "max_new_tokens": None}).max_length == 30
