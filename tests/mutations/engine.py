"""Bugs in the round itself; the runs of a correct alignment show them."""

from __future__ import annotations

from mutations.planting import Patch, planted, wrapped
from specdec.alignment.reader import Reader
from specdec.core.round import Verdict
from specdec.core.sequence import Sequence
from specdec.engine import prefill
from specdec.engine.loop import RoundLoop

RUNS = "decoding runs"


@planted("engine", "last token of the prompt fed twice", "emission", RUNS)
def last_token_twice(patch: Patch):
    class Over(Reader):
        def read(self, rows, stops):
            super().read(rows, [stop + 1 for stop in stops])

    patch.setattr(prefill, "Reader", Over)


@planted("engine", "one accepted token too many committed", "emission", RUNS)
def one_too_many_committed(patch: Patch):
    class Greedy(RoundLoop):
        def _verify(self, rows, draft):
            self.drafted = draft.num_drafted
            return super()._verify(rows, draft)

        def _commit(self, rows, verdict):
            paths = [
                [*path, path[-1] + 1] if path and path[-1] + 1 < count else path
                for path, count in zip(verdict.paths, self.drafted, strict=True)
            ]
            super()._commit(rows, Verdict(paths, verdict.next_tokens))

    return Greedy


@planted("engine", "the batch's draft cut to its neediest row", "acceptance", RUNS)
def cut_to_the_neediest(patch: Patch):
    class Least(RoundLoop):
        def _gammas(self, rows):
            least = min(row.num_remaining for row in rows) - 1
            return [min(gamma, least) for gamma in super()._gammas(rows)]

    return Least


@planted("engine", "a stop token in the prompt stops a row", "progress", RUNS)
def stop_in_the_prompt(patch: Patch):
    class Stopping(RoundLoop):
        def _emit(self, rows, draft, verdict):
            outcome = super()._emit(rows, draft, verdict)
            for row in rows:
                if row.stop_ids & set(row.prompt_ids):
                    row.stop_reason = row.stop_reason or "stop"
            return outcome

    return Stopping


@planted("engine", "an emitted token that equals the pad id is dropped", "emission", RUNS)
def pad_id_dropped(patch: Patch):
    wrapped(patch, Sequence, "emit", lambda original, self, tokens: original(self, [t for t in tokens if t != 0]))


@planted("engine", "in batches of three or more two rows get each other's next token", "emission", RUNS)
def verdicts_swapped(patch: Patch):
    class Swapping(RoundLoop):
        def _emit(self, rows, draft, verdict):
            if len(rows) > 2:
                verdict.next_tokens[1:3] = verdict.next_tokens[2:0:-1]
            return super()._emit(rows, draft, verdict)

    return Swapping


@planted("engine", "rows that stop in the middle of a draft keep what was drafted after the stop", "emission", RUNS)
def emits_past_the_stop(patch: Patch):
    def emit(original, self, tokens):
        tokens = list(tokens)
        kept = original(self, tokens)
        rest = tokens[len(kept) : len(kept) + self.num_remaining]
        self.output_ids.extend(rest)
        return kept + rest

    wrapped(patch, Sequence, "emit", emit)


@planted("engine", "a round without a draft does not count among a row's rounds", "acceptance", RUNS)
def plain_rounds_not_counted(patch: Patch):
    class Skipping(RoundLoop):
        def _emit(self, rows, draft, verdict):
            outcome = super()._emit(rows, draft, verdict)
            for row, drafted in zip(rows, outcome.num_drafted, strict=True):
                if not drafted:
                    row.accepted_lengths.pop()
            return outcome

    return Skipping
