"""The alignment contract, call by call: each program of calls runs on a checked alignment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.alignment.base import Alignment
from specdec.alignment.checked import TOLERANCE, CheckedAlignment, InvariantError
from specdec.conformance.cases import VOCAB, Admit, Commit, Forward, Program, Release
from specdec.conformance.models import device, small_hybrid, small_pair
from specdec.conformance.promises import Broken, construct, reporting_errors
from specdec.core.clock import Clock
from specdec.errors import ContractError
from specdec.models.causal_lm import CausalLM

MakeAlignment = Callable[[CausalLM, Clock], Alignment]
FILLERS = (0, 7)


@reporting_errors
def check_program(program: Program, make: MakeAlignment, dtype: str = "float64", hybrid: bool = False) -> list[Broken]:
    """Run a program under every invariant; then twice more, with different ids in the columns after ``num_tokens``.

    Args:
        hybrid: on a model that has recurrent states besides keys and values, instead of keys and values alone.

    Raises:
        RefusedError: the strategy's constructor refuses the model.
    """
    model = small_hybrid(device()) if hybrid else small_pair(1, dtype)[0]
    found: list[InvariantError] = []
    inner, *others = (construct(make, model, Clock()) for _ in range(3))
    try:
        _run(program, CheckedAlignment(inner, model, report=found.append), FILLERS[0])
        first, second = (_run(program, other, filler) for other, filler in zip(others, FILLERS, strict=True))
    except Exception:
        if not found:
            raise
        return [Broken(error.invariant, str(error)) for error in found]  # the exception follows from these
    broken = [Broken(error.invariant, str(error)) for error in found]
    for turn, (one, other) in enumerate(zip(first, second, strict=True)):
        if not torch.allclose(one, other, rtol=0, atol=TOLERANCE[model.dtype] * float(one.abs().max() + 1)):
            broken.append(Broken("filler", f"forward {turn + 1} changes with the ids after num_tokens"))
            break
    return broken


def _run(program: Program, alignment: Alignment, filler: int) -> list[Tensor]:
    """Make the calls; return the logits of every forward at its fed tokens."""
    logits = []
    for step in program.steps:
        if isinstance(step, Admit):
            alignment.admit([row for row, _ in step.contents], [list(content) for _, content in step.contents])
        elif isinstance(step, Release):
            alignment.release(list(step.rows))
        elif isinstance(step, Forward):
            width = max(len(tokens) for _, tokens in step.tokens)
            padded = [[*tokens, *[filler] * (width - len(tokens))] for _, tokens in step.tokens]
            tokens_BT = torch.tensor(padded, device=device())
            counts = [len(tokens) for _, tokens in step.tokens]
            parents = [list(row) for row in step.parents] if step.parents is not None else None
            logits_BTV = alignment.forward([row for row, _ in step.tokens], tokens_BT, counts, parents)
            logits.append(torch.cat([logits_BTV[b, :count] for b, count in enumerate(counts)]))
        elif isinstance(step, Commit):
            alignment.commit([row for row, _ in step.kept], step.kept_lists())
    return logits


@reporting_errors
def check_misuse(name: str, make: MakeAlignment) -> list[Broken]:
    """Make one forbidden call after admitting two rows and feeding each a small tree."""
    alignment = construct(make, small_pair(1, "float64")[0], Clock())
    alignment.admit([0, 1], [[3, 4], [5]])
    alignment.forward([0, 1], torch.tensor([[1, 2], [3, 4]], device=device()), parents=[[-1, -1], [-1, 0]])
    try:
        MISUSES[name](alignment)
    except ContractError:
        return []
    except Exception as error:  # third-party code may raise anything
        return [Broken("calls", f"{name}: raises {type(error).__name__} instead of ContractError")]
    return [Broken("calls", f"{name}: is not refused")]


def _column() -> Tensor:
    return torch.zeros(2, 1, dtype=torch.long, device=device())


MISUSES: dict[str, Callable[[Alignment], object]] = {
    "admit a row twice": lambda alignment: alignment.admit([0], [[1]]),
    "commit nodes that do not form a path": lambda alignment: alignment.commit([0, 1], [[0, 1], [0]]),
    "commit more tokens than the row holds": lambda alignment: alignment.commit([0, 1], [[], 9]),
    "commit a row that is not admitted": lambda alignment: alignment.commit([5], [1]),
    "feed a row that is not admitted": lambda alignment: alignment.forward([0, 5], _column()),
    "feed a node whose parent was not fed": lambda alignment: alignment.forward([0, 1], _column(), parents=[[7], [1]]),
}

assert max(FILLERS) < VOCAB
