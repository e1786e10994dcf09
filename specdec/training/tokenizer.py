"""The pair's own byte-level BPE tokenizer: every byte string has an encoding and decodes to itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.training import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
END_OF_TEXT_ID, PAD_ID = 0, 1


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int, out: Path) -> PreTrainedTokenizerFast:
    """Learn the merges and write tokenizer.json and tokenizer_config.json to `out`.

    Pad is a token of its own, not end-of-text: code that finds padding by token value shows itself in either
    case, but a distinct pad lets a test choose.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        found = tokenizer.get_vocab_size()
        raise TrainingError(f"vocab_size={vocab_size} is more than the corpus yields; at most {found} is right")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(out))
    return fast


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer written by `train_tokenizer`."""
    from transformers import PreTrainedTokenizerFast

    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(folder))
    return loaded


def encode_files(
    tokenizer: Any, texts: list[str], seed: int, end_id: int | None = END_OF_TEXT_ID, vocab_size: int = 1 << 16
) -> NDArray[Any]:
    """All texts in one array, shuffled, each followed by the token that ends texts."""
    order = np.random.default_rng(seed).permutation(len(texts))
    kind = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    end = [] if end_id is None else [end_id]
    encodings = tokenizer.backend_tokenizer.encode_batch([texts[index] for index in order])
    return np.concatenate([np.asarray([*encoding.ids, *end], kind) for encoding in encodings])
