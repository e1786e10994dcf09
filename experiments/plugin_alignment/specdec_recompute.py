"""An alignment strategy in one file: keep tokens instead of KV, and recompute every row in every forward.

Without a cache nothing can go out of sync. It is slow: the other strategies save exactly this recomputation. After

    pip install ./experiments/plugin_alignment
    python -m specdec.conformance alignment=recompute      # proves it, or names the promise it breaks
    python run.py alignment=recompute batch=1,4 -m

it appears beside the built-in strategies in `--help`, in sweeps and in the conformance kit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec import register
from specdec.alignment.base import Alignment, Clock, Kept
from specdec.alignment.content import Contents

if TYPE_CHECKING:
    from torch import Tensor

    from specdec.alignment.base import CausalLM


@register("alignment", "recompute")
class RecomputeAlignment(Alignment):
    """Keeps tokens instead of KV, and recomputes every row in every forward."""

    def __init__(self, model: CausalLM, clock: Clock) -> None:
        self.model = model
        self.clock = clock
        self._contents = Contents()  # shared bookkeeping of lengths and trees, which also refuses misuse
        self._tokens: dict[int, list[int]] = {}
        self._nodes: dict[int, list[int]] = {}  # tokens fed since the last commit

    def admit(self, rows: list[int], contents: list[list[int]]) -> None:
        self._contents.admit(rows)
        for row, content in zip(rows, contents, strict=True):
            self._contents[row].length = len(content)
            self._tokens[row], self._nodes[row] = list(content), []

    def release(self, rows: list[int]) -> None:
        self._contents.release(rows)
        for row in rows:
            del self._tokens[row], self._nodes[row]

    def forward(
        self,
        rows: list[int],
        tokens_BT: Tensor,
        num_tokens: list[int] | None = None,
        parents: list[list[int]] | None = None,
    ) -> Tensor:
        import torch  # imported late, so that `--help` stays fast

        self._contents.require(rows, "forward")
        counts = num_tokens or [tokens_BT.shape[1]] * len(rows)
        for b, (row, new) in enumerate(zip(rows, tokens_BT.tolist(), strict=True)):
            self._contents[row].feed(counts[b], parents[b] if parents else None)
            self._nodes[row] += new[: counts[b]]
        logits_BTV, _ = self._run(rows)
        ends = [len(self._tokens[row]) + len(self._nodes[row]) for row in rows]
        firsts_B1 = torch.tensor([end - count for end, count in zip(ends, counts, strict=True)])[:, None]
        columns_BT = (firsts_B1 + torch.arange(tokens_BT.shape[1])).clamp(max=logits_BTV.shape[1] - 1)
        return logits_BTV[torch.arange(len(rows))[:, None], columns_BT]

    def commit(self, rows: list[int], kept: list[Kept]) -> None:
        self._contents.require(rows, "commit")
        for row, keep in zip(rows, kept, strict=True):
            stay, nodes = self._contents[row].keep(keep)
            self._tokens[row] = self._tokens[row][:stay] + [self._nodes[row][node] for node in nodes]
            self._nodes[row] = []

    def length(self, row: int) -> int:
        return self._contents[row].length

    def content(self, row: int) -> Tensor:
        _, data_NBHSD = self._run([row])
        return data_NBHSD[:, 0, :, : self.length(row)]

    def _run(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Logits (B, S, V) and KV (N, B, H, S, D) of right-padded rows; nodes follow the committed tokens."""
        import torch

        from specdec.alignment.layout import padded

        device, lengths = self.model.device, [self.length(row) for row in rows]
        tokens_BS = padded([self._tokens[row] + self._nodes[row] for row in rows], device)
        width = max(tokens_BS.shape[1], 1)
        mask_BSS = torch.eye(width, dtype=torch.bool, device=device).repeat(len(rows), 1, 1)
        positions: list[list[int]] = []
        for b, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            content = self._contents[row]
            mask_BSS[b, :length, :length] = torch.ones(length, length, dtype=torch.bool, device=device).tril()
            mask_BSS[b, length : length + len(content.parents), :length] = True
            for node in range(len(content.parents)):
                mask_BSS[b, length + node, [length + seen for seen in content.ancestors(node)]] = True
            own = [*range(length), *(length + depth for depth in content.depths)]
            positions.append(own + [0] * (width - len(own)))
        storage = self.model.empty_storage(len(rows), width)
        if not tokens_BS.shape[1]:
            return tokens_BS.new_zeros(len(rows), 0, self.model.vocab_size), storage.data_NBHSD
        logits_BSV = self.model.forward(tokens_BS, padded(positions, device), mask_BSS, storage.append(width))
        return logits_BSV, storage.data_NBHSD
