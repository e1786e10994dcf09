"""What a call returns: events per row while it runs, and at its end sequences with their counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from specdec.core.acceptance import speculative_decoding
from specdec.core.round import Round
from specdec.core.sequence import Sequence
from specdec.engine.inputs import Block
from specdec.engine.scores import ScoreRecorder, by_step
from specdec.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Event:
    """The new tokens of one row in one round."""

    row: int  # number of the prompt in the call
    tokens: list[int]  # at least one; the accepted ones come first
    num_accepted: int  # tokens of the draft among them
    num_drafted: int  # of a tree, all its nodes
    stop_reason: str | None  # "stop", "stop_string", "criterion" or "length" in the row's last event
    end_depth: int  # accepted tokens at which the draft ended below them; equal to num_accepted at full acceptance

    @property
    def kinds(self) -> list[str]:
        """For each token: accepted, recovered (after a rejection), bonus (after full acceptance), or plain."""
        last = "plain" if not self.num_drafted else "bonus" if self.num_accepted == self.end_depth else "recovered"
        return ["accepted"] * self.num_accepted + [last] * (len(self.tokens) - self.num_accepted)


@dataclass
class SpeculativeOutput(ModelOutput):  # type: ignore[misc]
    """The result with ``return_dict_in_generate=True``: lists with one entry per row, of raw counts."""

    sequences: Tensor | None = None  # (B, W + most new tokens): the result without return_dict_in_generate
    num_new_tokens: list[int] | None = None
    num_drafted: list[int] | None = None
    num_accepted: list[int] | None = None
    num_verify_calls: list[int] | None = None  # target forwards of the row, without its prefill
    accepted_lengths: list[list[int]] | None = None  # accepted tokens in each of those
    drafted_lengths: list[list[int]] | None = None  # drafted ones, likewise
    stop_reasons: list[str] | None = None  # "stop", "stop_string", "criterion" or "length"
    texts: list[str] | None = None  # of the new tokens, without special ones, if there is a tokenizer
    scores: tuple[Tensor, ...] | None = None  # output_scores: one (B, V) per place; NaN after a row's end
    logits: tuple[Tensor, ...] | None = None  # output_logits: likewise, the target's own
    logprobs: list[list[float]] | None = None  # output_logprobs: of each new token, by the target's own logits

    @property
    def speculative_decoding(self) -> list[dict[str, Any]]:
        """Per row, what vLLM reports per request under this name, per step too."""
        steps = zip(self.accepted_lengths or [], self.drafted_lengths or [], strict=True)
        return [speculative_decoding(accepted, drafted, detailed=True) for accepted, drafted in steps]

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens, over all rows; 0 where nothing was drafted."""
        return sum(self.num_accepted or []) / max(sum(self.num_drafted or []), 1)

    @property
    def mean_acceptance_length(self) -> float:
        """New tokens per row and verify call."""
        return sum(self.num_new_tokens or []) / max(sum(self.num_verify_calls or []), 1)


def events_of(outcome: Round) -> Iterator[Event]:
    """A round as one event per row."""
    for b, row in enumerate(outcome.rows):
        counts = (outcome.num_accepted[b], outcome.num_drafted[b])
        yield Event(row.index, outcome.emitted[b], *counts, row.stop_reason, outcome.end_depths[b])


def sequences(block: Block, rows: list[Sequence], pad_token_id: int | None, device: torch.device) -> Tensor:
    """(B, W + N): the prompts as they were given, then the new tokens, padded on the right.

    New tokens begin after the block of prompts, in column W of every row, on whichever side the block is padded: the
    layout of ``transformers.generate``. Lists and texts form a block that is padded on the left.
    """
    pad = 0 if pad_token_id is None else pad_token_id  # without one nothing is padded: make_plan has checked that
    new = [row.output_ids for row in rows]
    most = max(map(len, new))
    if block.input_ids is None:
        width = max(map(len, block.rows))
        prompts = torch.tensor([[pad] * (width - len(row)) + row for row in block.rows], device=device)
    else:
        prompts = block.input_ids
    tail = torch.tensor([ids + [pad] * (most - len(ids)) for ids in new], device=prompts.device)
    return torch.cat([prompts, tail], dim=1)


def statistics(
    rows: list[Sequence], sequences_BT: Tensor, tokenizer: Any, recorder: ScoreRecorder | None = None
) -> SpeculativeOutput:
    """The sequences with the rows' counts, and what was recorded."""
    decode = None if tokenizer is None else lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
    return SpeculativeOutput(
        sequences=sequences_BT,
        num_new_tokens=[len(row.output_ids) for row in rows],
        num_drafted=[row.num_drafted for row in rows],
        num_accepted=[row.num_accepted for row in rows],
        num_verify_calls=[len(row.accepted_lengths) for row in rows],
        accepted_lengths=[row.accepted_lengths for row in rows],
        drafted_lengths=[row.drafted_lengths for row in rows],
        stop_reasons=[str(row.stop_reason) for row in rows],
        texts=None if decode is None else [decode(row.output_ids) for row in rows],
        scores=by_step(recorder.scores_of, rows) if recorder and recorder.scores else None,
        logits=by_step(recorder.logits_of, rows) if recorder and recorder.logits else None,
        logprobs=[recorder.logprobs_of[row.index] for row in rows] if recorder and recorder.logprobs else None,
    )


def streamers_of(streamer: Any, rows: list[Sequence]) -> list[Any]:
    """One streamer per row, or none; each gets its prompt first, as in ``transformers``."""
    if streamer is None:
        return []
    streamers = list(streamer) if isinstance(streamer, (list, tuple)) else [streamer]
    if len(streamers) != len(rows):
        raise ConfigError(f"streamer: {len(streamers)} for {len(rows)} rows; give a list with one per row")
    for one, row in zip(streamers, rows, strict=True):
        one.put(torch.tensor([row.prompt_ids]))
    return streamers
