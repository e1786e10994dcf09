"""Rows that differ from their reference: each difference is explained by rounding, or counted as a failure."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor

from specdec.config.plugins import declared
from specdec.core.prompts import Prompt
from specdec.core.sequence import Sequence
from specdec.equivalence.near_ties import FAILURE, classify_row
from specdec.equivalence.witness import Witness, WitnessFiles
from specdec.run.decode import row_sampling
from specdec.run.run import Run


def classify_divergences(run: Run) -> None:
    """Classify the rows that differ; each process a part of them, or in tensor parallel all."""
    if run.store is None:
        return
    samples = run.ranks.from_main(run.folder.samples)
    unclear = [index for index, sample in sorted(samples.items()) if not (sample["exact"] or sample["explanation"])]
    mine = unclear[run.ranks.rank % run.ranks.num_shares :: run.ranks.num_shares]
    prompts = {prompt.index: prompt for prompt in run.prompts}
    logits = WitnessFiles(run.folder.path, run.pair.target.dtype)
    batch = min(line["batch"] for line in run.folder.attempts())  # the batch that fitted, if memory ran out
    with ExitStack() as stack:
        writes = mine and run.ranks.writes
        lines = stack.enter_context(run.folder.open_lines("samples", run.ranks.rank)) if writes else None
        for index in mine:
            explanation = _explanation(run, prompts[index], samples[index], logits.load(index), batch)
            if lines is not None and explanation is not None:
                lines.write({**samples[index], "explanation": explanation})
    run.ranks.gather(None)


def _explanation(
    run: Run, prompt: Prompt, sample: dict[str, Any], logits_V: Tensor | None, batch: int
) -> dict[str, Any] | None:
    """How a row's difference is explained; None if its reference is not known."""
    if run.config.numerics == "invariant":
        reason = "numerics=invariant: the run and its reference are the same to the last bit, so nothing excuses this"
        return {"kind": FAILURE, "reason": reason, "position": sample["first_divergence"]}
    config, ids = run.config, sample.get("prompt_ids", prompt.ids)
    row = Sequence(prompt.index, ids, config.max_new_tokens, sampling=row_sampling(config))
    row.output_ids = list(sample["output_ids"])
    reference = run.reference_of(row)
    if reference is None:
        return None
    witness = Witness(lambda _: None)
    if logits_V is not None:
        witness.logits[prompt.index] = logits_V
    chunk = 1 + config.gamma if declared(config, "drafter").drafts else 1
    return classify_row(run.pair.target, row, reference, witness, batch=batch, chunk=chunk)
