"""The round: select -> draft -> (cut) -> verify -> commit.

Between rounds every row has committed its prompt and output; the target's cache holds all of that but the last
token, which the next round feeds first. This holds from the first round on, so no round is special.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.alignment.base import Alignment, Kept
from specdec.alignment.layout import padded
from specdec.budgets.base import Budget
from specdec.budgets.cut import cut
from specdec.budgets.none import NoBudget
from specdec.core.clock import Clock
from specdec.core.outputs import Outputs
from specdec.core.round import Draft, Round, Verdict
from specdec.core.row_scores import changed, no_token
from specdec.core.sampling import penalized, round_noise, scores_of, seen_tokens, settings_of
from specdec.core.sequence import Sequence, SequencePool
from specdec.core.target_law import TargetLaw
from specdec.core.transfer import to_device
from specdec.draft_lengths.base import DraftLength
from specdec.drafters.base import Drafter
from specdec.engine.prefill import Prefill
from specdec.engine.scores import ScoreRecorder
from specdec.schedulers.base import Scheduler
from specdec.verifiers.base import Verifier


class RoundLoop:
    """Runs rounds over a pool of rows, through the contracts alone.

    Args:
        prefill_chunk: tokens of a prompt per forward, at most; None: no bound.
        budget: how much of each row's draft is verified; None: all.
        recorder: keeps the scores of emitted tokens.
    """

    def __init__(
        self,
        target: Alignment,
        drafter: Drafter,
        verifier: Verifier,
        scheduler: Scheduler,
        draft_length: DraftLength,
        clock: Clock | None = None,
        *,
        prefill_chunk: int | None = None,
        budget: Budget | None = None,
        recorder: ScoreRecorder | None = None,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.verifier = verifier
        self.scheduler = scheduler
        self.draft_length = draft_length
        self.clock = clock or Clock()
        self.budget = budget or NoBudget()
        self.recorder = recorder
        self.drafter.reports_certainty = self.budget.reads_certainty
        self.drafter.attach(target)
        self.prefill = Prefill(target, drafter, self.clock, scheduler.prefill_share, prefill_chunk)
        self._seconds_before = dict(self.clock.seconds)

    def step(self, pool: SequencePool) -> Round:
        """Run one round and retire the rows that it finished."""
        with self.clock.stage("other"):
            rows = self._select(pool)
            with self.clock.stage("draft"):
                draft = self._draft(rows)
            with self.clock.stage("verify"):
                verdict = self._verify(rows, draft)
            outcome = self._emit(rows, draft, verdict)
            self.scheduler.end_round(rows)
            self._commit(rows, verdict)
            outcome.finished = pool.retire()
        now = dict(self.clock.seconds)
        outcome.seconds = {stage: total - self._seconds_before[stage] for stage, total in now.items()}
        self._seconds_before = now  # the time from here on belongs to the next round
        with self.clock.stage("schedule"):
            self.prefill.decoded(sum(outcome.seconds.values()) - outcome.seconds["prefill"])
            self.budget.observe(outcome)
            self.draft_length.observe(outcome)
        return outcome

    def _select(self, pool: SequencePool) -> list[Sequence]:
        with self.clock.stage("schedule"):
            rows = self.scheduler.select(pool)
        return self.prefill.ready(rows, self.draft_length.drafting)

    def _draft(self, rows: list[Sequence]) -> Draft:
        gammas = self._gammas(rows)
        if any(gammas):
            self.drafter.width = self.draft_length.width
            return self._cut(rows, self.drafter.propose(rows, gammas))
        return Draft(padded([[] for _ in rows], self.target.model.device), gammas)

    def _cut(self, rows: list[Sequence], draft: Draft) -> Draft:
        if not any(draft.num_candidates):
            return draft
        self.budget.ragged = self.target.model.execution.ragged
        depths = self.budget.keep(rows, draft)
        return draft if depths is None else cut(draft, depths)

    def _gammas(self, rows: list[Sequence]) -> list[int]:
        """Draft lengths, cut per row to leave room in the row's budget for the token that every round adds."""
        gammas = self.draft_length.choose(rows)
        if self.drafter.max_length is not None:
            gammas = [min(gamma, self.drafter.max_length) for gamma in gammas]
        return [min(gamma, row.num_remaining - 1) for gamma, row in zip(gammas, rows, strict=True)]

    def _verify(self, rows: list[Sequence], draft: Draft) -> Verdict:
        """One target forward over [last token, drafted tokens] of every row."""
        device = draft.tokens_BG.device
        tokens_BT = to_device([[row.last_token] for row in rows], device)
        if draft.tokens_BG.shape[1]:
            tokens_BT = torch.cat([tokens_BT, draft.tokens_BG], dim=1)
        # Without parents the draft is a chain; in a tree the last committed token becomes node 0.
        parents = [[-1, *(p + 1 for p in row_parents)] for row_parents in draft.parents] if draft.parents else None
        indices, counts = [row.index for row in rows], [1 + count for count in draft.num_drafted]
        if not self.drafter.hidden_layers:
            return self._judge(rows, draft, self.target.forward(indices, tokens_BT, counts, parents))
        with self.target.model.call_options(Outputs(hidden=self.drafter.hidden_layers), self.drafter.probes_MD):
            logits_BTV = self.target.forward(indices, tokens_BT, counts, parents)
        vocab_size = self.target.model.vocab_size
        verdict = self._judge(rows, draft, logits_BTV[..., :vocab_size])
        self.drafter.observe_hidden(
            rows, logits_BTV[..., vocab_size:], [verdict.fed_nodes(b) for b in range(len(rows))]
        )
        return verdict

    def _judge(self, rows: list[Sequence], draft: Draft, logits_BTV: Tensor) -> Verdict:
        """Let the verifier decide: by the scores if all rows are greedy, else by the distributions to sample from."""
        settings = settings_of(rows)
        scores_BTV = scores_of(logits_BTV)
        if settings is not None:
            scores_BTV = penalized(logits_BTV, settings, seen_tokens(rows, draft, logits_BTV))
        scores_BTV = changed(rows, draft, scores_BTV)
        if self.recorder is not None:
            self.recorder.see(logits_BTV, scores_BTV, settings)
        if settings is None or all(row_settings.greedy for row_settings in settings):
            return self.verifier.verify(draft, scores_BTV)
        num_tests = max([logits_BTV.shape[1] - 1, *map(len, draft.draws or ())])
        noise = round_noise(rows, logits_BTV.shape[1], logits_BTV.device, num_tests)
        verdict = self.verifier.verify_law(draft, TargetLaw(scores_BTV, settings), noise)
        if max(verdict.next_tokens) >= logits_BTV.shape[-1]:
            raise no_token(rows[max(range(len(rows)), key=verdict.next_tokens.__getitem__)])
        return verdict

    def _emit(self, rows: list[Sequence], draft: Draft, verdict: Verdict) -> Round:
        same_length = len({row.length for row in rows}) == 1
        num_candidates = draft.num_candidates
        drafted = draft.ids
        emitted, num_accepted = [], []
        now = self.clock.now()
        for b, row in enumerate(rows):
            path = verdict.paths[b]
            kept = row.emit([*[drafted[b][node] for node in path], verdict.next_tokens[b]])
            accepted = min(len(path), len(kept))
            row.accepted_lengths.append(accepted)
            row.drafted_lengths.append(num_candidates[b])
            row.num_drafted += num_candidates[b]
            row.num_accepted += accepted
            row.first_token_s = row.first_token_s or now
            emitted.append(kept)
            num_accepted.append(accepted)
        if self.recorder is not None:
            self.recorder.keep(rows, verdict, emitted)
        places = range(len(rows))
        return Round(
            rows,
            num_candidates,
            num_accepted,
            emitted,
            same_length,
            depths=[draft.end_depth(b, []) for b in places],
            end_depths=[draft.end_depth(b, verdict.paths[b]) for b in places],
            proposed=draft.cut_from or [],
            ranks=[draft.ranks(b, verdict.paths[b][: num_accepted[b]]) for b in places] if draft.parents else None,
            learned=draft.learned,
        )

    def _commit(self, rows: list[Sequence], verdict: Verdict) -> None:
        """Finished rows are released before the commit, so they are not realigned."""
        gone = [row for row in rows if row.finished]
        if gone:
            now = self.clock.now()
            for row in gone:
                row.finished_s = now
            self.prefill.release(gone)
            self.drafter.release(gone)
        alive = [b for b, row in enumerate(rows) if not row.finished]
        if alive:
            kept: list[Kept] = [verdict.fed_nodes(b) for b in alive]
            self.target.commit([rows[b].index for b in alive], kept)
            self.drafter.commit([rows[b] for b in alive])
