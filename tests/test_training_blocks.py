"""Block heads trained here (DFlash, DSpark, P-EAGLE, SpecBlock): what they are trained for is what they draft."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import nightly_but
from conftest import greedy_alone, small_llama
from harness import ALIGNMENTS, make_engine, run_all
from plain_heads import EPS, SpecBlock
from safetensors.torch import load_file
from torch import nn

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.reader import Reader
from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.drafters.context import DrafterContext
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.training import TrainingError
from specdec.training.acceptance import HeldoutPrompt, measure_acceptance
from specdec.training.anchors import Anchors, at
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig, ValidationConfig
from specdec.training.draft_tokens import DraftTokens, most_frequent
from specdec.training.dspark import calibrate, round_starts, sequential_temperatures, survival_losses
from specdec.training.heads import KINDS, HeadsObjective, write_heads
from specdec.training.limits import check_heads
from specdec.training.specblock import rank_loss

BLOCK_KINDS = ("dflash", "dspark", "peagle", "specblock")
SLOTS = 3


@pytest.fixture(scope="module")
def target() -> CausalLM:
    rope = {"rope_type": "default", "rope_theta": 700.0}
    return CausalLM(small_llama(0, torch.float64, layers=4, rope_parameters=rope, rms_norm_eps=1e-3))


def settings(kind: str, **others) -> HeadsConfig:
    return HeadsConfig(kind=kind, num_heads=SLOTS, num_layers=2, markov_rank=6, num_anchors=12, **others)


def context_of(target: CausalLM) -> DrafterContext:
    clock = Clock()
    return DrafterContext(target, None, lambda model: ALIGNMENTS["inplace"](model, clock), clock)


def random_module(kind: str, target: CausalLM, cfg: HeadsConfig, reduced: bool) -> nn.Module:
    torch.manual_seed(1)
    module = KINDS[kind].build(target.module, cfg)
    if reduced:
        module.keep(torch.arange(0, 60, 3), target.module)
    with torch.no_grad():
        for weight in module.parameters():
            nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.3)
            weight.copy_(weight.bfloat16())  # the precision in which heads are saved
    if kind == "dspark":
        module.temperatures_K = torch.tensor([0.5, 2.0, 4.0])
    return module.double().eval()


def predicted(kind: str, module, target: CausalLM, ids_1T: torch.Tensor, anchor: int):
    """Logits (K, N) of the block after an anchor, as in training, and DSpark's confidences (K)."""
    places_11 = torch.tensor([[anchor]])
    states = target.module(ids_1T, output_hidden_states=True).hidden_states
    hidden_1TH = torch.cat([states[number] for number in module.layer_ids], dim=-1)
    if kind == "specblock":
        starts = [torch.full((1, 1), SLOTS - 1)]
        states = torch.cat(module(target.module, ids_1T, hidden_1TH, places_11, starts), dim=2)
        return module.logits(states)[0, 0], None
    if kind == "peagle":
        return module.logits(module(target.module, ids_1T, hidden_1TH, places_11, SLOTS))[0, 0], None
    states_11KD = module(target.module, ids_1T, hidden_1TH, places_11)
    if kind == "dflash":
        return module.logits(target.module, states_11KD)[0, 0], None
    columns_11K = places_11[..., None] + torch.arange(SLOTS)
    logits, scores = module.predicted(target.module, states_11KD, at(ids_1T, columns_11K))
    return logits[0, 0], (scores[0, 0] / module.temperatures_K).sigmoid()


@torch.no_grad()
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_drafts_are_what_the_training_module_predicts(target, tmp_path, kind, reduced):
    """Of ragged rows, through the export: the law of every slot, and DSpark's confidences with their temperatures."""
    cfg = settings(kind, layer_ids=[1, 3, 4])
    module = random_module(kind, target, cfg, reduced)
    write_heads(tmp_path, cfg, {}, module, target)
    context = context_of(target)
    drafter = create("drafter", kind, context, path=str(tmp_path), untrained=False)
    prompts = [[5, 9, 2, 40, 7, 7], [33, 1, 20]]
    rows = [Sequence(i, prompt, 8, sampling=SamplingParams(temperature=1.0)) for i, prompt in enumerate(prompts)]
    drafter.admit(rows)
    reader = Reader(context.align(target), drafter.observe_hidden, drafter.hidden_layers)
    reader.read(rows, [len(prompt) - 1 for prompt in prompts])
    length = 2 * SLOTS if kind == "specblock" else SLOTS
    draft = drafter.propose(rows, [length, length])
    for b, prompt in enumerate(prompts):
        text_1T = torch.tensor([prompt + draft.tokens_BG[b].tolist()])
        logits_KN, chances_K = predicted(kind, module, target, text_1T, len(prompt) - 1)
        law_KV = torch.zeros(length, target.vocab_size, dtype=torch.float64)
        ids_N = torch.arange(target.vocab_size) if module.tokens.ids is None else module.tokens.ids
        law_KV[:, ids_N] = logits_KN.double().softmax(-1)
        torch.testing.assert_close(draft.probs_BGV[b, :length], law_KV, rtol=1e-4, atol=1e-6)
        if chances_K is not None:
            torch.testing.assert_close(draft.chances_BG[b].float(), chances_K.float(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("start", [0, 1, 2])
def test_specblocks_blocks_start_at_any_slot(tmp_path, start):
    """Against plain forwards of one row: the laws of both blocks, and the classes of ranks."""
    target = CausalLM(small_llama(0, torch.float32, layers=4, rms_norm_eps=EPS))
    cfg = settings("specblock")
    module = random_module("specblock", target, cfg, reduced=True).float()
    write_heads(tmp_path, cfg, {}, module, target)
    loaded = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in loaded.items()}
    text = [5, 9, 2, 40, 7, 33, 1, 20, 16, 4]
    ids_1T, anchor = torch.tensor([text]), 4
    states = target.module(ids_1T, output_hidden_states=True).hidden_states
    hidden_1TH = torch.cat([states[number] for number in module.layer_ids], dim=-1)
    found = module(target.module, ids_1T, hidden_1TH, torch.tensor([[anchor]]), [torch.tensor([[start]])])
    plain = SpecBlock(tensors, target.module, text[: anchor + 1], hidden_1TH[0, :anchor])
    first = plain.block(None, None, SLOTS)
    expected = [first, plain.block(first[start], text[anchor + 1 + start], SLOTS)]
    for states_11KD, slots in zip(found, expected, strict=True):
        logits_11KN = module.logits(states_11KD)
        logs_KN = torch.stack([slot.logs_V for slot in slots])[:, module.tokens.ids]
        torch.testing.assert_close(logits_11KN[0, 0].log_softmax(-1), logs_KN, rtol=1e-4, atol=1e-4)
        assert module.ranks(states_11KD, logits_11KN).argmax(-1)[0, 0].tolist() == [slot.rank for slot in slots]


def test_the_rank_loss_is_lowest_where_the_class_is_told():
    told_CC, counted_1 = 6.0 * torch.eye(4), torch.ones(1, dtype=torch.bool)
    losses = torch.stack(
        [
            torch.stack([rank_loss(told_C[None], torch.tensor([true]), counted_1) for true in range(4)])
            for told_C in told_CC
        ]
    )
    assert losses.argmin(0).tolist() == [0, 1, 2, 3]
    assert losses[0, 3] > losses[3, 0]  # to be too sure costs more


@pytest.fixture(scope="module")
def own_text(target) -> torch.Tensor:
    starts = torch.randint(61, (24, 1), generator=torch.Generator().manual_seed(3))
    return target.module.generate(starts, max_new_tokens=28, do_sample=False, pad_token_id=0, eos_token_id=None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", nightly_but(BLOCK_KINDS, "dspark", "dflash"))
def test_training_lowers_the_loss_and_lifts_acceptance(target, own_text, prompts, tmp_path, kind):
    cfg = settings(kind)
    torch.manual_seed(0)
    module = KINDS[kind].build(target.module, cfg).double().train()
    losses = LossConfig(ce=0.1, argmax=0.0, forward_kl=0.0, tv=0.9) if kind == "dspark" else LossConfig()
    objective = HeadsObjective(KINDS[kind], target.module, cfg, seed=0, losses=losses)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    asked = [HeldoutPrompt(row[:3].tolist(), "some") for row in own_text[:8]]
    counted = torch.ones_like(own_text, dtype=torch.bool)
    lengths, values = [], []
    for _ in range(2):
        write_heads(tmp_path, cfg, {}, module, target)
        make = lambda context: create("drafter", kind, context, path=str(tmp_path), untrained=False)  # noqa: E731
        found = measure_acceptance(target, make, asked, ValidationConfig(new_tokens=20, gamma=SLOTS))
        lengths.append(found["mean_acceptance_length"])
        for step in range(40 if len(lengths) == 1 else 0):
            loss = objective(module, Batch(own_text, counted, {"batches": step}), step).mean
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
    assert sum(values[-4:]) < 0.8 * sum(values[:4])
    assert lengths[1] > lengths[0] + 0.5
    drafter = create("drafter", kind, context_of(target), path=str(tmp_path), untrained=False)
    engine = make_engine(target, drafter=drafter, alignment=ALIGNMENTS["inplace"], scheduler="static", batch=4, gamma=3)
    rows, _ = run_all(engine, prompts, 12)
    assert [row.output_ids for row in rows] == [greedy_alone(target, prompt, 12, frozenset()) for prompt in prompts]


def test_anchors_are_tokens_before_counted_ones():
    ids_BT = torch.arange(24).view(2, 12)
    counted_BT = torch.zeros(2, 12, dtype=torch.bool)
    counted_BT[0, 4:9], counted_BT[1, 6:] = True, True
    anchors = Anchors.drawn(Batch(ids_BT, counted_BT, {}), 5, 3, seed=0)
    assert sorted(anchors.places_BA[0].tolist()) == [3, 4, 5, 6, 7]
    assert len(set(anchors.places_BA[1].tolist())) == 5
    assert set(anchors.places_BA[1].tolist()) < set(range(5, 11))
    for b in range(2):
        for a, place in enumerate(anchors.places_BA[b].tolist()):
            expected = [p < 12 and bool(counted_BT[b, p]) for p in range(place + 1, place + 4)]
            assert anchors.counted_BAK[b, a].tolist() == expected
    again = Anchors.drawn(Batch(ids_BT, counted_BT, {}), 5, 3, seed=1)
    assert not torch.equal(anchors.places_BA, again.places_BA)


def test_a_reduced_vocabulary_learns_where_it_can_be_right():
    ids_N = most_frequent(torch.tensor([3, 0, 9, 3, 1]), 3)
    assert ids_N.tolist() == [0, 2, 3]
    tokens = DraftTokens()
    tokens.keep(ids_N, 5)
    assert tokens.ids.tolist() == [0, 2, 3]
    teacher = torch.tensor([[0.0, 0.0, 5.0, 1.0, 0.0], [0.0, 5.0, 0.0, 1.0, 0.0], [0.0, 0.0, 5.0, 1.0, 0.0]])
    truth, counted = torch.tensor([3, 2, 1]), torch.ones(3, dtype=torch.bool)
    student = torch.log_softmax(torch.tensor([[1.0, 2.0, 0.0]]).expand(3, 3), -1)
    values, known = tokens.losses(LossConfig(ce=1.0, argmax=0.0, forward_kl=0.0), student, teacher, truth, counted)
    assert known.tolist() == [True, False, False]  # the target's choice, and the text's token, cannot be drafted
    assert float(values[0]) == pytest.approx(-float(student[0, 2]))
    values, _ = tokens.losses(LossConfig(argmax=0.0, forward_kl=0.0, tv=1.0), student, teacher, truth, counted)
    among = teacher[0, ids_N].softmax(-1)
    assert float(values[0]) == pytest.approx(float((among - student[0].exp()).abs().sum() / 2), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "setting", "value", "message"),
    [
        ("medusa", "draft_vocab", 5, "heads.draft_vocab=5: medusa drafts all tokens; set it to null"),
        ("dspark", "draft_vocab", 90, "heads.draft_vocab=90: give 1 to 61, the target's vocabulary, or null"),
        ("dspark", "num_anchors", 0, "heads.num_anchors=0: give at least 1"),
        ("dspark", "markov_rank", -1, "heads.markov_rank=-1: give 0"),
    ],
)
def test_numbers_that_no_head_can_have_are_refused(kind, setting, value, message):
    cfg = dataclasses.replace(settings(kind), **{setting: value})
    with pytest.raises(TrainingError, match=message):
        check_heads(cfg, 61, reducible=KINDS[kind].reducible)


def test_rounds_start_after_the_token_that_follows_what_is_accepted():
    right_AK = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1], [0, 1, 1]]).bool()
    assert round_starts(right_AK, 7) == [0, 2, 6]
    assert round_starts(right_AK, 6) == [0, 2]
    assert round_starts(right_AK, 0) == []


def test_temperatures_make_survival_true():
    """Scores that are too sure by known factors are put right, a slot's after those before it."""
    generator = torch.Generator().manual_seed(0)
    true_XK = 1.5 * torch.randn(20000, 2, generator=generator)
    right_XK = torch.rand(20000, 2, generator=generator) < true_XK.sigmoid()
    factors = torch.tensor([3.0, 0.5])
    found = sequential_temperatures(true_XK * factors, right_XK)
    torch.testing.assert_close(found, factors, rtol=0.12, atol=0)
    before, after = (survival_losses(true_XK * factors / t, right_XK) for t in (torch.ones(2), found))
    assert bool((after < before).all())


@pytest.mark.parametrize("factor", [3.0, 1 / 3.0])
def test_temperatures_stay_one_where_those_of_a_half_do_not_serve_the_other(target, monkeypatch, factor):
    generator = torch.Generator().manual_seed(0)
    true_XK = 1.5 * torch.randn(4000, 3, generator=generator)
    right_XK = torch.rand(4000, 3, generator=generator) < true_XK.sigmoid()
    scores_XK = torch.cat([3 * true_XK[:2000], factor * true_XK[2000:]])
    monkeypatch.setattr("specdec.training.dspark.greedy_blocks", lambda *_: (scores_XK, right_XK))
    head = KINDS["dspark"].build(target.module, settings("dspark"))
    figures = calibrate(head, target, [], ValidationConfig())
    assert bool((head.temperatures_K == 1).all()) == (factor < 1), figures
    assert figures["num_blocks"] == 4000
