"""Acceptance of a pair on prompts and the step times of its models, without the engine."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, LlamaForCausalLM

from specdec.training.config import MeasureConfig
from specdec.training.distill import output_logits
from specdec.training.greedy import greedy_outputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(slots=True)
class RoundCounts:
    """Counts over rounds; ratios are derived. `num_agreeing` of `num_tokens` output tokens match."""

    num_drafted: int = 0
    num_accepted: int = 0
    num_rounds: int = 0
    num_agreeing: int = 0
    num_tokens: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted."""
        return self.num_accepted / max(1, self.num_drafted)

    def add(self, other: RoundCounts) -> None:
        """Sum in place."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_record(self) -> dict[str, Any]:
        """Counts first, then the ratios that follow from them."""
        counts = {name: getattr(self, name) for name in self.__slots__}
        return {
            **counts,
            "acceptance_rate": round(self.acceptance_rate, 4),
            "agreement": round(self.num_agreeing / max(1, self.num_tokens), 4),
            "mean_acceptance_length": round(self.num_tokens / max(1, self.num_rounds), 3),
        }


def count_rounds(agrees: list[bool], gamma: int) -> RoundCounts:
    """Replay greedy speculative rounds over one output, given where the draft agrees with the target.

    Exact, because a greedy round sees only prefixes of the target's own output up to its first mismatch. A
    round drafts at most what is left of the output.
    """
    counts = RoundCounts(num_agreeing=sum(agrees), num_tokens=len(agrees))
    position = 0
    while position < len(agrees):
        drafted = agrees[position : position + gamma]
        accepted = next((index for index, agree in enumerate(drafted) if not agree), len(drafted))
        counts.num_drafted += len(drafted)
        counts.num_accepted += accepted
        counts.num_rounds += 1
        position += accepted + 1
    return counts


@torch.inference_mode()
def prompt_agreement(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, prompt_ids: list[int], new_tokens: int
) -> list[bool]:
    """For each greedy output token of the target, whether the draft's greedy choice is the same."""
    batch = greedy_outputs(target, torch.tensor([prompt_ids]), new_tokens, top_k=1)
    draft.set_attn_implementation("sdpa")
    chosen_N = output_logits(draft, batch).argmax(-1)[0]
    agrees: list[bool] = (chosen_N == batch.ids[0, batch.num_prompt_tokens :]).tolist()
    return agrees[: int(batch.num_valid[0])]


def measure_acceptance(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[dict[str, Any]],
    cfg: MeasureConfig,
) -> dict[str, Any]:
    """Acceptance over all prompts and per category."""
    overall, by_category = RoundCounts(), dict[str, RoundCounts]()
    for prompt in prompts[: cfg.num_prompts]:
        prompt_ids = tokenizer.backend_tokenizer.encode(prompt["turns"][0]).ids
        counts = count_rounds(prompt_agreement(target, draft, prompt_ids, cfg.new_tokens), cfg.gamma)
        overall.add(counts)
        by_category.setdefault(prompt["category"], RoundCounts()).add(counts)
    return {
        "gamma": cfg.gamma,
        "new_tokens": cfg.new_tokens,
        "num_prompts": len(prompts[: cfg.num_prompts]),
        "prompt_categories": dict(Counter(prompt["category"] for prompt in prompts[: cfg.num_prompts])),
        **overall.as_record(),
        "categories": {name: counts.as_record() for name, counts in sorted(by_category.items())},
    }


@torch.inference_mode()
def measure_step_s(model: LlamaForCausalLM, batch: int, repeats: int, context: int = 256) -> float:
    """Seconds of a one-token forward on one thread, float32, after `context` tokens: the least of `repeats`.

    The minimum, as in timeit: what is above it is other work on the machine, which hits target and draft unequally.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model.set_attn_implementation("sdpa")
        cache = DynamicCache(config=model.config)
        tokens_BT = torch.randint(2, model.config.vocab_size, (batch, context))
        model(input_ids=tokens_BT, past_key_values=cache)
        times = []
        for index in range(repeats + 3):
            started_s = time.perf_counter()
            model(input_ids=tokens_BT[:, -1:], past_key_values=cache)
            if index >= 3:  # the first ones allocate
                times.append(time.perf_counter() - started_s)
        return min(times)
    finally:
        torch.set_num_threads(num_threads)


def measure_steps(target: LlamaForCausalLM, draft: LlamaForCausalLM, repeats: int) -> dict[str, Any]:
    """Step times in ms at batch 1 and 8, and draft / target."""
    record: dict[str, Any] = {}
    for batch in (1, 8):
        target_s, draft_s = (measure_step_s(model, batch, repeats) for model in (target, draft))
        record[f"batch_{batch}"] = {
            "target_ms": round(1e3 * target_s, 3),
            "draft_ms": round(1e3 * draft_s, 3),
            "ratio": round(draft_s / target_s, 3),
        }
    return record
