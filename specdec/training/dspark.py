"""Training of DSpark: DFlash's block, a low-rank bias by the token before each slot, and a confidence for every slot.

In training the tokens before a slot are those of the text. The confidence learns 1 - TV, the chance that rejection
sampling accepts the slot's token. After training each slot gets a temperature for its confidences, from left to right:
that under which the products up to the slot tell best how often greedy drafts of held-out prompts survive it. They stay
1 if temperatures of one half of the rounds do not serve the other.
Source: arXiv 2607.05147 (DSpark).
Shape letters: B rows, A anchors, K predicted tokens, D hidden size, R rank, V vocabulary, N tokens that can be drafted,
X blocks.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits, logsigmoid

from specdec.models.causal_lm import CausalLM
from specdec.training.acceptance import HeldoutPrompt, rows_of
from specdec.training.anchors import Anchors, at, teacher
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig, ValidationConfig
from specdec.training.decoding import decode
from specdec.training.dflash import BlockHead, save_block_head, slots_loss
from specdec.training.losses import LossSum

_TEMPERATURES = torch.logspace(-1, 1, 81)  # tried for every slot


class DSparkHead(BlockHead):
    """The anchor predicts too; slot k's logits get W2 W1[token before it]."""

    temperatures_K: Tensor

    def __init__(self, target: Any, cfg: HeadsConfig) -> None:
        super().__init__(target, cfg, from_anchor=True)
        vocab_size, self.rank = self.config.vocab_size, cfg.markov_rank
        if self.rank:
            self.markov_head = nn.ModuleDict(
                {
                    "markov_w1": nn.Embedding(vocab_size, self.rank),
                    "markov_w2": nn.Linear(self.rank, vocab_size, bias=False),
                }
            )
            nn.init.zeros_(self.markov_head["markov_w2"].weight)  # type: ignore[arg-type]
        self.confidence_head = nn.ModuleDict({"proj": nn.Linear(self.config.hidden_size + self.rank, 1)})
        self.register_buffer("temperatures_K", torch.ones(cfg.num_heads))

    def keep(self, ids_N: Tensor, target: Any) -> None:
        """Draft these tokens alone."""
        super().keep(ids_N, target)
        if self.rank:
            self.markov_head["markov_w2"] = nn.Linear(self.rank, len(ids_N), bias=False)
            nn.init.zeros_(self.markov_head["markov_w2"].weight)  # type: ignore[arg-type]

    def predicted(self, target: Any, states_BAKD: Tensor, before_BAK: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, A, K, N) of the slots, and those (B, A, K) of their confidences, by the tokens before them."""
        logits_BAKN, features = self.logits(target, states_BAKD), states_BAKD
        if self.rank:
            before_BAKR = self.markov_head["markov_w1"](before_BAK)
            logits_BAKN = logits_BAKN + self.markov_head["markov_w2"](before_BAKR)
            features = torch.cat([states_BAKD, before_BAKR.to(states_BAKD.dtype)], dim=-1)
        return logits_BAKN.float(), self.confidence_head["proj"](features)[..., 0].float()


def dspark_loss(
    module: DSparkHead, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
    """The losses of the tokens, and the confidences' cross-entropy with the share that the two distributions share."""
    anchors = Anchors.drawn(batch, cfg.num_anchors, cfg.num_heads, seed)
    hidden_BTH, teacher_BAKV = teacher(target, batch, anchors, module.layer_ids)
    states_BAKD = module(target, batch.ids_BT, hidden_BTH, anchors.places_BA)
    logits_BAKN, confidences_BAK = module.predicted(target, states_BAKD, at(batch.ids_BT, anchors.columns_BAK - 1))
    with torch.no_grad():
        shared_BAKN = torch.minimum(logits_BAKN.softmax(-1), module.tokens.of(teacher_BAKV.softmax(-1)))
        chances_BAK = shared_BAKN.sum(-1).clamp(0, 1)
    told_BAK = binary_cross_entropy_with_logits(confidences_BAK, chances_BAK, reduction="none")
    further_BAK = cfg.confidence_weight * told_BAK
    return slots_loss(module, logits_BAKN, teacher_BAKV, batch, anchors, cfg, losses, further_BAK)


@torch.no_grad()
def greedy_blocks(
    module: DSparkHead, target: CausalLM, prompts: list[HeldoutPrompt], cfg: ValidationConfig
) -> tuple[Tensor, Tensor]:
    """The logits (X, K) of the confidences of greedy rounds after these prompts, and whether the tokens are right.

    A slot of a greedy draft is reached with the text's own tokens before it, so one forward over the text, with a block
    at every place that a round may start from, tells what all drafts would be. Those count that rounds do start from:
    after a rejection drafts are worse than elsewhere.
    """
    rows = rows_of(target, prompts, cfg.new_tokens)
    decode(target, rows, cfg.batch, execution="auto")
    served, num_slots = copy.deepcopy(module).to(target.dtype).eval(), len(module.temperatures_K)
    scores, right = [], []
    for row in rows:
        ids_BT = torch.tensor([row.tokens(0)], device=target.device)
        counted_BT = torch.arange(ids_BT.shape[1], device=target.device)[None] >= max(len(row.prompt_ids), 1)
        batch = Batch(ids_BT, counted_BT, {})
        anchors = Anchors.drawn(batch, len(row.output_ids), num_slots, 0)
        hidden_BTH, _ = teacher(target.module, batch, anchors, served.layer_ids)
        states_BAKD = served(target.module, ids_BT, hidden_BTH, anchors.places_BA)
        logits_BAKN, scores_BAK = served.predicted(target.module, states_BAKD, at(ids_BT, anchors.columns_BAK - 1))
        drafted_BAK, ids_N = logits_BAKN.argmax(-1), served.tokens.ids
        drafted_BAK = drafted_BAK if ids_N is None else ids_N[drafted_BAK]
        order_A = anchors.places_BA[0].argsort()
        right_AK = (drafted_BAK == at(ids_BT, anchors.columns_BAK))[0, order_A]
        starts = round_starts(right_AK, int(anchors.counted_BAK.all(-1).sum()))
        scores.append(scores_BAK[0, order_A][starts])
        right.append(right_AK[starts])
    return torch.cat(scores), torch.cat(right)


def calibrate(
    module: DSparkHead, target: CausalLM, prompts: list[HeldoutPrompt], cfg: ValidationConfig
) -> dict[str, Any]:
    """Set the temperatures by greedy rounds after these prompts, if those of the rounds' first half serve the second.

    Returns the losses of the second half, by slot, without temperatures and with those of the first.
    """
    scores_XK, right_XK = greedy_blocks(module, target, prompts[::2] + prompts[1::2], cfg)  # halves of all lengths
    half = len(scores_XK) // 2
    if not half:
        return {"num_blocks": len(scores_XK)}
    found_K = sequential_temperatures(scores_XK[:half], right_XK[:half])
    before_K, after_K = (
        survival_losses(scores_XK[half:] / divisor, right_XK[half:]) for divisor in (torch.ones_like(found_K), found_K)
    )
    if bool(after_K.sum() < before_K.sum()):
        module.temperatures_K = sequential_temperatures(scores_XK, right_XK)
    figures = {"temperatures": module.temperatures_K, "loss_before": before_K, "loss_after": after_K}
    return {"num_blocks": len(scores_XK), **{name: [round(float(x), 4) for x in xs] for name, xs in figures.items()}}


def round_starts(right_AK: Tensor, num_whole: int) -> list[int]:
    """The places from which greedy rounds start, of the first ``num_whole`` of consecutive ones, by what is right."""
    accepted, starts = right_AK.cumprod(-1).sum(-1).tolist(), [0]
    while starts[-1] < num_whole:
        starts.append(starts[-1] + int(accepted[starts[-1]]) + 1)
    return starts[:-1]


def sequential_temperatures(scores_XK: Tensor, right_XK: Tensor) -> Tensor:
    """Each slot's temperature (K) after those before it, by the log loss of the chance to survive the slot."""
    tried_Y, chosen = _TEMPERATURES.to(scores_XK), list[Tensor]()
    for k in range(scores_XK.shape[1]):
        known_YK = torch.stack([*(t.expand_as(tried_Y) for t in chosen), tried_Y], dim=1)
        losses_Y = torch.stack(
            [survival_losses(scores_XK[:, : k + 1] / each_K, right_XK[:, : k + 1])[k] for each_K in known_YK]
        )
        chosen.append(tried_Y[losses_Y.argmin()])
    return torch.stack(chosen)


def survival_losses(scores_XK: Tensor, right_XK: Tensor) -> Tensor:
    """(K) mean log losses of the chance that a block survives each slot, in nats."""
    chances_XK = logsigmoid(scores_XK).cumsum(-1).exp().clamp(1e-6, 1 - 1e-6)
    survived_XK = right_XK.cumprod(-1).to(scores_XK.dtype)
    return binary_cross_entropy(chances_XK, survived_XK, reduction="none").mean(0)


def save_dspark(folder: Path, module: DSparkHead, target: CausalLM, cfg: HeadsConfig) -> None:
    """Write the head in the layout of `speculators`, which ``drafter=dspark`` loads; its temperatures beside."""
    own = {
        "markov_rank": module.rank,
        "markov_head_type": "vanilla",
        "enable_confidence_head": True,
        "confidence_head_with_markov": module.rank > 0,
        "confidence_temperatures": [round(float(t), 6) for t in module.temperatures_K],
    }
    save_block_head(folder, "dspark", module, target, own, cfg)
