"""The run's logits of each row's first differing token, recorded while it decodes and kept on disk.

A divergence is classified after all rows are decoded, possibly in another process than the one that decoded the row.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from specdec.core.round import Draft, Round, Verdict
from specdec.core.sequence import KnownOutput
from specdec.core.tensor_files import write_tensors
from specdec.verifiers.base import Verifier

if TYPE_CHECKING:
    from specdec.core.sampling import Noise


class Witness(Verifier):
    """Wraps the verifier and keeps the logits of each row's first token that differs from the reference.

    During a round it only keeps references; it compares tokens when the round is over and no clock runs.
    """

    def __init__(self, reference: KnownOutput) -> None:
        self.logits: dict[int, Tensor] = {}  # by row: (V), float64
        self._reference = reference
        self._inner: Verifier | None = None
        self._passed: tuple[Tensor, Verdict] | None = None

    def wrap(self, verifier: Verifier) -> Witness:
        """Pass calls to this verifier from now on; returns itself, to take its place in the round loop."""
        self._inner = verifier
        return self

    def verify(self, draft: Draft, logits_BTV: Tensor) -> Verdict:
        assert self._inner is not None
        verdict = self._inner.verify(draft, logits_BTV)
        self._passed = logits_BTV, verdict
        return verdict

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        """Pass on: sampled tokens have no reference to differ from."""
        assert self._inner is not None
        return self._inner.verify_sampled(draft, probs_BTV, noise)

    def observe(self, outcome: Round) -> None:
        """Keep the logits of first differences among the round's rows, and drop all others."""
        passed, self._passed = self._passed, None
        if passed is None:
            return
        logits_BTV, verdict = passed
        for b, row in enumerate(outcome.rows):
            reference = None if row.index in self.logits else self._reference(row)
            if reference is None:
                continue
            start = len(row.output_ids) - len(outcome.emitted[b])
            columns = verdict.fed_nodes(b)
            for place, token in enumerate(outcome.emitted[b]):
                if start + place >= len(reference) or reference[start + place] != token:
                    self.logits[row.index] = logits_BTV[b, columns[place]].double().cpu()
                    break


class WitnessFiles:
    """One small file per row that differs from its reference, in ``results/<hash>/divergences``."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._folder = folder / "divergences"
        self._dtype = dtype  # the model's, so that nothing is lost

    def save(self, index: int, logits_V: Tensor) -> None:
        """Keep a row's logits (V); to be called before the row is recorded as finished."""
        self._folder.mkdir(exist_ok=True)
        temporary = self._folder / f".{index}"
        write_tensors({"logits_V": logits_V.to(self._dtype)}, temporary)
        os.replace(temporary, self._path(index))

    def load(self, index: int) -> Tensor | None:
        """Logits (V) in float64, or None if the run emitted no differing token."""
        path = self._path(index)
        return load_file(path)["logits_V"].double() if path.exists() else None

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.safetensors"
