"""What is decoded before a run to learn about it: rows like the run's, of its own prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from specdec.core.prompts import Prompt
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence


class Specimens:
    """Makes fresh rows of a run's prompts, numbered from 0, that nothing stops.

    Args:
        prompts: of the run, at least one. context_length: of the pair. stop_ids: what would stop the run's rows.
        sampling: the rows' settings; None for greedy ones. known_output: what the run knows a row will say.
    """

    def __init__(
        self,
        prompts: list[Prompt],
        context_length: int,
        stop_ids: frozenset[int],
        sampling: SamplingParams | None,
        known_output: Callable[[Sequence], list[int] | None] | None,
    ) -> None:
        self.stop_ids = stop_ids
        self._prompts = prompts
        self._context_length = context_length
        self._sampling = sampling
        self._known_output = known_output

    @property
    def mean_prompt_tokens(self) -> float:
        """Of all prompts of the run."""
        return sum(len(prompt.ids) for prompt in self._prompts) / len(self._prompts)

    def rows(self, batch: int, num_tokens: int) -> list[Sequence]:
        """So many rows with so many tokens to emit, or with fewer where all prompts leave less room than that."""
        left = self._context_length - min(len(prompt.ids) for prompt in self._prompts)
        budget = min(num_tokens, max(left, self._context_length // 4))
        usable = self._leaving(budget)
        return [Sequence(i, usable[i % len(usable)].ids, budget, sampling=self._sampling) for i in range(batch)]

    def known_output(self, row: Sequence) -> list[int] | None:
        """What the run knows of the prompt that a row was made of, under the number that the prompt has there."""
        own = next((prompt for prompt in self._prompts if prompt.ids == row.prompt_ids), None)
        if own is None or self._known_output is None:
            return None
        return self._known_output(Sequence(own.index, own.ids, row.num_remaining))

    def _leaving(self, budget: int) -> list[Prompt]:
        """Prompts that leave so much room in the context; the ends of all where none does."""
        room = self._context_length - budget
        fitting = [prompt for prompt in self._prompts if len(prompt.ids) <= room]
        return fitting or [replace(prompt, ids=prompt.ids[-room:]) for prompt in self._prompts]
