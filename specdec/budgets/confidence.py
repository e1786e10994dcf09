"""The chance that a slot is accepted if those before it are: an online logistic fit, per place of the draft.

Inputs are known before the slot's token is drawn: the logit of the draft's largest probability and its entropy, both at
temperature 1, and a constant; of drafts without certainties only the constant. The fit takes one Newton step per round
on the outcomes of earlier rounds, from a prior that believes the draft's largest probability. Old rounds fade.
A drafter that predicts acceptance itself (``Draft.chances_BG``) is believed, and nothing is fitted.
Shape letters: B rows, L levels, K inputs.
"""

from __future__ import annotations

import numpy as np

from specdec.budgets.slots import Floats, Slots

PRIOR_TRIALS = 8.0  # what the prior counts as, in trials of middling certainty
MEMORY = 2000.0  # trials of a place after which older ones fade
NUM_BINS = 10  # of the reliability table
CERTAIN = 1e-4  # probabilities are kept this far from 0 and 1
BLIND_LOGIT = 0.85  # of an acceptance of 0.7, where a draft says nothing of its certainty

Calibration = list[list[float]]
"""Per bin of the predicted chance: predictions, their sum, and accepted tokens."""


class Confidence:
    """One logistic model per place; a place that was never tried starts from the place before it."""

    def __init__(self) -> None:
        self._weights_LK = np.zeros((0, 3))
        self._precision_LKK = np.zeros((0, 3, 3))

    def chances(self, slots: Slots) -> Floats:
        """(B, L): of every slot."""
        if slots.told_BL is not None:
            return slots.told_BL.clip(CERTAIN, 1 - CERTAIN)
        inputs_BLK = inputs(slots)
        self._grow(inputs_BLK.shape[1], slots.top_BL is not None)
        return expit((inputs_BLK * self._weights_LK[: inputs_BLK.shape[1]]).sum(-1))

    def observe(self, slots: Slots, chances_BL: Floats, kept: list[int], accepted: list[int]) -> Calibration:
        """Learn from a round's outcome; returns how the predictions made before it compare with it."""
        tried_BL, right_BL = outcomes(chances_BL.shape[1], kept, accepted)
        if slots.told_BL is None:
            self._step(inputs(slots), chances_BL, tried_BL, right_BL)
        return table(chances_BL[tried_BL], right_BL[tried_BL])

    def _step(self, inputs_BLK: Floats, chances_BL: Floats, tried_BL: np.ndarray, right_BL: np.ndarray) -> None:
        num_levels = inputs_BLK.shape[1]
        error_BL = np.where(tried_BL, right_BL - chances_BL, 0.0)
        spread_BL = np.where(tried_BL, chances_BL * (1 - chances_BL), 0.0)
        fade_L11 = (1 - tried_BL.sum(0) / MEMORY).clip(0.5)[:, None, None]
        precision_LKK = self._precision_LKK[:num_levels]
        precision_LKK = fade_L11 * precision_LKK + (1 - fade_L11) * _prior()
        precision_LKK += np.einsum("bl,blk,blj->lkj", spread_BL, inputs_BLK, inputs_BLK)
        self._precision_LKK[:num_levels] = precision_LKK
        gradient_LK = np.einsum("bl,blk->lk", error_BL, inputs_BLK)
        self._weights_LK[:num_levels] += np.linalg.solve(precision_LKK, gradient_LK[..., None])[..., 0]

    def _grow(self, num_levels: int, sees: bool) -> None:
        while len(self._weights_LK) < num_levels:
            first = np.array([[0.0, 1.0, 0.0] if sees else [BLIND_LOGIT, 0.0, 0.0]])
            before = self._weights_LK[-1:] if len(self._weights_LK) else first
            self._weights_LK = np.concatenate([self._weights_LK, before])
            self._precision_LKK = np.concatenate([self._precision_LKK, _prior()[None]])


def inputs(slots: Slots) -> Floats:
    """(B, L, K): what the fit reads of every slot."""
    found = np.zeros((*slots.nodes_BL.shape, 3))
    found[..., 0] = 1.0
    if slots.top_BL is not None and slots.entropy_BL is not None:
        top_BL = slots.top_BL.clip(CERTAIN, 1 - CERTAIN)
        found[..., 1] = np.log(top_BL / (1 - top_BL))
        found[..., 2] = slots.entropy_BL
    return found


def outcomes(num_levels: int, kept: list[int], accepted: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(B, L) each: the slots that were decided, because all before them were accepted; and those accepted."""
    levels_L = np.arange(num_levels)
    kept_B1, accepted_B1 = np.array(kept)[:, None], np.array(accepted)[:, None]
    return (levels_L < kept_B1) & (levels_L <= accepted_B1), levels_L < accepted_B1


def expit(values: Floats) -> Floats:
    """The logistic function, away from 0 and 1."""
    chances: Floats = (1 / (1 + np.exp(-values.clip(-30, 30)))).clip(CERTAIN, 1 - CERTAIN)
    return chances


def table(chances_N: Floats, right_N: np.ndarray) -> Calibration:
    """The reliability table of some predictions."""
    bins_N = np.minimum((chances_N * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = [np.bincount(bins_N, weights=weights, minlength=NUM_BINS) for weights in (None, chances_N, right_N)]
    return [[float(value) for value in values] for values in zip(*counts, strict=True)]


def _prior() -> Floats:
    prior: Floats = PRIOR_TRIALS / 4 * np.diag([1.0, 1.0, 1.0])
    return prior
