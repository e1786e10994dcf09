"""Greedy verification: the longest match with the target's argmax, on a chain or a tree.

Rule: accept while a drafted token equals the target's argmax; the argmax at the first mismatch is the recovered
token, the one after full acceptance is the bonus. Source: Leviathan et al. 2023, the limit of temperature 0.
"""

from __future__ import annotations

from torch import Tensor

from specdec.drafters.base import Draft
from specdec.verifiers.base import Verdict, Verifier


class GreedyVerifier(Verifier):
    """Exact for greedy decoding: what is emitted is the target's own argmax, token by token."""

    def verify(self, draft: Draft, logits_BTV: Tensor, uniforms_BT: Tensor | None = None) -> Verdict:
        """See the contract; ties are broken as torch's argmax does, like in plain decoding."""
        chosen = logits_BTV.argmax(-1).tolist()  # the round's one wait for the device
        drafted = draft.tokens_BG.tolist()
        paths, next_tokens = [], []
        for b, num_drafted in enumerate(draft.num_drafted):
            parents = draft.parents[b] if draft.parents else list(range(-1, num_drafted - 1))
            path: list[int] = []
            node = -1
            for child in range(num_drafted):  # parents come before children, so one pass follows the path down
                if parents[child] == node and drafted[b][child] == chosen[b][node + 1]:
                    path.append(child)
                    node = child
            paths.append(path)
            next_tokens.append(chosen[b][node + 1])
        return Verdict(paths, next_tokens)
