"""Step times of the two models of a pair, without the engine."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import DynamicCache, LlamaForCausalLM

from specdec.models.cache_argument import cache_argument


@torch.inference_mode()
def measure_step_s(model: LlamaForCausalLM, batch: int, repeats: int, context: int = 256, num_tokens: int = 1) -> float:
    """Seconds of a forward of ``num_tokens`` per row on one thread, after `context` tokens: the least of `repeats`.

    The minimum, as in timeit: what is above it is other work on the machine, which hits target and draft unequally.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model.set_attn_implementation("sdpa")
        cache = DynamicCache(config=model.config)
        tokens_BT = torch.randint(2, model.config.vocab_size, (batch, context))
        taken = cache_argument(model, cache)  # looked up before the clock starts
        model(input_ids=tokens_BT, **taken)
        times = []
        for index in range(repeats + 3):
            started_s = time.perf_counter()
            model(input_ids=tokens_BT[:, -num_tokens:], **taken)
            passed_s = time.perf_counter() - started_s
            cache.crop(-num_tokens)
            if index >= 3:  # the first ones allocate
                times.append(passed_s)
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
