"""Byte-level BPE tokenizers, in which every byte string has an encoding and decodes to itself; and encoded corpora."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.training import TrainingError
from specdec.training.chat import check_template, encoded_texts
from specdec.training.corpus import Corpus, SourceFile
from specdec.training.records import ArrayWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
END_OF_TEXT_ID, PAD_ID = 0, 1
CHARACTERS_AT_ONCE = 1 << 18  # encoded together: the tokenizer's records of their tokens take 100 times as much


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
    Further parts of a mixture are train_1.npy and so on.
    """
    record: dict[str, Any] = {"corpus_sha256": corpus.sha256}
    for number, part in enumerate(corpus.parts):
        for split, files in (("train", part.train), ("heldout", part.heldout)):
            name = f"{split}_{number}" if number else split
            record[name] = _encode_files(files, part.is_chat, tokenizer, seed, vocab_size, out / name)
    return record


def _encode_files(
    files: Sequence[SourceFile], is_chat: bool, tokenizer: Any, seed: int, vocab_size: int, path: Path
) -> dict[str, int]:
    """All files in one array, shuffled, a few in memory at a time."""
    if is_chat:
        check_template(tokenizer)
    shuffled = (files[int(index)] for index in np.random.default_rng(seed).permutation(len(files)))
    num_bytes = num_counted = 0
    ids = ArrayWriter(path.with_name(f"{path.name}.npy"), id_type(vocab_size))
    counted = ArrayWriter(path.with_name(f"{path.name}_counted.npy"), np.bool_) if is_chat else None
    for some in _few(shuffled):
        num_bytes += sum(len(file.text.encode()) for file in some)
        if counted is None:
            for text in encode_texts(tokenizer, [file.text for file in some]):
                ids.append(text)
            continue
        for file in some:
            text, is_answer = encoded_texts(tokenizer, file.messages)
            ids.append(text)
            counted.append(is_answer)
            num_counted += sum(is_answer)
    ids.close()
    figures = {"files": len(files), "bytes": num_bytes, "tokens": ids.length}
    if counted is not None:
        counted.close()
        figures["answer_tokens"] = num_counted
    return figures


def _few(files: Iterable[SourceFile]) -> Iterator[list[SourceFile]]:
    """Files in lists of about CHARACTERS_AT_ONCE."""
    some, size = list[SourceFile](), 0
    for file in files:
        some.append(file)
        size += len(file.text)
        if size >= CHARACTERS_AT_ONCE:
            yield some
            some, size = [], 0
    yield some


def encode_texts(tokenizer: Any, texts: list[str]) -> Iterator[list[int]]:
    """The texts' token ids, each followed by the tokenizer's end-of-text token where it has one."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        yield [*encoding.ids, *end]


def id_type(vocab_size: int) -> Any:
    """The smallest unsigned type that holds the vocabulary's ids."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32
