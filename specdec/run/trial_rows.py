"""Trial rows: rows of the run's own prompts that are decoded before the run to profile it."""

from __future__ import annotations

from dataclasses import replace

from specdec.core.prompts import Prompt, declared_tokens
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import KnownOutput, Sequence


class TrialRows:
    """Makes rows of a run's prompts, numbered from 0 and without stop tokens.

    Args:
        prompts: of the run, at least one. context_length: of the pair. stop_ids: the run's stop tokens.
        sampling: the rows' settings; None: greedy. known_output: a row's output, where the run already knows it.
    """

    def __init__(
        self,
        prompts: list[Prompt],
        context_length: int,
        stop_ids: frozenset[int],
        sampling: SamplingParams | None,
        known_output: KnownOutput | None,
    ) -> None:
        self.stop_ids = stop_ids
        self._prompts = prompts
        self._context_length = context_length
        self._sampling = sampling
        self._known_output = known_output

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean over all prompts of the run."""
        return sum(len(prompt.ids) for prompt in self._prompts) / len(self._prompts)

    @property
    def first_tokens(self) -> list[int]:
        """Those that every prompt was declared to begin with."""
        return declared_tokens(self._prompts)

    def rows(self, batch: int, num_tokens: int) -> list[Sequence]:
        """``batch`` rows that may emit ``num_tokens``, or fewer if every prompt leaves less room in the context."""
        left = self._context_length - min(len(prompt.ids) for prompt in self._prompts)
        budget = min(num_tokens, max(left, self._context_length // 4))
        usable = self._prompts_with_room(budget)
        return [Sequence(i, usable[i % len(usable)].ids, budget, sampling=self._sampling) for i in range(batch)]

    def known_output(self, row: Sequence) -> list[int] | None:
        """The known output of the run's row with the same prompt, whose index differs from the trial row's."""
        own = next((prompt for prompt in self._prompts if prompt.ids == row.prompt_ids), None)
        if own is None or self._known_output is None:
            return None
        return self._known_output(Sequence(own.index, own.ids, row.num_remaining))

    def _prompts_with_room(self, budget: int) -> list[Prompt]:
        """Prompts that leave ``budget`` tokens of the context; if none does, all of them, truncated on the left."""
        room = self._context_length - budget
        fitting = [prompt for prompt in self._prompts if len(prompt.ids) <= room]
        return fitting or [replace(prompt, ids=prompt.ids[-room:]) for prompt in self._prompts]
