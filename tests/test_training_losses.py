"""Distillation losses against references without autograd, their gradients against differences, and the masks."""

import numpy as np
import pytest
import torch
from conftest import small_llama
from torch import nn

from specdec.drafters.eagle import EagleLayer
from specdec.training import TrainingError
from specdec.training.blocks import Batch, BlockStream
from specdec.training.budget import Budget
from specdec.training.config import HeadsConfig, LossConfig, PhaseConfig, StageConfig
from specdec.training.heads import KINDS, HeadsObjective, unroll
from specdec.training.losses import (
    SOFT,
    LossSum,
    cross_entropy,
    forward_kl,
    kept_forward_kl,
    masked_sum,
    output_mask,
    reverse_kl,
    total_variation,
)
from specdec.training.objectives import Distill


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return scaled / scaled.sum(-1, keepdims=True)


REFERENCES = {
    "forward_kl": lambda p, q: (p * np.log(p / q)).sum(-1),
    "reverse_kl": lambda p, q: (q * np.log(q / p)).sum(-1),
    "tv": lambda p, q: 0.5 * np.abs(p - q).sum(-1),
}


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(4, 3, 7)) * 2, random.normal(size=(4, 3, 7)) * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", SOFT)
def test_values_and_gradients(name, temperature, logits):
    draft, target = logits

    def reference(values: np.ndarray) -> np.ndarray:
        scale = temperature if name == "tv" else temperature**2
        return scale * REFERENCES[name](probabilities(target, temperature), probabilities(values, temperature))

    draft_XV = torch.tensor(draft, requires_grad=True)
    found = SOFT[name](draft_XV, torch.tensor(target), temperature)
    np.testing.assert_allclose(found.detach().numpy(), reference(draft), rtol=1e-9)
    found.sum().backward()
    step = 1e-6
    for place in [(0, 0, 0), (1, 2, 3), (3, 1, 6)]:
        nudge = np.zeros_like(draft)
        nudge[place] = step
        slope = (reference(draft + nudge).sum() - reference(draft - nudge).sum()) / (2 * step)
        assert draft_XV.grad is not None
        assert float(draft_XV.grad[place]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_cross_entropy_is_the_log_probability(logits):
    draft, _ = logits
    tokens = np.arange(12).reshape(4, 3) % 7
    expected = -np.log(np.take_along_axis(probabilities(draft, 1.0), tokens[..., None], -1)[..., 0])
    found = cross_entropy(torch.tensor(draft), torch.tensor(tokens))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_kept_entries_give_the_whole_divergence_when_all_are_kept(logits):
    draft, target = (torch.tensor(part) for part in logits)
    top = target.log_softmax(-1).topk(7)
    kept = kept_forward_kl(draft, top.indices, top.values)
    torch.testing.assert_close(kept, forward_kl(draft, target))
    part = kept_forward_kl(draft, top.indices[..., :3], top.values[..., :3])
    assert not torch.allclose(part, kept)


def test_divergences_of_equal_distributions_are_zero(logits):
    draft, _ = (torch.tensor(part) for part in logits)
    for loss in (forward_kl, reverse_kl, total_variation):
        assert float(loss(draft, draft + 3.0).abs().max()) < 1e-12  # a shift of logits is no change of the distribution


@pytest.mark.parametrize("name", SOFT)
def test_tokens_that_a_target_rules_out_cost_nothing_and_break_nothing(name, logits):
    """Logits of -inf, as of a padded vocabulary: as if there were no such token, where the draft has none either."""
    draft, target = (torch.tensor(part) for part in logits)
    ruled_out = torch.tensor([False] * 6 + [True])
    low = target.masked_fill(ruled_out, -torch.inf)
    student = draft.clone().requires_grad_()
    found = SOFT[name](student, low, 1.0)
    found.sum().backward()
    assert bool(found.isfinite().all())
    assert bool(student.grad.isfinite().all())
    without = SOFT[name](draft.masked_fill(ruled_out, -torch.inf), low, 1.0)
    torch.testing.assert_close(without, SOFT[name](draft[..., :6], target[..., :6], 1.0))


@pytest.mark.parametrize("kind", ["medusa", "eagle", "early_exit", "ppd"])
def test_heads_learn_by_the_losses_that_are_set(kind):
    """Each loss of distill.* alone, and their weighted sum."""
    target, cfg = small_llama(1, torch.float64), HeadsConfig(kind=kind, num_heads=2, layer=1, feature_weight=0.0)
    torch.manual_seed(0)
    module = KINDS[kind].build(target, cfg).double()
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    ids_BT = torch.randint(0, target.config.vocab_size, (2, 12))
    batch = Batch(ids_BT, output_mask([3, 4], [12, 10], 12), {"batches": 0})

    def loss(**weights: float) -> float:
        losses = LossConfig(**{"argmax": 0.0, "forward_kl": 0.0, **weights})
        return float(HeadsObjective(KINDS[kind], target, cfg, 1, losses)(module, batch, 0).mean.detach())

    names = ("ce", "argmax", "forward_kl", "reverse_kl", "tv")
    alone = [loss(**{name: 1.0}) for name in names]
    assert len({round(value, 3) for value in alone}) == len(names)
    weights = [1.0, 0.5, 0.25, 2.0, 3.0]
    together = loss(**dict(zip(names, weights, strict=True)))
    assert together == pytest.approx(sum(w * value for w, value in zip(weights, alone, strict=True)), rel=1e-4)
    with pytest.raises(TrainingError, match="every loss has weight 0"):
        loss()
    with pytest.raises(TrainingError, match=r"distill.on_policy=0.5: only task=distill"):
        loss(forward_kl=1.0, on_policy=0.5)


def test_what_a_draft_samples_counts_up_to_its_stop_and_in_rows_that_go_on():
    """Rows of cached outputs end at different columns; a target that has stopped is asked for nothing."""
    target = small_llama(0, torch.float64)
    target.generation_config.eos_token_id = list(range(1, 61, 4))
    objective = Distill(target, LossConfig(on_policy=1.0, on_policy_tokens=6), 1)
    ids_BT = torch.tensor([[3, 5, 7, 2, 9, 9, 9, 9]] * 3)
    batch = Batch(ids_BT, output_mask([2, 2, 2], [8, 3, 8], 8), {"batches": 1})
    made = objective._sampled(target, batch)
    assert made.counted_BT[:, :4].sum() == 0
    assert made.counted_BT[1].sum() == 0, "it ended before its prompt did"
    for row in (0, 2):
        sampled = made.ids_BT[row, 4:].tolist()
        length = next((n for n, token in enumerate(sampled, 1) if token % 4 == 1), 6)
        assert made.counted_BT[row, 4:].tolist() == [True] * length + [False] * (6 - length)
    assert 0 < made.counted_BT[[0, 2], 5:].sum() < 10, "a row stopped, and one went on"


def test_total_variation_is_the_chance_of_rejection():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.6])
    accepted = torch.minimum(p, q).sum()
    assert float(total_variation(q.log(), p.log())) == pytest.approx(float(1 - accepted))


def test_masks_count_outputs_only():
    mask = output_mask([2, 3, 1], [5, 3, 2], 6)
    assert mask.tolist() == [
        [False, False, True, True, True, False],
        [False] * 6,  # a prompt without output
        [False, True, False, False, False, False],
    ]
    whole = output_mask([2, 3, 1], [5, 3, 2], 6, count_prompt=True)
    assert whole[1].tolist() == [False, True, True, False, False, False]  # a row's first token is never predicted


def test_masked_positions_change_nothing():
    values = torch.arange(6.0).reshape(2, 3)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert float(masked_sum(values, mask)) == 0 + 2 + 5
    assert float(masked_sum(torch.where(mask, values, 1e9), mask)) == 0 + 2 + 5
    assert float(LossSum(masked_sum(values, torch.zeros_like(mask)), 0).mean) == 0.0


@pytest.mark.parametrize("num_batches", [3, 17])
def test_a_stream_resumes_from_its_place(num_batches):
    stage = StageConfig(steps=40, minutes=None, accumulate=2, phases=[PhaseConfig(0.5, 8, 3), PhaseConfig(0.5, 16, 2)])
    tokens = np.arange(200)
    whole = BlockStream(tokens, Budget(stage), seed=5)
    drawn = [whole.draw() for _ in range(60)]
    again = BlockStream(tokens, Budget(stage), seed=5)
    again.place = dict(drawn[num_batches - 1].place)
    for expected in drawn[num_batches:]:
        assert torch.equal(again.draw().ids_BT, expected.ids_BT)
    assert {batch.ids_BT.shape[1] for batch in drawn} == {8, 16}


@torch.no_grad()
def test_unrolled_steps_are_those_of_drafting():
    target = small_llama(0, torch.float64)
    torch.manual_seed(1)
    layer = EagleLayer(target).double().eval()
    nn.init.normal_(layer.project.weight, std=0.3)
    ids_BT = torch.randint(61, (1, 9))
    hidden_BTD = target(ids_BT, output_hidden_states=True).hidden_states[-1]
    embeds_BTD = target.get_input_embeddings()(ids_BT[:, 1:])
    steps = list(unroll(layer, embeds_BTD, hidden_BTD, 3))
    for start in (2, 5):
        fed = hidden_BTD[:, : start + 1]  # true entries, then the layer's own outputs
        for step in range(3):
            entries = layer.inputs(embeds_BTD[:, : start + step + 1], fed)
            output_BTD = layer.body(inputs_embeds=entries).last_hidden_state
            torch.testing.assert_close(steps[step][:, start + step], output_BTD[:, -1])
            fed = torch.cat([fed, output_BTD[:, -1:]], dim=1)


@pytest.mark.parametrize("kind", ["early_exit", "medusa", "eagle"])
@pytest.mark.parametrize("num_prompt", [1, 2, 4, 11])
def test_heads_leave_out_prompts_without_changing_loss_or_gradient(kind, num_prompt, monkeypatch):
    """The same as with logits for all tokens, of which the mask then counts some."""
    target = small_llama(1, torch.float64)
    cfg = HeadsConfig(kind=kind, num_heads=3, layer=1)
    torch.manual_seed(0)
    module = KINDS[kind].build(target, cfg).double()
    ids_BT = torch.randint(0, target.config.vocab_size, (3, 16))
    counted_BT = output_mask([num_prompt, num_prompt + 1, num_prompt], [16, 15, 12], 16)

    def found() -> list[torch.Tensor]:
        loss = HeadsObjective(KINDS[kind], target, cfg, 1)(module, Batch(ids_BT, counted_BT, {"batches": 0}), 0).mean
        trained = [p for p in module.parameters() if p.requires_grad]
        return [loss, *torch.autograd.grad(loss, trained)]

    cut = found()
    monkeypatch.setattr(Batch, "first_counted", 1)
    for short, whole in zip(cut, found(), strict=True):
        torch.testing.assert_close(short.float(), whole.float(), rtol=1e-5, atol=1e-6)  # losses are in float32


@pytest.mark.parametrize(("num_prompt", "width"), [(1, 16), (9, 16), (14, 16)])
def test_prompt_tokens_stand_where_their_distribution_is_counted(num_prompt, width, monkeypatch):
    """Only after tokens from which they predict an output token; all of a row's places, where it has few."""
    seen = []
    monkeypatch.setattr("specdec.training.heads._probe_mask", lambda places, *_: seen.append(places) or None)
    target = small_llama(1, torch.float64)
    cfg = HeadsConfig(kind="ppd", num_heads=2, num_insertions=5)
    module = KINDS["ppd"].build(target, cfg).double()
    counted_BT = output_mask([num_prompt] * 2, [width] * 2, width)
    batch = Batch(torch.randint(0, target.config.vocab_size, (2, width)), counted_BT, {"batches": 0})
    assert float(HeadsObjective(KINDS["ppd"], target, cfg, 1)(module, batch, 0).mean.detach()) > 0
    (places,) = seen
    assert places.shape[1] == min(5, width - 3 - max(0, num_prompt - 2)) >= 1
    assert int(places.min()) >= num_prompt - 2
    assert int(places.max()) < width - 3


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"early_exit", "longspec", "specblock"}))  # the last: by slots
def test_what_is_drafted_second_weighs_the_decay(kind):
    """With two drafted tokens the loss is a + decay * b."""
    target, generator = small_llama(0, torch.float64, layers=4), torch.Generator().manual_seed(1)
    counted_BT = torch.ones(3, 16, dtype=torch.bool)
    batch = Batch(torch.randint(61, (3, 16), generator=generator), counted_BT, {"batches": 0})
    torch.manual_seed(0)
    cfg = HeadsConfig(kind=kind, num_heads=2, num_layers=2, num_anchors=6, markov_rank=4)
    module, found = KINDS[kind].build(target, cfg).double(), {}
    for decay in (0.0, 0.3, 1.0):
        cfg.decay = decay
        found[decay] = HeadsObjective(KINDS[kind], target, cfg, seed=1)(module, batch, 0).total.item()
    second = found[1.0] - found[0.0]
    assert second > 1
    assert found[0.3] - found[0.0] == pytest.approx(0.3 * second, rel=1e-5)
