"""Why a row differs from its reference: a near-tie that rounding decided, or a failure.

Up to the first difference both sides have the same prefix, so a correct run computed the reference's logits up to
rounding. A difference is a *near-tie* only if all of this holds, with `noise` and `noise_rms` measured between correct
computations of the same row (:mod:`specdec.equivalence.rounding`), never taken from the run:

1. the run emitted the argmax of its own logits;
2. margin <= 2 x noise: the reference prefers its own token by no more than rounding of both logits can undo;
3. the run's logits are the reference's up to rounding: difference <= NOISE_FACTOR x noise, and in the root mean square
   over the whole vocabulary difference_rms <= NOISE_FACTOR x noise_rms.

Margin <= difference alone would excuse every bug: it holds whenever an argmax differs. A bug does not pass rule 3 by
luck: a wrong position, mask or cache moves the whole vocabulary, and the root mean square over it varies little.
NOISE_FACTOR = 2: noise is a maximum over dozens of positions and several pairs of computations, so another correct
computation seldom exceeds it at all.
Everything else is a *synchronisation failure*, including an output that only ends too early or too late.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdec.core.sequence import Sequence
from specdec.equivalence.rounding import rms, rounding_of
from specdec.equivalence.witness import Witness
from specdec.models.causal_lm import CausalLM

NOISE_FACTOR = 2.0
NEAR_TIE, FAILURE, NOT_CLASSIFIED = "near-tie", "synchronisation failure", "not classified"


def classify_row(
    model: CausalLM, row: Sequence, reference: list[int], witness: Witness, *, batch: int, chunk: int
) -> dict[str, Any]:
    """Classify the first difference of a finished row; see :func:`classify_divergence`."""
    if row.sampling is not None:  # its tokens are not the argmax of unprocessed logits
        return {"kind": NOT_CLASSIFIED, "reason": "only greedy decoding without penalties is classified"}
    return classify_divergence(
        model,
        row.prompt_ids,
        row.output_ids,
        reference,
        witness.logits.get(row.index),
        batch=batch,
        chunk=chunk,
    )


def classify_divergence(
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
        logits_V: the run's logits of the first differing token.
        batch, chunk: rows of the run's batches, and tokens that a round feeds (gamma + 1).

    Returns:
        ``kind`` and ``reason``; if tokens differ, also ``token``, ``reference_token``, and all values that the rules
        compare.
    """
    common = min(len(output), len(reference))
    at = next((i for i in range(common) if output[i] != reference[i]), common)
    if at == common:
        reason = f"the output ends after {len(output)} tokens, the reference after {len(reference)}"
        return {"kind": FAILURE, "reason": reason, "position": at}
    if logits_V is None:
        return {"kind": FAILURE, "reason": "the run's logits are not known", "position": at}
    rounding = rounding_of(model, prompt, reference, at, batch, chunk)
    expected_V = rounding.logits_nV[at].double()
    token, own = output[at], reference[at]
    # The logits of a float64 model are rounded to float32 for the decision (specdec.core.sampling.scores_of).
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
        reason = "the reference's margin is larger than rounding"
    elif not values["difference"] <= NOISE_FACTOR * values["noise"]:
        reason = "the run's logits differ by more than rounding"
    elif not values["difference_rms"] <= NOISE_FACTOR * values["noise_rms"]:
        reason = "the run's logits differ by more than rounding, over the whole vocabulary"
    else:
        reason = ""
    kind = FAILURE if reason else NEAR_TIE
    reason = reason or "both the margin and the run's difference are within rounding"
    return {"kind": kind, "reason": reason, "position": at, "token": token, "reference_token": own, **values}
