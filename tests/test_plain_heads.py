"""Layouts of their authors, against plain forwards of one row: the same drafts of ragged rows, round after round."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import plain_heads as plain
import pytest
import torch
from conftest import small_llama
from harness import make_engine, run_all
from head_folders import published
from safetensors.torch import load_file
from torch.nn.functional import linear

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.inplace import InplaceAlignment
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.drafters.context import DrafterContext
from specdec.models.causal_lm import CausalLM
from specdec.registry import create

MASK, BLOCK = 7, 4  # as in head_folders
Drafted = list[tuple[list[int], list[Any], list[float] | None, int]]


def drafts_of(
    kind: str, folder: Path, prompts: list[list[int]], gamma: int = 3, **settings: int | None
) -> tuple[Any, dict[str, torch.Tensor], Drafted]:
    """The target's module, the head's tensors, and each draft: the row's tokens, the drafted, chances, the depth."""
    path = published(kind, folder)
    target, clock = CausalLM(small_llama(0, torch.float32)), Clock()
    context = DrafterContext(target, None, lambda model: InplaceAlignment(model, clock), clock)
    drafter = create("drafter", kind, context, path=path, **settings)
    propose, found = drafter.propose, Drafted()

    def recorded(rows, gammas):
        draft = propose(rows, gammas)
        for b, (row, count) in enumerate(zip(rows, draft.num_drafted, strict=True)):
            drafted = texts_of(draft, b) if draft.parents else draft.ids[b][:count]
            found.append((row.tokens(0), drafted, draft.chances and draft.chances[b][:count], gammas[b]))
        return draft

    drafter.propose = recorded
    run_all(make_engine(target, drafter=drafter, batch=4, gamma=gamma), prompts[:6], 8)
    found = [draft for draft in found if draft[1]]
    assert sum(len(drafted) for _, drafted, _, _ in found) > 60
    return target.module, load_file(Path(path) / "model.safetensors"), found


def texts_of(draft: Draft, b: int) -> list[tuple[int, ...]]:
    """What each node of a tree says, from the row's last token on."""
    return [tuple(draft.ids[b][node] for node in draft.path(b, end)) for end in range(draft.num_drafted[b])]


def states(module: Any, tokens: list[int], numbers: list[int]) -> torch.Tensor:
    """(T, H) before the row's last token: `hidden_states` of `transformers` by number, side by side."""
    if len(tokens) == 1:
        return torch.zeros(0, len(numbers) * module.config.hidden_size)
    hidden = module(torch.tensor([tokens[:-1]]), output_hidden_states=True).hidden_states
    return torch.cat([hidden[number][0] for number in numbers], dim=-1)


@torch.inference_mode()
def test_eagle(prompts, tmp_path):
    module, tensors, found = drafts_of("eagle", tmp_path, prompts)
    for tokens, drafted, _, _ in found:
        hidden, text = states(module, tokens, [-1]), list(tokens)
        for token in drafted:
            inputs = torch.cat([module.model.embed_tokens(torch.tensor(text[1:])), hidden], dim=-1)
            inputs = linear(inputs, tensors["fc.weight"], tensors["fc.bias"])
            outputs = plain.causal_layer(tensors, "layers.0", inputs, inputs)
            assert token == int(module.lm_head(outputs[-1]).argmax())
            hidden = torch.cat([hidden, outputs[-1:]])
            text.append(token)


@torch.inference_mode()
def test_parallel_eagle(prompts, tmp_path):
    """Of three layers the inputs of layers 2, 1 and 0 are read, where the folder names none."""
    module, tensors, found = drafts_of("peagle", tmp_path, prompts)
    for tokens, drafted, _, _ in found:
        logits_SV = plain.peagle(tensors, module, tokens, states(module, tokens, [2, 1, 0]), len(drafted), MASK)
        assert drafted == logits_SV.argmax(-1).tolist()


@torch.inference_mode()
def test_dspark(prompts, tmp_path):
    """Its ids [1, 0, 2] number the outputs of layers; the last one's is read after the norm, as in `transformers`."""
    module, tensors, found = drafts_of("dspark", tmp_path, prompts)
    for tokens, drafted, chances, _ in found:
        hidden_TH = states(module, tokens, [2, 1, 3])
        expected, confidences = plain.dspark(tensors, module, tokens, hidden_TH, len(drafted), MASK, BLOCK)
        assert drafted == expected
        assert chances == pytest.approx(confidences, abs=1e-5)


@torch.inference_mode()
def test_blocks_that_continue_blocks(prompts, tmp_path):
    """Blocks of three tokens: the second starts at the last slot of the first, and the third at its last."""
    module, tensors, found = drafts_of("specblock", tmp_path, prompts, gamma=7, nodes=None, leaves=1)
    for tokens, drafted, _, _ in found:
        head = plain.SpecBlock(tensors, module, tokens, states(module, tokens, [2, 1, 0]))
        assert drafted == head.chain(len(drafted), 3)


@torch.inference_mode()
@pytest.mark.parametrize(("nodes", "leaves"), [(99, 10), (25, 2)])
def test_blocks_that_branch_by_the_rank_head(prompts, tmp_path, nodes, leaves):
    module, tensors, found = drafts_of("specblock", tmp_path, prompts[:3], gamma=7, nodes=nodes, leaves=leaves)
    num_later, widths = 0, set[int]()
    for tokens, drafted, _, depth in found:
        hidden_TH = states(module, tokens, [2, 1, 0])
        expected = plain.SpecBlock(tensors, module, tokens, hidden_TH).tree(depth, 3, nodes, leaves)
        assert set(drafted) == expected
        assert len(drafted) == len(expected)
        num_later += sum(len(text) > 3 for text in drafted)
        widths |= set(Counter(text[:-1] for text in drafted).values())
    assert num_later > 5
    assert nodes < 99 or {1, 4, 10} <= widths, "all kinds of slots"
