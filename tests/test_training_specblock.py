"""SpecBlock's loss against its formulas, written out slot by slot; the module's forward has tests of its own."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import small_llama
from torch import nn

from specdec.models.causal_lm import CausalLM
from specdec.training.anchors import Anchors
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig
from specdec.training.specblock import NUM_BLOCKS, SpecBlockHead, specblock_loss

SLOTS, SEED, DECAY, USUAL = 3, 7, 0.6, 9


def often_right(target: CausalLM, cfg: HeadsConfig, batch: Batch, reduced: bool) -> SpecBlockHead:
    """A random module whose usual token is that of the text, so that later slots count here and there."""
    torch.manual_seed(3)
    module = SpecBlockHead(target.module, cfg)
    if reduced:
        module.keep(torch.arange(0, 60, 3), target.module)
    with torch.no_grad():
        for weight in module.parameters():
            nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.3)
    module = module.double()
    with torch.no_grad():
        states = torch.cat([part.flatten(0, -2) for part in plain_states(module, target, batch)[0]])
        module.lm_head.weight[USUAL // 3 if reduced else USUAL] = 0.6 * module.norm(states).mean(0)
    return module


def plain_states(module: SpecBlockHead, target: CausalLM, batch: Batch):
    """The states of both blocks, the anchors' columns, and where the second blocks start."""
    anchors = Anchors.drawn(batch, 12, NUM_BLOCKS * SLOTS, SEED, first=1)
    generator = torch.Generator().manual_seed(SEED)
    starts = torch.randint(SLOTS, anchors.places_BA.shape, generator=generator)
    hidden = target.module(batch.ids_BT, output_hidden_states=True).hidden_states
    hidden_BTH = torch.cat([hidden[number] for number in module.layer_ids], dim=-1)
    return module(target.module, batch.ids_BT, hidden_BTH, anchors.places_BA, [starts]), anchors.places_BA, starts


def written_out(module: SpecBlockHead, target: CausalLM, batch: Batch) -> tuple[float, int]:
    """The loss, and how many slots behind a right one were counted."""
    found, places_BA, starts_BA = plain_states(module, target, batch)
    choices = target.module(batch.ids_BT).logits.argmax(-1)
    drafted = list(range(target.vocab_size)) if module.tokens.ids is None else module.tokens.ids.tolist()
    total, num_later = 0.0, 0
    for number, states_BAKD in enumerate(found):
        ranked = []  # class, guess, logarithms: slots up to the first wrong guess
        for b, places_A in enumerate(places_BA.tolist()):
            for a, anchor in enumerate(places_A):
                first = anchor + 1 + (int(starts_BA[b, a]) + 1 if number else 0)  # what slot 0 predicts
                right = guessed = True
                for k in range(SLOTS):
                    column = first + k
                    counts = column < batch.ids_BT.shape[1] and bool(batch.counted_BT[b, column])
                    token = int(batch.ids_BT[b, min(column, batch.ids_BT.shape[1] - 1)])
                    logits = module.logits(states_BAKD[b, a, k])
                    logs = logits.float().log_softmax(-1).tolist()
                    place = drafted.index(token) if token in drafted else None
                    rank = len(drafted) if place is None else sum(log > logs[place] for log in logs)
                    if counts and right and place is not None and int(choices[b, column - 1]) in drafted:
                        total -= DECAY**k * logs[place]
                        num_later += k > 0
                    right = right and rank == 0
                    true = 0 if rank == 0 else 1 if rank < 4 else 2 if rank < 10 else 3
                    guess_C = module.ranks(states_BAKD[b, a, k], logits).log_softmax(-1).tolist()
                    guess = guess_C.index(max(guess_C))
                    if counts and guessed:
                        ranked.append((true, guess, guess_C))
                    guessed = guessed and guess == true
        frequency = [sum(true == c for true, _, _ in ranked) for c in range(4)]
        for true, guess, logs_C in ranked:
            near = [1 / (1 + abs(c - true) + max(true - c, 0)) ** 2 for c in range(4)]
            weight = min(1, 10 / frequency[true]) * (1 + abs(true - guess) + max(true - guess, 0))
            total -= weight * sum(n * log for n, log in zip(near, logs_C, strict=True)) / sum(near)
    return total, num_later


@pytest.mark.parametrize("reduced", [False, True])
def test_the_loss_is_what_its_formulas_say(reduced):
    """Labels of both blocks, valid prefixes, decay, ranks and their classes; of a part of the vocabulary too."""
    target = CausalLM(small_llama(0, torch.float64, layers=4))
    generator = torch.Generator().manual_seed(5)
    ids_BT = torch.randint(61, (3, 22), generator=generator)
    ids_BT = torch.where(torch.rand(3, 22, generator=generator) < 0.7, USUAL, ids_BT)
    counted_BT = (torch.arange(22) >= 6) & (torch.arange(22) < torch.tensor([[22], [19], [15]]))
    batch = Batch(ids_BT, counted_BT, {})
    cfg = HeadsConfig(kind="specblock", num_heads=SLOTS, num_layers=2, num_anchors=12, decay=DECAY, layer_ids=[1, 2, 4])
    module = often_right(target, cfg, batch, reduced)
    if reduced:  # where the target's choice cannot be drafted nothing is learned: a head of logits that chooses both
        with torch.no_grad():
            target.module.lm_head.weight[3:60:3] *= 1.5
    losses = LossConfig(ce=1.0, argmax=0.0, forward_kl=0.0)
    found = specblock_loss(module, target.module, batch, cfg, losses, SEED)
    expected, num_later = written_out(module, target, batch)
    assert num_later > 10
    assert math.isclose(found.total.item(), expected, rel_tol=1e-5)
