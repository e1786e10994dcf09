"""The prompts of a call (tensors with an attention mask, lists of token ids, or texts) as rows of real tokens."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.core.text_files import lone_surrogate
from specdec.errors import ConfigError, DataError

Inputs = Tensor | list[str] | str | list[list[int]] | Mapping[str, Any]
"""(B, W) token ids; texts; ragged lists of token ids; or what a tokenizer returns, as it is."""


@dataclass(frozen=True, slots=True)
class Block:
    """The prompts of a call. B rows, W columns."""

    rows: list[list[int]]  # real tokens only
    input_ids: Tensor | None  # (B, W) as given; None: lists or texts, which the output pads on the left

    def repeated(self, times: int) -> Block:
        """Each prompt that many times in a row."""
        if times == 1:
            return self
        ids = None if self.input_ids is None else self.input_ids.repeat_interleave(times, dim=0)
        return Block([row for row in self.rows for _ in range(times)], ids)


def read_inputs(inputs: Any, attention_mask: Any, tokenizer: Any, pad_token_id: int | None) -> Block:
    """Rows of real tokens.

    ``attention_mask`` alone says which tokens are real: without one all are, whatever their ids.

    Raises:
        DataError: no rows, a row without real tokens, or a shape that does not fit. ConfigError: no tokenizer.
    """
    if isinstance(inputs, Mapping):
        inputs, attention_mask = _from_mapping(inputs, attention_mask)
    if isinstance(inputs, Tensor):
        rows = _from_tensor(inputs, attention_mask, pad_token_id)
        return Block(_checked(rows), inputs.long())
    if attention_mask is not None:
        raise DataError("attention_mask goes with a tensor of input_ids; lists and texts have no padding")
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, (list, tuple)):
        raise DataError(f"inputs of type {type(inputs).__name__}: give a tensor of token ids, lists of them, or texts")
    if inputs and all(isinstance(row, str) for row in inputs):
        if tokenizer is None:
            raise ConfigError("inputs are texts: pass tokenizer=, or token ids")
        for number, text in enumerate(inputs):
            if (problem := lone_surrogate(text)) is not None:
                raise DataError(f"row {number}: its text has {problem}, which no tokenizer takes: fix the text")
        inputs = tokenizer(list(inputs))["input_ids"]
    if any(_is_message(row) or (isinstance(row, (list, tuple)) and any(map(_is_message, row))) for row in inputs):
        raise DataError(
            "inputs are chat messages: pass what tokenizer.apply_chat_template(messages, add_generation_prompt=True, "
            "return_tensors='pt', return_dict=True) returns"
        )
    if not all(isinstance(row, (list, tuple)) and all(_is_id(token) for token in row) for row in inputs):
        raise DataError("inputs: give one list of token ids, or one text, per row")
    return Block(_checked([list(row) for row in inputs]), None)


def check_vocabulary(rows: list[list[int]], vocab_size: int) -> None:
    """Refuse ids outside the target's vocabulary, before a forward looks them up.

    Raises:
        DataError: naming the row and the id.
    """
    for number, row in enumerate(rows):
        wrong = next((token for token in row if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise DataError(f"row {number}: token id {wrong} is outside the target's vocabulary of {vocab_size}")


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value


def _is_id(token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool)


def _from_mapping(inputs: Mapping[str, Any], attention_mask: Any) -> tuple[Any, Any]:
    if "input_ids" not in inputs:
        raise DataError(f"inputs hold {', '.join(map(str, inputs)) or 'nothing'}: input_ids are missing")
    for name, value in inputs.items():
        if name not in ("input_ids", "attention_mask") and value is not None:
            raise ConfigError(f"inputs hold {name}, which specdec.generate does not take: leave it out")
    if attention_mask is not None and inputs.get("attention_mask") is not None:
        raise ConfigError("attention_mask is given twice: in the inputs and as a keyword")
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask") if attention_mask is None else attention_mask
    return ids, mask if isinstance(ids, Tensor) else _drop_full(mask)


def _drop_full(mask: Any) -> Any:
    """A tokenizer's lists come with masks of ones, which are dropped."""
    return None if mask is not None and all(all(row) for row in mask) else mask


def _from_tensor(input_ids: Tensor, attention_mask: Any, pad_token_id: int | None) -> list[list[int]]:
    if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.is_complex():
        raise DataError(f"input_ids of shape {tuple(input_ids.shape)}, {input_ids.dtype}: give (rows, tokens) integers")
    if attention_mask is None:
        _warn_of_padding(input_ids, pad_token_id)
        return [list(map(int, row)) for row in input_ids.tolist()]
    if not isinstance(attention_mask, Tensor):
        attention_mask = torch.as_tensor(attention_mask)
    if attention_mask.shape != input_ids.shape:
        raise DataError(
            f"attention_mask of shape {tuple(attention_mask.shape)} does not fit input_ids of {tuple(input_ids.shape)}"
        )
    mask = attention_mask.tolist()
    if any(value not in (0, 1) for row in mask for value in row):
        raise DataError("attention_mask: 1 marks a real token and 0 padding; other values mean nothing here")
    return [
        [token for token, real in zip(ids, reals, strict=True) if real]
        for ids, reals in zip(input_ids.tolist(), mask, strict=True)
    ]


def _warn_of_padding(input_ids: Tensor, pad_token_id: int | None) -> None:
    """Warn where transformers would infer the mask from the ids; here it is not inferred."""
    if pad_token_id is None or len(input_ids) < 2 or input_ids.shape[1] == 0:
        return
    if bool((input_ids[:, [0, -1]] == pad_token_id).any()):
        warnings.warn(
            f"input_ids begin or end with pad_token_id={pad_token_id} and no attention_mask is given: "
            "every token counts as real text; pass attention_mask if they are padding",
            stacklevel=2,
        )


def _checked(rows: list[list[int]]) -> list[list[int]]:
    if not rows:
        raise DataError("inputs hold no row: an empty batch has nothing to generate from")
    for number, row in enumerate(rows):
        if not row:
            raise DataError(f"row {number} has no real token: a prompt needs at least one (see attention_mask)")
    return rows
