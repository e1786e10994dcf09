"""Whether token ids fit a model's vocabulary, asked before anything runs. Imports no torch.

An id beyond the vocabulary is an IndexError of the embedding in mid-run; on a GPU an assertion that ends the process.
So tokenizers are held against the models when they meet, and ids that a user gives against the target.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from specdec.errors import ConfigError, PairError

if TYPE_CHECKING:
    from specdec.models.causal_lm import CausalLM


def num_ids(tokenizer: Any) -> int:
    """Rows that an embedding needs for every token: one more than the largest id, which need not be their number.

    0 for a tokenizer of another make that does not tell: then only the ids of prompts are held against the model.
    """
    return 1 + max(tokenizer.get_vocab().values(), default=-1) if hasattr(tokenizer, "get_vocab") else 0


def check_tokenizer(tokenizer: Any, vocab_size: int, model: str, remedy: str) -> None:
    """Refuse a tokenizer that can give ids which ``model`` does not know, added tokens included.

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
    """Refuse models and tokenizers that could not read each other's tokens; the one check of runs and of the library.

    Args:
        tokenizer: the target's, or None where only ids are given. draft_tokenizer: the draft's own, or None.
        by_text: whether the models are joined by text, so that their vocabularies need not be the same.
        settings: whether remedies are named as settings of a run, or as arguments of the library.

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
    """Refuse ids in a setting that the target can neither read nor emit.

    Raises:
        ConfigError: naming the setting and the first such id.
    """
    wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise ConfigError(
            f"{name}: token id {wrong} is outside the target's vocabulary of {vocab_size}; give ids from 0 to "
            f"{vocab_size - 1}"
        )
