"""The forward-only bound: the time of a run's own forwards without the loop, compared with the loop and the device.

``loop_efficiency`` = bound / decode time: the share of the time that the models needed (specdec.run.forward_log).
Padding that a strategy feeds (short rows of a batch, idle slots) is part of its forwards, and so of the bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from specdec.core.clock import Clock
from specdec.core.files import read_lines
from specdec.core.metrics import ratio
from specdec.models.causal_lm import CausalLM
from specdec.run.forward_log import ForwardLog, Shape

BOUND = "bound.jsonl"
COPIED_NUMBERS = {"cpu": 2**24, "cuda": 2**28}
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
"""Sizes at which a copy and a matrix product reach what the device can do."""


def bound_counts(log: ForwardLog, clock: Clock, device: torch.device) -> dict[str, Any]:
    """Times of a finished decode and of the replay of its forwards, and the work of these forwards.

    Seconds, bytes and operations are those of the rounds, without prefill.
    """
    synchronize = torch.cuda.synchronize if device.type == "cuda" else None
    works = [work(model, shape) for model, shape in log.forwards() if not shape.prefill]
    dtype = next((model.dtype for model, _ in log.forwards()), torch.float32)
    peak_bytes, peak_operations = device_peaks(device, dtype, torch.get_num_threads())
    return {
        "bounded_decode_s": sum(seconds for stage, seconds in clock.seconds.items() if stage != "prefill"),
        "forward_bound_s": log.replay(synchronize=synchronize),
        "prefill_bound_s": log.replay(prefill=True, synchronize=synchronize),
        "num_forwards": len(works),
        "num_forward_bytes": sum(num_bytes for num_bytes, _ in works),
        "num_forward_operations": sum(num_operations for _, num_operations in works),
        "peak_bytes_per_s": peak_bytes,
        "peak_operations_per_s": peak_operations,
    }


def bound_figures(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a summary from the counts of its decodes: the bound, the loop efficiency, and shares of the device.

    A share is what the forwards read (weights, keys and values) or compute (matrix products) per second of decode
    time, divided by what a copy or a matrix product reaches on this device. It can exceed 100% for weights that stay
    in a CPU's cache.
    """
    summed = ("bounded_decode_s", "forward_bound_s", "prefill_bound_s", "num_forwards")
    total = {key: sum(line[key] for line in counts) for key in (*summed, "num_forward_bytes", "num_forward_operations")}
    peaks = {key: max(line[key] for line in counts) for key in ("peak_bytes_per_s", "peak_operations_per_s")}
    decode_s = total["bounded_decode_s"]
    return {
        **total,
        **peaks,
        "loop_efficiency": ratio(total["forward_bound_s"], decode_s),
        "bandwidth_share": ratio(total["num_forward_bytes"], decode_s * peaks["peak_bytes_per_s"]),
        "compute_share": ratio(total["num_forward_operations"], decode_s * peaks["peak_operations_per_s"]),
    }


def read_bound(folder: Path) -> dict[str, Any]:
    """The figures of a run folder; empty for a run without ``bound=true``."""
    path = folder / BOUND
    return bound_figures(list(read_lines(path))) if path.exists() else {}


def work(model: CausalLM, shape: Shape) -> tuple[int, int]:
    """Bytes that a forward has to read (weights, keys and values), and operations of its matrix products.

    Only the tokens' rows of an embedding table are read, unless it is also the head. All experts of a mixture count.
    """
    head = model.module.get_output_embeddings()
    head_weights = sum(weight.numel() for weight in head.parameters()) if head is not None else 0
    weights = model.num_read_weights
    cache_bytes = shape.num_rows * shape.num_columns * model.architecture.token_bytes
    queries = model.architecture.num_heads * model.architecture.head_dim
    num_tokens = shape.num_rows * shape.num_tokens
    num_logits = shape.num_rows * (shape.num_logits or shape.num_tokens)
    products = 2 * ((weights - head_weights) * num_tokens + head_weights * num_logits)
    attention = 4 * model.num_layers * num_tokens * shape.num_columns * queries
    return weights * model.dtype.itemsize + cache_bytes, products + attention


@cache
def device_peaks(device: torch.device, dtype: torch.dtype, num_threads: int) -> tuple[float, float]:
    """Bytes per second of a large copy (read + written) and operations per second of a large matrix product."""
    cuda = device.type == "cuda"
    source = torch.ones(COPIED_NUMBERS[device.type], dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    size = PRODUCT_SIZE[device.type]
    left = torch.ones(size, size, dtype=dtype, device=device)
    copy_s = _best(lambda: target.copy_(source), cuda)
    product_s = _best(lambda: left @ left, cuda)
    return 2 * source.numel() * source.element_size() / copy_s, 2 * size**3 / product_s


def _best(call: Callable[[], object], cuda: bool, repeats: int = 5) -> float:
    """Seconds of the fastest of a few calls, after one warm-up call."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
