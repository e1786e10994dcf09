"""LongSpec: exact in every batch, drafts as a plain implementation without caches, and what its training may see."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import plain_heads as plain
import pytest
import torch
from cases import short_only
from conftest import greedy_alone, small_llama
from harness import ALIGNMENTS, make_engine, run_all
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.layout import ancestry
from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError, SpecdecError
from specdec.heads.__main__ import main
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig
from specdec.training.heads import KINDS, HeadsObjective, write_heads
from specdec.training.longspec import LongSpecHead, anchored, longspec_loss, read_target
from specdec.trees.base import Tree

WINDOW, NEW = 3, 16
TREES = {
    "paths": create("tree", "paths", num_paths=3),
    "beam": create("tree", "beam", width=3),
    "confidence": create("tree", "confidence", num_nodes=9),
}


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float32, rms_norm_eps=plain.EPS))


@pytest.fixture(scope="module")
def head(model) -> LongSpecHead:
    """Random weights in the precision in which heads are saved."""
    module = KINDS["longspec"].build(model.module, HeadsConfig(kind="longspec", window=WINDOW))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.3)
            weight.copy_(weight.bfloat16())
    return module.eval()


@pytest.fixture(scope="module")
def folder(model, head, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("longspec")
    write_heads(path, HeadsConfig(kind="longspec", window=WINDOW), {"window": WINDOW}, head, model)
    return str(path)


def drafter_of(model: CausalLM, folder: str | None, alignment: str = "inplace", tree: Tree | None = None):
    clock, tools = Clock(), {} if tree is None else {"tree": tree}
    context = DrafterContext(model, None, lambda other: ALIGNMENTS[alignment](other, clock), clock, **tools)
    return create("drafter", "longspec", context, path=folder, untrained=folder is None)


@pytest.mark.parametrize(
    ("batch", "alignment", "scheduler", "tree"),
    short_only(
        [
            (1, "eqspec", "static", None),
            (4, "masked", "continuous", None),
            (8, "inplace", "exspec", None),
            (4, "rollback", "static", TREES["beam"]),
            (8, "expansion", "continuous", TREES["confidence"]),
        ],
        (8, "inplace", "exspec", None),
        (4, "rollback", "static", TREES["beam"]),
        ci=[8],
    ),
)
def test_outputs_are_the_targets_own(model, prompts, folder, batch, alignment, scheduler, tree):
    """Chains and trees; ragged prompts, some of one token, some longer than the window."""
    drafter = drafter_of(model, folder, alignment, tree)
    engine = make_engine(
        model, drafter=drafter, alignment=ALIGNMENTS[alignment], scheduler=scheduler, batch=batch, gamma=3
    )
    prompts = [*prompts, [7]]
    rows, rounds = run_all(engine, prompts, [NEW - i % 4 for i in range(len(prompts))])
    for row, prompt in zip(rows, prompts, strict=True):
        assert row.output_ids == greedy_alone(model, prompt, row.max_new_tokens, frozenset())
    assert sum(sum(outcome.num_drafted) for outcome in rounds) > 100


@torch.inference_mode()
@pytest.mark.parametrize("tree", short_only([None, TREES["paths"]], None))
def test_drafts_have_the_law_of_a_plain_implementation(model, prompts, folder, tree):
    """Of one row, all of it at once, without a cache: to 1e-5 after ragged rounds, windows passed and rows released."""
    drafter, found = drafter_of(model, folder, tree=tree), []
    propose = drafter.propose

    def recorded(rows, gammas):
        draft = propose(rows, gammas)
        for b, (row, count) in enumerate(zip(rows, draft.num_drafted, strict=True)):
            parents = draft.parents[b] if draft.parents else list(range(-1, count - 1))
            if count:
                found.append((row.tokens(0), draft.ids[b][:count], parents, draft.probs_BGV[b].clone()))
        return draft

    drafter.propose = recorded
    naive = create("verifier", "naive")
    engine = make_engine(model, drafter=drafter, verifier=naive, scheduler="continuous", batch=4, gamma=4)
    sampled = (SamplingParams(temperature=1.0, seed=i) for i in range(9))
    rows = [Sequence(i, list(p), 6 + i, sampling=s) for i, (p, s) in enumerate(zip(prompts, sampled, strict=False))]
    pool = SequencePool(rows)
    while not pool.done:
        engine.step(pool)
    tensors, num_compared = load_file(f"{folder}/model.safetensors"), 0
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    for tokens, drafted, parents, probs_GV in found:
        read = plain.last_keys_and_values(model.module, tokens[:-1])
        for node, ancestors in enumerate(ancestry(parents)):
            path = [drafted[n] for n in ancestors.nonzero()[0]][:-1]  # what its distribution follows
            logits_V = plain.longspec(tensors, model.module, [*tokens, *path], read, WINDOW)
            law_V = probs_GV[parents[node] + 1]
            torch.testing.assert_close(law_V, logits_V.softmax(-1).double(), atol=1e-5, rtol=0)
            num_compared += 1
    assert num_compared > 100
    assert max(len(tokens) for tokens, *_ in found) > 3 * WINDOW


def test_the_export_drafts_what_was_trained(model, head, folder):
    """Drafted token g has the law of the training module with g + 1 of the target's keys missing."""
    drafter, prompts = drafter_of(model, folder), [[5, 9, 2, 40, 7, 7, 3, 3, 12], [33, 1, 20]]
    rows = [Sequence(i, prompt, 8, sampling=SamplingParams(temperature=1.0)) for i, prompt in enumerate(prompts)]
    drafter.admit(rows)
    number = model.num_layers - 1
    for row in rows:
        hidden = model.module(torch.tensor([row.tokens(0)[:-1]]), output_hidden_states=True).hidden_states[number]
        drafter.observe_hidden([row], hidden.detach(), [list(range(row.length - 1))])
    draft = drafter.propose(rows, [4, 4])
    for b, prompt in enumerate(prompts):
        text_1T = torch.tensor([prompt + draft.ids[b]])
        positions_1T = torch.arange(text_1T.shape[1])[None]
        read, _ = read_target(model.module, text_1T, positions_1T, 0)
        for g in range(4):
            states_1TD = head.states(model.module, text_1T, positions_1T, read, g + 1)
            law_V = model.module.lm_head(states_1TD[0, len(prompt) - 1 + g]).softmax(-1)
            torch.testing.assert_close(draft.probs_BGV[b, g], law_V.double(), atol=1e-5, rtol=0, check_device=False)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_missing", [1, 4])
def test_a_token_sees_no_target_key_that_is_missing(model, head, num_missing):
    """And every one before, however far away; its own window ends at WINDOW positions, and no later token is seen."""
    ids_1T = torch.tensor([[5, 9, 2, 40, 7, 7, 31, 3, 12, 50, 1, 20]])
    positions_1T = anchored(1, 12, 40, torch.Generator().manual_seed(3))
    (keys, values), _ = read_target(model.module, ids_1T, positions_1T, 0)
    keys, values = keys.detach().requires_grad_(), values.detach().requires_grad_()
    states_1TD = head.states(model.module, ids_1T, positions_1T, (keys, values), num_missing)
    gradients = [torch.autograd.grad(states_1TD[0, t].sum(), (keys, values), retain_graph=True) for t in range(12)]
    ago_TS = torch.arange(12)[:, None] - torch.arange(12)
    for of_TBKSE in map(torch.stack, zip(*gradients, strict=True)):
        seen_TS = of_TBKSE.abs().sum((1, 2, 4))[num_missing:] > 0
        allowed_TS = ago_TS[num_missing:] >= num_missing
        assert not (seen_TS & ~allowed_TS).any()
        assert seen_TS[allowed_TS].float().mean() > 0.95, "an attention may vanish in float32"
    changed = ids_1T.clone()
    changed[0, -1 - WINDOW] += 1
    again_1TD = head.states(model.module, changed, positions_1T, (keys, values), num_missing)
    same_T = (again_1TD == states_1TD).all(-1)[0].tolist()
    assert same_T == [True] * (11 - WINDOW) + [False] * WINDOW + [True]


def test_positions_of_a_row_jump_once_after_its_anchors(model):
    """And the target reads the row as one text: without a cache, `transformers` begins another one at the jump."""
    positions_BT = anchored(200, 9, 50, torch.Generator().manual_seed(0))
    steps = positions_BT.diff(dim=1)
    assert ((steps != 1).sum(1) <= 1).all()
    jumps = (steps != 1).nonzero()[:, 1]
    assert set(jumps.tolist()) == {0, 1, 2, 3}, "behind 1 to 4 anchors; with none, the whole row is moved"
    assert positions_BT.max() == 58
    assert torch.equal(anchored(3, 9, 0, torch.Generator()), torch.arange(9).expand(3, -1))
    ids_2T, positions_2T = (
        torch.randint(1, 60, (1, 9)).repeat(2, 1),
        (torch.arange(9) + 30 * (torch.arange(9) > 1))[None],
    )
    ids_2T[1, 0] = 0
    read, logits_2TV = read_target(model.module, ids_2T, positions_2T.expand(2, -1), 0)
    assert not torch.allclose(logits_2TV[0, -1], logits_2TV[1, -1]), "the last token sees the anchors"
    assert read[0].shape == (2, 2, 9, 8)


@pytest.mark.slow
def test_a_head_learns_under_noise_and_offsets(model):
    """The loss of a repeated batch falls; one seed gives one loss, whatever the rows' padding."""
    cfg = HeadsConfig(kind="longspec", window=WINDOW)
    torch.manual_seed(0)
    module = KINDS["longspec"].build(model.module, cfg).train()
    ids_BT = torch.tensor([greedy_alone(model, [i], 15, frozenset()) for i in range(12)])
    counted_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    counted_BT[:, 0] = False
    objective = HeadsObjective(KINDS["longspec"], model.module, cfg, 0, LossConfig(ce=1.0, argmax=0.0, forward_kl=0.0))
    optimizer, losses = torch.optim.AdamW(module.parameters(), lr=3e-3), []
    for step in range(40):
        loss = objective(module, Batch(ids_BT, counted_BT, {"batches": step}), step).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    weights = LossConfig()
    padded = [nn.functional.pad(part, (0, 3)) for part in (ids_BT, counted_BT)]
    fixed = dataclasses.replace(cfg, max_offset=0)
    totals = [
        longspec_loss(module, model.module, Batch(*parts, {}), fixed, weights, 7).total
        for parts in ((ids_BT, counted_BT), padded)
    ]
    torch.testing.assert_close(*totals, rtol=1e-5, atol=0)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(model, folder, tmp_path, capsys):
    clock = Clock()
    for window in (0, -3):
        context = DrafterContext(model, None, lambda other: ALIGNMENTS["inplace"](other, clock), clock)
        with pytest.raises(ConfigError, match=rf"drafter\.window={window}: give a number of tokens"):
            create("drafter", "longspec", context, untrained=True, window=window)
    with pytest.raises(ConfigError, match=r"drafter\.window=8 with drafter\.path=folder: the head has the window"):
        create("drafter", "longspec", context, path="folder", window=8)
    gpt = CausalLM(GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64)))
    with pytest.raises(SpecdecError, match="GPT2LMHeadModel are not made as a Llama's"):
        drafter_of(gpt, None)
    with pytest.raises(SpecdecError, match=r"heads\.kind=longspec: .* GPT2LMHeadModel"):
        KINDS["longspec"].build(gpt.module, HeadsConfig(kind="longspec"))
    other = CausalLM(small_llama(0, torch.float32, layers=2))
    with pytest.raises(ConfigError, match="trained for a target with num_target_layers 3; this one has 2"):
        drafter_of(other, folder)
    config = json.loads((Path(folder) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "window": "wide"}))
    with pytest.raises(ConfigError, match="window=wide: give a number"):
        drafter_of(model, str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(f"{folder}/model.safetensors")
    weight = tensors["own.k_proj.weight"]
    for broken, told in (
        (weight / 0, "holds NaN or infinity"),
        (weight.to(torch.int8), "holds int8, not floating-point"),
    ):
        save_file({**tensors, "own.k_proj.weight": broken}, tmp_path / "model.safetensors")
        with pytest.raises(ConfigError, match=rf"its tensor own\.k_proj\.weight {told}"):
            drafter_of(model, str(tmp_path))
    assert main([folder]) == 0
    assert "longspec" in capsys.readouterr().out


@pytest.mark.slow
def test_the_own_cache_does_not_grow(model, folder, prompts):
    drafter = drafter_of(model, folder)
    own, widths = drafter._cache._own, set()
    engine = make_engine(model, drafter=drafter, batch=4, gamma=3)
    rows = [Sequence(i, list(prompt), 150) for i, prompt in enumerate(prompts[:4])]
    pool = SequencePool(rows)
    while not pool.done:
        engine.step(pool)
        widths.add(own.kv.width)
    assert widths == {WINDOW + 3}, "the window, the last token and all drafted ones but the last"
    assert drafter._cache._target.kv.width > 150
