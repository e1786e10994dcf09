"""What is trained beside a frozen target: the module, the loss and the drafter settings of each kind.

Shapes: B rows, T tokens, V vocabulary, D hidden size, G heads, K insertions, M prompt tokens, S = columns seen.
All objectives have the losses of `distill` over the counted tokens; the i-th token ahead has the weight
decay ** i. Logits are computed only where they predict a counted token: others add nothing to any loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from specdec.drafters.eagle import EagleLayer
from specdec.drafters.early_exit import EarlyExit
from specdec.drafters.medusa import MedusaHeads
from specdec.drafters.ppd import PromptTokens
from specdec.drafters.trained import save_heads
from specdec.models.cache_argument import cache_argument
from specdec.models.causal_lm import CausalLM
from specdec.training import TrainingError
from specdec.training.acceptance import HeldoutPrompt
from specdec.training.blocks import Batch, Stream
from specdec.training.config import HeadsConfig, LossConfig, ValidationConfig
from specdec.training.dflash import BlockHead, dflash_loss, save_dflash
from specdec.training.draft_tokens import most_frequent
from specdec.training.dspark import DSparkHead, calibrate, dspark_loss, save_dspark
from specdec.training.eagle3 import Eagle3Head, eagle3_loss, save_eagle3
from specdec.training.longspec import LongSpecHead, longspec_loss
from specdec.training.losses import LossSum, check_losses, masked_sum, weighted_losses
from specdec.training.peagle import PEagleHead, peagle_loss, save_peagle
from specdec.training.specblock import SpecBlockHead, save_specblock, specblock_loss
from specdec.training.teacher import read_target
from specdec.training.unrolled import unrolled_mask


@dataclass(frozen=True, slots=True)
class HeadsKind:
    """How one kind of heads is built and trained, and the settings that its folder records."""

    build: Callable[[Any, HeadsConfig], nn.Module]
    loss: Callable[[Any, Any, Batch, HeadsConfig, LossConfig, int], LossSum]  # module, target, batch, settings, seed
    settings: Callable[[HeadsConfig], dict[str, Any]]
    guesses: Callable[[Any, Any, Tensor, int], Tensor] | None = None  # of kinds that guess several places at once
    save: Callable[[Path, Any, CausalLM, HeadsConfig], None] | None = None  # of kinds in a published layout
    reducible: bool = False  # whether they can draft a part of the vocabulary: `ReducibleHead`
    # Sets what follows from held-out prompts once the weights are final, and returns its figures.
    calibrate: Callable[[Any, CausalLM, list[HeldoutPrompt], ValidationConfig], dict[str, Any]] | None = None


class HeadsObjective:
    """The loss of a kind of heads, with a frozen target."""

    def __init__(
        self, kind: HeadsKind, target: Any, cfg: HeadsConfig, seed: int, losses: LossConfig | None = None
    ) -> None:
        self.losses = losses or LossConfig()
        check_losses(self.losses)
        if self.losses.on_policy:
            raise TrainingError(
                f"distill.on_policy={self.losses.on_policy}: only task=distill learns from tokens of its own draft; "
                "set it to 0 for task=heads"
            )
        self.kind, self.target, self.cfg, self.seed = kind, target.eval().requires_grad_(False), cfg, seed
        target.set_attn_implementation("sdpa")

    def __call__(self, module: Any, batch: Batch, step: int) -> LossSum:
        """The loss of the counted tokens; random choices follow from the seed and the batch's number."""
        seed = 1_000_003 * self.seed + batch.place["batches"]
        return self.kind.loss(module, self.target, batch, self.cfg, self.losses, seed)


def medusa_loss(
    module: MedusaHeads, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
    """Head k at token t learns the distribution of token t + 2 + k."""
    # From the token at which the last head predicts the first counted one.
    start = max(0, batch.first_counted - len(module.heads) - 1)
    hidden_BTD, teacher_BTV = _read(target, batch, start)
    logits_BTGV = module(hidden_BTD[:, start:])
    total = torch.zeros((), device=hidden_BTD.device)
    for k in range(logits_BTGV.shape[2]):
        ahead = k + 1  # the target's own head predicts token t + 1
        student_BTV = logits_BTGV[:, : -ahead - 1, k].float()
        counted = batch.counted_BT[:, start + ahead + 1 :]
        values = weighted_losses(losses, student_BTV, teacher_BTV[:, ahead:-1], batch.ids_BT[:, start + ahead + 1 :])
        total = total + cfg.decay**k * masked_sum(values, counted)
    return LossSum(total, batch.counted_BT.sum())


def medusa_guesses(module: MedusaHeads, target: Any, ids_BT: Tensor, start: int) -> Tensor:
    """Logits (B, T - start, G, V): the g-th of token t are for token t + 2 + g."""
    hidden_BTD, _ = _read(target, Batch(ids_BT, torch.ones_like(ids_BT).bool(), {}), ids_BT.shape[1] - 1)
    logits_BTGV: Tensor = module(hidden_BTD[:, start:])
    return logits_BTGV


def early_exit_loss(
    module: EarlyExit, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
    """The exit learns the distribution of the whole target."""
    start = batch.first_counted - 1
    states, teacher_BTV = read_target(target, batch, start)
    if not 1 <= cfg.layer < max(states):
        raise TrainingError(f"heads.layer={cfg.layer}: choose 1 to {max(states) - 1}")
    student_BTV = module.head(module.norm(states[cfg.layer][:, start:-1])).float()
    values = weighted_losses(losses, student_BTV, teacher_BTV[:, :-1], batch.ids_BT[:, start + 1 :])
    return LossSum(masked_sum(values, batch.counted_BT[:, start + 1 :]), batch.counted_BT.sum())


def eagle_loss(
    module: EagleLayer, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
    """At every unrolled step, entry t learns the distribution of token t + 2 and the hidden state of token t + 1."""
    start = max(0, batch.first_counted - 2)
    hidden_BTD, teacher_BTV = _read(target, batch, start)
    embeds_BTD, head = target.get_input_embeddings()(batch.ids_BT[:, 1:]), target.get_output_embeddings()
    total = torch.zeros((), device=batch.ids_BT.device)
    begin = max(0, start - cfg.num_heads + 1)  # what the last step at the first counted token follows from
    for step, output_BTD in enumerate(unroll(module, embeds_BTD, hidden_BTD, cfg.num_heads, begin)):
        first = max(start, step)  # earlier entries have no true entry to start from
        output_BTD, counted = output_BTD[:, first - begin : -1], batch.counted_BT[:, 2 + first :]
        student_BTV, truth_BT = head(output_BTD).float(), batch.ids_BT[:, 2 + first :]
        values = weighted_losses(losses, student_BTV, teacher_BTV[:, 1 + first - start : -1], truth_BT)
        near = nn.functional.smooth_l1_loss(output_BTD.float(), hidden_BTD[:, 1 + first : -1].float(), reduction="none")
        loss = masked_sum(values, counted) + cfg.feature_weight * masked_sum(near.mean(-1), counted)
        total = total + cfg.decay**step * loss
    return LossSum(total, batch.counted_BT.sum())


def unroll(
    module: EagleLayer, embeds_BTD: Tensor, hidden_BTD: Tensor, num_steps: int, first: int = 0
) -> Iterator[Tensor]:
    """The layer's outputs (B, T - first, D) of every step: at step i, the last i inputs are its own, as in drafting.

    Entry t of step i has position t and reads token t + 1 (``embeds_BTD[:, t]``) and the output of step i - 1 at
    entry t - 1. It attends to the true entries up to t - i, and of every step j <= i to entry t - i + j.
    Later steps begin at entry ``first``: the first i outputs of step i follow from no true entry.
    """
    num_rows, num_entries = embeds_BTD.shape[:2]
    fed_BTD = hidden_BTD[:, :num_entries]
    cache = cache_argument(module.body, DynamicCache(config=module.body.config))
    positions_T = torch.arange(num_entries, device=embeds_BTD.device)
    for step in range(num_steps):
        begin = first if step else 0
        output_BTD: Tensor = module.body(
            inputs_embeds=module.inputs(embeds_BTD[:, begin:], fed_BTD),
            attention_mask=unrolled_mask(num_entries, step, first, embeds_BTD.device).expand(num_rows, 1, -1, -1),
            position_ids=positions_T[None, begin:],
            **cache,
            use_cache=True,
        ).last_hidden_state[:, first - begin :]
        yield output_BTD
        fed_BTD = torch.cat([hidden_BTD[:, first : first + 1], output_BTD[:, :-1]], dim=1)


def ppd_loss(
    module: PromptTokens, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
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
    teacher_BKMV, truth_BKM = teacher_BTV[rows_B11, positions_BKM - start], ids_BT[rows_B11, positions_BKM + 1]
    values_BKM = weighted_losses(losses, student_BKMV, teacher_BKMV, truth_BKM)
    counted_BKM = batch.counted_BT[rows_B11, positions_BKM + 1]
    decays_M = cfg.decay ** torch.arange(num_probes, device=ids_BT.device)
    return LossSum(masked_sum(decays_M * values_BKM, counted_BKM), counted_BKM.any(-1).sum())


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


def _read(target: Any, batch: Batch, start: int) -> tuple[Tensor, Tensor]:
    """The target's last hidden states (B, T, D), and its logits from column ``start`` on (B, T - start, V)."""
    states, logits_BTV = read_target(target, batch, start)
    return states[max(states)], logits_BTV


def layers_to_cache(cfg: HeadsConfig, module: Any, target: Any) -> list[int]:
    """The layers of the target that a kind reads, by number; the last stands for its output.

    Raises:
        TrainingError: the kind needs forwards of the target that depend on more than the text.
    """
    if cfg.kind in ("ppd", "longspec"):
        raise TrainingError(
            f"heads.cache_hidden=true with heads.kind={cfg.kind}: the target runs with other inputs or positions in "
            "every batch; set it to false"
        )
    own = [cfg.layer] if cfg.kind == "early_exit" else getattr(module, "layer_ids", [])
    return [*own, target.config.get_text_config().num_hidden_layers]


KINDS: dict[str, HeadsKind] = {
    "medusa": HeadsKind(
        lambda target, cfg: MedusaHeads(cfg.num_heads, target.get_output_embeddings()),
        medusa_loss,
        lambda cfg: {"num_heads": cfg.num_heads},
        medusa_guesses,
    ),
    "eagle": HeadsKind(lambda target, cfg: EagleLayer(target), eagle_loss, lambda cfg: {}),
    "eagle3": HeadsKind(
        lambda target, cfg: Eagle3Head(target, cfg.layer_ids),
        eagle3_loss,
        lambda cfg: {},
        save=save_eagle3,
        reducible=True,
    ),
    "peagle": HeadsKind(PEagleHead, peagle_loss, lambda cfg: {}, save=save_peagle, reducible=True),
    "specblock": HeadsKind(SpecBlockHead, specblock_loss, lambda cfg: {}, save=save_specblock, reducible=True),
    "dflash": HeadsKind(
        lambda target, cfg: BlockHead(target, cfg, from_anchor=False),
        dflash_loss,
        lambda cfg: {},
        save=save_dflash,
        reducible=True,
    ),
    "dspark": HeadsKind(DSparkHead, dspark_loss, lambda cfg: {}, save=save_dspark, reducible=True, calibrate=calibrate),
    "longspec": HeadsKind(LongSpecHead, longspec_loss, lambda cfg: {"window": cfg.window}),
    "ppd": HeadsKind(
        lambda target, cfg: PromptTokens(cfg.num_heads, target.get_input_embeddings()),
        ppd_loss,
        lambda cfg: {"num_tokens": cfg.num_heads},
        ppd_guesses,
    ),
    "early_exit": HeadsKind(lambda target, cfg: EarlyExit(target), early_exit_loss, lambda cfg: {"layer": cfg.layer}),
}


def reduce_vocabulary(module: Any, cfg: HeadsConfig, stream: Stream, target: CausalLM) -> None:
    """Let the head draft the most frequent tokens of the training data alone, if the config asks for that."""
    if cfg.draft_vocab is not None:
        ids_N = most_frequent(stream.token_counts(target.vocab_size), cfg.draft_vocab)
        module.keep(ids_N.to(target.device), target.module)


def write_heads(folder: Path, cfg: HeadsConfig, settings: dict[str, Any], module: nn.Module, target: CausalLM) -> None:
    """Write the folder that ``drafter=KIND drafter.path=`` loads."""
    save = KINDS[cfg.kind].save
    if save is None:
        save_heads(folder, cfg.kind, settings, module, target)
    else:
        save(folder, module, target, cfg)
