"""The Drafter contract: propose tokens (a chain or a tree) for the rows of a round. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHAIN
from specdec.drafters.memory import DrafterMemory

if TYPE_CHECKING:
    from torch import Tensor

    from specdec.alignment.base import Alignment

__all__ = ["Draft", "Drafter", "DrafterMemory", "Sequence"]


class Drafter(ABC):
    """Keeps the state that it needs per row, from ``admit`` to ``release``.

    A row's draft must depend on that row alone: not on its neighbours, their number, or the order of calls.

    The constructor of a plug-in gets a `DrafterContext` by position and its settings by keyword. Properties that are
    declared where it is registered (see `specdec.registry.Entry`): ``drafts``, ``by_text``, ``replays``.
    """

    max_length: int | None = None
    """Longest chain (or deepest tree) that it can draft; None means any."""

    siblings: str = CHAIN
    """The kind of siblings that its drafts have (`specdec.core.siblings`)."""

    width: int | None = None
    """Set by the engine before ``propose``: the draft-length policy's ``width``; drafters without trees ignore it."""

    hidden_layers: tuple[int, ...] = ()
    """The target's hidden states that the engine passes to ``observe_hidden``: i is the input of layer i, before its
    norm, and -1 the last, after the final norm. Without any, nothing is passed, and nothing is computed for it."""

    reports_certainty: bool = False
    """Set by the engine if a budget reads ``Draft.certainty_BG2``. A drafter that cannot report it ignores this."""

    probe_ids: tuple[int, ...] = ()
    """Ids past the target's vocabulary, with the embeddings ``probes_MD``. They are fed after each prompt, and dropped,
    so that the first draft knows their hidden states. No verifier emits them: every distribution gives them 0."""

    probes_MD: Tensor | None = None
    """Embeddings (M, D) of ``probe_ids``: row i belongs to the id ``vocab_size + i``."""

    reads_cache: bool = False
    """Whether it drafts with what the target's cache holds of a row: all its tokens but the last."""

    @property
    def memory(self) -> DrafterMemory:
        """What it keeps and computes, for the prediction of a run's memory; by default nothing."""
        return DrafterMemory()

    def prepare(self, batch: int) -> None:  # noqa: B027
        """Called before the clock of a run of up to ``batch`` rows starts, for drafters that measure the target first.

        Called again for another ``batch``, never while it has rows. By default nothing is done. The conformance kit and
        training do not call it.
        """

    def attach(self, target: Alignment) -> None:  # noqa: B027
        """Receive the target's rows, before any of them is admitted; by default nothing is done.

        What it feeds them in ``propose`` it must drop there, by a commit of each row's length.
        """

    def admit(self, rows: list[Sequence]) -> None:  # noqa: B027
        """Take new rows in (their prompts are known, nothing is emitted yet); by default nothing is done."""

    def read(self, rows: list[Sequence], stops: list[int]) -> None:  # noqa: B027
        """Read each row's prompt up to ``stops[b]`` tokens, ahead of its first draft.

        An optimisation hint: prompts come in chunks, or not at all while no row drafts, and ``propose`` must read what
        is still missing. By default nothing is done.
        """

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:  # noqa: B027
        """Receive the target's hidden states of tokens that it has just been fed.

        Called if there are ``hidden_layers``: for every part of a prompt, and before the commit of every round, with or
        without a draft.

        Args:
            hidden_BTD: (B, T, D), where D is the target's hidden size times the number of ``hidden_layers``, whose
                hidden states stand one after the other; in a round column 0 is the row's last token, column g + 1 node
                g of the draft.
            kept: per row the columns that are kept, in order; none for the row's probes after its prompt.
        """

    @abstractmethod
    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        """Draft up to ``gammas[b]`` tokens (0 allowed) after all committed tokens of row b.

        Not called in rounds in which no row drafts, so the drafter may have to catch up with several rounds' tokens.
        """

    def commit(self, rows: list[Sequence]) -> None:  # noqa: B027
        """The rows' emitted tokens are final: drop what was drafted beyond them. By default nothing is done."""

    @abstractmethod
    def release(self, rows: list[Sequence]) -> None:
        """Free the state of rows, which do not return."""
