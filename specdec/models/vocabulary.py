"""Whether token ids fit a model's vocabulary, checked before anything runs. Imports no torch.

An id past the vocabulary raises an IndexError in the middle of a run, and on a GPU an assertion that ends the process.
So tokenizers are checked against the models when both are loaded, and ids in settings against the target.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from specdec.errors import ConfigError, PairError

if TYPE_CHECKING:
    from specdec.models.causal_lm import CausalLM


def num_ids(tokenizer: Any) -> int:
    """Rows of an embedding that holds every token: the largest id plus 1, not the number of tokens.

    0 for a tokenizer without ``get_vocab``: then only the ids of prompts are checked.
    """
    return 1 + max(tokenizer.get_vocab().values(), default=-1) if hasattr(tokenizer, "get_vocab") else 0


def check_tokenizer(tokenizer: Any, vocab_size: int, model: str, remedy: str) -> None:
    """Refuse a tokenizer with ids that ``model`` does not have, including added tokens.

    Raises:
        PairError: naming the largest id and its token.
    """
    if num_ids(tokenizer) <= vocab_size:
        return
    vocab = tokenizer.get_vocab()
    token, largest = max(vocab.items(), key=lambda item: item[1])
    raise PairError(
        f"the tokenizer has {len(vocab)} tokens but the vocabulary of {model} is {vocab_size}: {token!r} has id "
        f"{largest}; {remedy}"
    )


def check_fit(
    target: CausalLM, draft: CausalLM | None, tokenizer: Any, draft_tokenizer: Any, *, by_text: bool, settings: bool
) -> None:
    """Refuse models and tokenizers that do not fit together; used by runs and by the library.

    Args:
        tokenizer: the target's, or None where only ids are given. draft_tokenizer: the draft's own, or None.
        by_text: whether the models exchange text, so that their vocabularies may differ.
        settings: whether messages name settings of a run, or arguments of the library.

    Raises:
        PairError: naming what does not fit.
    """
    ours = "set pair.tokenizer to the target's own" if settings else "pass the model's own tokenizer"
    theirs = "set pair.draft_tokenizer to the draft's own" if settings else "pass the draft's own draft_tokenizer="
    other = "choose a draft of the target's family" + (" (pair.draft)" if settings else "")
    joined = "drafter=retokenize" if settings else "pass tokenizer= and draft_tokenizer= to join the two by text"
    resize = ", or call resize_token_embeddings on the model"
    if tokenizer is not None:
        check_tokenizer(tokenizer, target.vocab_size, "the target", ours + resize)
    if draft is None:
        return
    if by_text:
        if draft_tokenizer is not None:
            check_tokenizer(draft_tokenizer, draft.vocab_size, "the draft", theirs + resize)
    elif draft.vocab_size != target.vocab_size:
        raise PairError(
            f"vocabulary sizes differ: target {target.vocab_size}, draft {draft.vocab_size}; {other}, or {joined}"
        )


def check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """Refuse ids in a setting that are not in the target's vocabulary.

    Raises:
        ConfigError: naming the setting and the first such id.
    """
    wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise ConfigError(
            f"{name}: token id {wrong} is outside the target's vocabulary of {vocab_size}; give ids from 0 to "
            f"{vocab_size - 1}"
        )
