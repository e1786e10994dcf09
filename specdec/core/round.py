"""The data of one round: its draft, its verdict and its counts. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specdec.core.sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Draft:
    """Proposed tokens of a round. B rows, G the largest number of nodes, V vocabulary.

    In a tree parents come before their children, siblings have different tokens and stand in the order in which they
    were drawn. Column 0 stands for the last committed token, column g + 1 for node g.
    """

    tokens_BG: Tensor  # ids on the target's device; those after num_drafted[b] are padding
    num_drafted: list[int]  # nodes per row, 0 to G
    parents: list[list[int]] | None = None  # trees: parent node of each node, -1 for the last committed token
    # By column: the distribution its children were sampled from; anything where there are none. None: not sampled.
    # It is valid until the drafter's next draft.
    probs_BGV: Tensor | None = None
    draws: list[list[int]] | None = None  # i.i.d. siblings: the nodes as they were drawn, in order, repeats included
    num_probes: list[int] | None = None  # last nodes of each row that are probes (``probe_ids``), not proposals
    # By column: the largest probability of the draft's distribution after it, at temperature 1, and its entropy (nats).
    certainty_BG2: Tensor | None = None  # None: not reported
    # By column: the drafter's own prediction that the next token is accepted, made of what precedes that token alone.
    chances_BG: Tensor | None = None  # None: it predicts nothing
    cut_from: list[int] | None = None  # a budget has cut the drafts, which had these depths
    learned: tuple[str, float] | None = None  # the part of the drafter that was updated before, and the seconds it took
    _ids: list[list[int]] | None = field(default=None, init=False, repr=False, compare=False)
    _chances: list[list[float]] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def num_candidates(self) -> list[int]:
        """Nodes per row that may be accepted."""
        if self.num_probes is None:
            return self.num_drafted
        return [count - probes for count, probes in zip(self.num_drafted, self.num_probes, strict=True)]

    @property
    def ids(self) -> list[list[int]]:
        """``tokens_BG`` on the host. If a verifier has called ``fetch``, nothing is waited for again."""
        if self._ids is None:
            self._ids = self.tokens_BG.tolist()
        return self._ids

    @property
    def chances(self) -> list[list[float]] | None:
        """``chances_BG`` on the host, as ``ids`` is."""
        if self._chances is None and self.chances_BG is not None:
            if self.tokens_BG.device.type == "cpu":
                self._chances = self.chances_BG.tolist()
            else:
                self.fetch(self.tokens_BG[:, :0])
        return self._chances

    def fetch(self, values_BX: Tensor) -> list[list[int]]:
        """A verifier's integers on the host, and the draft's tokens and chances with them: the round's only wait."""
        if self.tokens_BG.device.type == "cpu":  # no wait to save
            values: list[list[int]] = values_BX.tolist()
            return values
        import torch

        parts = [self.tokens_BG, values_BX]
        if self.chances_BG is not None and self._chances is None:
            parts.append(self.chances_BG.double().view(torch.int64))
        whole = torch.cat(parts, dim=1).cpu().numpy()
        first, last = self.tokens_BG.shape[1], self.tokens_BG.shape[1] + values_BX.shape[1]
        self._ids = whole[:, :first].tolist()
        if len(parts) > 2:
            self._chances = whole[:, last:].view("float64").tolist()
        fetched: list[list[int]] = whole[:, first:last].tolist()
        return fetched

    def path_of(self, b: int, tokens: list[int]) -> list[int]:
        """Row b's nodes that hold these tokens, one after the other from the last committed token on."""
        if self.parents is None:
            return list(range(len(tokens)))
        path, node = list[int](), -1
        for child, parent in enumerate(self.parents[b]):  # parents come before children: one pass goes down
            if len(path) == len(tokens):
                break
            if parent == node and self.ids[b][child] == tokens[len(path)]:
                path.append(child)
                node = child
        return path

    def end_depth(self, b: int, path: list[int]) -> int:
        """Depth of row b's deepest candidate on a path or below it: the length of a path that is accepted in full."""
        if self.parents is None:
            return self.num_candidates[b]
        depths = {path[-1] if path else -1: len(path)}
        for node, parent in enumerate(self.parents[b][: self.num_candidates[b]]):
            if parent in depths:
                depths[node] = depths[parent] + 1
        return max(depths.values())

    def ranks(self, b: int, path: list[int]) -> list[int]:
        """Places among their siblings, from 0, of the nodes of a path of row b."""
        if self.parents is None:
            return [0] * len(path)
        parents = self.parents[b]
        return [parents[:node].count(parents[node]) for node in path]

    def path(self, b: int, node: int) -> list[int]:
        """Row b's nodes on the path from the last committed token to ``node``."""
        if self.parents is None:
            return list(range(node + 1))
        nodes = []
        while node != -1:
            nodes.append(node)
            node = self.parents[b][node]
        return nodes[::-1]


@dataclass(slots=True)
class Verdict:
    """Per row: the accepted nodes in path order, and the token after them (recovered or bonus)."""

    paths: list[list[int]]
    next_tokens: list[int]

    def fed_nodes(self, b: int) -> list[int]:
        """Row b's accepted nodes as the target was fed them: node 0 is the row's last token, the draft follows."""
        return [0, *[node + 1 for node in self.paths[b]]]


@dataclass(slots=True)
class Round:
    """What one round did: raw counts, from which every ratio is derived."""

    rows: list[Sequence]
    num_drafted: list[int]  # candidates: all nodes of a tree
    num_accepted: list[int]  # accepted tokens that were emitted (a stop may cut them off)
    emitted: list[list[int]]
    same_length: bool
    seconds: dict[str, float] = field(default_factory=dict)  # per stage of the clock
    finished: list[Sequence] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)  # of the drafts: the most tokens that could have been accepted
    end_depths: list[int] = field(default_factory=list)  # the same below the accepted path: no more than that if full
    ranks: list[list[int]] | None = None  # trees: the place of each accepted node among its siblings
    proposed: list[int] = field(default_factory=list)  # depths of the drafts before a budget cut them
    cut_chances: list[float] | None = None  # a budget's: that the first level it cut would have been accepted, 0: none
    learned: tuple[str, float] | None = None  # as `Draft.learned`
    calibration: list[list[float]] | None = None  # predictions of a budget or a drafter by bins: number, sum, accepted

    def __post_init__(self) -> None:
        """The drafts are chains unless their depths are given, and whole unless it is said what was proposed."""
        self.depths = self.depths or list(self.num_drafted)
        self.end_depths = self.end_depths or list(self.depths)
        self.proposed = self.proposed or list(self.depths)
