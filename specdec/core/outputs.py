"""What a forward gives for each token. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

NORMED = -1
"""The hidden states after the last norm; those of a number i from 0 on are the inputs of layer i, before its norm."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Logits (V), if they are wanted, and after them the hidden states (D each) in the order of their numbers.

    The numbers are those of ``hidden_states`` in `transformers`, but for the last, which is `NORMED`.
    """

    logits: bool = True
    hidden: tuple[int, ...] = ()


LOGITS = Outputs()
