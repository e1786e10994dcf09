"""Training objectives: next-token loss, and distillation by a weighted sum of losses.

Shapes: B rows, T tokens, X counted positions, V vocabulary, N sampled tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from specdec.core.sampling import draw
from specdec.core.transfer import to_device
from specdec.models.cache_argument import cache_argument
from specdec.training import TrainingError
from specdec.training.blocks import Batch
from specdec.training.config import LossConfig
from specdec.training.decoding import stop_ids_of
from specdec.training.losses import (
    SOFT,
    LossSum,
    check_losses,
    cross_entropy,
    kept_losses,
    masked_sum,
    weighted_losses,
)
from specdec.training.recompute import recomputed

EAGER_ATTENTION_UP_TO = 256
"""Up to this length eager attention is faster than the fused kernel on a CPU (5.6k against 4.9k tokens/s at 256, 2.2k
against 3.6k at 512)."""


def choose_attention(num_tokens: int, *models: Any) -> None:
    """Set the attention kernel that is faster on a CPU for rows of this length."""
    for model in models:
        if model.device.type == "cpu":
            model.set_attn_implementation("eager" if num_tokens <= EAGER_ATTENTION_UP_TO else "sdpa")


def next_token(model: Any, batch: Batch, step: int) -> LossSum:
    """Cross-entropy of the counted tokens, each given those before it, in nats."""
    choose_attention(batch.ids_BT.shape[1], model)
    logits_BTV = model(input_ids=batch.ids_BT, use_cache=False).logits[:, :-1].float()
    counted_BT = batch.counted_BT[:, 1:]
    values_BT = recomputed(cross_entropy, logits_BTV, batch.ids_BT[:, 1:])
    return LossSum(masked_sum(values_BT, counted_BT), counted_BT.sum())


class Distill:
    """The draft learns the target's distribution of the counted tokens, in some batches of tokens that it sampled."""

    def __init__(self, target: Any, cfg: LossConfig, seed: int) -> None:
        self.target, self.cfg, self.seed = target.eval().requires_grad_(False), cfg, seed
        self.stop_ids = sorted(stop_ids_of(target))
        self.soft = {name: getattr(cfg, name) for name in SOFT if getattr(cfg, name)}
        check_losses(cfg)
        if not 0 <= cfg.on_policy <= 1:
            raise TrainingError(f"distill.on_policy={cfg.on_policy}: give a share from 0 to 1")

    def __call__(self, model: Any, batch: Batch, step: int) -> LossSum:
        """The weighted sum of the losses of all counted tokens."""
        if self._is_on_policy(batch.place["batches"]):
            batch = self._sampled(model, batch)
        choose_attention(batch.ids_BT.shape[1], model, self.target)
        first = batch.first_counted  # columns before it need no logits
        mask_BX = batch.counted_BT[:, first:]
        draft_XV = token_logits(model, batch.ids_BT, first)[mask_BX]
        tokens_X = batch.ids_BT[:, first:][mask_BX]
        if self._kept_suffices(batch):
            assert batch.top_ids_BTK is not None
            assert batch.top_logps_BTK is not None
            top_ids_XK, top_logps_XK = (top[:, first:][mask_BX] for top in (batch.top_ids_BTK, batch.top_logps_BTK))
            total = kept_losses(self.cfg, draft_XV, top_ids_XK, top_logps_XK, tokens_X)
            return LossSum(total.sum(), len(tokens_X))
        with torch.no_grad():
            target_XV = token_logits(self.target, batch.ids_BT, first)[mask_BX]
        total = weighted_losses(self.cfg, draft_XV, target_XV, tokens_X)
        return LossSum(total.sum(), len(tokens_X))

    def _kept_suffices(self, batch: Batch) -> bool:
        """Whether the losses need only the cached entries of the target's distribution."""
        soft_is_kept = set(self.soft) <= {"forward_kl"} and self.cfg.temperature == 1 and not self.cfg.count_prompt
        return batch.top_ids_BTK is not None and soft_is_kept

    def _is_on_policy(self, number: int) -> bool:
        """Whether batch `number` is on policy: a function of the number alone, evenly spread."""
        share = self.cfg.on_policy
        return int(number * share) > int((number - 1) * share)

    def _sampled(self, model: Any, batch: Batch) -> Batch:
        """The rows' first halves as prompts, and tokens that the draft samples after them.

        Rows that end before do not count, nor does what is sampled after a token at which the target stops.
        """
        columns_T = torch.arange(batch.ids_BT.shape[1], device=batch.ids_BT.device)
        ends_B = (batch.counted_BT * (columns_T + 1)).amax(1)
        num_prompt = max(batch.first_counted, batch.ids_BT.shape[1] // 2)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + batch.place["batches"])
        ids_BT = sample(model, batch.ids_BT[:, :num_prompt], self.cfg.on_policy_tokens, generator)
        stops_BN = torch.isin(ids_BT[:, num_prompt:], to_device(torch.tensor(self.stop_ids), ids_BT.device))
        goes_on_BN = (stops_BN.cumsum(1) - stops_BN.long() == 0) & (ends_B >= num_prompt)[:, None]
        counted_BT = torch.cat([torch.zeros_like(ids_BT[:, :num_prompt], dtype=torch.bool), goes_on_BN], 1)
        return Batch(ids_BT, counted_BT, batch.place)


@torch.no_grad()
def sample(model: Any, prompt_BP: Tensor, num_tokens: int, generator: torch.Generator) -> Tensor:
    """The prompts, each with N tokens sampled from the model after it, (B, P + N)."""
    model.set_attn_implementation("sdpa")
    training = model.training
    model.eval()
    cache, step_BT, tokens = cache_argument(model, DynamicCache(config=model.config)), prompt_BP, [prompt_BP]
    for _ in range(num_tokens):
        probs_BV = model(input_ids=step_BT, **cache, logits_to_keep=1).logits[:, -1].double().softmax(-1)
        noise_B = torch.rand(len(prompt_BP), generator=generator, dtype=torch.float64).to(probs_BV.device)
        step_BT = draw(probs_BV, noise_B)[:, None]
        tokens.append(step_BT)
    model.train(training)
    return torch.cat(tokens, 1)


def token_logits(model: Any, ids_BT: Tensor, first: int) -> Tensor:
    """Logits of the tokens from column ``first`` on, each given the true tokens before it: (B, T - first, V)."""
    logits: Tensor = model(input_ids=ids_BT[:, :-1], use_cache=False, logits_to_keep=ids_BT.shape[1] - first).logits
    return logits.float()


@torch.inference_mode()
def evaluate_loss(model: Any, blocks_BT: Tensor, batch: int = 8) -> float:
    """Mean held-out cross-entropy in nats per token."""
    model.eval().set_attn_implementation("sdpa")
    losses = []
    for rows_BT in blocks_BT.to(model.device).split(batch):
        logits_BTV = model(input_ids=rows_BT, use_cache=False).logits[:, :-1].float()
        losses.append(float(cross_entropy(logits_BTV, rows_BT[:, 1:]).mean()))
    return sum(losses) / len(losses)
