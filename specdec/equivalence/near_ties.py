"""Why a row differs from its reference: a tie that rounding decided, or a failure. Nothing else is an excuse.

At the first difference both sides have the same prefix, so both computed the same logits up to rounding, if the run
is right. A difference is a *near-tie* only if all of this holds, with `noise` and `noise_rms` measured between
correct computations of that very row (:mod:`specdec.equivalence.rounding`), never taken from the run:

1. the run emitted the argmax of its own logits;
2. margin <= 2 x noise: the reference's logit of its own token lies above that of the emitted one by no more than
   two logits can move towards each other when each moves by the noise;
3. the run's logits are the reference's up to rounding: difference <= FACTOR x noise, and in the root mean square over
   the whole vocabulary difference_rms <= FACTOR x noise_rms.

Margin <= difference alone would excuse every bug: it holds whenever an argmax differs. Rule 3 is what a bug cannot
meet by luck: a wrong position, mask or cache moves the whole vocabulary, and its root mean square has little spread.
FACTOR = 2: noise is a maximum over some dozens of positions and six pairs of computations, so another correct
computation seldom exceeds it at all.
Everything else is a *synchronisation failure*; an output that merely ends too early or too late is one as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specdec.core.round import Draft, Round, Verdict
from specdec.core.sequence import Sequence
from specdec.equivalence.rounding import rms, rounding_of
from specdec.models.causal_lm import CausalLM
from specdec.verifiers.base import Verifier

if TYPE_CHECKING:
    from specdec.core.sampling import Noise

FACTOR = 2.0
NEAR_TIE, FAILURE, NOT_CLASSIFIED = "near-tie", "synchronisation failure", "not classified"


class Witness(Verifier):
    """Stands before the verifier and keeps the logits that decided each row's first difference.

    During a round it only holds on to what passes; it looks at it when the round is over and no clock runs.
    """

    def __init__(self, reference: Callable[[Sequence], list[int] | None]) -> None:
        self.logits: dict[int, Tensor] = {}  # by row: (V), float64, of the first token that differs
        self._reference = reference
        self._inner: Verifier | None = None
        self._passed: tuple[Tensor, Verdict] | None = None

    def before(self, verifier: Verifier) -> Witness:
        """Take this verifier's place in the engine."""
        self._inner = verifier
        return self

    def verify(self, draft: Draft, logits_BTV: Tensor) -> Verdict:
        """Pass on, and hold on to it."""
        assert self._inner is not None
        verdict = self._inner.verify(draft, logits_BTV)
        self._passed = logits_BTV, verdict
        return verdict

    def verify_sampled(self, draft: Draft, probs_BTV: Tensor, noise: Noise) -> Verdict:
        """Pass on: where tokens are drawn there is no token to differ from."""
        assert self._inner is not None
        return self._inner.verify_sampled(draft, probs_BTV, noise)

    def observe(self, outcome: Round) -> None:
        """Keep what decided the first difference of the round's rows, and let go of the rest."""
        passed, self._passed = self._passed, None
        if passed is None:
            return
        logits_BTV, verdict = passed
        for b, row in enumerate(outcome.rows):
            reference = None if row.index in self.logits else self._reference(row)
            if reference is None:
                continue
            start = len(row.output_ids) - len(outcome.emitted[b])
            columns = [0, *(node + 1 for node in verdict.paths[b])]
            for place, token in enumerate(outcome.emitted[b]):
                if start + place >= len(reference) or reference[start + place] != token:
                    self.logits[row.index] = logits_BTV[b, columns[place]].double().cpu()
                    break


def explain_row(
    model: CausalLM, row: Sequence, reference: list[int], witness: Witness, *, batch: int, chunk: int
) -> dict[str, Any]:
    """Classify the first difference of a finished row; see :func:`explain`."""
    if row.sampling is not None:  # its tokens are not the argmax of the model's bare logits
        return {"kind": NOT_CLASSIFIED, "reason": "only plain greedy decoding is: no temperature, no penalty"}
    return explain(
        model,
        row.prompt_ids,
        row.output_ids,
        reference,
        witness.logits.get(row.index),
        batch=batch,
        chunk=chunk,
    )


def explain(
    model: CausalLM,
    prompt: list[int],
    output: list[int],
    reference: list[int],
    logits_V: Tensor | None,
    *,
    batch: int,
    chunk: int,
) -> dict[str, Any]:
    """Classify the first difference of a row.

    Args:
        logits_V: what the run emitted the differing token from.
        batch, chunk: rows of the run's batches, and tokens that a round feeds.

    Returns:
        ``kind`` and ``reason``; where the tokens differ also ``token``, ``reference_token``, and all that the rules
        above compare.
    """
    common = min(len(output), len(reference))
    at = next((i for i in range(common) if output[i] != reference[i]), common)
    if at == common:
        reason = f"the output ends after {len(output)} tokens, the reference after {len(reference)}"
        return {"kind": FAILURE, "reason": reason, "position": at}
    if logits_V is None:
        return {"kind": FAILURE, "reason": "what the run decided by is not known", "position": at}
    rounding = rounding_of(model, prompt, reference, at, batch, chunk)
    expected_V = rounding.logits_nV[at].double()
    token, own = output[at], reference[at]
    # A float64 model is decided by its logits in float32 (specdec.core.sampling.scores_of): that rounds them too.
    last_place = torch.finfo(torch.float32).eps * float(expected_V.abs().max()) if model.dtype == torch.float64 else 0.0
    values = {
        "margin": float(expected_V[own] - expected_V[token]),
        "difference": float((logits_V - expected_V).abs().max()),
        "difference_rms": float(rms(logits_V - expected_V)),
        "noise": max(rounding.largest, last_place),
        "noise_rms": max(rounding.rms, last_place),
    }
    if int(logits_V.argmax()) != token:
        reason = "the run did not emit the argmax of its logits"
    elif not values["margin"] <= 2 * values["noise"]:
        reason = "the reference's margin is wider than rounding"
    elif not values["difference"] <= FACTOR * values["noise"]:
        reason = "the run's logits differ by more than rounding"
    elif not values["difference_rms"] <= FACTOR * values["noise_rms"]:
        reason = "the run's logits differ by more than rounding, over the whole vocabulary"
    else:
        reason = ""
    kind = FAILURE if reason else NEAR_TIE
    reason = reason or "the margin is within rounding, and so is the run's difference"
    return {"kind": kind, "reason": reason, "position": at, "token": token, "reference_token": own, **values}
