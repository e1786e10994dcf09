"""The promises of the contracts, by the name under which a broken one is reported. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from specdec.errors import ConfigError

ALIGNMENT = {
    "length": "a row's length is the sum of its admissions and commits",
    "position": "token j of a row is fed at position j",
    "visibility": "a query sees exactly its row's tokens, its ancestors and itself",
    "logits": "the logits of a token are those of the model after it",
    "content": "the KV of a row equals that of a fresh forward over it",
    "filler": "ids after num_tokens change nothing",
}
RUN = {
    "calls": "every allowed call succeeds, and every forbidden one raises ContractError",
    "emission": "every row's output is the target's own at batch 1: greedy, or drawn with the row's random numbers",
    "acceptance": "a round emits the accepted tokens plus one, and accepts every draft of the target itself",
    "progress": "the run ends, and every row finishes for the right reason",
}
DRAFTER = {
    "shape": "tokens, counts and parents fit each other and the requested lengths",
    "state": "after any number of rounds a row's draft is the same as if it had just been admitted",
    "neighbours": "a row's draft does not depend on the other rows",
    "distribution": "drafted tokens follow the probabilities that are returned with them",
    "chances": "predictions of acceptance depend on the tokens before the one that they are about, and not on that one",
}
SELECTOR = {
    "shapes": "one shape per row: at least one path, no more than `num_paths`, and no deeper than the row may draft",
    "neighbours": "a row's shape does not depend on the other rows",
    "state": "after any number of rounds a row's shape is the same as if its selector had just been prepared",
    "law": "a row's next-token distribution is the target's: its shape knows nothing of the draws that follow",
    "purity": "the arguments are unchanged",
}
VERIFIER = {
    "path": "accepted nodes form a path from the last committed token",
    "greedy": "the longest match and the target's token after it are emitted",
    "filler": "columns after num_drafted change nothing",
    "sampled": "at one-hot distributions, sampled rows emit the longest match and the target's token after it",
    "neighbours": "a row's verdict depends only on its own draft, distributions and random numbers",
    "distribution": "emitted tokens of sampled rows follow the target's distribution",
    "purity": "the arguments and the global random state are unchanged",
}
SCHEDULER = {
    "choice": "a round runs distinct, active, unfinished rows, at least one and at most `batch`",
    "pool": "rows are activated through the pool and stay in it",
    "grouping": "rows of one length run together whenever they fill a batch (`groups_lengths`)",
    "waiting": "no active row waits for more rounds than claimed (`max_wait_rounds`)",
}
BUDGET = {
    "depths": "one depth per row, from 0 to that of its draft",
    "law": "a row's next-token distribution does not depend on its neighbours' drafts",
}
DRAFT_LENGTH = {
    "depths": "one draft length per row, at least 0",
    "law": "a row's next-token distribution does not depend on its neighbours' drafts",
}
BY_GROUP = {
    "alignment": ALIGNMENT | RUN,
    "drafter": DRAFTER | RUN,
    "tree": {name: text for name, text in DRAFTER.items() if name != "chances"} | RUN,  # no tree predicts any
    "selector": SELECTOR | RUN,
    "verifier": VERIFIER | RUN,
    "scheduler": SCHEDULER | RUN,
    "budget": BUDGET | RUN,
    "draft_length": DRAFT_LENGTH | RUN,
}

Made = TypeVar("Made")
Parameters = ParamSpec("Parameters")


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that a case breaks, and what was observed."""

    promise: str
    detail: str


@dataclass(frozen=True, slots=True)
class PromiseFinding:
    """One line of the result: a promise, the number of cases, and the smallest case that breaks it."""

    promise: str
    text: str
    num_cases: int
    num_broken: int = 0
    detail: str = ""
    smallest: Any = None
    claimed: bool = True  # False: the plug-in does not make this optional promise

    @property
    def kept(self) -> bool:
        """Whether no case broke it."""
        return not self.num_broken


class RefusedError(ConfigError):
    """The plug-in's constructor refuses a case, as it may."""


def construct(make: Callable[Parameters, Made], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Made:
    """Call a plug-in's constructor; a ConfigError of it becomes a RefusedError."""
    try:
        return make(*args, **kwargs)
    except ConfigError as error:
        raise RefusedError(str(error)) from error


def reporting_errors(check: Callable[Parameters, list[Broken]]) -> Callable[Parameters, list[Broken]]:
    """Make a check report any exception but a RefusedError as a broken ``calls`` promise."""

    @wraps(check)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> list[Broken]:
        try:
            return check(*args, **kwargs)
        except RefusedError:
            raise
        except Exception as error:  # third-party code may raise anything
            return [Broken("calls", f"{type(error).__name__}: {error}")]

    return checked
