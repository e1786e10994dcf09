"""A drafter that checks another one: every draft is compared with that of a drafter that was just given the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from specdec.alignment.checked import TOLERANCE
from specdec.alignment.reader import Reader
from specdec.conformance.cases import VOCAB
from specdec.conformance.promises import Broken
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.drafters.base import Drafter
from specdec.drafters.wrapped import WrappedDrafter
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.verifiers.base import parents_of


class CheckedDrafter(WrappedDrafter):
    """Drafts what ``inner`` drafts, and notes every broken promise."""

    def __init__(self, inner: Drafter, fresh: Callable[[], Drafter], target: CausalLM, notes: list[Broken]) -> None:
        super().__init__(inner)
        self.fresh = fresh
        self.target = target
        self.notes = notes

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        draft = super().propose(rows, list(gammas))
        if problem := shape_problem(draft, gammas):
            self.notes.append(Broken("shape", problem))
        else:
            self._compare(draft, rows, gammas)
        return draft

    def _compare(self, draft: Draft, rows: list[Sequence], gammas: list[int]) -> None:
        together = self._draft_afresh(rows, gammas)
        tolerance = 10 * TOLERANCE[self.target.dtype]  # probabilities move more than logits
        for b, row in enumerate(rows):
            alone = together[b] if len(rows) == 1 else self._draft_afresh([row], [gammas[b]])[0]
            found = _Drafted.of(draft, b)
            if self.probe_ids and not found.tokens:
                continue  # a round in which no row drafts feeds no probes, so the next one has nothing to propose
            if not together[b].agrees(alone, tolerance):
                detail = f"row {row.index} drafts {together[b]} beside others and {alone} alone"
                self.notes.append(Broken("neighbours", detail))
            elif not found.agrees(alone, tolerance):
                if any(found.agrees(other, tolerance) for other in self._also_right(row, gammas[b])):
                    continue
                detail = f"row {row.index} drafts {found} after {len(row.output_ids)} tokens, {alone} afresh"
                self.notes.append(Broken("state", detail))

    def _also_right(self, row: Sequence, gamma: int) -> Iterator[_Drafted]:
        """A drafter may treat prompt and output alike; one with probes may have fed too few for all places."""
        yield self._draft_afresh([row], [gamma], merge=True)[0]
        if self.probe_ids:
            yield from (self._draft_afresh([row], [shorter])[0] for shorter in range(1, gamma))

    def _draft_afresh(self, rows: list[Sequence], gammas: list[int], merge: bool = False) -> list[_Drafted]:
        """What a new drafter proposes for the rows as they are, or with ``merge`` as if their outputs were prompt."""
        copies = []
        for row in rows:
            prompt, output = (row.tokens(0), []) if merge else (list(row.prompt_ids), list(row.output_ids))
            settings = (row.max_new_tokens, row.stop_ids, row.sampling)
            copies.append(Sequence(row.index, prompt, *settings, output_ids=output))
        draft = draft_at_once(self.fresh(), copies, gammas, self.target)
        return [_Drafted.of(draft, b) for b in range(len(rows))]


def draft_at_once(drafter: Drafter, rows: list[Sequence], gammas: list[int], target: CausalLM) -> Draft:
    """The first draft of a drafter that was just given the rows, and of the target what it reads."""
    alignment = create("alignment", "inplace", target, Clock())
    drafter.attach(alignment)
    drafter.admit(rows)
    if drafter.hidden_layers or drafter.reads_cache:
        reader = Reader(alignment, drafter.observe_hidden, drafter.hidden_layers)
        reader.read(rows, [row.length - 1 for row in rows])
        if drafter.probe_ids:
            reader.probe(rows, drafter.probe_ids, drafter.probes_MD)
    return drafter.propose(rows, list(gammas))


@dataclass(frozen=True, slots=True)
class _Drafted:
    """One row's draft, and the distributions that its tokens were drawn from, if they were drawn."""

    tokens: list[int]
    parents: list[int]
    probs_GV: Tensor | None  # of each node, at its parent's column: those of other columns mean nothing

    @classmethod
    def of(cls, draft: Draft, b: int) -> _Drafted:
        count = draft.num_candidates[b]
        parents = parents_of(draft, b)[:count]
        columns = [parent + 1 for parent in parents]
        probs_GV = None if draft.probs_BGV is None else draft.probs_BGV[b, columns].double()
        return cls(draft.tokens_BG[b, :count].tolist(), parents, probs_GV)

    def agrees(self, other: _Drafted, tolerance: float) -> bool:
        """Whether both say the same. What is drawn may differ, but not the distribution that it is drawn from."""
        if not self.tokens and not other.tokens:
            return True  # whether probabilities come along with nothing may depend on the neighbours
        if self.probs_GV is None or other.probs_GV is None:
            same = (self.tokens, self.parents) == (other.tokens, other.parents)
            return same and (self.probs_GV is None) == (other.probs_GV is None)
        for g, (ours, theirs) in enumerate(zip(self.tokens, other.tokens, strict=False)):
            if float((self.probs_GV[g] - other.probs_GV[g]).abs().max()) > tolerance:
                return False
            if ours != theirs:
                return True  # from here on they are drafts of different texts
        return len(self.tokens) == len(other.tokens)

    def __str__(self) -> str:
        if self.probs_GV is None:
            return str(self.tokens) if self.parents == list(range(-1, len(self.tokens) - 1)) else self._as_tree()
        chances = [round(float(p_V[token]), 4) for p_V, token in zip(self.probs_GV, self.tokens, strict=True)]
        return f"{self.tokens} with probabilities {chances}"

    def _as_tree(self) -> str:
        return f"{self.tokens} under {self.parents}"


def shape_problem(draft: Draft, gammas: list[int]) -> str:
    """What is wrong with a draft's shape; empty if nothing is."""
    try:
        return _shape_problem(draft, gammas)
    except Exception as error:  # too malformed to be read
        return f"the draft cannot be read: {type(error).__name__}: {error}"


def _shape_problem(draft: Draft, gammas: list[int]) -> str:
    num_rows, width = draft.tokens_BG.shape
    if num_rows != len(gammas) or len(draft.num_drafted) != len(gammas):
        return f"{len(gammas)} rows asked for, {num_rows} drafted"
    if max(draft.num_drafted) > width or min(draft.num_drafted) < 0:
        return f"num_drafted {draft.num_drafted} does not fit {width} columns"
    if draft.probs_BGV is not None and (problem := _probs_problem(draft)):
        return problem
    for b, (gamma, count) in enumerate(zip(gammas, draft.num_drafted, strict=True)):
        parents = list(draft.parents[b][:count]) if draft.parents else list(range(-1, count - 1))
        if len(parents) < count or any(not -1 <= parent < node for node, parent in enumerate(parents)):
            return f"parents {parents} of {count} nodes: each must be -1 or a node that comes before"
        siblings = list(zip(parents, draft.ids[b], strict=False))[: draft.num_candidates[b]]
        if len(set(siblings)) < len(siblings):
            return f"siblings with the same token: (parent, token) {siblings}; repeats belong to Draft.draws"
        depths: list[int] = []
        for parent in parents[: draft.num_candidates[b]]:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        if max(depths, default=0) > gamma:
            return f"{max(depths)} tokens in a row drafted where {gamma} were wished"
        tokens = draft.tokens_BG[b, : draft.num_candidates[b]].tolist()
        if any(not 0 <= token < VOCAB for token in tokens):
            return f"tokens {tokens} outside the vocabulary of {VOCAB}"
    return ""


def _paths(draft: Draft, b: int) -> list[list[int]]:
    return [draft.path(b, node) for node in range(draft.num_candidates[b])]


def _probs_problem(draft: Draft) -> str:
    assert draft.probs_BGV is not None
    expected, found = [*draft.tokens_BG.shape, VOCAB], list(draft.probs_BGV.shape)
    if found != expected:
        return f"probabilities of shape {found}, expected {expected}"
    for b in range(len(draft.num_drafted)):
        columns = sorted({path[-2] + 1 if len(path) > 1 else 0 for path in _paths(draft, b)})
        probs_GV = draft.probs_BGV[b, columns].double()
        if not bool((probs_GV >= 0).all()) or not bool(((probs_GV.sum(-1) - 1).abs() < 1e-3).all()):
            return f"probabilities of row {b} that are negative or do not add up to 1"
    return ""
