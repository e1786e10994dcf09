"""The Drafter contract: propose tokens (a chain or a tree) for the rows of a round. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHAIN

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Draft", "Drafter", "Sequence"]


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

    reads_hidden: bool = False
    """Whether the engine passes the target's last hidden states to ``observe_hidden``."""

    probe_ids: tuple[int, ...] = ()
    """Ids past the target's vocabulary, with the embeddings ``probes_MD``. They are fed after each prompt, and dropped,
    so that the first draft knows their hidden states. No verifier emits them: every distribution gives them 0."""

    probes_MD: Tensor | None = None
    """Embeddings (M, D) of ``probe_ids``: row i belongs to the id ``vocab_size + i``."""

    def prepare(self, batch: int) -> None:  # noqa: B027
        """Called before the clock of a run of up to ``batch`` rows starts, for drafters that measure the target first.

        By default nothing is done. It is not called by every user of the class.
        """

    def admit(self, rows: list[Sequence]) -> None:  # noqa: B027
        """Take new rows in (their prompts are known, nothing is emitted yet); by default nothing is done."""

    def read(self, rows: list[Sequence], stops: list[int]) -> None:  # noqa: B027
        """Read each row's prompt up to ``stops[b]`` tokens, ahead of its first draft.

        An optimisation hint: prompts come in chunks, or not at all while no row drafts, and ``propose`` must read what
        is still missing. By default nothing is done.
        """

    def observe_hidden(self, rows: list[Sequence], hidden_BTD: Tensor, kept: list[list[int]]) -> None:  # noqa: B027
        """Receive the target's last hidden states (after its final norm) of tokens that it has just been fed.

        Called if ``reads_hidden`` is set: for every part of a prompt, and before the commit of every round, with or
        without a draft.

        Args:
            hidden_BTD: (B, T, D); in a round column 0 is the row's last token, column g + 1 node g of the draft.
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
