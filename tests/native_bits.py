"""Prints a digest of the logits of each small model, and of the products with each format of weights: a script.

Arguments: none. ``NATIVE_THREADS`` is the number of threads.
"""

from __future__ import annotations

import hashlib
import os

import torch
from test_native import IDS, SHAPES, build, quantised, whole

from specdec.models.native.library import PackedMatrix, library


def digest(*parts: torch.Tensor) -> str:
    """Of the bits of some tensors."""
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def main() -> None:
    """Print them, a line each."""
    threads = int(os.environ.get("NATIVE_THREADS", "1"))
    torch.set_num_threads(threads)
    print(f"lanes: {library().specdec_lanes()}")
    for shape in SHAPES:
        model = build(shape)
        model.execute("native")
        print(f"{shape}: {digest(*whole(model, 'inplace', IDS, model.vocab_size))}")
    for kind in ("bfloat16", "float16", "q8_0", "q4_1"):
        packed = PackedMatrix((quantised(kind, 70, 640), None))
        x_MI = torch.randn(33, 640, generator=torch.Generator().manual_seed(1))
        print(f"{packed.format}: {digest(packed(x_MI[:5], threads), packed(x_MI, threads))}")


if __name__ == "__main__":
    main()
