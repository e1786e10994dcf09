"""Logits processors and stopping criteria of `transformers`, for each row as if it were alone.

The processors are made by the target's own ``_get_logits_processor``, so that each option means what it means there and
they follow one another in the same order. Each is asked about one row's tokens at a time, drafted ones included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.core.row_scores import ScoreChange
from specdec.core.sequence import StopWhen
from specdec.engine.options import Options
from specdec.errors import ConfigError, first_line


@dataclass(slots=True)
class Processors:
    """A row's processors. They must be functions of ids and scores: a first call asks twice and compares.

    Args:
        processors: called with ids (1, n) and float32 scores (1, V) for new scores.
        own: whether the caller brought any, which are the ones that may keep a state.
    """

    processors: Callable[[Tensor, Tensor], Tensor]
    device: torch.device
    own: list[str]

    def __call__(self, tokens: list[int], scores_V: Tensor) -> Tensor:
        ids_1n = torch.tensor([tokens], device=self.device)
        changed_V = self._asked(ids_1n, scores_V)
        if self.own:
            again_V = self._asked(ids_1n, scores_V)
            if not torch.equal(changed_V.nan_to_num(), again_V.nan_to_num()):
                raise ConfigError(
                    f"logits_processor={', '.join(self.own)}: the same call gives other scores the second time, and "
                    "drafted tokens are asked about too: it must be a function of ids and scores"
                )
            self.own = []
        return changed_V

    def _asked(self, ids_1n: Tensor, scores_V: Tensor) -> Tensor:
        changed_1V = self.processors(ids_1n, scores_V[None].clone())
        if not isinstance(changed_1V, Tensor) or changed_1V.shape != (1, len(scores_V)):
            shape = tuple(changed_1V.shape) if isinstance(changed_1V, Tensor) else type(changed_1V).__name__
            raise ConfigError(f"logits_processor: it returned {shape} for scores of {(1, len(scores_V))}")
        return changed_1V[0].float()


def score_change(module: Any, options: Options, row: int, prompt_ids: list[int], budget: int) -> ScoreChange | None:
    """The row's change of scores, repetition penalty included; None if the call asks for none.

    Args:
        row: its number, which a ``prefix_allowed_tokens_fn`` is told.
    """
    if not options.processing:
        return None
    from transformers import GenerationConfig, LogitsProcessorList

    chosen = dict(options.processing)
    own, allowed = chosen.pop("logits_processor", []), chosen.pop("prefix_allowed_tokens_fn", None)
    penalty = 1.0 if options.sampling is None else options.sampling.repetition_penalty
    if options.samples:
        chosen.pop("renormalize_logits", None)  # it comes after temperature and top-k: see ScoreRecorder
    ids_1n = torch.tensor([prompt_ids], device=module.device)
    try:
        config = GenerationConfig(
            **chosen,
            num_beams=1,
            num_return_sequences=1,
            repetition_penalty=penalty,
            eos_token_id=list(options.stop_ids) or None,
            pad_token_id=options.pad_token_id,
            max_length=len(prompt_ids) + budget,
        )
        module._prepare_special_tokens(config, True, device=module.device, batch_size=1)
        made = module._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(prompt_ids),
            encoder_input_ids=ids_1n,
            prefix_allowed_tokens_fn=None if allowed is None else lambda _, ids: allowed(row, ids),
            logits_processor=LogitsProcessorList(own),
            device=module.device,
            model_kwargs={"attention_mask": torch.ones_like(ids_1n)},
        )
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"transformers refuses {', '.join(options.processing)}: {first_line(error)}") from error
    return Processors(made, module.device, [type(one).__name__ for one in own])


def stop_when(criteria: Iterable[Callable[..., Any]], device: torch.device) -> StopWhen | None:
    """Whether any stopping criterion ends a row, asked with its ids (1, n) after each new token."""
    criteria = list(criteria)
    if not criteria:
        return None

    def ends(tokens: list[int]) -> bool:
        ids_1n = torch.tensor([tokens], device=device)
        return any(bool(torch.as_tensor(one(ids_1n, None)).all()) for one in criteria)

    return ends
