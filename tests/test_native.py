"""The native execution: what transformers' own code computes, and the same bits for a row in any batch."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import no_library, small_llama
from native_models import IDS, SHAPES, build, in_steps, quantised, whole
from tampering import aligned_logits, own_logits
from test_execution import GIVEN, STRATEGIES, logits_of
from test_fused_variants import VARIANTS
from torch import nn

from specdec.alignment.base import Alignment
from specdec.core.clock import Clock
from specdec.drafters.early_exit import first_layers
from specdec.errors import ConfigError, ContractError
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.native import no_native
from specdec.models.native import build as building
from specdec.models.native import library as loading
from specdec.models.native.library import PackedMatrix

pytestmark = pytest.mark.skipif(no_library() is not None, reason=f"no native library here: {no_library()}")


@pytest.mark.parametrize("gives", GIVEN)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_hidden_states_equal_transformers_own(shape, gives):
    model = build(shape)
    for eager, native in zip(logits_of(model, "eager", gives), logits_of(model, "native", gives), strict=True):
        size = float(eager.abs().max())  # of hidden states before a norm: far above 1
        torch.testing.assert_close(native, eager, atol=1e-4 * size, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_family_are_right_or_refused(variant):
    settings, change = VARIANTS[variant]
    module = small_llama(0, torch.float32, **settings)
    change(module)
    model = CausalLM(module)
    if variant == "another activation in one layer":
        with pytest.raises(ConfigError, match="the activation SiLU, and that of layer 1 is GELU; set execution=fused"):
            model.execute("native")
        return
    assert model.execute("native").name == "native"
    torch.testing.assert_close(aligned_logits(model, IDS[1]), own_logits(model, IDS[1]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", ["llama", "wide", "mistral, sliding"])
def test_rounding_is_no_larger_than_that_of_transformers(shape):
    """Root mean square distance to float64, against the distance of transformers' own float32."""
    model = build(shape)
    ids = torch.tensor([IDS[1]]) % model.vocab_size
    exact = copy.deepcopy(model.module).double()(ids).logits
    theirs = model.module(ids).logits
    model.execute("native")
    ours = whole(model, "inplace", IDS[1:2], model.vocab_size)[0]
    errors = [(logits.double() - exact).square().mean().sqrt() for logits in (ours, theirs)]
    assert errors[0] < 2 * errors[1], errors


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_the_batch_the_chunks_or_the_layout(shape, strategy):
    model = build(shape)
    model.execute("native")
    rows = [[token % model.vocab_size for token in row] for row in IDS]
    alone = [whole(model, "inplace", [row], model.vocab_size)[0] for row in rows]
    together = whole(model, strategy, rows, model.vocab_size)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    for seed in range(3):
        logits, first = in_steps(model, strategy, rows, seed)
        for b in range(len(rows)):
            assert torch.equal(logits[b], alone[b][first[b] :]), f"row {b}, seed {seed}"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", ["llama", "one key head", "wide heads, sliding"])
def test_a_path_of_a_tree_has_the_bits_of_a_chain(shape, strategy):
    """Heads as wide as a vector are read in blocks where queries share what they see, which those of a tree do not."""
    model = build(shape)
    model.execute("native")
    tree, paths = [7, 8, 9, 10, 11, 12], [[0, 1, 3], [0, 2, 5], [4]]
    parents = [-1, 0, 0, 1, -1, 2]
    alignment: Alignment = STRATEGIES[strategy](model, Clock())
    alignment.admit([0, 1], [IDS[0], IDS[1]])
    logits_BTV = alignment.forward([1, 0], torch.tensor([tree, tree]), parents=[parents, parents])
    for b, row in enumerate((IDS[1], IDS[0])):
        for path in paths:
            chain = whole(model, "inplace", [[*row, *(tree[node] for node in path)]], model.vocab_size)[0]
            assert torch.equal(logits_BTV[b, path], chain[len(row) :])


def test_bits_do_not_depend_on_the_number_of_threads():
    model = build("wide")
    model.execute("native")
    one = whole(model, "inplace", IDS, model.vocab_size)
    before = torch.get_num_threads()
    try:
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            many = whole(model, "inplace", IDS, model.vocab_size)
            assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True)), threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_last_layer_of_a_prompt_computes_only_what_is_read(threads):
    """With logits of the last few places only, they and the cache have the bits of a forward that gives them all."""
    model, width = build("mistral, sliding"), max(map(len, IDS))
    model.execute("native")
    tokens_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids in IDS])
    counts = [len(ids) for ids in IDS]
    real_BT = torch.arange(width) < torch.tensor(counts)[:, None]

    def forward(num_logits: int) -> tuple[torch.Tensor, torch.Tensor]:
        kv = model.empty_storage(len(IDS), 64)
        kv.data_NBHSD.zero_()
        writer = kv.scatter([0, 1, 2], [0] * 3, width)
        return model.forward_chains(tokens_BT, writer, num_logits, real_BT), kv.data_NBHSD

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        every, cache = forward(0)
        for num_logits in (1, 3, width - 1):
            some, own_cache = forward(num_logits)
            wanted = real_BT[:, -num_logits:]
            assert torch.equal(some[wanted], every[:, -num_logits:][wanted])
            assert torch.equal(own_cache, cache)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "q8_0", "q4_1"])
@pytest.mark.parametrize("num_rows", [1, 3, 8, 13, 30, 200])
def test_weights_are_kept_in_the_format_that_they_came_in_and_give_the_same_bits(kind, num_rows):
    weight = quantised(kind, 70, 640)
    packed = PackedMatrix((weight, None))
    assert packed.format == kind
    # The same rows beside one that fits no format but float32.
    wide = PackedMatrix((torch.cat([weight, torch.full((1, 640), 1 / 3)]), None))
    assert wide.format == "float32"
    assert wide.num_bytes > 1.8 * packed.num_bytes
    x_MI = torch.randn(num_rows, 640, generator=torch.Generator().manual_seed(1))
    assert torch.equal(packed(x_MI, 1), wide(x_MI, 1)[:, :70])
    exact = x_MI.double() @ weight.double().T
    scale = x_MI.double().abs() @ weight.double().abs().T
    assert float(((packed(x_MI, 1) - exact) / scale.clamp(min=1e-30)).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", ["bfloat16", "q8_0", "q4_1"])
def test_one_number_that_does_not_fit_keeps_the_whole_matrix_wide(kind):
    weight = quantised(kind, 40, 64)
    weight[39, 63] = torch.nextafter(weight[39, 63], torch.tensor(9.0))
    packed = PackedMatrix((weight, None))
    assert packed.format == "float32"
    torch.testing.assert_close(packed(torch.eye(64), 1), weight.T, atol=0, rtol=0)


def test_inputs_of_any_number_and_biases():
    for inputs, outputs in ((1, 1), (31, 7), (33, 40), (257, 65), (1030, 3)):
        weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
        for num_rows in (1, 2, 14, 100):
            x_MI = torch.randn(num_rows, inputs)
            ours = PackedMatrix((weight, bias))(x_MI, 1)
            torch.testing.assert_close(ours, nn.functional.linear(x_MI, weight, bias), atol=1e-4, rtol=1e-4)


def test_drafts_that_are_a_part_of_their_target_share_its_packed_weights():
    model = build("wide")
    target = model.execute("native")
    draft = CausalLM(first_layers(model.module, 1)).execute("native")
    assert {id(m) for m in draft._matrices} <= {id(m) for m in target._matrices}


def test_what_is_out_of_bounds_is_refused_before_anything_is_written():
    model = build("llama")
    model.execute("native")
    ids = torch.tensor([[1, 2]])
    kv = model.empty_storage(2, 8)
    for slots, starts, message in (([2], [0], "slot 2 of 2"), ([0], [-1], "columns -1 to 1"), ([-1], [0], "slot -1")):
        writer = kv.scatter([0], [0], 2)
        writer.place.slots_B.copy_(torch.tensor(slots)), writer.place.starts_B.copy_(torch.tensor(starts))
        with pytest.raises(ContractError, match=f"native execution: .*{message}"):
            model.forward_chains(ids, writer)
    writer, mask = kv.scatter([0], [0], 2), torch.ones(1, 2, 2, dtype=torch.bool).tril()
    with pytest.raises(ContractError, match="position 9999"):
        model.forward(ids, torch.tensor([[0, 9999]]), mask, writer)
    with pytest.raises(ContractError, match=r"token \d+ is not among"):
        model.forward_chains(torch.tensor([[1, model.vocab_size]]), writer)
    with pytest.raises(ContractError, match="mask"):
        model.forward(ids, torch.tensor([[0, 1]]), mask[:, :, :1], writer)
    assert not kv.data_NBHSD.any()


@pytest.mark.parametrize(("dtype", "reason"), [(torch.float64, "float64"), (torch.bfloat16, "bfloat16")])
def test_other_number_formats_are_refused(dtype, reason):
    model = CausalLM(small_llama(0, dtype))
    with pytest.raises(ConfigError, match=f"execution=native cannot run this model: it computes in float32 .*{reason}"):
        model.execute("native")
    assert model.execute("auto").name == "fused"


def test_changed_weights_are_noticed():
    model = CausalLM(small_llama(0, torch.float32))
    before = model.execute("native")
    assert model.execute("native") is before
    with torch.no_grad():
        model.module.model.layers[1].mlp.up_proj.weight.mul_(2)
    assert model.execute("native") is not before
    torch.testing.assert_close(aligned_logits(model, IDS[1]), own_logits(model, IDS[1]), atol=1e-4, rtol=1e-4)


def test_no_compiler_is_said_once_by_auto_and_refused_by_native(monkeypatch):
    loading.library.cache_clear()
    building._outcome.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    try:
        module = small_llama(0, torch.float32)
        assert no_native(module) == "no C++ compiler (no-such-compiler): install g++ or clang++"
        model = CausalLM(module)
        chosen = model.execute("auto")
        assert chosen.name == "fused"
        assert chosen.note == (
            "execution=auto runs without the native forward: no C++ compiler (no-such-compiler): install g++ or clang++"
        )
        with pytest.raises(ConfigError, match=r"no C\+\+ compiler .* set execution=fused"):
            model.execute("native")
    finally:
        monkeypatch.undo()
        loading.library.cache_clear()
        building._outcome.cache_clear()
