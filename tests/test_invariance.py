"""numerics=invariant on stock kernels: the same bits alone and in any batch, and a refusal where that cannot be had."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from cases import short_only
from families import build as family
from native_models import IDS, in_steps, whole
from pretend_cuda import GPU, PretendCuda
from test_execution import STRATEGIES

from specdec.alignment.base import Alignment
from specdec.alignment.checked import CheckedAlignment
from specdec.core.clock import Clock
from specdec.core.sampling import total
from specdec.errors import ConfigError, PairError
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.invariant import Operation
from specdec.models.execution.invariant_fused import InvariantFused
from specdec.models.numerics import measure as measuring
from specdec.models.numerics import store
from specdec.models.numerics.classes import Classes, Tile
from specdec.models.numerics.trial import difference

UNPADDED = Classes(tuple(range(1, 257)), tuple(range(1, 65)), tuple(range(1, 2049)))


@cache
def model_of(name: str, execution: str, dtype: torch.dtype) -> CausalLM:
    model = CausalLM(family(name).module.to(dtype))
    model.execute(execution, "invariant")
    return model


def rows_of(model: CausalLM) -> list[list[int]]:
    return [[token % model.vocab_size for token in row] for row in IDS]


@cache
def alone_of(name: str, execution: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Each row's logits alone, token by token."""
    model = model_of(name, execution, dtype)
    return [torch.cat([step[0] for step in one_by_one(model, row)]) for row in rows_of(model)]


def differing(model: CausalLM, strategy: str, alone: list[torch.Tensor], seed: int = 0) -> list[int]:
    """Rows whose logits in a batch, at once and in steps of several tokens, differ from those alone."""
    rows = rows_of(model)
    together = whole(model, strategy, rows, model.vocab_size)
    logits, first = in_steps(model, strategy, rows, seed)
    same = [
        torch.equal(together[b], alone[b]) and torch.equal(logits[b], alone[b][first[b] :]) for b in range(len(rows))
    ]
    return [b for b, equal in enumerate(same) if not equal]


def one_by_one(model: CausalLM, row: list[int]) -> list[torch.Tensor]:
    alignment: Alignment = STRATEGIES["eqspec"](model, Clock())
    alignment.admit([0], [[]])
    logits = []
    for count, token in enumerate(row, start=1):
        logits.append(alignment.forward([0], torch.tensor([[token]])))
        alignment.commit([0], [count])
    return logits


CASES = [
    *(("llama, fused", strategy, dtype) for strategy in STRATEGIES for dtype in (torch.bfloat16, torch.float32)),
    ("llama, fused", "inplace", torch.float64),
    ("llama, eager", "eqspec", torch.float16),
    ("mistral, sliding, fused", "masked", torch.bfloat16),
    ("qwen3, eager", "rollback", torch.bfloat16),
    ("gpt2, eager", "eqspec", torch.float32),
    ("gemma3, eager", "inplace", torch.bfloat16),
]


@pytest.mark.parametrize(("kind", "strategy", "dtype"), short_only(CASES, "llama, fused", "llama, eager"))
def test_bits_do_not_depend_on_the_batch_the_steps_or_the_layout(kind, strategy, dtype):
    name, execution = kind.rsplit(", ", 1)
    asked = name, execution, dtype
    assert differing(model_of(*asked), strategy, alone_of(*asked)) == []


@pytest.mark.parametrize("execution", short_only(["fused", "eager"], "fused"))
def test_without_padding_bits_differ(execution):
    """The planted fault: what the tests above would find if nothing were padded."""
    model = model_of("llama", execution, torch.float32)
    measured = model.execution.classes
    model.execution.classes = UNPADDED
    try:
        alone = [torch.cat([step[0] for step in one_by_one(model, row)]) for row in rows_of(model)]
        assert differing(model, "masked", alone) != []
        assert difference(model.execution, model.module, model.architecture) is not None
    finally:
        model.execution.classes = measured


@pytest.mark.parametrize("strategy", short_only(STRATEGIES, "inplace", "masked"))
def test_a_path_of_a_tree_has_the_bits_of_a_chain(strategy):
    model = model_of("llama", "fused", torch.float32)
    tree, paths, parents = [7, 8, 9, 10, 11, 12], [[0, 1, 3], [0, 2, 5], [4]], [-1, 0, 0, 1, -1, 2]
    rows = rows_of(model)[:2]
    alignment: Alignment = STRATEGIES[strategy](model, Clock())
    alignment.admit([0, 1], rows)
    logits_BTV = alignment.forward([1, 0], torch.tensor([tree, tree]), parents=[parents, parents])
    for b, row in enumerate(rows[::-1]):
        for path in paths:
            chain = torch.cat([step[0] for step in one_by_one(model, [*row, *(tree[node] for node in path)])])
            assert torch.equal(logits_BTV[b, path], chain[len(row) :])


def test_long_lists_are_run_in_parts_and_wanted_logits_alone_are_computed():
    model = model_of("llama", "fused", torch.float32)
    measured, rows = model.execution.classes, rows_of(model)
    expected = whole(model, "inplace", rows, model.vocab_size)
    model.execution.classes = Classes(tuple(m for m in measured.rows if m <= 16), measured.queries[:1], measured.widths)
    try:
        parts = whole(model, "inplace", rows, model.vocab_size)
        kv = model.empty_storage(1, 0)
        last = model.forward_chains(torch.tensor(rows[:1]), kv.append(len(rows[0])), num_logits=1)
    finally:
        model.execution.classes = measured
    assert all(torch.equal(one, other) for one, other in zip(expected, parts, strict=True))
    assert torch.equal(last[0], expected[0][-1:])


def test_what_the_model_computes_is_what_transformers_computes():
    for name, execution in (("llama", "fused"), ("gpt2", "eager"), ("gemma3", "eager")):
        model = model_of(name, execution, torch.float64)
        row = rows_of(model)[0]
        theirs = model.module(torch.tensor([row]), use_cache=False).logits[0]
        torch.testing.assert_close(whole(model, "masked", [row], model.vocab_size)[0], theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("execution", ["fused", "eager"])
def test_the_checks_of_an_alignment_see_what_was_stored(execution):
    model = model_of("llama", execution, torch.float64)
    alignment = CheckedAlignment(STRATEGIES["masked"](model, Clock()), model)
    alignment.admit([0, 1], [[1, 2, 3, 4], [5]])
    for stop in (2, 1):
        alignment.forward([1, 0], torch.tensor([[6, 7, 8], [9, 1, 2]]), [3, 2])
        alignment.commit([1, 0], [alignment.length(1) + stop, alignment.length(0) + 1])


def test_an_operation_without_a_class_is_refused_by_name():
    make = measuring.Noise(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float32)
    fine = Operation("fine", lambda x: 2 * x, (8,), 0)
    for run in (lambda x: x + torch.arange(len(x))[:, None], lambda x: x + x.mean()):
        with pytest.raises(ConfigError, match=r"no numbers of rows give the same bits for 'mean of all'"):
            measuring._row_class([fine, Operation("'mean of all'", run, (8,), 0)], make)
    of_some = Operation("fine from 8 on", lambda x: x + (1 if len(x) < 8 else 0), (8,), 0)
    assert measuring._row_class([fine, of_some], make) == tuple(m for m in measuring.ROWS if m >= 8)


def test_products_in_16_bit_are_tried_where_rounding_shows():
    """One in ten thousand results of random inputs shows another order of sums; of cancelling ones, most do."""
    make = measuring.Noise(torch.Generator().manual_seed(0), torch.device("cpu"), torch.bfloat16)
    x_MI, weight_OI = make.cancelling((16, 96), (32, 96))
    halves = (x_MI[:, :48].float() @ weight_OI[:, :48].float().t()) + (
        x_MI[:, 48:].float() @ weight_OI[:, 48:].float().t()
    )
    whole_MO = x_MI.float() @ weight_OI.float().t()
    assert (halves.bfloat16() != whole_MO.bfloat16()).float().mean() > 0.3


def test_a_model_that_depends_on_the_batch_between_its_parts_is_refused_by_name():
    module = family("llama").module.to(torch.float32)
    attention = module.model.layers[1].self_attn
    own = attention.forward

    def forward(hidden_states, **options):
        output, weights = own(hidden_states=hidden_states, **options)
        return output + 1e-3 * output.mean(), weights

    attention.forward = forward
    with pytest.raises(ConfigError, match=r"model\.layers\.1\.self_attn gives other bits in a batch than alone"):
        CausalLM(module).execute("eager", "invariant")


def test_attention_and_experts_that_are_not_known_are_refused():
    with pytest.raises(ConfigError, match="no attention with softcap"):
        CausalLM(family("gemma2").module).execute("auto", "invariant")
    model = CausalLM(family("llama").module)
    model.module.config.num_local_experts = 4
    with pytest.raises(ConfigError, match="experts compute as many tokens as are routed to them"):
        model.execute("eager", "invariant")
    with pytest.raises(ConfigError, match="execution=compiled"):
        model.execute("compiled", "invariant")


def test_classes_are_kept_and_measured_anew_if_they_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    execution = InvariantFused(family("llama").module.to(torch.float32))
    asked = (execution, torch.device("cpu"), torch.float32, 128)
    measured, path = store.classes_of(*asked)
    with monkeypatch.context() as patch:
        patch.setattr(store, "measure", lambda *_: pytest.fail("measured twice"))
        assert store.classes_of(*asked) == (measured, path)
    path.write_text('{"conditions": ')
    assert store.classes_of(*asked) == (measured, path)
    assert json.loads(path.read_text())["classes"] == measured.described()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert store.classes_of(*asked)[1] != path
    finally:
        torch.set_num_threads(threads)


def test_sizes_of_a_class():
    classes = Classes((4, 16), (2, 8), (32, 128))
    assert [classes.num_rows(count) for count in (1, 4, 5, 16)] == [4, 4, 16, 16]
    assert classes.tiles([30, 31, 32, 33, 34, 35, 36, 37, 38]) == [Tile(0, 8, 128), Tile(8, 2, 128)]
    assert classes.tiles([5]) == [Tile(0, 2, 32)]
    with pytest.raises(PairError, match="measured for rows of up to 128 columns and 129 are needed"):
        classes.width(129)


@pytest.mark.slow
def test_tensors_stay_on_their_device():
    def logits(place: torch.device) -> torch.Tensor:
        model = CausalLM(family("llama").module.to(torch.float32).to(place))
        model.execute("fused", "invariant")
        alignment = STRATEGIES["masked"](model, Clock())
        alignment.admit([0, 1], [[1, 2, 3], [4]])
        return alignment.forward([0, 1], torch.tensor([[5, 6], [7, 8]], device=place), [2, 1])[0]

    expected = logits(torch.device("cpu"))
    with PretendCuda():
        assert torch.equal(logits(GPU).cpu(), expected)


def test_sums_over_the_vocabulary_do_not_depend_on_other_rows():
    """With several threads, and as many tokens as make torch share one sum among them."""
    values_BV = torch.rand(3, 1 << 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(torch.cat([total(row[None]) for row in values_BV]), total(values_BV))
        assert not torch.equal(torch.cat([row[None].sum(-1) for row in values_BV]), total(values_BV))
    finally:
        torch.set_num_threads(threads)


INVARIANT = ["numerics=invariant", "strict=true", "baseline=false", "data.num_prompts=6", "max_new_tokens=8"]


@pytest.mark.slow
def test_a_run_in_bfloat16_equals_its_reference(run, tmp_path):
    code, _, errors = run(*INVARIANT, "runner.dtype=bfloat16", "batch=4", "scheduler=exspec")
    assert code == 0, errors
    summary = json.loads(next((tmp_path / "results").glob("*/summary.json")).read_text())
    assert (summary["num_exact"], summary["num_divergences"], summary["execution"]) == (6, 0, "fused")
    assert summary["reference_by"] == "the target alone at batch 1, numerics=invariant"


@pytest.mark.slow
def test_sampled_rows_equal_those_at_batch_1(run):
    refilled = ["scheduler=continuous", "runner.prefill_chunk=7", "batch=4", "execution=fused"]
    code, _, errors = run(*INVARIANT, "temperature=0.8", "verifier=rejection", *refilled)
    assert code == 0, errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["drafter=medusa", "drafter.untrained=true", "temperature=1", "verifier=rejection"], "set verifier=naive"),
        (["execution=compiled"], "set execution=auto"),
        (["runner.tensor_parallel=true", "runner.devices=2"], "set runner.tensor_parallel=false"),
    ],
)
def test_settings_that_cannot_be_invariant_are_refused(run, settings, message):
    code, _, errors = run("numerics=invariant", *settings)
    assert code != 0
    assert message in errors
