"""Drafter and scheduler under watch: the same plug-ins, with every answer compared with the contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from specdec.alignment.checked import TOLERANCE
from specdec.alignment.reader import Reader
from specdec.conformance.cases import VOCAB
from specdec.conformance.promises import Broken
from specdec.core.clock import Clock
from specdec.core.round import Draft
from specdec.core.sequence import Sequence, SequencePool
from specdec.drafters.base import Drafter
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.schedulers.base import Scheduler


class CheckedDrafter(Drafter):
    """Compares every draft with that of a drafter which has just been given the row."""

    def __init__(self, inner: Drafter, fresh: Callable[[], Drafter], target: CausalLM, notes: list[Broken]) -> None:
        self.inner = inner
        self.fresh = fresh
        self.target = target
        self.notes = notes
        self.max_length = inner.max_length
        self.reads_hidden, self.probe_ids = inner.reads_hidden, inner.probe_ids

    def admit(self, rows: list[Sequence]) -> None:
        """Pass on."""
        self.inner.admit(rows)

    def read(self, rows: list[Sequence], stops: list[int]) -> None:
        """Pass on."""
        self.inner.read(rows, stops)

    def see(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:
        """Pass on."""
        self.inner.see(rows, hidden_BTD, kept)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Draft, and compare."""
        draft = self.inner.propose(rows, list(gammas))
        problem = misshapen(draft, gammas)
        if problem:
            self.notes.append(Broken("shape", problem))
        else:
            self._compare(draft, rows, gammas)
        return draft

    def commit(self, rows: list[Sequence]) -> None:
        """Pass on."""
        self.inner.commit(rows)

    def release(self, rows: list[Sequence]) -> None:
        """Pass on."""
        self.inner.release(rows)

    def _compare(self, draft: Draft, rows: list[Sequence], gammas: list[int]) -> None:
        together = self._draft_afresh(rows, gammas)
        tolerance = 10 * TOLERANCE[self.target.dtype]  # probabilities move more than logits
        for b, row in enumerate(rows):
            alone = together[b] if len(rows) == 1 else self._draft_afresh([row], [gammas[b]])[0]
            found = _Drafted.of(draft, b)
            if self.probe_ids and not found.tokens:
                continue  # in a round in which no row drafts nothing is asked, so the next one has nothing to propose
            if not together[b].agrees(alone, tolerance):
                detail = f"row {row.index} drafts {together[b]} beside others and {alone} alone"
                self.notes.append(Broken("neighbours", detail))
            elif not found.agrees(alone, tolerance):
                # Where a row's prompt ends may matter to a drafter, or not: one of the two must come to the same draft.
                if found.agrees(self._draft_afresh([row], [gammas[b]], merge=True)[0], tolerance):
                    continue
                detail = f"row {row.index} drafts {found} after {len(row.output_ids)} tokens, {alone} afresh"
                self.notes.append(Broken("state", detail))

    def _draft_afresh(self, rows: list[Sequence], gammas: list[int], merge: bool = False) -> list[_Drafted]:
        """What a new drafter proposes for the rows as they are, or as if all they hold were their prompts."""
        copies = []
        for row in rows:
            prompt, output = (row.tokens(0), []) if merge else (list(row.prompt_ids), list(row.output_ids))
            copies.append(
                Sequence(row.index, prompt, row.max_new_tokens, row.stop_ids, row.sampling, output_ids=output)
            )
        draft = draft_at_once(self.fresh(), copies, gammas, self.target)
        return [_Drafted.of(draft, b) for b in range(len(rows))]


def draft_at_once(drafter: Drafter, rows: list[Sequence], gammas: list[int], target: CausalLM) -> Draft:
    """The first draft of a drafter that has just been given the rows, and told of what it asks to see."""
    drafter.admit(rows)
    if drafter.reads_hidden:
        reader = Reader(create("alignment", "inplace", target, Clock()), drafter.see)
        reader.read(rows, [row.length - 1 for row in rows])
        if drafter.probe_ids:
            reader.probe(rows, drafter.probe_ids)
    return drafter.propose(rows, list(gammas))


@dataclass(frozen=True, slots=True)
class _Drafted:
    """One row's draft, and the distributions that its tokens were drawn from, where they were."""

    tokens: list[int]
    probs_GV: Tensor | None

    @classmethod
    def of(cls, draft: Draft, b: int) -> _Drafted:
        count = draft.num_candidates[b]
        probs_GV = None if draft.probs_BGV is None else draft.probs_BGV[b, :count].double()
        return cls(draft.tokens_BG[b, :count].tolist(), probs_GV)

    def agrees(self, other: _Drafted, tolerance: float) -> bool:
        """Whether both say the same. What is drawn may differ, but not the distribution that it is drawn from."""
        if not self.tokens and not other.tokens:
            return True  # whether probabilities come along with nothing may depend on the neighbours
        if self.probs_GV is None or other.probs_GV is None:
            return self.tokens == other.tokens and (self.probs_GV is None) == (other.probs_GV is None)
        for g, (ours, theirs) in enumerate(zip(self.tokens, other.tokens, strict=False)):
            if float((self.probs_GV[g] - other.probs_GV[g]).abs().max()) > tolerance:
                return False
            if ours != theirs:
                return True  # from here on they are drafts of different texts
        return len(self.tokens) == len(other.tokens)

    def __str__(self) -> str:
        if self.probs_GV is None:
            return str(self.tokens)
        chances = [round(float(p_V[token]), 4) for p_V, token in zip(self.probs_GV, self.tokens, strict=True)]
        return f"{self.tokens} with probabilities {chances}"


def misshapen(draft: Draft, gammas: list[int]) -> str:
    """What is wrong with a draft's form; empty if nothing is."""
    try:
        return _form_problem(draft, gammas)
    except Exception as error:  # so malformed that it cannot be read
        return f"the draft cannot be read: {type(error).__name__}: {error}"


def _form_problem(draft: Draft, gammas: list[int]) -> str:
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
        depths: list[int] = []
        for parent in parents[: draft.num_candidates[b]]:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        if max(depths, default=0) > gamma:
            return f"{max(depths)} tokens in a row drafted where {gamma} were wished"
        tokens = draft.tokens_BG[b, : draft.num_candidates[b]].tolist()
        if any(not 0 <= token < VOCAB for token in tokens):
            return f"tokens {tokens} outside the vocabulary of {VOCAB}"
    return ""


def _probs_problem(draft: Draft) -> str:
    assert draft.probs_BGV is not None
    expected, found = [*draft.tokens_BG.shape, VOCAB], list(draft.probs_BGV.shape)
    if found != expected:
        return f"probabilities of shape {found}, expected {expected}"
    for b, count in enumerate(draft.num_candidates):
        probs_GV = draft.probs_BGV[b, :count].double()
        if not bool((probs_GV >= 0).all()) or not bool(((probs_GV.sum(-1) - 1).abs() < 1e-3).all()):
            return f"probabilities of row {b} that are negative or do not add up to 1"
    return ""


class CheckedScheduler(Scheduler):
    """Looks at every choice."""

    def __init__(self, inner: Scheduler, batch: int, notes: list[Broken]) -> None:
        self.inner = inner
        self.batch = batch
        self.notes = notes
        self.prefill_share = inner.prefill_share
        self.groups_lengths, self.max_wait_rounds = inner.groups_lengths, inner.max_wait_rounds
        self._waited: dict[int, int] = {}  # by active row: rounds since it ran

    def select(self, pool: SequencePool) -> list[Sequence]:
        """Choose, and look at the choice and the pool."""
        everyone = _everyone(pool)
        rows = self.inner.select(pool)
        names = [row.index for row in rows]
        if not rows or len(rows) > self.batch or len(set(names)) < len(names):
            self.notes.append(Broken("choice", f"rows {names} for a batch of {self.batch}"))
        if idle := [row.index for row in rows if row.finished or not any(row is other for other in pool.active)]:
            self.notes.append(Broken("choice", f"rows {idle} are finished or not active"))
        if _everyone(pool) != everyone:
            self.notes.append(Broken("pool", f"rows {everyone} became {_everyone(pool)}"))
        if self.groups_lengths:
            self._check_grouping(rows, pool.active)
        self._check_waiting(rows, pool.active)
        return rows

    def end_round(self, rows: list[Sequence]) -> None:
        """A scheduler may end rows here; none that keeps its promise does."""
        before = [row.stop_reason for row in rows]
        self.inner.end_round(rows)
        if ended := [row.index for row, reason in zip(rows, before, strict=True) if row.stop_reason != reason]:
            self.notes.append(Broken("progress", f"rows {ended} are ended by the scheduler"))

    def _check_grouping(self, rows: list[Sequence], active: list[Sequence]) -> None:
        count_of = Counter(row.length for row in active)
        full = sorted(length for length, count in count_of.items() if count >= self.batch)
        grouped = len(rows) == self.batch and len({row.length for row in rows}) == 1
        if full and not grouped and not self._some_are_due(active):
            lengths = {row.index: row.length for row in rows}
            detail = f"rows of lengths {lengths} run, while {count_of[full[0]]} active rows have length {full[0]}"
            self.notes.append(Broken("grouping", f"{detail} and {self.batch} fill a batch"))

    def _some_are_due(self, active: list[Sequence]) -> bool:
        """Whether rows must run in this very round to keep the bound on waiting, for all of them together.

        That is so where, for some k, more rows must run within the next k + 1 rounds than the k later ones have room
        for.
        """
        if self.max_wait_rounds is None:
            return False
        slack = sorted(self.max_wait_rounds - self._waited.get(row.index, 0) for row in active)
        return any(place + 1 > left * self.batch for place, left in enumerate(slack))

    def _check_waiting(self, rows: list[Sequence], active: list[Sequence]) -> None:
        running = {row.index for row in rows}
        waiting = [row.index for row in active if row.index not in running]
        self._waited = {row: self._waited.get(row, 0) + 1 for row in waiting}
        longest = max(self._waited.values(), default=0)
        if self.max_wait_rounds is not None and longest > self.max_wait_rounds:
            late = [row for row, rounds in self._waited.items() if rounds == longest]
            detail = f"rows {late} are passed over for {longest} rounds, of at most {self.max_wait_rounds}"
            self.notes.append(Broken("waiting", detail))


def _everyone(pool: SequencePool) -> list[int]:
    return sorted(row.index for row in [*pool.waiting, *pool.active, *pool.finished])
