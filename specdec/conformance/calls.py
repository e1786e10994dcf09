"""The alignment contract, call by call: every program is played on a checked alignment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.alignment.base import Alignment
from specdec.alignment.checked import TOLERANCE, CheckedAlignment, InvariantError
from specdec.conformance.cases import VOCAB, Admit, Commit, Forward, Program, Release
from specdec.conformance.models import small_pair
from specdec.conformance.promises import Broken, cannot_be_made
from specdec.core.clock import Clock
from specdec.errors import ConfigError, ContractError
from specdec.models.causal_lm import CausalLM

MakeAlignment = Callable[[CausalLM, Clock], Alignment]
FILLERS = (0, 7)


def check_program(program: Program, make: MakeAlignment, dtype: str = "float64") -> list[Broken]:
    """Play a program under every invariant; then twice more, with other tokens where nothing is fed.

    Raises:
        ConfigError: the strategy refuses to be made, as it may.
    """
    model = small_pair(1, dtype)[0]
    found: list[InvariantError] = []
    try:
        inner, *others = (make(model, Clock()) for _ in range(3))
    except ConfigError:
        raise
    except Exception as error:  # third-party code may raise anything
        return [cannot_be_made(error)]
    try:
        _play(program, CheckedAlignment(inner, model, report=found.append), FILLERS[0])
        first, second = (_play(program, other, filler) for other, filler in zip(others, FILLERS, strict=True))
    except Exception as error:  # after a broken promise it is taken for its consequence
        if not found:
            return [Broken("calls", f"an allowed call raises {type(error).__name__}: {error}")]
        return [Broken(error.invariant, str(error)) for error in found]
    broken = [Broken(error.invariant, str(error)) for error in found]
    for turn, (one, other) in enumerate(zip(first, second, strict=True)):
        if not torch.allclose(one, other, rtol=0, atol=TOLERANCE[model.dtype] * float(one.abs().max() + 1)):
            broken.append(Broken("filler", f"forward {turn + 1} changes with the ids after num_tokens"))
            break
    return broken


def _play(program: Program, alignment: Alignment, filler: int) -> list[Tensor]:
    """Make the calls; returns the logits of the fed tokens of every forward."""
    logits = []
    for step in program.steps:
        if isinstance(step, Admit):
            alignment.admit([row for row, _ in step.contents], [list(content) for _, content in step.contents])
        elif isinstance(step, Release):
            alignment.release(list(step.rows))
        elif isinstance(step, Forward):
            width = max(len(tokens) for _, tokens in step.tokens)
            tokens_BT = torch.tensor([[*tokens, *[filler] * (width - len(tokens))] for _, tokens in step.tokens])
            counts = [len(tokens) for _, tokens in step.tokens]
            parents = [list(row) for row in step.parents] if step.parents is not None else None
            logits_BTV = alignment.forward([row for row, _ in step.tokens], tokens_BT, counts, parents)
            logits.append(torch.cat([logits_BTV[b, :count] for b, count in enumerate(counts)]))
        elif isinstance(step, Commit):
            alignment.commit([row for row, _ in step.kept], step.kept_lists())
    return logits


def check_misuse(name: str, make: MakeAlignment) -> list[Broken]:
    """One forbidden call, after two rows were admitted and fed a small tree each."""
    model = small_pair(1, "float64")[0]
    try:
        alignment = make(model, Clock())
    except ConfigError:
        raise
    except Exception as error:
        return [cannot_be_made(error)]
    try:
        alignment.admit([0, 1], [[3, 4], [5]])
        alignment.forward([0, 1], torch.tensor([[1, 2], [3, 4]]), parents=[[-1, -1], [-1, 0]])
        MISUSES[name](alignment)
    except ContractError:
        return []
    except Exception as error:
        return [Broken("calls", f"{name}: raises {type(error).__name__} instead of ContractError")]
    return [Broken("calls", f"{name}: is not refused")]


MISUSES: dict[str, Callable[[Alignment], object]] = {
    "admit a row twice": lambda alignment: alignment.admit([0], [[1]]),
    "commit nodes that are no path": lambda alignment: alignment.commit([0, 1], [[0, 1], [0]]),
    "commit more than a row holds": lambda alignment: alignment.commit([0, 1], [[], 9]),
    "commit a row that is not admitted": lambda alignment: alignment.commit([5], [1]),
    "feed a row that is not admitted": lambda alignment: alignment.forward([0, 5], torch.zeros(2, 1, dtype=torch.long)),
    "feed a node whose parent was not fed": lambda alignment: alignment.forward(
        [0, 1], torch.zeros(2, 1, dtype=torch.long), parents=[[7], [1]]
    ),
}

assert max(FILLERS) < VOCAB
