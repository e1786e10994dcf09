"""What an unmodified random model says about ragged rows, and a draft that agrees with it some of the time."""

from __future__ import annotations

import contextlib
import copy
import random
from dataclasses import dataclass
from typing import Any

import model_sizes as sizes
import torch
from model_zoo import Entry, build

LENGTHS, NEW = (3, 9, 17, 30, 5), 24
"""Tokens of each prompt, and how many follow."""
ORDER_ROW, LONGEST_ROW = 2, 3
MARGIN = 1e-4
"""A difference where the reference's two best logits are closer than this proves nothing."""
SEEDS, ENOUGH = 6, 3
"""Random models tried, until as many rows vary."""
BITING = (
    *("sliding_window", "sliding_window_size", "window_size", "attention_window_size", "attention_chunk_size"),
    *("floor_scale", "log_scaling_n_floor", "keep_window_size", "index_topk", "local_attention", "block_size"),
    *("index_topk_blocks", "indexer_budget"),
    *("rel_extent", "relative_max_distance", "position_bias_max_distance"),
)
"""Settings that should change the outputs: each is lifted once to see whether it does."""
LIFTED = 4096


@dataclass(frozen=True)
class Reference:
    """What the unmodified model says."""

    module: Any
    prompts: list[list[int]]
    outputs: list[list[int]]
    margins: list[list[float]]

    @property
    def num_varied(self) -> int:
        """Rows that are worth comparing with: neither one token for ever nor two in turn."""
        return sum(len(set(output)) > 3 for output in self.outputs)

    @property
    def near_tie(self) -> bool:
        """Whether some token is chosen by a hair."""
        return min(map(min, self.margins)) < 2 * MARGIN

    @property
    def ordered(self) -> bool:
        """Whether two tokens of a prompt that change places change what comes after them."""
        prompt = list(self.prompts[ORDER_ROW])
        prompt[-2], prompt[-7] = prompt[-7], prompt[-2]
        return generate_alone(self.module, prompt)[0] != self.outputs[ORDER_ROW]

    def in_float64(self) -> Reference:
        """The same model with twice the precision."""
        return _reference(copy.deepcopy(self.module).double(), self.prompts)


def prompts(vocab: int) -> list[list[int]]:
    """Ragged rows; the lowest ids, which mean padding to some models, are left out."""
    rng = random.Random(5)
    return [[rng.randrange(3, vocab) for _ in range(length)] for length in LENGTHS]


@torch.no_grad()
def generate_alone(module: Any, prompt: list[int], new: int = NEW) -> tuple[list[int], list[float]]:
    """The model's own greedy tokens after one row alone, and how far the best logit is ahead at each."""
    output = module.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
    )
    margins = []
    for logits_1V in output.logits:
        best = logits_1V[0].float().topk(2).values
        margins.append(float(best[0] - best[1]))
    return output.sequences[0, len(prompt) :].tolist(), margins


def find_reference(entry: Entry) -> Reference:
    """The first seed whose rows vary and have no near tie; the most varied one if there is none."""
    found = []
    for seed in range(SEEDS):
        module = build(entry, seed)
        vocab = module.config.get_text_config(decoder=True).vocab_size
        reference = _reference(module, prompts(min(vocab, sizes.VOCAB)))
        found.append(reference)
        if reference.num_varied >= ENOUGH and not reference.near_tie and reference.ordered:
            return reference
    return max(found, key=lambda reference: (reference.num_varied, not reference.near_tie))


def _reference(module: Any, rows: list[list[int]]) -> Reference:
    answers = [generate_alone(module, row) for row in rows]
    return Reference(module, rows, [output for output, _ in answers], [margins for _, margins in answers])


def make_draft(reference: Reference) -> Any:
    """A copy with noisy weights that agrees with its target at some places and not at others."""
    for scale in (0.03, 0.08, 0.01, 0.2, 0.003, 0.5):
        draft = _perturbed(reference.module, scale)
        if 0.4 < agreement(draft, reference) < 0.95:
            break
    return draft


@torch.no_grad()
def _perturbed(module: Any, scale: float) -> Any:
    twin = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(7)
    for weight in twin.parameters():
        if weight.dim() > 1 and weight.numel() > 1:
            weight.add_(scale * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return twin


@torch.no_grad()
def agreement(draft: Any, reference: Reference) -> float:
    """Share of the reference's tokens that the draft would have proposed after the same row."""
    right = total = 0
    for prompt, output in zip(reference.prompts, reference.outputs, strict=True):
        ids = torch.tensor([prompt + output])
        best = draft(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(-1)
        right += int((best == torch.tensor(output)).sum())
        total += len(output)
    return right / total


def find_bites(entry: Entry, reference: Reference) -> list[str]:
    """The settings without which the same weights would have said something else."""
    config = reference.module.config.get_text_config(decoder=True)
    lifts: dict[str, Any] = {name: LIFTED for name in BITING if getattr(config, name, None) is not None}
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        lifts["rope_parameters"] = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    found = []
    for name, lift in lifts.items():
        with contextlib.suppress(Exception):
            lifted = build(entry, **{name: lift})
            lifted.load_state_dict(reference.module.state_dict())
            if generate_alone(lifted, reference.prompts[LONGEST_ROW])[0] != reference.outputs[LONGEST_ROW]:
                found.append(name)
    return found
