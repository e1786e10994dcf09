"""Drafter, verifier and scheduler under watch: the same plug-ins, with every answer compared with the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from specdec.clock import Clock
from specdec.conformance.cases import VOCAB
from specdec.conformance.promises import Broken
from specdec.drafters.base import Draft, Drafter
from specdec.errors import ContractError
from specdec.law import Noise
from specdec.model import CausalLM
from specdec.reading import Reader
from specdec.registry import create
from specdec.schedulers.base import Scheduler
from specdec.sequence import Sequence, SequencePool
from specdec.verifiers.base import Verdict, Verifier

SMALL_VOCAB = 7
SHARP = 60.0  # logits of +-60: the probability of anything but the argmax is zero in every dtype that is used


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
        problem = _misshapen(draft, gammas)
        if problem:
            self.notes.append(Broken("shape", problem))
        elif draft.probs_BGV is None:  # what was drawn at random cannot be drawn again
            self._compare(draft, rows, gammas)
        return draft

    def commit(self, rows: list[Sequence]) -> None:
        """Pass on."""
        self.inner.commit(rows)

    def release(self, rows: list[Sequence]) -> None:
        """Pass on."""
        self.inner.release(rows)

    def _compare(self, draft: Draft, rows: list[Sequence], gammas: list[int]) -> None:
        together = self._draft_afresh(rows, gammas, False)
        for b, row in enumerate(rows):
            # Where a row's prompt ends may matter to a drafter, or not: one of the two must come to the same draft.
            alone, merged = (self._draft_afresh([row], [gammas[b]], merge)[0] for merge in (False, True))
            found = _tokens(draft, b)
            if self.probe_ids and not found:
                continue  # in a round in which no row drafts nothing is asked, so the next one has nothing to propose
            if together[b] != alone:
                detail = f"row {row.index} drafts {together[b]} beside others and {alone} alone"
                self.notes.append(Broken("neighbours", detail))
            elif found not in (alone, merged):
                detail = f"row {row.index} drafts {found} after {len(row.output_ids)} tokens, {alone} afresh"
                self.notes.append(Broken("state", detail))

    def _draft_afresh(self, rows: list[Sequence], gammas: list[int], merge: bool) -> list[list[int]]:
        """What a new drafter proposes for the rows as they are, or as if all they hold were their prompts."""
        copies = []
        for row in rows:
            prompt, output = (row.tokens(0), []) if merge else (list(row.prompt_ids), list(row.output_ids))
            copies.append(Sequence(row.index, prompt, row.max_new_tokens, row.stop_ids, output_ids=output))
        drafter = self.fresh()
        drafter.admit(copies)
        if drafter.reads_hidden:
            reader = Reader(create("alignment", "inplace", self.target, Clock()), drafter.see)
            reader.read(copies, [row.length - 1 for row in copies])
            if drafter.probe_ids:
                reader.probe(copies, drafter.probe_ids)
        draft = drafter.propose(copies, list(gammas))
        return [_tokens(draft, b) for b in range(len(rows))]


def _tokens(draft: Draft, b: int) -> list[int]:
    tokens: list[int] = draft.tokens_BG[b, : draft.num_candidates[b]].tolist()
    return tokens


def _misshapen(draft: Draft, gammas: list[int]) -> str:
    """What is wrong with a draft's form; empty if nothing is."""
    num_rows, width = draft.tokens_BG.shape
    if num_rows != len(gammas) or len(draft.num_drafted) != len(gammas):
        return f"{len(gammas)} rows asked for, {num_rows} drafted"
    if max(draft.num_drafted) > width or min(draft.num_drafted) < 0:
        return f"num_drafted {draft.num_drafted} does not fit {width} columns"
    for b, (gamma, count) in enumerate(zip(gammas, draft.num_drafted, strict=True)):
        parents = list(draft.parents[b][:count]) if draft.parents else list(range(-1, count - 1))
        if any(not -1 <= parent < node for node, parent in enumerate(parents)):
            return f"parents {parents} name nodes that do not come before"
        depths: list[int] = []
        for parent in parents[: draft.num_candidates[b]]:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        if max(depths, default=0) > gamma:
            return f"{max(depths)} tokens in a row drafted where {gamma} were wished"
        if any(not 0 <= token < VOCAB for token in _tokens(draft, b)):
            return f"tokens {_tokens(draft, b)} outside the vocabulary of {VOCAB}"
    return ""


class CheckedScheduler(Scheduler):
    """Looks at every choice."""

    def __init__(self, inner: Scheduler, batch: int, notes: list[Broken]) -> None:
        self.inner = inner
        self.batch = batch
        self.notes = notes
        self.prefill_share = inner.prefill_share

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
        return rows

    def end_round(self, rows: list[Sequence]) -> None:
        """A scheduler may end rows here; none that keeps its promise does."""
        before = [row.stop_reason for row in rows]
        self.inner.end_round(rows)
        if ended := [row.index for row, reason in zip(rows, before, strict=True) if row.stop_reason != reason]:
            self.notes.append(Broken("progress", f"rows {ended} are ended by the scheduler"))


def _everyone(pool: SequencePool) -> list[int]:
    return sorted(row.index for row in [*pool.waiting, *pool.active, *pool.finished])


@dataclass(frozen=True, slots=True)
class VerdictCase:
    """Per row: its nodes as (parent, token), and the target's choice after every column."""

    rows: tuple[tuple[tuple[tuple[int, int], ...], tuple[int, ...]], ...]
    with_probs: bool
    seed: int

    def __str__(self) -> str:
        rows = "; ".join(f"drafted (parent, token) {list(nodes)}, target {list(chosen)}" for nodes, chosen in self.rows)
        return rows + (", with draft probabilities" if self.with_probs else "")


@st.composite
def verdict_cases(draw: Any) -> VerdictCase:
    """Ragged chains and trees whose siblings differ, and the target's choices."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        nodes: list[tuple[int, int]] = []
        tree = draw(st.booleans())
        for node in range(draw(st.integers(0, 4))):
            parent = draw(st.integers(-1, node - 1)) if tree else node - 1
            taken = {token for other, token in nodes if other == parent}
            nodes.append((parent, draw(st.sampled_from([t for t in range(SMALL_VOCAB) if t not in taken]))))
        chosen = draw(st.lists(st.integers(0, SMALL_VOCAB - 1), min_size=len(nodes) + 1, max_size=len(nodes) + 1))
        for node, (parent, token) in enumerate(nodes):  # half of the nodes are what the target says
            if draw(st.booleans()):
                chosen[parent + 1] = token
            assert node >= parent
        rows.append((tuple(nodes), tuple(chosen)))
    return VerdictCase(tuple(rows), draw(st.booleans()), draw(st.integers(0, 3)))


def check_verdict(case: VerdictCase, verifier: Verifier) -> list[Broken]:
    """One verdict at a sharp target law, twice, with different content where nothing was drafted."""
    try:
        return _check_verdict(case, verifier)
    except ContractError as error:  # a verifier may read chains only, if it says so
        return [] if _inputs(case, filler=0)[0].parents else [Broken("calls", str(error))]
    except Exception as error:  # a stranger's code may raise anything
        return [Broken("calls", f"{type(error).__name__}: {error}")]


def _check_verdict(case: VerdictCase, verifier: Verifier) -> list[Broken]:
    draft, logits_BTV = _inputs(case, filler=0)
    given = [part for part in (draft.tokens_BG, draft.probs_BGV, logits_BTV) if part is not None]
    kept = [part.clone() for part in given]
    state = torch.random.get_rng_state()
    verdict = verifier.verify(draft, logits_BTV)
    broken = []
    if not all(torch.equal(now, before) for now, before in zip(given, kept, strict=True)):
        broken.append(Broken("purity", "an argument was changed in place"))
    if not torch.equal(state, torch.random.get_rng_state()):
        broken.append(Broken("purity", "the global random state was used"))
    other = verifier.verify(*_inputs(case, filler=3))
    if (other.paths, other.next_tokens) != (verdict.paths, verdict.next_tokens):
        broken.append(Broken("filler", "the verdict changes with what stands behind num_drafted"))
    broken += _judge(case, verdict)
    if type(verifier).verify_sampled is not Verifier.verify_sampled:
        generator = torch.Generator().manual_seed(case.seed)
        size = logits_BTV.shape[:2]
        draws_BT, tests_BT = torch.rand(2, *size, generator=generator, dtype=torch.float64)
        noise = Noise(draws_BT, tests_BT[:, 1:])
        drawn = verifier.verify_sampled(draft, logits_BTV.double().softmax(-1), noise)
        broken += [Broken("sampled", found.detail) for found in _judge(case, drawn)]
    return broken


def _judge(case: VerdictCase, verdict: Verdict) -> list[Broken]:
    for b, (nodes, chosen) in enumerate(case.rows):
        path, previous = verdict.paths[b], -1
        for node in path:
            if not 0 <= node < len(nodes) or nodes[node][0] != previous:
                return [Broken("path", f"row {b} accepts nodes {path}, which are no path")]
            previous = node
        expected, node = [], -1
        while node is not None:
            expected.append(chosen[node + 1])
            node = next((n for n, (parent, t) in enumerate(nodes) if parent == node and t == expected[-1]), None)  # type: ignore[assignment]
        found = [*(nodes[node][1] for node in path), verdict.next_tokens[b]]
        if found != expected:
            return [Broken("greedy", f"row {b}: expected {expected}, emitted {found}")]
    return []


def _inputs(case: VerdictCase, filler: int) -> tuple[Draft, Tensor]:
    width = max(len(nodes) for nodes, _ in case.rows)
    num_rows = len(case.rows)
    tokens_BG = torch.full((num_rows, width), filler)
    logits_BTV = torch.full((num_rows, width + 1, SMALL_VOCAB), -SHARP)
    logits_BTV[..., filler] = SHARP
    for b, (nodes, chosen) in enumerate(case.rows):
        tokens_BG[b, : len(nodes)] = torch.tensor([token for _, token in nodes])
        logits_BTV[b, : len(chosen)] = -SHARP
        logits_BTV[b, torch.arange(len(chosen)), torch.tensor(chosen)] = SHARP
    parents = [[parent for parent, _ in nodes] for nodes, _ in case.rows]
    chains = all(row == list(range(-1, len(row) - 1)) for row in parents)
    probs_BGV = torch.full((num_rows, width, SMALL_VOCAB), 1 / SMALL_VOCAB) if case.with_probs else None
    draft = Draft(tokens_BG, [len(nodes) for nodes, _ in case.rows], None if chains else parents, probs_BGV)
    return draft, logits_BTV
