"""Settings, the processed law (against transformers' own processors), the random stream and stop strings."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from scipy.stats import chisquare, kstest
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specdec.core.random_numbers import DRAFT, DRAW, SCRIPT, TEST, uniforms
from specdec.core.round import Draft
from specdec.core.sampling import argmax, draw, penalized, processed, round_noise, seen_tokens, settings_of
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.core.stop_strings import StopText
from specdec.core.transfer import to_device
from specdec.errors import ConfigError

VOCAB = 23


def their_scores(params: SamplingParams, context: list[int], logits: torch.Tensor) -> torch.Tensor:
    """Scores (V) by transformers' processors, in the dtype and order of its GenerationMixin."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature not in (0, 1):
        processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k is not None and not params.greedy:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1 and not params.greedy:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0 and not params.greedy:
        processors.append(MinPLogitsWarper(params.min_p))
    scores: torch.Tensor = processors(torch.tensor([context]), logits[None].to(torch.float32, copy=True))
    return scores[0]


def theirs(params: SamplingParams, context: list[int], logits: torch.Tensor) -> torch.Tensor:
    """The law of the next token, float64."""
    return their_scores(params, context, logits).double().softmax(-1)


def some_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.3, 0.8, 1.0, 1.7]),
        top_k=rng.choice([None, 1, 3, 10, 400]),
        top_p=rng.choice([1.0, 0.9, 0.5, 0.01]),
        min_p=rng.choice([0.0, 0.05, 0.5, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.3, 0.7]),
    )


def test_the_law_is_that_of_transformers_for_rows_with_different_settings():
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        params = [some_params(rng) for _ in range(6)]
        rows = [
            Sequence(b, [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))], 20, sampling=p)
            for b, p in enumerate(params)
        ]
        lengths = [rng.randint(0, 3) for _ in rows]
        draft = Draft(torch.randint(VOCAB, (6, 3), generator=generator), lengths)
        logits = 3 * torch.randn(6, 4, VOCAB, generator=generator).double()
        settings = settings_of(rows)
        ours = processed(penalized(logits, settings, seen_tokens(rows, draft, logits)), settings)
        for b, row in enumerate(rows):
            for t in range(lengths[b] + 1):
                context = row.tokens(0) + draft.tokens_BG[b, :t].tolist()
                torch.testing.assert_close(ours[b, t], theirs(params[b], context, logits[b, t]), rtol=1e-12, atol=1e-15)


def test_ties_at_the_edge_of_top_k_are_kept_as_transformers_does():
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    params = SamplingParams(top_k=2)
    ours = processed(logits[None, None], [params])[0, 0]
    torch.testing.assert_close(ours, theirs(params, [0], logits))
    assert (ours > 0).sum() == 4


def test_penalties_follow_the_branches_of_a_tree():
    row = Sequence(0, [1], 9, sampling=SamplingParams(repetition_penalty=2.0))
    draft = Draft(torch.tensor([[2, 3, 4]]), [3], [[-1, -1, 0]])  # 2 and 3 are siblings, 4 follows 2
    seen = seen_tokens([row], draft, torch.zeros(1, 4, 6))
    assert [torch.nonzero(seen[0, t])[:, 0].tolist() for t in range(4)] == [[1], [1, 2], [1, 3], [1, 2, 4]]


def test_a_greedy_row_among_sampling_ones_is_one_hot():
    logits = torch.tensor([[[0.0, 3.0, 1.0]], [[0.0, 3.0, 1.0]]])
    law = processed(logits, [SamplingParams(temperature=0.0), SamplingParams()])
    assert law[0, 0].tolist() == [0, 1, 0]
    assert 0 < law[1, 0, 0] < law[1, 0, 2] < law[1, 0, 1] < 1


def test_greedy_rows_need_no_law():
    assert settings_of([Sequence(0, [1], 1), Sequence(1, [1], 1)]) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1: it must be 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0: it must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0: it must be above 0"),
        ({"top_p": 1.1}, "top_p=1.1: it must be above 0"),
        ({"min_p": -1}, "min_p=-1: it must be from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0: it must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**settings)


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_draw_never_takes_an_impossible_token():
    law = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    ends = torch.tensor([0.0, 0.25 - 2**-54, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert draw(law.expand(4, -1), ends).tolist() == [1, 1, 3, 3]
    for seed in range(200):  # laws whose sum is only about 1
        law = torch.rand(50, generator=torch.Generator().manual_seed(seed)).double() ** 8
        law[-1] = law[0] = 0
        law = law / law.sum()
        assert 0 < int(draw(law, torch.tensor(1 - 2**-53, dtype=torch.float64))) < 49


def splitmix(*words: int) -> float:
    """The same hash in Python's own integers."""
    mask = (1 << 64) - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    state = mix(words[0] & mask)
    for word in words[1:]:
        state = mix(state ^ (word & mask))
    return (state >> 11) * 2.0**-53


def test_the_stream_is_the_documented_hash():
    assert splitmix(0) == (0xE220A8397B1DCDAF >> 11) * 2.0**-53  # splitmix64's published first output for seed 0
    keys = [(0, 0), (7, 3), (-1, 2**40), (2**63, 5)]
    numbers = uniforms(keys, [[4, 5, 6]] * 4, TEST, [0, 1, 2])
    for (seed, index), row in zip(keys, numbers.tolist(), strict=True):
        assert row == [splitmix(seed, index, 4 + n, TEST, n) for n in range(3)]


def test_numbers_look_independent_in_every_coordinate():
    """Uniform, and without correlation between neighbours in any word of the key."""
    size = 20_000
    line = list(range(size))
    streams = {
        "seed": uniforms([(i, 0) for i in line], [[0]] * size, DRAW, [0]),
        "index": uniforms([(0, i) for i in line], [[0]] * size, DRAW, [0]),
        "position": uniforms([(0, 0)], [line], DRAW, [0] * size),
        "offset": uniforms([(0, 0)], [[0] * size], TEST, line),
    }
    numbers = {key: value.flatten().numpy() for key, value in streams.items()}
    level = 1e-4
    for key, values in numbers.items():
        assert kstest(values, "uniform").pvalue > level, key
        pairs = (values[:-1] * 8).astype(int) * 8 + (values[1:] * 8).astype(int)
        assert chisquare([(pairs == cell).sum() for cell in range(64)]).pvalue > level, key
        assert len(set(values)) == size, key
    for one, other in itertools.combinations(numbers.values(), 2):
        cells = (one * 8).astype(int) * 8 + (other * 8).astype(int)
        assert chisquare([(cells == cell).sum() for cell in range(64)]).pvalue > level
    purposes = [uniforms([(0, 0)], [line], purpose, [0] * size)[0] for purpose in (DRAW, TEST, DRAFT, SCRIPT)]
    assert len(torch.cat(purposes).unique()) == 4 * size


def test_what_a_row_gets_depends_on_nobody_else():
    rows = [Sequence(i, [1] * (i + 1), 9, sampling=SamplingParams(seed=i)) for i in range(4)]
    together = round_noise(rows, 6, torch.device("cpu"))
    for b, row in enumerate(rows):
        alone = round_noise([row], 3, torch.device("cpu"))
        assert together.draws_BT[b, :3].tolist() == alone.draws_BT[0].tolist()
        assert together.tests_BG[b, :2].tolist() == alone.tests_BG[0].tolist()


def test_tests_of_another_round_are_other_numbers_and_draws_belong_to_positions():
    short, longer = (
        round_noise([Sequence(0, [1] * n, 9, sampling=SamplingParams(seed=5))], 4, torch.device("cpu")) for n in (3, 4)
    )
    assert short.draws_BT[0, 1:].tolist() == longer.draws_BT[0, :-1].tolist()
    assert len(torch.cat([short.tests_BG[0], longer.tests_BG[0]]).unique()) == 6


# --- stop strings ----------------------------------------------------------------------------------------------------

PIECES = ["a", "b", "ab", "abc", " ", "<", "/s", ">", "c", "x"]


def text_of(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids)


@pytest.mark.parametrize("seed", range(30))
def test_a_row_ends_with_the_token_that_completes_a_stop_string(seed):
    """Against the plain definition: the first prefix whose text contains one; however the tokens arrive."""
    rng = random.Random(seed)
    strings = tuple(rng.sample(["abc", "</s>", "bb", "ca", "xx", " a"], 2))
    tokens = [rng.randrange(len(PIECES)) for _ in range(60)]
    wanted = next((n for n in range(1, 61) if any(s in text_of(tokens[:n]) for s in strings)), 60)
    row = Sequence(0, [0, 1, 8], 60, stop_text=StopText(strings, text_of))
    left = list(tokens)
    while left and not row.finished:
        size = rng.randint(1, 6)
        kept = row.emit(left[:size])
        assert len(kept) <= size
        left = left[size:]
    assert row.output_ids == tokens[:wanted]
    assert row.stop_reason == ("stop_string" if wanted < 60 else row.stop_reason)


@pytest.mark.parametrize(("string", "tokens"), [("</s>", [9, 5, 6, 7, 9]), ("abcab", [9, 0, 1, 8, 2, 9])])
def test_a_stop_string_may_take_many_tokens(string, tokens):
    row = Sequence(0, [0], 9, stop_text=StopText((string,), text_of))
    assert row.emit(tokens) == tokens[:-1]
    assert row.stop_reason == "stop_string"


def test_a_stop_string_that_begins_in_the_prompt_does_not_count():
    row = Sequence(0, [0, 1], 3, stop_text=StopText(("abc",), text_of))
    assert row.emit([8, 9]) == [8, 9]
    assert not row.finished


def test_characters_of_several_tokens_are_waited_for():
    data = ["é".encode()[:1], "é".encode()[1:], b"x"]

    def decode(ids: list[int]) -> str:
        return b"".join(data[i] for i in ids).decode(errors="replace")

    row = Sequence(0, [2], 9, stop_text=StopText(("éx",), decode))
    assert row.emit([0, 1, 0, 1, 2, 2]) == [0, 1, 0, 1, 2]
    assert row.stop_reason == "stop_string"


def test_empty_stop_strings_are_refused():
    with pytest.raises(ConfigError, match="stop_strings"):
        StopText(("a", ""), text_of)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_argmax_is_torch_s_own_with_ties_and_nans(dtype):
    scores_NTV = torch.randint(-3, 3, (40, 3, VOCAB), generator=torch.Generator().manual_seed(1)).to(dtype)
    scores_NTV[7, 1, 5:9] = torch.nan
    scores_NTV[8] = -torch.inf
    for view in (scores_NTV, scores_NTV[:, -1], scores_NTV[..., :5], scores_NTV.transpose(0, 1)):
        assert torch.equal(argmax(view), view.argmax(-1))


@pytest.mark.parametrize("values", [[1, 2**40], [[1, 2], [3, 4]], [[], []], [True, False], [[True], [False]]])
def test_lists_become_the_tensors_that_torch_makes_of_them(values):
    expected = torch.tensor(values, dtype=torch.bool if values in ([True, False], [[True], [False]]) else torch.long)
    assert same(to_device(values, torch.device("cpu"), expected.dtype), expected)
    if expected.numel():
        assert same(to_device(values, torch.device("cpu")), expected)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
