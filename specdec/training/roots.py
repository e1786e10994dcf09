"""Roots for a selector: states of both models at places of the target's own outputs, and what every shape would accept.

Shape letters: N roots, B rows, A shapes, D and E the hidden sizes of target and draft, X numbers per root.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.core.tensor_files import write_tensors
from specdec.models.causal_lm import CausalLM
from specdec.selectors.combs import CombLayout
from specdec.selectors.efficiency import expected_accepted
from specdec.selectors.explore import Explorer
from specdec.selectors.network import numbers_of
from specdec.training.decoding import decode
from specdec.training.selector_config import SelectorConfig


@dataclass(frozen=True, slots=True)
class RootSet:
    """What a selector learns from. Tensors of N roots, float32."""

    target_hidden_ND: Tensor
    draft_hidden_N2E: Tensor
    numbers_NX: Tensor
    tokens_NA: Tensor  # expected tokens of a round of each shape: accepted ones and the one after them
    temperatures_N: Tensor
    prompts_N: Tensor  # which prompt a root is from

    def __len__(self) -> int:
        """N."""
        return len(self.tokens_NA)

    def where(self, chosen_N: Tensor) -> RootSet:
        """Some of the roots, by number or by mask."""
        return RootSet(*(getattr(self, field.name)[chosen_N] for field in fields(self)))

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        write_tensors({field.name: getattr(self, field.name).contiguous() for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> RootSet:
        """Read what ``save`` wrote."""
        return cls(**load_file(path))


def log_roots(
    target: CausalLM,
    draft: CausalLM,
    prompts: list[list[int]],
    params: SamplingParams,
    cfg: SelectorConfig,
    first_prompt: int,
    stop_ids: frozenset[int],
) -> RootSet:
    """Decode the prompts in the engine, and look at every ``cfg.every``-th place of the outputs.

    Args:
        first_prompt: the number of the first prompt among those of all calls.
    """
    rows = [Sequence(i, ids, cfg.new_tokens, stop_ids, params) for i, ids in enumerate(prompts)]
    decode(target, rows, len(rows), verifier="naive", execution="auto")
    draft.execute("auto")
    explorer = Explorer(target, draft, CombLayout(cfg.num_paths, cfg.depth), cfg.samples, Clock())
    head, parts = target.module.get_output_embeddings(), list[RootSet]()
    for place in range(0, cfg.new_tokens, cfg.every):
        alive = [row for row in rows if len(row.output_ids) > place and len(row.prompt_ids) + place > 1]
        if not alive:
            break
        texts = [row.prompt_ids + row.output_ids[:place] for row in alive]
        settings = [params] * len(alive)
        found = explorer.explore([row.index for row in alive], texts, settings)
        accepted_RA = expected_accepted(cfg.verifier, found.combs)
        states, lengths = found.states, [len(text) for text in texts]
        parts.append(
            RootSet(
                states.target_hidden_BD.float().cpu(),
                states.draft_hidden_B2E.float().cpu(),
                numbers_of(head, states, found.scores_BV, lengths, settings).cpu(),
                1 + accepted_RA.unflatten(0, (len(alive), cfg.samples)).mean(1).float().cpu(),
                torch.full((len(alive),), params.temperature),
                torch.tensor([first_prompt + row.index for row in alive]),
            )
        )
    return joined(parts)


def joined(parts: list[RootSet]) -> RootSet:
    """All roots of some sets."""
    columns: list[Any] = [torch.cat([getattr(part, field.name) for part in parts]) for field in fields(RootSet)]
    return RootSet(*columns)
