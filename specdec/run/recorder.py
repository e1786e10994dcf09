"""What a point writes while it decodes: a line per round, and a line per row as soon as it is finished."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

from specdec.core.acceptance import speculative_decoding
from specdec.core.clock import STAGES, Clock
from specdec.core.round import Round
from specdec.core.sequence import KnownOutput, Sequence
from specdec.equivalence.store import compare
from specdec.equivalence.witness import Witness, WitnessFiles
from specdec.models.memory import PeakMemory
from specdec.run.run import Run


class Recorder:
    """Pass its ``observe`` to the decoding loop. What it has written stays valid if the process is killed.

    A round's line is written before those of the rows that it finished, and the logits that may explain a row's
    divergence before the row's line: so no finished row lacks its time or its witness.
    """

    def __init__(self, run: Run, attempt: int, known_output: KnownOutput) -> None:
        self.witness: Witness | None = None
        self.attempt = attempt
        self._rank = run.ranks.rank
        self._writes = run.ranks.writes
        self._pair = run.pair
        self._prompts = {prompt.index: prompt for prompt in run.prompts}
        self.known_output = known_output
        self._witnesses = WitnessFiles(run.folder.path, run.pair.target.dtype)
        self._memory = PeakMemory(run.pair.target.device)
        self._num_rounds = 0
        self._files = ExitStack()
        if self._writes:
            self._samples = self._files.enter_context(run.folder.open_lines("samples", run.ranks.rank))
            self._rounds = self._files.enter_context(run.folder.open_lines("rounds", run.ranks.rank))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def observe(self, outcome: Round, clock: Clock) -> None:
        """Write one round and the rows that it finished."""
        if not self._writes:
            return
        self._memory.sample()
        self._rounds.write(self._round(outcome))
        self._num_rounds += 1
        for row in outcome.finished:
            if self.witness is not None and row.index in self.witness.logits:
                self._witnesses.save(row.index, self.witness.logits.pop(row.index))
            self._samples.write(self._sample(row))

    def _round(self, outcome: Round) -> dict[str, Any]:
        return {
            "attempt": self.attempt,
            "rank": self._rank,
            "step": self._num_rounds,
            "rows": [row.index for row in outcome.rows],
            "num_drafted": outcome.num_drafted,
            "depth": outcome.depths,
            "end_depth": outcome.end_depths,
            **({"proposed": outcome.proposed} if outcome.proposed != outcome.depths else {}),
            **({"calibration": outcome.calibration} if outcome.calibration else {}),
            **({"learned": list(outcome.learned)} if outcome.learned else {}),
            "num_accepted": outcome.num_accepted,
            "accepted_ranks": outcome.ranks,
            "num_emitted": [len(tokens) for tokens in outcome.emitted],
            "same_length": outcome.same_length,
            **{f"{stage}_s": round(outcome.seconds[stage], 7) for stage in STAGES},
            "peak_memory_bytes": self._memory.bytes,
        }

    def _sample(self, row: Sequence) -> dict[str, Any]:
        prompt, reference = self._prompts[row.index], self.known_output(row)
        match = compare(row.output_ids, reference) if reference is not None else None
        return {
            "index": row.index,
            "question_id": prompt.question_id,
            "category": prompt.category,
            "num_prompt_tokens": len(row.prompt_ids),
            **({"turn": prompt.turn, "prompt_ids": row.prompt_ids} if row.prompt_ids != prompt.ids else {}),
            "output_ids": row.output_ids,
            "text": self._pair.tokenizer.decode(row.output_ids, skip_special_tokens=True),
            "stop_reason": row.stop_reason,
            "exact": match.exact if match else None,
            "first_divergence": match.first_divergence if match else None,
            "matched_share": match.share if match else None,
            "explanation": None,
            "accepted_lengths": row.accepted_lengths,
            "num_drafted": row.num_drafted,
            "speculative_decoding": speculative_decoding(row.accepted_lengths, row.drafted_lengths),
            "ttft_s": (row.first_token_s or 0.0) - row.arrived_s,
            "latency_s": (row.finished_s or 0.0) - row.arrived_s,
            "attempt": self.attempt,
            "rank": self._rank,
        }
