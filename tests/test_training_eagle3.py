"""An EAGLE-3 head that is trained here: what it is trained for is what it drafts."""

from __future__ import annotations

import pytest
import torch
from conftest import small_llama
from torch import nn

from specdec.core.clock import Clock
from specdec.core.outputs import NORMED
from specdec.drafters.context import DrafterContext
from specdec.heads.eagle3 import Eagle3
from specdec.heads.layers import STATES
from specdec.heads.weights import load_head
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.training import TrainingError
from specdec.training.acceptance import HeldoutPrompt, measure_acceptance
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, ValidationConfig
from specdec.training.eagle3 import Eagle3Head
from specdec.training.heads import KINDS, HeadsObjective, write_heads


@pytest.fixture(scope="module")
def target() -> CausalLM:
    rope = {"rope_type": "default", "rope_theta": 700.0}
    return CausalLM(small_llama(0, torch.float64, layers=4, rope_parameters=rope, rms_norm_eps=1e-3))


def context_of(target: CausalLM) -> DrafterContext:
    clock = Clock()
    return DrafterContext(target, None, lambda model: create("alignment", "inplace", model, clock), clock)


@torch.no_grad()
@pytest.mark.parametrize("layer_ids", [None, [1, 3, 4]])
def test_unrolled_steps_are_those_of_the_drafter(target, tmp_path, layer_ids):
    """States and logits of the first three steps, through the export and the drafter's own forward."""
    cfg = HeadsConfig(kind="eagle3", num_heads=3, layer_ids=layer_ids)
    torch.manual_seed(1)
    module = Eagle3Head(target.module, layer_ids)
    for weight in module.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.2)
        weight.copy_(weight.bfloat16())  # the precision in which heads are saved
    module = module.double()
    write_heads(tmp_path, cfg, {}, module, target)
    head = Eagle3(load_head("eagle3", str(tmp_path), context_of(target)), target)
    assert head.hidden_layers == ((2, 2, 1) if layer_ids is None else (1, 3, NORMED))
    ids_BT = torch.randint(61, (1, 9), generator=torch.Generator().manual_seed(2))
    states = target.module(ids_BT, output_hidden_states=True).hidden_states
    hidden_BTH = torch.cat([states[number] for number in module.layer_ids], dim=-1)
    embeds_BTD = target.module.get_input_embeddings()(ids_BT[:, 1:])
    steps = list(module.unroll(embeds_BTD, hidden_BTH[:, :-1], 3))
    for start in (2, 5):
        cache = create("alignment", "inplace", head.model, Clock())
        cache.admit([0], [[]])
        with head.model.call_options(STATES):
            features_BTD = head.features(hidden_BTH[:, : start + 1])
            found = cache.forward([0], head.inputs(embeds_BTD[:, : start + 1], features_BTD), [start + 1])
            for step in range(3):
                torch.testing.assert_close(found[:, -1], steps[step][:, start + step], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(head.logits(found[:, -1]), module.logits(steps[step][:, start + step]))
                if step < 2:
                    entry_B1D = embeds_BTD[:, start + step + 1 : start + step + 2]
                    found = cache.forward([0], head.inputs(entry_B1D, found[:, -1:]), [1])


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "medusa"])
@pytest.mark.parametrize("border", [1, 3, 6, 9])
def test_what_does_not_count_changes_nothing(target, kind, border):
    """Loss and gradients of all tokens are the sums of those of two parts, whose later steps begin elsewhere."""
    ids_BT = torch.randint(61, (2, 13), generator=torch.Generator().manual_seed(4))
    late_BT = torch.arange(13).expand(2, -1) >= torch.tensor([[border], [border + 2]])
    torch.manual_seed(1)
    cfg, found = HeadsConfig(kind=kind, num_heads=3), []
    module = KINDS[kind].build(target.module, cfg).double()
    objective = HeadsObjective(KINDS[kind], target.module, cfg, seed=0)
    for counted_BT in (torch.ones_like(late_BT), late_BT, ~late_BT):
        counted_BT = counted_BT & (torch.arange(13) > 0)
        total = objective(module, Batch(ids_BT, counted_BT, {"batches": 0}), 0).total
        found.append([total, *torch.autograd.grad(total, [w for w in module.parameters() if w.requires_grad])])
    for whole, late, early in zip(*found, strict=True):
        torch.testing.assert_close(whole, late + early, rtol=1e-3, atol=1e-4)  # norms compute in float32


@pytest.mark.slow
def test_training_lifts_acceptance(target, tmp_path):
    starts = torch.randint(61, (24, 1), generator=torch.Generator().manual_seed(3))
    text = target.module.generate(starts, max_new_tokens=28, do_sample=False, pad_token_id=0, eos_token_id=None)
    cfg = HeadsConfig(kind="eagle3", num_heads=3)
    torch.manual_seed(0)
    module = KINDS["eagle3"].build(target.module, cfg).double().train()
    objective = HeadsObjective(KINDS["eagle3"], target.module, cfg, seed=0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    prompts = [HeldoutPrompt(row[:3].tolist(), "some") for row in text[:8]]
    lengths = []
    for _ in range(2):
        write_heads(tmp_path, cfg, {}, module, target)
        make = lambda context: create("drafter", "eagle3", context, path=str(tmp_path), untrained=False)  # noqa: E731
        found = measure_acceptance(target, make, prompts, ValidationConfig(new_tokens=20, gamma=3))
        lengths.append(found["mean_acceptance_length"])
        for step in range(40):
            loss = objective(module, Batch(text, torch.ones_like(text, dtype=torch.bool), {"batches": step}), step).mean
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert lengths[1] > lengths[0] + 1


def test_layers_that_there_are_not_are_refused(target):
    with pytest.raises(TrainingError, match=r"heads.layer_ids=\[1, 5\]: give numbers from 0 to 4"):
        Eagle3Head(target.module, [1, 5])
