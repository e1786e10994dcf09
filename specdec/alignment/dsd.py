"""DSD as published: left padding that accumulates, without a mask. Known incorrect; kept to be measured.

Idea: after every round rows are padded on the left to the longest, and everything is computed again from the token
ids: the published code has a cache, cuts it to the batch's shortest acceptance, and then does not use it. The defects
of the alignment, each a switch (other defects are in verifier=dsd and scheduler=lockstep):

- ``attend_padding``: no attention mask is passed, so padding is read as text;
- ``pile_up_padding``: padded rows are padded again without stripping, so padding only grows. Harmless alone;
- ``absolute_positions``: positions count the padding. Alone it is harmless for rotary positions, which are relative,
  and fatal for learned ones.

With all of them off the result is exact.
Cost: the whole batch is computed again in every forward.
Source: Yan, Agarwal, Venkataraman 2024, arXiv 2402.01528; the defects are described in arXiv 2510.22876.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.content import Contents
from specdec.alignment.layout import causal, padded
from specdec.core.clock import Clock
from specdec.core.transfer import to_device
from specdec.models.causal_lm import CausalLM
from specdec.models.kv import KVStorage
from specdec.models.vocabulary import check_ids


class DsdAlignment(Alignment):
    """Recomputed left-padded ids; see the module's text."""

    def __init__(
        self,
        model: CausalLM,
        clock: Clock,
        *,
        attend_padding: bool = True,
        pile_up_padding: bool = True,
        absolute_positions: bool = True,
        pad_id: int = 0,
    ) -> None:
        check_ids("alignment.pad_id", [pad_id], model.vocab_size)
        self.model = model
        self.clock = clock
        self.attend_padding = attend_padding
        self.pile_up_padding = pile_up_padding
        self.absolute_positions = absolute_positions
        self.pad_id = pad_id
        self._contents = Contents()
        self._tokens: dict[int, list[int]] = {}  # committed ids
        self._nodes: dict[int, list[int]] = {}  # ids of the nodes fed since the last commit
        self._pads: dict[int, int] = {}

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        """Compute the prompts of new rows, padded to the longest; the result is discarded, as published."""
        self._contents.admit(rows)
        for row, content in zip(rows, contents, strict=True):
            self._contents[row].length = len(content)
            self._tokens[row], self._nodes[row], self._pads[row] = list(content), [], 0
        if any(contents):
            self._pad(rows)
            self._compute(rows)

    def release(self, rows: list[int]) -> None:
        self._contents.release(rows)
        for row in rows:
            del self._tokens[row], self._nodes[row], self._pads[row]

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        """Compute the rows again from their first column on; returns the new tokens' logits."""
        self._contents.require(rows, "forward")
        with self.clock.stage("align"):
            self._pad(rows)
        num_new = tokens_BT.shape[1]
        counts = num_tokens or [num_new] * len(rows)
        self._contents.feed(rows, counts, parents)
        firsts = []
        for row, tokens, count in zip(rows, tokens_BT.tolist(), counts, strict=True):
            firsts.append(self._pads[row] + len(self._tokens[row]) + len(self._nodes[row]))
            self._nodes[row].extend(tokens[:count])
        logits_BSV, _ = self._compute(rows)
        columns_BT = to_device(firsts, self.model.device)[:, None] + torch.arange(num_new, device=self.model.device)
        columns_BT.clamp_(max=logits_BSV.shape[1] - 1)  # past a row's count there may be no column
        return logits_BSV[torch.arange(len(rows), device=self.model.device)[:, None], columns_BT]

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        with self.clock.stage("align"):
            self._contents.require(rows, "commit")
            for row, keep in zip(rows, kept, strict=True):
                stay, nodes = self._contents[row].keep(keep)
                self._tokens[row] = self._tokens[row][:stay] + [self._nodes[row][node] for node in nodes]
                self._nodes[row] = []

    def length(self, row: int) -> int:
        return self._contents[row].length

    def content(self, row: int) -> Tensor:
        """The KV (N, H, length, D) that a forward over the row with its current padding computes."""
        pad, length = self._pads[row], self._contents[row].length
        if length == 0:
            return self.model.empty_storage(1, 0).data_NBHSD[:, 0]
        _, kv = self._compute([row])
        return kv.data_NBHSD[:, 0, :, pad : pad + length]

    def _pad(self, rows: list[int]) -> None:
        """Pad on the left to the longest row, in addition to earlier padding or in place of it."""
        if not self.pile_up_padding:
            self._pads.update((row, 0) for row in rows)
        width = max(self._pads[row] + self._contents[row].length for row in rows)
        self._pads.update((row, width - self._contents[row].length) for row in rows)

    def _compute(self, rows: list[int]) -> tuple[Tensor, KVStorage]:
        """Logits (B, S, V) and KV of padding, committed tokens and nodes; rows are ragged on the right."""
        pads, device = [self._pads[row] for row in rows], self.model.device
        ids_BS = padded([[self.pad_id] * self._pads[r] + self._tokens[r] + self._nodes[r] for r in rows], device)
        width = ids_BS.shape[1]
        columns_S = torch.arange(width, device=device)
        pads_B1 = to_device(pads, device)[:, None]
        shown_BS = (columns_S >= pads_B1) | self.attend_padding
        mask_BSS = causal(width, device) & shown_BS[:, None] | torch.eye(width, dtype=torch.bool, device=device)
        positions_BS = (columns_S - pads_B1).clamp(min=0)
        for b, row in enumerate(rows):
            content = self._contents[row]
            if not content.is_chain():
                first = pads[b] + content.length
                nodes = slice(first, first + len(content.parents))
                mask_BSS[b, nodes, nodes] = False
                seen = [(n, a) for n in range(len(content.parents)) for a in content.ancestors(n)]
                queries, keys = (to_device(seen, device) + first).unbind(-1)
                mask_BSS[b, queries, keys] = True
                positions_BS[b, nodes] = content.length + to_device(content.depths, device)
        if self.absolute_positions:
            positions_BS = torch.where(columns_S < pads_B1, columns_S, positions_BS + pads_B1)
        kv = self.model.empty_storage(len(rows), width)
        positions_BS = positions_BS.clamp(max=self.model.context_length - 1)
        return self.model.forward(ids_BS, positions_BS, mask_BSS, kv.append(width)), kv
