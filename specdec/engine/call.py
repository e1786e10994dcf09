"""A call as rows: prompts with their budgets, stops and seeds, all checked before any model runs."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

import torch

from specdec.core.prompted_stops import PromptedStopText
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.engine.inputs import Block, check_vocabulary, read_inputs
from specdec.engine.option_names import NUM_DEFAULT_TOKENS
from specdec.engine.options import Options, read_options, token_ids, whole_number
from specdec.engine.processors import score_change, stop_when
from specdec.errors import ConfigError, DataError
from specdec.models.causal_lm import CausalLM
from specdec.models.vocabulary import check_ids


@dataclass(frozen=True, slots=True)
class Plan:
    """A call whose settings and rows are all checked."""

    rows: list[Sequence]
    block: Block
    options: Options
    batch: int  # most rows in flight


def make_plan(
    models: list[CausalLM],
    tokenizer: Any,
    inputs: Any,
    generation_config: Any,
    attention_mask: Any,
    seed: int | SequenceOf[int] | None,
    batch: int | None,
    settings: Mapping[str, Any],
) -> Plan:
    """Check a call and make its rows; ``models`` are those that read the rows' tokens, the target first.

    Raises:
        ConfigError: a setting is wrong. DataError: a row is wrong.
    """
    if batch is not None:
        whole_number("batch", batch, 1)
    target = models[0]
    own = getattr(target.module, "generation_config", None)
    options = read_options(own, generation_config, settings)
    _check_stops(options, own, target)
    if options.stop_strings and tokenizer is None:
        raise ConfigError(f"stop_strings={list(options.stop_strings)}: pass tokenizer=, which says what tokens mean")
    options = replace(options, pad_token_id=_pad(options, tokenizer))
    block = read_inputs(inputs, attention_mask, tokenizer, options.pad_token_id)
    check_vocabulary(block.rows, target.vocab_size)
    _check_forced(block.rows, own)
    block = block.repeated(options.num_return_sequences)
    budgets = [_budget(number, len(row), options, models) for number, row in enumerate(block.rows)]
    _require_pad(block, budgets, options)
    sampling = _per_row(options.sampling, seed, len(block.rows))
    stops, ends = frozenset(options.stop_ids), stop_when(options.criteria, target.device)
    rows = [
        Sequence(number, ids, budget, stops, params, _stop_text(options, tokenizer, ids), ends)
        for number, (ids, budget, params) in enumerate(zip(block.rows, budgets, sampling, strict=True))
    ]
    for row in rows:
        prompt = row.index // options.num_return_sequences
        row.change_scores = score_change(target.module, options, prompt, row.prompt_ids, row.max_new_tokens)
        if row.change_scores is not None and row.sampling is not None:  # the processors have the penalty among them
            row.sampling = replace(row.sampling, repetition_penalty=1.0)
    return Plan(rows, block, options, batch or len(rows))


def _check_stops(options: Options, own: Any, target: CausalLM) -> None:
    """Refuse stop tokens that the target cannot emit, but for those of its own configuration."""
    known = getattr(own, "eos_token_id", None)
    known = known if isinstance(known, list | tuple) else (known,)
    check_ids("eos_token_id", (token for token in options.stop_ids if token not in known), target.vocab_size)


def _check_forced(rows: list[list[int]], own: Any) -> None:
    """Refuse prompts of one token where `transformers` would force the token after them."""
    forced = getattr(own, "forced_bos_token_id", None)
    for number, ids in enumerate(rows):
        if forced is not None and len(ids) == 1:
            raise DataError(
                f"row {number}: after a prompt of one token the target's generation_config forces token {forced} "
                "(forced_bos_token_id), which is not supported: give a longer prompt, or set that to None"
            )


def _pad(options: Options, tokenizer: Any) -> int | None:
    """The padding token: the given one; else the first stop token, as in ``transformers``; else the tokenizer's."""
    if options.pad_token_id is not None:
        return options.pad_token_id
    if options.stop_ids:
        return options.stop_ids[0]
    ids = token_ids("tokenizer.pad_token_id", getattr(tokenizer, "pad_token_id", None))
    return ids[0] if ids else None


def _budget(number: int, num_prompt: int, options: Options, models: list[CausalLM]) -> int:
    """New tokens that row ``number`` may emit. Refuses the call if they do not fit in every model."""
    shortest = min(models, key=lambda model: model.context_length)  # the target, if both are equal
    context, role = shortest.context_length, "target" if shortest is models[0] else "draft"
    room = context - num_prompt
    if room < 1:
        raise DataError(
            f"row {number}: its prompt of {num_prompt} tokens fills the {role}'s context of {context}: shorten it"
        )
    if options.max_new_tokens is None and options.max_length is None:
        return min(NUM_DEFAULT_TOKENS, room)
    budget = options.max_new_tokens or (options.max_length or 0) - num_prompt
    if budget < 1:
        raise DataError(
            f"row {number}: its prompt of {num_prompt} tokens leaves no room in max_length={options.max_length}: "
            "set max_new_tokens, or a larger max_length"
        )
    if budget > room:
        name = "max_length" if options.max_new_tokens is None else "max_new_tokens"
        raise DataError(
            f"row {number}: {num_prompt} prompt tokens and {budget} new ones ({name}) exceed the {role}'s context "
            f"of {context}: at most {room} new tokens fit"
        )
    return budget


def _require_pad(block: Block, budgets: list[int], options: Options) -> None:
    """Rows of different lengths need a padding token in the output: refuse before decoding if there is none."""
    if options.pad_token_id is not None or len(budgets) == 1:
        return
    ragged_prompts = block.input_ids is None and len({len(row) for row in block.rows}) > 1
    if ragged_prompts or options.stop_strings or len(set(budgets)) > 1:
        raise ConfigError("pad_token_id is not set, by the call, the model or the tokenizer: rows differ in length")


def _per_row(
    sampling: SamplingParams | None, seed: int | SequenceOf[int] | None, num_rows: int
) -> list[SamplingParams | None]:
    if sampling is None or sampling.greedy:
        if seed is not None:
            raise ConfigError("seed has no effect without do_sample=True: set that, or leave seed out")
        return [sampling] * num_rows
    if seed is None:  # from torch's generator, so that torch.manual_seed makes a call repeatable
        seed = int(torch.randint(2**63 - 1, ()))
    seeds = [seed] * num_rows if isinstance(seed, int) else list(seed)
    if len(seeds) != num_rows:
        raise ConfigError(f"seed: {len(seeds)} of them for {num_rows} rows; give one, or one per row")
    return [replace(sampling, seed=whole_number("seed", value)) for value in seeds]


def _stop_text(options: Options, tokenizer: Any, prompt_ids: list[int]) -> PromptedStopText | None:
    def decode(ids: list[int]) -> str:
        text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    return PromptedStopText(options.stop_strings, decode, prompt_ids) if options.stop_strings else None
