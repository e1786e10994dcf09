"""Training of SpecBlock: blocks of slots over EAGLE-3's input, projections between layers, and a head of ranks.

All slots of a block read the same: of the first block after an anchor, the anchor and the target's hidden states before
it; of a later one, a token of the text and the state of the slot of the block before that drafts it. Which one is
drawn, so that blocks learn to start anywhere in the block before. A slot counts only after right ones, as in drafting.
The rank head learns among how many of the draft's most probable tokens the text's next token is.
Source: arXiv 2605.07243 (SpecBlock); its weights of classes are those of its code.
Shape letters: B rows, T tokens, A anchors, K slots of a block, S entries and slots, D hidden size, H hidden states that
are read, V vocabulary, N tokens that can be drafted, C classes of ranks, X any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from specdec.heads.shapes import NUM_CLASSES, NUM_FIGURES, NUM_TOP, NUM_WIDE
from specdec.models.causal_lm import CausalLM
from specdec.training.anchors import Anchors, at, slots_mask, teacher
from specdec.training.blocks import Batch
from specdec.training.config import HeadsConfig, LossConfig
from specdec.training.eagle3 import Eagle3Head
from specdec.training.losses import LossSum, masked_sum
from specdec.training.published import save_published
from specdec.training.recompute import recomputed

NUM_BLOCKS = 2
"""After every anchor. A block more costs a forward over all slots before it too."""
_LAST_RANKS = (1, 4, 10)  # the first ranks, from 0, that are beyond the classes


class Slots(NamedTuple):
    """What the layers are fed: the true entries of the rows, then slots."""

    embeds_BSD: Tensor
    conditions_BSD: Tensor
    positions_BS: Tensor
    before_BS: Tensor  # the column of the slot before; of first slots their own
    mask_BSS: Tensor

    def with_blocks(self, embeds_BAD: Tensor, conditions_BAD: Tensor, columns_BA: Tensor, size: int) -> Slots:
        """Blocks of slots that each start after a slot, by its column."""
        num_rows, num_known = self.positions_BS.shape
        new = size * columns_BA.shape[1]
        own_BS = torch.arange(num_known, num_known + new, device=columns_BA.device).expand(num_rows, -1)
        later_S = torch.arange(new, device=columns_BA.device) % size
        starts_BS = columns_BA.repeat_interleave(size, dim=1)
        above_BSS = self.mask_BSS.gather(1, starts_BS[..., None].expand(-1, -1, num_known))
        own_SS = torch.block_diag(*[torch.ones(size, size, device=columns_BA.device).tril()] * columns_BA.shape[1]) > 0
        rows_BSS = torch.cat([above_BSS, own_SS.expand(num_rows, -1, -1)], dim=2)
        return Slots(
            torch.cat([self.embeds_BSD, embeds_BAD.repeat_interleave(size, dim=1)], dim=1),
            torch.cat([self.conditions_BSD, conditions_BAD.repeat_interleave(size, dim=1)], dim=1),
            torch.cat([self.positions_BS, self.positions_BS.gather(1, starts_BS) + 1 + later_S], dim=1),
            torch.cat([self.before_BS, torch.where(later_S == 0, own_BS, own_BS - 1)], dim=1),
            torch.cat([pad(self.mask_BSS, (0, new)), rows_BSS], dim=1),
        )


class SpecBlockHead(Eagle3Head):
    """EAGLE-3's first layer and ordinary ones, with a projection between each two, and the rank head."""

    def __init__(self, target: Any, cfg: HeadsConfig) -> None:
        super().__init__(target, cfg.layer_ids, cfg.num_layers)
        size, self.block_size = self.fc.out_features, cfg.num_heads
        self.shifts = nn.ModuleList([nn.Linear(2 * size, size, bias=False) for _ in range(cfg.num_layers - 1)])
        self.rank_head = nn.Linear(size + NUM_FIGURES, NUM_CLASSES)
        with torch.no_grad():
            for shift in self.shifts:
                shift.weight.mul_(0.1)[:, :size] += torch.eye(size)  # type: ignore[operator, index]

    def forward(
        self, target: Any, ids_BT: Tensor, hidden_BTH: Tensor, places_BA: Tensor, starts: list[Tensor]
    ) -> list[Tensor]:
        """The states (B, A, K, D) of the blocks after the anchors, one after the other. No anchor is a first token.

        Args:
            starts: (B, A) of every further block, the slot of the block before that drafts its first token.
        """
        slots, columns_BAK = self._first(target, ids_BT, hidden_BTH, places_BA)
        found = [at(self._states(slots), columns_BAK)]
        token_BA = places_BA + 1  # the column of the token that the block's slot 0 drafts
        for start_BA in starts:
            column_BA = columns_BAK.gather(2, start_BA[..., None])[..., 0]
            token_BA = token_BA + start_BA
            with torch.no_grad():
                ids_BA = ids_BT.gather(1, token_BA.clamp(max=ids_BT.shape[1] - 1))
                embeds_BAD = target.get_input_embeddings()(ids_BA)
            places_BA1D = start_BA[..., None, None].expand(-1, -1, 1, found[-1].shape[-1])
            conditions_BAD = found[-1].gather(2, places_BA1D)[:, :, 0]
            num_known = slots.positions_BS.shape[1]
            slots = slots.with_blocks(embeds_BAD, conditions_BAD, column_BA, self.block_size)
            columns_S = torch.arange(num_known, slots.positions_BS.shape[1], device=ids_BT.device)
            columns_BAK = columns_S.view(1, -1, self.block_size).expand(len(ids_BT), -1, -1)
            found.append(at(self._states(slots), columns_BAK))
            token_BA = token_BA + 1
        return found

    def _first(self, target: Any, ids_BT: Tensor, hidden_BTH: Tensor, places_BA: Tensor) -> tuple[Slots, Tensor]:
        """The entries of the text and the first blocks, whose slot 0 is the anchor's entry; and columns (B, A, K)."""
        num_rows, num_entries, num_more = len(ids_BT), ids_BT.shape[1] - 1, self.block_size - 1
        ends_BA = places_BA - 1
        with torch.no_grad():
            embeds_BTD = target.get_input_embeddings()(ids_BT[:, 1:])
        conditions_BTD, repeated_BS = self.fc(hidden_BTH[:, :-1]), ends_BA.repeat_interleave(num_more, dim=1)
        entries_T = torch.arange(num_entries, device=ids_BT.device)
        later_BAM = num_entries + torch.arange(repeated_BS.shape[1], device=ids_BT.device).view(1, -1, num_more)
        columns_BAK = torch.cat([ends_BA[..., None], later_BAM.expand(num_rows, -1, -1)], dim=2)
        steps_S = torch.arange(repeated_BS.shape[1], device=ids_BT.device) % num_more + 1 if num_more else entries_T[:0]
        of_slots = slots_mask(ends_BA + 1, num_entries, num_more, causal=True)
        of_entries_TS = pad(entries_T <= entries_T[:, None], (0, len(steps_S)))
        slots = Slots(
            torch.cat([embeds_BTD, at(embeds_BTD, repeated_BS[..., None])[:, :, 0]], dim=1),
            torch.cat([conditions_BTD, at(conditions_BTD, repeated_BS[..., None])[:, :, 0]], dim=1),
            torch.cat([entries_T.expand(num_rows, -1), repeated_BS + steps_S], dim=1),
            torch.cat([entries_T.expand(num_rows, -1), columns_BAK[..., :-1].flatten(1)], dim=1),
            torch.cat([of_entries_TS.expand(num_rows, -1, -1), of_slots], dim=1),
        )
        return slots, columns_BAK

    def _states(self, slots: Slots) -> Tensor:
        """(B, S, D)."""
        rotation, mask_B1SS = self.rotary(slots.conditions_BSD, slots.positions_BS), slots.mask_BSS[:, None]
        states_BSD: Tensor
        states_BSD, _ = recomputed(self.layers[0], slots.embeds_BSD, slots.conditions_BSD, rotation, (), mask_B1SS)
        for shift, layer in zip(self.shifts, self.layers[1:], strict=True):
            before_BSD = at(states_BSD, slots.before_BS[..., None])[:, :, 0]
            states_BSD = shift(torch.cat([states_BSD, before_BSD], dim=-1))
            states_BSD = recomputed(layer, states_BSD, attention_mask=mask_B1SS, position_embeddings=rotation)
        return states_BSD

    def ranks(self, states_XD: Tensor, logits_XN: Tensor) -> Tensor:
        """(X, C) logits of the rank's class, by figures of the draft that it does not change."""
        wide = logits_XN.detach().float().log_softmax(-1).topk(NUM_WIDE, dim=-1).values
        gaps, among = wide[..., :1] - wide[..., [1, 2, 4]], wide.softmax(-1)
        figures = [wide[..., :NUM_TOP], gaps, among[..., :1], torch.special.entr(among).sum(-1, keepdim=True)]
        normed_XD = self.norm(states_XD).detach()
        found: Tensor = self.rank_head(torch.cat([normed_XD, *(part.to(normed_XD) for part in figures)], dim=-1))
        return found.float()


class TextBlock(NamedTuple):
    """The blocks of one step after all anchors, and what the text says at their slots."""

    states_BAKD: Tensor
    columns_BAK: Tensor  # of the tokens that they predict, among those after the anchor
    truth_BAK: Tensor
    counted_BAK: Tensor


def text_blocks(
    module: SpecBlockHead, target: Any, batch: Batch, hidden_BTH: Tensor, anchors: Anchors, seed: int
) -> list[TextBlock]:
    """The blocks after the anchors and those that follow them, which start at slots that are drawn."""
    size, places_BA = module.block_size, anchors.places_BA
    generator = torch.Generator().manual_seed(seed)
    starts = [
        torch.randint(size, places_BA.shape, generator=generator).to(places_BA.device) for _ in range(NUM_BLOCKS - 1)
    ]
    first_BA1, found = torch.zeros_like(places_BA)[..., None], []
    states = module(target, batch.ids_BT, hidden_BTH, places_BA, starts)
    for states_BAKD, start_BA in zip(states, [*starts, torch.zeros_like(places_BA)], strict=True):
        columns_BAK = first_BA1 + torch.arange(size, device=first_BA1.device)
        truth_BAK = at(batch.ids_BT, anchors.columns_BAK.gather(2, columns_BAK))
        found.append(TextBlock(states_BAKD, columns_BAK, truth_BAK, anchors.counted_BAK.gather(2, columns_BAK)))
        first_BA1 = first_BA1 + start_BA[..., None] + 1
    return found


def specblock_loss(
    module: SpecBlockHead, target: Any, batch: Batch, cfg: HeadsConfig, losses: LossConfig, seed: int
) -> LossSum:
    """The losses of all blocks: of the tokens at slots that follow right ones, and of the ranks."""
    anchors = Anchors.drawn(batch, cfg.num_anchors, NUM_BLOCKS * module.block_size, seed, first=1)
    hidden_BTH, teacher_BAKV = teacher(target, batch, anchors, module.layer_ids)
    total = torch.zeros((), device=batch.ids_BT.device)
    for block in text_blocks(module, target, batch, hidden_BTH, anchors, seed):
        logits_BAKN = module.logits(block.states_BAKD).float()
        columns_BAKV = block.columns_BAK[..., None].expand(*block.columns_BAK.shape, teacher_BAKV.shape[-1])
        values_BAK, known_BAK = module.tokens.losses(
            losses, logits_BAKN, teacher_BAKV.gather(2, columns_BAKV), block.truth_BAK, block.counted_BAK
        )
        ranks_BAK = true_ranks(module, logits_BAKN, block.truth_BAK)
        total = total + tokens_loss(values_BAK, known_BAK, ranks_BAK, cfg.decay)
        total = total + rank_head_loss(module, block, logits_BAKN, ranks_BAK)
    return LossSum(total, anchors.counted_BAK.any(-1).sum())


def true_ranks(module: SpecBlockHead, logits_BAKN: Tensor, truth_BAK: Tensor) -> Tensor:
    """(B, A, K): how many tokens the draft holds more probable than the text's own; N where it cannot draft that."""
    logits_BAKN = logits_BAKN.detach()
    places_BAK, can_BAK = module.tokens.places(truth_BAK)
    own_BAK1 = logits_BAKN.gather(-1, places_BAK[..., None])
    return torch.where(can_BAK, (logits_BAKN > own_BAK1).sum(-1), logits_BAKN.shape[-1])


def tokens_loss(values_BAK: Tensor, counted_BAK: Tensor, ranks_BAK: Tensor, decay: float) -> Tensor:
    """The sum of the slots' losses where all slots before them are right; later slots weigh less."""
    decays_K = decay ** torch.arange(values_BAK.shape[-1], device=values_BAK.device)
    return masked_sum(decays_K * values_BAK, counted_BAK & _after_right(ranks_BAK == 0))


def rank_head_loss(module: SpecBlockHead, block: TextBlock, logits_BAKN: Tensor, ranks_BAK: Tensor) -> Tensor:
    """`rank_loss` of slots up to the first whose class is guessed wrong."""
    class_BAK = torch.bucketize(ranks_BAK, torch.tensor(_LAST_RANKS, device=ranks_BAK.device), right=True)
    guesses_BAKC = module.ranks(block.states_BAKD, logits_BAKN)
    right_BAK = guesses_BAKC.argmax(-1) == class_BAK
    return rank_loss(guesses_BAKC, class_BAK, block.counted_BAK & _after_right(right_BAK))


def rank_loss(ranks_XC: Tensor, class_X: Tensor, counted_X: Tensor) -> Tensor:
    """Cross-entropy with classes that are spread over their neighbours; missing a high rank costs most.

    Frequent classes weigh less: the sum of a class's weights is at most 10.
    """
    classes_C = torch.arange(NUM_CLASSES, device=class_X.device)
    below_XC = class_X[..., None] - classes_C
    soft_XC = 1 / (1 + below_XC.abs() + below_XC.clamp(min=0)).square()
    soft_XC = soft_XC / soft_XC.sum(-1, keepdim=True)
    missed_X = class_X - ranks_XC.argmax(-1)
    counts_C = torch.bincount(class_X[counted_X], minlength=NUM_CLASSES)
    weight_X = (10 / counts_C.clamp(min=1)).clamp(max=1)[class_X] * (1 + missed_X.abs() + missed_X.clamp(min=0))
    return masked_sum(-(soft_XC * ranks_XC.log_softmax(-1)).sum(-1) * weight_X, counted_X)


def _after_right(right_BAK: Tensor) -> Tensor:
    """Which slots of a block only right ones stand before."""
    return torch.cat([torch.ones_like(right_BAK[..., :1]), right_BAK[..., :-1]], dim=-1).cumprod(-1).bool()


def save_specblock(folder: Path, module: SpecBlockHead, target: CausalLM, cfg: HeadsConfig) -> None:
    """Write the head with the names of `speculators`' EAGLE-3, which ``drafter=specblock`` loads."""
    own = {
        "eagle_aux_hidden_state_layer_ids": module.layer_ids,
        "norm_before_residual": False,
        "block_size": module.block_size,
    }
    save_published(folder, "specblock", module, target, own, cfg.num_heads)
