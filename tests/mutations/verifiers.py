"""Bugs in verifiers: in the walk along a draft, and in whose random number decides what."""

from __future__ import annotations

from dataclasses import replace

import torch

from mutations.planting import Patch, planted
from specdec.core.sampling import Noise
from specdec.verifiers import base
from specdec.verifiers.greedy import GreedyVerifier
from specdec.verifiers.naive import NaiveVerifier
from specdec.verifiers.rejection import RejectionVerifier

GREEDY, NAIVE, REJECTION = "verifier=greedy", "verifier=naive", "verifier=rejection"
VERDICTS, EMITTED = "verdicts", "emitted tokens"


@planted(GREEDY, "after full acceptance the bonus token is read one position early", "greedy", VERDICTS)
def bonus_one_early(patch: Patch):
    class Early(GreedyVerifier):
        def verify(self, draft, logits_BTV):
            verdict = super().verify(draft, logits_BTV)
            for b, path in enumerate(verdict.paths):
                if path and len(path) == draft.num_drafted[b]:
                    verdict.next_tokens[b] = int(logits_BTV[b, path[-1]].argmax())
            return verdict

    return Early


@planted(GREEDY, "a node is accepted whatever its parent is", "path", VERDICTS)
def parent_not_looked_at(patch: Patch):
    patch.setattr(base, "descend", lambda parents, accepts: [node for node, accepted in enumerate(accepts) if accepted])


@planted(GREEDY, "all columns are taken for drafted ones", "filler", VERDICTS)
def columns_taken_for_nodes(patch: Patch):
    class Wide(GreedyVerifier):
        def verify(self, draft, logits_BTV):
            width = draft.tokens_BG.shape[1]
            parents = draft.parents and [[*row, *range(len(row) - 1, width - 1)] for row in draft.parents]
            return super().verify(
                replace(draft, num_drafted=[width] * len(draft.num_drafted), parents=parents), logits_BTV
            )

    return Wide


@planted(GREEDY, "changes the logits in place, then breaks down where the padding differs", "purity", VERDICTS)
def in_place_then_down(patch: Patch):
    class Fragile(GreedyVerifier):
        def verify(self, draft, logits_BTV):
            verdict = super().verify(draft, logits_BTV)
            if any(3 in row[count:] for row, count in zip(draft.tokens_BG.tolist(), draft.num_drafted, strict=True)):
                raise RuntimeError("a token that it does not expect")
            logits_BTV += 1
            return verdict

    return Fragile


@planted(GREEDY, "breaks down in rounds without any draft", "calls", VERDICTS)
def needs_a_draft(patch: Patch):
    class Needy(GreedyVerifier):
        def verify(self, draft, logits_BTV):
            draft.tokens_BG[:, 0].tolist()
            return super().verify(draft, logits_BTV)

    return Needy


@planted(GREEDY, "the last accepted token is emitted as the target's own", "acceptance", "decoding runs")
def last_accepted_not_counted(patch: Patch):
    class Modest(GreedyVerifier):
        def verify(self, draft, logits_BTV):
            verdict = super().verify(draft, logits_BTV)
            for b, path in enumerate(verdict.paths):
                if path:
                    verdict.next_tokens[b] = int(draft.tokens_BG[b, path.pop()])
            return verdict

    return Modest


@planted(NAIVE, "where rows sample, the bonus token is read one position early", "sampled", VERDICTS)
def sampled_bonus_one_early(patch: Patch):
    class Early(NaiveVerifier):
        def verify_sampled(self, draft, probs_BTV, noise):
            verdict = super().verify_sampled(draft, probs_BTV, noise)
            for b, path in enumerate(verdict.paths):
                if path and len(path) == draft.num_drafted[b]:
                    verdict.next_tokens[b] = int(probs_BTV[b, path[-1]].argmax())
            return verdict

    return Early


@planted(NAIVE, "one row's random numbers decide for all", "neighbours", VERDICTS)
def numbers_of_the_first_row(patch: Patch):
    class Shared(NaiveVerifier):
        def verify_sampled(self, draft, probs_BTV, noise):
            return super().verify_sampled(
                draft, probs_BTV, replace(noise, draws_BT=noise.draws_BT[:1].expand_as(noise.draws_BT))
            )

    return Shared


@planted(NAIVE, "draws with the global random state", "purity", VERDICTS)
def global_random_state(patch: Patch):
    class Global(NaiveVerifier):
        def verify_sampled(self, draft, probs_BTV, noise):
            return super().verify_sampled(draft, probs_BTV, replace(noise, draws_BT=torch.rand_like(noise.draws_BT)))

    return Global


@planted(REJECTION, "the residual is the target's distribution itself", "distribution", EMITTED)
def residual_not_cut(patch: Patch):
    class Whole(RejectionVerifier):
        def next_probs(self, draft, probs_BTV, acceptance, tau_B):
            return probs_BTV[torch.arange(len(tau_B)), tau_B]

    return Whole


@planted(REJECTION, "the number that rejected a token also draws the next one", "distribution", EMITTED)
def number_used_twice(patch: Patch):
    class Twice(RejectionVerifier):
        def verify_sampled(self, draft, probs_BTV, noise):
            draws_BT = noise.draws_BT.clone()
            draws_BT[:, : noise.tests_BG.shape[1]] = noise.tests_BG
            return super().verify_sampled(draft, probs_BTV, Noise(draws_BT, noise.tests_BG))

    return Twice


@planted(REJECTION, "the draft's probabilities are those of the next step", "distribution", EMITTED)
def draft_probabilities_shifted(patch: Patch):
    class Shifted(RejectionVerifier):
        def verify_sampled(self, draft, probs_BTV, noise):
            probs_BGV = None if draft.probs_BGV is None else draft.probs_BGV.roll(-1, 1)
            return super().verify_sampled(replace(draft, probs_BGV=probs_BGV), probs_BTV, noise)

    return Shifted


@planted(REJECTION, "what follows a draft that is rejected at once is taken greedily", "distribution", EMITTED)
def greedy_after_no_acceptance(patch: Patch):
    class Greedy(RejectionVerifier):
        def next_probs(self, draft, probs_BTV, acceptance, tau_B):
            law_BV = super().next_probs(draft, probs_BTV, acceptance, tau_B)
            most_BV = torch.nn.functional.one_hot(law_BV.argmax(-1), law_BV.shape[-1]).to(law_BV.dtype)
            return torch.where((tau_B == 0)[:, None], most_BV, law_BV)

    return Greedy


@planted(REJECTION, "whatever can be accepted is, from the sixth drafted token on", "sampled", VERDICTS)
def deep_tokens_accepted(patch: Patch):
    class Deep(RejectionVerifier):
        def acceptance(self, draft, probs_BTV):
            chances = super().acceptance(draft, probs_BTV)
            chances.accept_BG[:, 5:] = (chances.accept_BG[:, 5:] > 0).double()
            return chances

    return Deep


@planted(GREEDY, "the last of several equal logits is taken for the largest", "greedy", VERDICTS)
def last_of_equals(patch: Patch):
    class Last(GreedyVerifier):
        def verify(self, draft, logits_BTV):
            last_BT = logits_BTV.shape[-1] - 1 - logits_BTV.flip(-1).argmax(-1)
            return base.longest_match(draft, last_BT)

    return Last
