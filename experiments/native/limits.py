"""How near the native products come to the processor's limits: operations and bytes per second, by shape and format.

    python experiments/native/limits.py

One thread, CPU time, the fastest of a few turns, all in turn. The limits are measured here too: a large product of
PyTorch's (GFLOP/s), and a sum over more memory than any cache holds (GB/s). Beside each product stands oneDNN's with
packed weights, which is what `execution=fused` calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from specdec.core.tables import markdown, text_table
from specdec.models.execution.linear import PACK_FOR_ROWS
from specdec.models.native.library import PackedMatrix

SHAPES = {"91M up": (2048, 768), "91M down": (768, 2048), "SmolLM2 up": (1536, 576), "7B out": (4096, 4096)}
ROWS = (1, 6, 12, 24, 48, 96)
TURNS, OPERATIONS = 7, 2e7
LARGE, MEMORY_BYTES = 2048, 1 << 29


def seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The fastest turn of each call, all in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(repeats):
                call()
            best[name] = min(best[name], (time.thread_time() - start) / repeats)
    return best


def formats(weight_OI: Tensor) -> dict[str, PackedMatrix]:
    """The weight packed as float32, rounded to bfloat16, and rounded to blocks of four bits."""
    blocks = weight_OI.unflatten(1, (-1, 32))
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    scale, minimum = ((high - low) / 15).half().float(), low.half().float()
    q = ((blocks - minimum) / scale).round().clamp(0, 15)
    q[..., 0], q[..., 1] = 0, 15
    packed = [
        PackedMatrix((w, None)) for w in (weight_OI, weight_OI.bfloat16().float(), (scale * q + minimum).flatten(1))
    ]
    return {matrix.format: matrix for matrix in packed}


def limits() -> tuple[float, float]:
    """GFLOP/s of a large product, and GB/s of reading memory."""
    a, numbers = torch.randn(LARGE, LARGE), torch.ones(MEMORY_BYTES // 4)
    best = seconds({"product": lambda: a @ a, "read": numbers.sum}, 1)
    return 2e-9 * LARGE**3 / best["product"], 1e-9 * MEMORY_BYTES / best["read"]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    operations, read = limits()
    print(f"A large product: {operations:.0f} GFLOP/s. Reading memory: {read:.1f} GB/s.\n")
    rows = []
    for name, (outputs, inputs) in SHAPES.items():
        weight_OI = torch.randn(outputs, inputs)
        matrices = formats(weight_OI)
        theirs = torch.ops.mkldnn._reorder_linear_weight(weight_OI, PACK_FOR_ROWS)
        for count in ROWS:
            x_MI, size = torch.randn(count, inputs), outputs * inputs
            calls: dict[str, Callable[[], object]] = {k: partial(matrix, x_MI, 1) for k, matrix in matrices.items()}
            calls["oneDNN"] = partial(torch.ops.mkldnn._linear_pointwise, x_MI, theirs, None, "none", [], "")
            best = seconds(calls, max(1, int(OPERATIONS / (count * size))))
            reached = [f"{2e-9 * count * size / best[kind]:.0f}" for kind in calls]
            bandwidth = [f"{1e-9 * matrices[kind].num_bytes / best[kind]:.1f}" for kind in matrices]
            rows.append([name, str(count), *reached, *bandwidth])
    kinds = list(matrices)
    headings = [*(f"{kind}, GFLOP/s" for kind in kinds), "oneDNN", *(f"{kind}, GB/s" for kind in kinds)]
    print(markdown(text_table(["product", "rows", *headings], rows)))


if __name__ == "__main__":
    main()
