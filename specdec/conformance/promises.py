"""The promises of the four contracts, by the name under which a broken one is reported. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ALIGNMENT = {
    "length": "a row's length is what its admissions and commits add up to",
    "position": "token j of a row is fed at position j",
    "visibility": "a query sees exactly its row's tokens, its ancestors and itself",
    "logits": "what comes back for a token is what the model says after it",
    "content": "the KV of a row equals that of a fresh forward over it",
    "filler": "what stands after num_tokens reaches no row",
}
RUN = {
    "calls": "every allowed call is answered, and every forbidden one raises ContractError",
    "emission": "every row's output is the target's own at batch 1: greedy, or drawn with the row's random numbers",
    "acceptance": "a round emits what was accepted plus one, and all of it when the draft is the target",
    "progress": "the run comes to an end, with every row finished for its own reason",
}
DRAFTER = {
    "shape": "tokens, counts and parents fit together and the wished lengths",
    "state": "after any rounds a row is drafted as if it had just been admitted",
    "neighbours": "a row's draft does not depend on the other rows",
    "distribution": "the probabilities that come with a draft are those that its tokens were drawn from",
}
VERIFIER = {
    "path": "what is accepted is a path of drafted nodes",
    "greedy": "at a sharp distribution the longest match is emitted, and the target's own token after it",
    "filler": "what stands after num_drafted reaches no row",
    "sampled": "the same where a row samples from that one, whatever its random numbers",
    "neighbours": "a row's verdict depends on its own draft, distribution and random numbers alone",
    "distribution": "where rows sample, what is emitted is distributed as the target says",
    "purity": "the arguments and the global random state are left as they were",
}
SCHEDULER = {
    "choice": "a round runs distinct, active, unfinished rows, at least one and at most `batch`",
    "progress": "every row is run until it is finished",
    "pool": "rows are made active through the pool and stay in it",
    "grouping": "rows of one length run together whenever they fill a batch (`groups_lengths`)",
    "waiting": "no active row is passed over for more rounds than is claimed (`max_wait_rounds`)",
}
BY_GROUP = {
    "alignment": ALIGNMENT | RUN,
    "drafter": DRAFTER | RUN,
    "verifier": VERIFIER | RUN,
    "scheduler": SCHEDULER | RUN,
}


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that a case has broken, and how it showed."""

    promise: str
    detail: str


def cannot_be_made(error: Exception) -> Broken:
    """The finding on a plug-in whose constructor raises something else than a ConfigError."""
    return Broken("calls", f"cannot be made: {type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the result: a promise, over how many cases, and the smallest case that breaks it."""

    promise: str
    text: str
    num_cases: int
    num_broken: int = 0
    detail: str = ""
    smallest: Any = None
    claimed: bool = True  # whether the plug-in says that it keeps it: some promises are for those that do

    @property
    def kept(self) -> bool:
        """Whether no case broke it."""
        return not self.num_broken
