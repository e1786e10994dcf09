"""DSD's acceptance as published: it emits the draft's rejected token. Known incorrect; kept to be measured.

Each deviation from greedy verification is a switch:

- ``keep_rejected``: at the first mismatch the draft's rejected token is emitted, and never the target's choice. This
  alone breaks equivalence, at batch 1 too;
- ``no_bonus``: full acceptance emits no further token. Exact, but slower.

With both off it is the greedy verifier. Source: Yan, Agarwal, Venkataraman 2024, arXiv 2402.01528, whose script cuts
at ``index + 1``; described in arXiv 2510.22876.
"""

from __future__ import annotations

from torch import Tensor

from specdec.core.round import Draft, Verdict
from specdec.verifiers.base import Verifier, parents_of


class DsdVerifier(Verifier):
    """Greedy matching that emits the token it rejected; see the module's docstring."""

    def __init__(self, *, keep_rejected: bool, no_bonus: bool) -> None:
        self.keep_rejected = keep_rejected
        self.no_bonus = no_bonus

    def verify(self, draft: Draft, logits_BTV: Tensor) -> Verdict:
        """Without a bonus, the last accepted token becomes the round's next token."""
        verdict = super().verify(draft, logits_BTV)
        drafted = draft.ids
        for b, path in enumerate(verdict.paths):
            end = path[-1] if path else -1
            rejected = [node for node, parent in enumerate(parents_of(draft, b)) if parent == end]
            if rejected and self.keep_rejected:
                verdict.next_tokens[b] = drafted[b][rejected[0]]
            elif not rejected and path and self.no_bonus:
                verdict.next_tokens[b] = drafted[b][path.pop()]
        return verdict
