"""What is trained beside a frozen target: the module, the loss and the drafter settings of each kind.

Shapes: B rows, T tokens, V vocabulary, D hidden size, G heads, K insertions, M prompt tokens, S = columns seen.
All objectives learn the target's distribution (forward KL) of the counted tokens; the i-th token ahead has the weight
decay ** i. Logits are computed only where they predict a counted token: others add nothing to any loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from specdec.drafters.eagle import EagleLayer
from specdec.drafters.early_exit import EarlyExit
from specdec.drafters.medusa import MedusaHeads
from specdec.drafters.ppd import PromptTokens
from specdec.models.cache_argument import cache_argument
from specdec.training import TrainingError
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig
from specdec.training.losses import forward_kl, masked_mean


@dataclass(frozen=True, slots=True)
class HeadsKind:
    """How one kind of heads is built and trained, and the settings that its folder records."""

    build: Callable[[Any, HeadsConfig], nn.Module]
    loss: Callable[[Any, Any, Batch, HeadsConfig, int], Tensor]  # module, target, batch, settings, seed of this batch
    settings: Callable[[HeadsConfig], dict[str, Any]]
    guesses: Callable[[Any, Any, Tensor, int], Tensor] | None = None  # of kinds that guess several places at once


class HeadsObjective:
    """The loss of a kind of heads, with a frozen target."""

    def __init__(self, kind: HeadsKind, target: Any, cfg: HeadsConfig, seed: int) -> None:
        self.kind, self.target, self.cfg, self.seed = kind, target.eval().requires_grad_(False), cfg, seed
        target.set_attn_implementation("sdpa")

    def __call__(self, module: Any, batch: Batch, step: int) -> Tensor:
        """The loss; random choices follow from the seed and the batch's number."""
        seed = 1_000_003 * self.seed + batch.place["batches"]
        return self.kind.loss(module, self.target, batch, self.cfg, seed)


def medusa_loss(module: MedusaHeads, target: Any, batch: Batch, cfg: HeadsConfig, seed: int) -> Tensor:
    """Head k at token t learns the distribution of token t + 2 + k."""
    # From the token at which the last head predicts the first counted one.
    start = max(0, batch.first_counted - len(module.heads) - 1)
    hidden_BTD, teacher_BTV = _read(target, batch.ids_BT, start)
    logits_BTGV = module(hidden_BTD[:, start:])
    total = torch.zeros((), device=hidden_BTD.device)
    for k in range(logits_BTGV.shape[2]):
        ahead = k + 1  # the target's own head predicts token t + 1
        student_BTV = logits_BTGV[:, : -ahead - 1, k].float()
        counted = batch.counted_BT[:, start + ahead + 1 :]
        values = forward_kl(student_BTV, teacher_BTV[:, ahead:-1])
        total = total + cfg.decay**k * masked_mean(values, counted)
    return total


def medusa_guesses(module: MedusaHeads, target: Any, ids_BT: Tensor, start: int) -> Tensor:
    """Logits (B, T - start, G, V): the g-th of token t are for token t + 2 + g."""
    hidden_BTD, _ = _read(target, ids_BT, ids_BT.shape[1] - 1)
    logits_BTGV: Tensor = module(hidden_BTD[:, start:])
    return logits_BTGV


def early_exit_loss(module: EarlyExit, target: Any, batch: Batch, cfg: HeadsConfig, seed: int) -> Tensor:
    """The exit learns the distribution of the whole target."""
    start = batch.first_counted - 1
    keep = batch.ids_BT.shape[1] - start
    with torch.no_grad():
        output = target(input_ids=batch.ids_BT, use_cache=False, output_hidden_states=True, logits_to_keep=keep)
    if not 1 <= cfg.layer < len(output.hidden_states) - 1:
        raise TrainingError(f"heads.layer={cfg.layer}: choose 1 to {len(output.hidden_states) - 2}")
    student_BTV = module.head(module.norm(output.hidden_states[cfg.layer][:, start:-1])).float()
    values = forward_kl(student_BTV, output.logits[:, :-1].float())
    return masked_mean(values, batch.counted_BT[:, start + 1 :])


def eagle_loss(module: EagleLayer, target: Any, batch: Batch, cfg: HeadsConfig, seed: int) -> Tensor:
    """At every unrolled step, entry t learns the distribution of token t + 2 and the hidden state of token t + 1."""
    start = max(0, batch.first_counted - 2)
    hidden_BTD, teacher_BTV = _read(target, batch.ids_BT, start)
    embeds_BTD, head = target.get_input_embeddings()(batch.ids_BT[:, 1:]), target.get_output_embeddings()
    total = torch.zeros((), device=batch.ids_BT.device)
    for step, output_BTD in enumerate(unroll(module, embeds_BTD, hidden_BTD, cfg.num_heads)):
        first = max(start, step)  # earlier entries have no true entry to start from
        counted = batch.counted_BT[:, 2 + first :]
        values = forward_kl(head(output_BTD[:, first:-1]).float(), teacher_BTV[:, 1 + first - start : -1])
        near = nn.functional.smooth_l1_loss(
            output_BTD[:, first:-1].float(), hidden_BTD[:, 1 + first : -1].float(), reduction="none"
        )
        loss = masked_mean(values, counted) + cfg.feature_weight * masked_mean(near.mean(-1), counted)
        total = total + cfg.decay**step * loss
    return total


def unroll(module: EagleLayer, embeds_BTD: Tensor, hidden_BTD: Tensor, num_steps: int) -> Iterator[Tensor]:
    """The layer's outputs (B, T, D) of every step, as in drafting: at step i, the last i inputs are its own outputs.

    Entry t of step i has position t and reads token t + 1 (``embeds_BTD[:, t]``) and the output of step i - 1 at
    entry t - 1. It attends to the true entries up to t - i, and of every step j <= i to entry t - i + j.
    """
    num_rows, num_entries = embeds_BTD.shape[:2]
    fed_BTD = hidden_BTD[:, :num_entries]
    cache = cache_argument(module.body, DynamicCache(config=module.body.config))
    positions_T = torch.arange(num_entries, device=embeds_BTD.device)
    for step in range(num_steps):
        output_BTD: Tensor = module.body(
            inputs_embeds=module.inputs(embeds_BTD, fed_BTD),
            attention_mask=unrolled_mask(num_entries, step, embeds_BTD.device).expand(num_rows, 1, -1, -1),
            position_ids=positions_T[None],
            **cache,
            use_cache=True,
        ).last_hidden_state
        yield output_BTD
        fed_BTD = torch.cat([hidden_BTD[:, :1], output_BTD[:, :-1]], dim=1)


def unrolled_mask(num_entries: int, step: int, device: torch.device) -> Tensor:
    """(1, 1, T, (step + 1) T) bool: what the entries of an unrolled step attend to in this and earlier steps."""
    entry_T1 = torch.arange(num_entries, device=device)[:, None]
    column_T = torch.arange(num_entries, device=device)
    blocks = [column_T <= entry_T1 - step]
    blocks += [column_T == entry_T1 - step + earlier for earlier in range(1, step + 1)]
    mask_TS = torch.cat(blocks, dim=1)
    mask_TS[:, -num_entries:] |= column_T == entry_T1  # at least themselves: the first entries have no past
    return mask_TS[None, None]


def ppd_loss(module: PromptTokens, target: Any, batch: Batch, cfg: HeadsConfig, seed: int) -> Tensor:
    """Inserts prompt tokens: the i-th of those after token t learns the distribution of token t + 2 + i."""
    ids_BT, num_probes = batch.ids_BT, len(module.embeddings_MD)
    num_rows, width = ids_BT.shape
    generator = torch.Generator().manual_seed(seed)
    last = width - num_probes - 1  # the last token with enough tokens after it
    if last < 1:
        raise TrainingError(f"heads.kind=ppd: a row of {width} tokens is too short for {num_probes} prompt tokens")
    # From the token after which the first prompt token predicts the first counted one.
    start = min(max(0, batch.first_counted - 2), last - 1)
    places = max(1, min(cfg.num_insertions, last - start))
    places_BK = start + torch.rand(num_rows, last - start, generator=generator).topk(places, dim=1).indices
    places_BK = places_BK.to(ids_BT.device)
    with torch.no_grad():
        teacher_BTV = target(input_ids=ids_BT, use_cache=False, logits_to_keep=width - start).logits.float()
    student_BKMV = _inserted(module, target, ids_BT, places_BK)
    positions_BKM = places_BK[..., None] + 1 + torch.arange(num_probes, device=ids_BT.device)
    rows_B11 = torch.arange(num_rows, device=ids_BT.device)[:, None, None]
    values_BKM = forward_kl(student_BKMV, teacher_BTV[rows_B11, positions_BKM - start])
    counted_BKM = batch.counted_BT[rows_B11, positions_BKM + 1]
    weights = [cfg.decay**i * masked_mean(values_BKM[..., i], counted_BKM[..., i]) for i in range(num_probes)]
    return torch.stack(weights).sum()


def ppd_guesses(module: PromptTokens, target: Any, ids_BT: Tensor, start: int) -> Tensor:
    """Logits (B, T - start, M, V): the i-th of token t are for token t + 2 + i."""
    places_K = torch.arange(start, ids_BT.shape[1], device=ids_BT.device)
    return _inserted(module, target, ids_BT, places_K.expand(len(ids_BT), -1))


def _inserted(module: PromptTokens, target: Any, ids_BT: Tensor, places_BK: Tensor) -> Tensor:
    """The target's logits (B, K, M, V) of all prompt tokens, inserted after each of the places."""
    num_rows, width = ids_BT.shape
    num_probes, places = len(module.embeddings_MD), places_BK.shape[1]
    with torch.no_grad():
        embeds_BTD = target.get_input_embeddings()(ids_BT)
    probes_BSD = module.embeddings_MD.to(embeds_BTD.dtype).repeat(places, 1).expand(num_rows, -1, -1)
    positions_BKM = places_BK[..., None] + 1 + torch.arange(num_probes, device=ids_BT.device)
    text_positions_BT = torch.arange(width, device=ids_BT.device).expand(num_rows, -1)
    output = target(
        inputs_embeds=torch.cat([embeds_BTD, probes_BSD], dim=1),
        position_ids=torch.cat([text_positions_BT, positions_BKM.flatten(1)], dim=1),
        attention_mask=_probe_mask(places_BK, width, num_probes),
        use_cache=False,
        logits_to_keep=places * num_probes,
    )
    logits_BKMV: Tensor = output.logits.float().unflatten(1, (places, num_probes))
    return logits_BKMV


def _probe_mask(places_BK: Tensor, width: int, num_probes: int) -> Tensor:
    """(B, 1, T + KM, T + KM) bool: text attends to no prompt token; those attend to their text and their own chain."""
    num_rows, places = places_BK.shape
    total = width + places * num_probes
    mask_BSS = torch.zeros(num_rows, total, total, dtype=torch.bool, device=places_BK.device)
    columns_T = torch.arange(width, device=places_BK.device)
    mask_BSS[:, :width, :width] = columns_T <= columns_T[:, None]
    text_end_BS = places_BK.repeat_interleave(num_probes, dim=1)
    mask_BSS[:, width:, :width] = columns_T <= text_end_BS[..., None]
    chain_MM = torch.ones(num_probes, num_probes, dtype=torch.bool, device=places_BK.device).tril()
    mask_BSS[:, width:, width:] = torch.block_diag(*[chain_MM] * places)
    return mask_BSS[:, None]


@torch.no_grad()
def _read(target: Any, ids_BT: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """The target's last hidden states (B, T, D), and its logits from column ``start`` on (B, T - start, V)."""
    keep = ids_BT.shape[1] - start
    output = target(input_ids=ids_BT, use_cache=False, output_hidden_states=True, logits_to_keep=keep)
    return output.hidden_states[-1], output.logits.float()


KINDS: dict[str, HeadsKind] = {
    "medusa": HeadsKind(
        lambda target, cfg: MedusaHeads(cfg.num_heads, target.get_output_embeddings()),
        medusa_loss,
        lambda cfg: {"num_heads": cfg.num_heads},
        medusa_guesses,
    ),
    "eagle": HeadsKind(lambda target, cfg: EagleLayer(target), eagle_loss, lambda cfg: {}),
    "ppd": HeadsKind(
        lambda target, cfg: PromptTokens(cfg.num_heads, target.get_input_embeddings()),
        ppd_loss,
        lambda cfg: {"num_tokens": cfg.num_heads},
        ppd_guesses,
    ),
    "early_exit": HeadsKind(lambda target, cfg: EarlyExit(target), early_exit_loss, lambda cfg: {"layer": cfg.layer}),
}
