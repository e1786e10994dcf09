"""What begins late, or is small, or is computed from columns: exact, limited, or refused with the true reason."""

from __future__ import annotations

import pytest
import torch
import transformers
from cases import short_only
from conftest import greedy_alone, small_llama
from harness import make_engine, run_all
from model_zoo import Entry, build
from torch import nn

import specdec
from specdec.alignment.inplace import InplaceAlignment
from specdec.errors import ContractError, DataError, PairError
from specdec.models.causal_lm import CausalLM
from specdec.models.compatibility import supported
from specdec.models.masks import FULL, MaskForm, Visible, forms, within_chunk, within_window
from specdec.models.probe import MARGIN, probe

LATE = {"max_position_embeddings": 512}


def limited(model_type: str, **limits: int) -> CausalLM:
    return supported(build(Entry(model_type), **LATE, **limits), "target")


def test_chunked_layers_see_their_own_chunk():
    """Llama 4's chunks were ignored: wrong beyond a chunk with every strategy, also alone."""
    target = supported(build(Entry("llama4_text", "no temperature")), "target")
    assert dict(target.architecture.mask_form.visible)["chunked_attention"] == Visible("chunk", 8)
    prompts = [[(7 * i + b) % target.vocab_size for i in range(5 + 9 * b)] for b in range(3)]
    rows, _ = run_all(make_engine(target, target, alignment=InplaceAlignment, gamma=3), prompts, 12)
    assert [row.output_ids for row in rows] == [greedy_alone(target, prompt, 12, frozenset()) for prompt in prompts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model_type", "field"),
    short_only([("llama4_text", "floor_scale"), ("gpt_neo", "window_size")], "gpt_neo"),
    ids=["llama4", "gpt_neo"],
)
def test_rows_end_where_a_model_counts_columns(model_type, field, dtype):
    """A scale or window that is computed from columns: exact before it matters, refused beyond, whatever the dtype."""
    value = 160
    module = build(Entry(model_type), **LATE, **{field: value}).to(dtype)
    model = supported(module, "target")
    assert model.context_length == value - 1 - MARGIN
    assert f"beyond {field}={value}" in model.notes[0]
    with pytest.raises(PairError, match="is exact up to 159 columns"):
        model.forward(
            torch.zeros(1, 160, dtype=torch.long),
            torch.arange(160)[None],
            torch.ones(160, 160, dtype=torch.bool).tril()[None],
            model.empty_storage(1, 0).append(160),
        )
    with pytest.raises(PairError, match=f"(from {field}=8 on)"):
        supported(build(Entry(model_type), **LATE, **{field: 8}).to(dtype), "target")


def test_what_a_scale_limits_is_exact_below_it():
    target = limited("llama4_text", floor_scale=160)
    prompts = [[(5 * i + b) % target.vocab_size for i in range(4 + 11 * b)] for b in range(3)]
    rows, _ = run_all(make_engine(target, target, alignment=InplaceAlignment, gamma=3), prompts, 12)
    assert [row.output_ids for row in rows] == [greedy_alone(target, prompt, 12, frozenset()) for prompt in prompts]
    with pytest.raises(DataError, match="exceed the target's context of 95"):
        specdec.generate(target, None, [list(range(1, 50))], max_new_tokens=60)


def test_a_window_that_the_model_does_not_make_is_not_made_for_it():
    """The model's forward has no window, its generate drops keys beyond it: exact below, refused beyond."""
    config = small_llama(0, torch.float32).config
    config.sliding_window, config.use_sliding_window = 160, False
    torch.manual_seed(0)
    module = transformers.LlamaForCausalLM(config).eval()
    model = supported(module, "target")
    assert model.architecture.mask_form.widest == FULL
    assert model.context_length == 160 - 1 - MARGIN
    config.sliding_window = 8
    with pytest.raises(PairError, match=r"generate\(\) and its own forward .* disagree.*sliding_window=8"):
        supported(transformers.LlamaForCausalLM(config).eval(), "target")


def test_a_form_that_is_not_the_likeliest_is_found_by_trial(monkeypatch):
    """Were the order of the forms wrong, a window that begins late would still be found."""
    module = build(Entry("mistral"))
    monkeypatch.setattr("specdec.models.masks._makes_windows", lambda module: False)
    monkeypatch.setattr("specdec.models.probe._RESULTS", {})
    assert forms(module)[0].widest == FULL
    found = probe(module)
    assert found.form == 1
    assert forms(module)[found.form].widest == Visible("window", 8)


def test_keys_and_values_are_measured():
    """Multi-query Falcon has one key head, latent attention keys and values of two widths."""
    falcon = CausalLM(build(Entry("falcon"))).architecture
    assert falcon.num_heads > 1
    assert {heads for heads, _ in falcon.kv_shapes} == {1}
    latent = CausalLM(build(Entry("deepseek_v3")))
    keys, values = latent.architecture.kv_shapes[:2]
    assert keys[1] > values[1]
    assert latent.empty_storage(2, 8).data_NBHSD.shape[-1] == keys[1]


@pytest.mark.parametrize("way", ["append", "scatter"])
def test_a_writer_refuses_what_it_would_have_to_broadcast(way):
    model = CausalLM(small_llama(0, torch.float32))
    kv = model.empty_storage(2, 8)
    writer = kv.append(1) if way == "append" else kv.scatter([0, 1], [0, 3], 1)
    with pytest.raises(ContractError, match=r"layer 0 writes values of 1 heads x 8, its storage holds 2 x 8"):
        writer.write(1, torch.ones(2, 1, 1, 8))


def test_a_blind_mask_is_seen_past_the_window(monkeypatch):
    """The probe itself: were the window ignored, it would find no form."""
    module = build(Entry("mistral"))
    monkeypatch.setattr(Visible, "of", lambda self, mask_BTS: mask_BTS)
    monkeypatch.setattr("specdec.models.probe._RESULTS", {})
    finding = probe(module)
    assert finding.limit == "sliding_window"
    assert "differ by" in finding.reason


def test_windows_and_chunks_follow_positions_not_columns():
    mask_BTS = torch.tensor([[[1, 0, 1, 1, 0, 1, 1]]], dtype=torch.bool)  # positions 0, 1, 2, 3, 4 with two holes
    assert within_window(mask_BTS, 2).tolist() == [[[False] * 5 + [True, True]]]
    assert within_chunk(mask_BTS, 3).tolist() == [[[False] * 5 + [True, True]]]
    assert within_chunk(mask_BTS, 2).tolist() == [[[False] * 6 + [True]]]
    assert [Visible("chunk", 3).first_seen(position) for position in (2, 3, 5)] == [0, 3, 3]
    assert [Visible("window", 3).first_seen(position) for position in (1, 2, 5)] == [0, 0, 3]
    assert MaskForm(((None, FULL),), additive=False).widest == FULL


def test_yarn_reaches_as_far_as_its_factor_says():
    """With ``max_position_embeddings`` left at the trained length `transformers` runs on, and so do rows here."""
    config = small_llama(0, torch.float32).config
    config.max_position_embeddings = 64
    config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0} | {
        "original_max_position_embeddings": 64
    }
    assert supported(transformers.LlamaForCausalLM(config).eval(), "target").context_length == 256


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(small_llama(0, torch.float32), {nn.Linear}, dtype=torch.qint8)


def offloaded() -> nn.Module:
    module = small_llama(0, torch.float32)
    module.model.layers[1].to("meta")
    return module


def t5() -> nn.Module:
    config = transformers.T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (quantised, "is quantised by PyTorch: its activations are scaled over the whole batch"),
        (offloaded, r"has parts that are offloaded \(device_map\)"),
        (t5, "is an encoder-decoder"),
        (lambda: build(Entry("mixtral")).double(), "cannot be run in float64 on cpu, even alone"),
        (lambda: build(Entry("bart")), "takes no position ids"),
        (lambda: build(Entry("openai-gpt")), "keeps no KV cache"),
        (lambda: build(Entry("moshi")), r"generate\(\) and its own forward without a cache disagree"),
    ],
    ids=["int8", "offloaded", "t5", "experts", "bart", "gpt", "moshi"],
)
def test_the_true_reason_is_given_in_one_line(make, reason):
    with pytest.raises(PairError, match=reason) as refusal:
        supported(make(), "pair.target=x")
    assert "\n" not in str(refusal.value)
    assert "ALiBi" not in str(refusal.value)


def test_a_model_that_knows_no_logits_to_keep_gives_the_last_ones():
    """Whisper's decoder takes the argument and ignores it: rollback, which asks for a part, read the wrong logits."""
    model = supported(build(Entry("whisper")), "target")
    tokens, positions = torch.tensor([[3, 9, 4]]), torch.arange(3)[None]
    mask = torch.ones(3, 3, dtype=torch.bool).tril()[None]
    whole = model.forward(tokens, positions, mask, model.empty_storage(1, 0).append(3))
    part = model.forward(tokens, positions, mask, model.empty_storage(1, 0).append(3), num_logits=2)
    assert torch.equal(part, whole[:, 1:])


def test_a_forward_that_was_replaced_after_loading_is_tried_itself():
    """A copy of the class would not show it; what begins within forty tokens does."""
    module = small_llama(0, torch.float32)
    attention = module.model.layers[0].self_attn
    own = attention.forward

    def by_columns(hidden_states, position_embeddings=None, attention_mask=None, **options):
        if attention_mask is not None and attention_mask.shape[-1] > 16:
            attention_mask = attention_mask.clone()
            attention_mask[..., : attention_mask.shape[-1] - 16] = False
        return own(hidden_states, position_embeddings, attention_mask, **options)

    attention.forward = by_columns
    with pytest.raises(PairError, match=r"its modules were changed after loading, and with \w+ columns"):
        supported(module, "target")
    attention.forward = lambda *arguments, **options: own(*arguments, **options)
    assert supported(module, "target").architecture.mask_form.widest == FULL


@pytest.mark.nightly
def test_a_compiled_model_is_the_model_within():
    module = small_llama(0, torch.float32)
    prompts = [[3, 9, 4, 1], [8, 1]]
    outputs = specdec.generate(torch.compile(module, backend="eager"), None, prompts, max_new_tokens=6, pad_token_id=0)
    model = CausalLM(module)
    assert [row[4:].tolist() for row in outputs] == [greedy_alone(model, prompt, 6, frozenset()) for prompt in prompts]


def test_the_narrow_copys_own_error_is_the_reason(monkeypatch):
    module = build(Entry("llama"))

    def failing(module, keep_width=False, lifted=()):
        raise ValueError("too wide" if keep_width else "the true reason")

    monkeypatch.setattr("specdec.models.probe.miniature", failing)
    monkeypatch.setattr("specdec.models.probe._RESULTS", {})
    with pytest.raises(PairError, match=r"cannot be tried in a small copy.*the true reason"):
        supported(module, "target")
