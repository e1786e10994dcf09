"""The built-in target: which of its tokens repeat, what they cost, that fewer are said afterwards; and its origin."""

import json

import numpy as np
import pytest
import torch
from conftest import small_llama

from experiments.tiny_pair.target import fits_behind
from experiments.tiny_pair.unloop import Unlikelihood, repeated, unlikelihood
from specdec.core.loops import in_loops
from specdec.training import TrainingError
from specdec.training.blocks import Batch, BlockStream
from specdec.training.budget import Budget
from specdec.training.config import PhaseConfig, StageConfig
from specdec.training.losses import cross_entropy

BLOCK = 16


def batch_of(rows: list[list[int]], num_prompt: int, number: int = 1) -> Batch:
    ids_BT = torch.tensor(rows)
    return Batch(ids_BT, torch.arange(ids_BT.shape[1]).expand_as(ids_BT) >= num_prompt, {"batches": number})


def test_tokens_repeat_from_the_second_saying_on_and_in_loops_alone():
    said_once, period = [9, 8, 7, 6], [1, 2, 3]
    rows = [[5, 5, *said_once, *period * 5], [5, 5, *said_once, 1, 2, 3, 4, 1, 2, 3, *range(10, 18)]]
    found = repeated(batch_of(rows, num_prompt=2))
    assert found[0].tolist() == [False] * 6 + [False] * 5 + [True] * 10  # 3, 1, 2 is said first one token later
    assert not found[1].any()  # said again, but not over and over


def test_the_loss_is_minus_the_logarithm_of_the_chance_of_another_token():
    logits_XV = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens_X = torch.tensor([0, 6, 3, 3])
    chances_X = logits_XV.softmax(-1)[torch.arange(4), tokens_X]
    torch.testing.assert_close(unlikelihood(logits_XV, tokens_X), -(1 - chances_X).log())
    sure_1V = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    unlikelihood(sure_1V, torch.tensor([0])).sum().backward()
    assert sure_1V.grad[0, 0] == pytest.approx(1.0)  # 1 - p rounds to 0, and the gradient does not


def test_a_batch_has_text_of_its_own_and_repeated_tokens_cost_the_chance_of_another():
    texts = BlockStream(np.arange(400) % 61, Budget(StageConfig(phases=[PhaseConfig(1.0, BLOCK, 2)])), seed=3)
    model, quiet = small_llama(0, torch.float32), list(range(20))
    losses = {
        (weight, number): Unlikelihood(texts, BLOCK, 2, weight)(model, batch_of([quiet], 4, number), 0).mean.item()
        for weight in (0.0, 5.0)
        for number in (1, 2, 1)
    }
    assert losses[5.0, 1] == losses[0.0, 1] != losses[0.0, 2]
    loud = batch_of([[1, 2, 3] * 7], num_prompt=4)
    (columns,) = repeated(loud)[0].nonzero(as_tuple=True)
    chances_T = model(loud.ids_BT).logits[0].softmax(-1)
    said = [1 - chances_T[column - 1, loud.ids_BT[0, column]].item() for column in columns]
    cost = Unlikelihood(texts, BLOCK, 2, 5.0)(model, loud, 0).mean.item() - losses[0.0, 1]
    assert cost == pytest.approx(-5.0 * np.log(said).mean(), rel=1e-4)


@pytest.mark.slow
def test_a_model_that_loops_learns_not_to():
    model = small_llama(0, torch.float32)
    texts = BlockStream(np.random.default_rng(0).integers(0, 61, 4000), Budget(StageConfig()), seed=3)
    starts = torch.randint(2, 61, (8, 4), generator=torch.Generator().manual_seed(1))
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def outputs() -> list[list[int]]:
        return model.generate(starts, **settings).tolist()

    def share() -> float:
        return float(np.mean([in_loops(row[4:]) for row in outputs()]))

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for number in range(80):  # it learns to loop
        periods = torch.randint(2, 61, (16, 3), generator=torch.Generator().manual_seed(number)).repeat(1, 8)
        optimizer.zero_grad()
        cross_entropy(model(periods[:, :-1]).logits, periods[:, 1:]).mean().backward()
        optimizer.step()
    before = share()
    assert before > 0.5
    objective = Unlikelihood(texts, BLOCK, 4, 1.0)
    for round_ in range(3):
        rows = outputs()
        for number in range(1, 11):
            optimizer.zero_grad()
            objective(model, batch_of(rows, 4, 10 * round_ + number), number).mean.backward()
            optimizer.step()
    assert share() < before / 3


def test_a_target_of_several_runs_has_the_steps_of_all(tmp_path):
    first, second = tmp_path / "pair/target", tmp_path / "lm/export"
    fit = {"steps": 3, "tokens": 100, "wall_s": 1.5, "train_loss": 4.0}
    for path in (first, second):
        path.mkdir(parents=True)
    (first.parent / "provenance.json").write_text(json.dumps({"stages": {"target": fit}, "config": {}}))
    later = {"stages": {"fit": {**fit, "steps": 4, "train_loss": 3.0}}, "config": {"start": str(first)}}
    (second / "provenance.json").write_text(json.dumps(later))
    found = fits_behind(second)
    assert (found["steps"], found["tokens"], found["wall_s"]) == (7, 200, 3.0)
    assert [one["train_loss"] for one in found["fits"]] == [4.0, 3.0]
    with pytest.raises(TrainingError, match=r"no provenance.json in .* tells how it was trained"):
        fits_behind(tmp_path / "elsewhere")
