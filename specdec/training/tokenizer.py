"""Byte-level BPE tokenizers, in which every byte string has an encoding and decodes to itself; and encoded corpora."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.training import TrainingError
from specdec.training.chat import check_template, encoded_texts
from specdec.training.corpus import Corpus, SourceFile

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
END_OF_TEXT_ID, PAD_ID = 0, 1


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int, out: Path) -> PreTrainedTokenizerFast:
    """Learn the merges and write tokenizer.json and tokenizer_config.json to `out`.

    Padding is a token of its own, not end-of-text, so that a test can tell code that finds padding by token value.
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
        raise TrainingError(f"vocab_size={vocab_size} is more than the corpus yields: give at most {found}")
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


def encode_corpus(corpus: Corpus, tokenizer: Any, seed: int, vocab_size: int, out: Path) -> dict[str, Any]:
    """Stage: write both sides of the corpus as arrays of tokens, train.npy and heldout.npy.

    Of conversations also train_counted.npy and heldout_counted.npy: which tokens are to be predicted, those of answers.
    """
    record: dict[str, Any] = {"corpus_sha256": corpus.sha256}
    for split, files in (("train", corpus.train), ("heldout", corpus.heldout)):
        texts = [file.text for file in files]
        num_bytes = sum(len(text.encode()) for text in texts)
        record[split] = {"files": len(files), "bytes": num_bytes}
        if corpus.is_chat:
            tokens, counted = encode_conversations(tokenizer, files, seed, vocab_size)
            np.save(out / f"{split}_counted.npy", counted)
            record[split]["answer_tokens"] = int(counted.sum())
        else:
            tokens = encode_texts(tokenizer, texts, seed, vocab_size)
        np.save(out / f"{split}.npy", tokens)
        record[split]["tokens"] = len(tokens)
    return record


def encode_texts(tokenizer: Any, texts: list[str], seed: int, vocab_size: int) -> NDArray[Any]:
    """All texts in one array, shuffled, each followed by the tokenizer's end-of-text token where it has one."""
    order = np.random.default_rng(seed).permutation(len(texts))
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encodings = tokenizer.backend_tokenizer.encode_batch([texts[index] for index in order])
    return np.concatenate([np.asarray([*encoding.ids, *end], id_type(vocab_size)) for encoding in encodings])


def encode_conversations(
    tokenizer: Any, files: list[SourceFile], seed: int, vocab_size: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """All conversations in one array, shuffled, and which tokens are part of an answer."""
    check_template(tokenizer)
    order = np.random.default_rng(seed).permutation(len(files))
    parts = [encoded_texts(tokenizer, files[index].messages) for index in order]
    ids = np.concatenate([np.asarray(part, id_type(vocab_size)) for part, _ in parts])
    return ids, np.concatenate([np.asarray(counted, np.bool_) for _, counted in parts])


def id_type(vocab_size: int) -> Any:
    """The smallest unsigned type that holds the vocabulary's ids."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32
