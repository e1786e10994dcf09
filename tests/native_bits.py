"""A script: prints a digest of what the native execution computes, a line for each small model and format of weights.

``NATIVE_THREADS`` is the number of threads. Memory that torch gives is filled with NaN before it is used.
"""

from __future__ import annotations

import hashlib
import os

import torch
from native_models import IDS, SHAPES, build, in_steps, quantised, whole

from specdec.alignment.inplace import InplaceAlignment
from specdec.core.clock import Clock
from specdec.models.native.library import PackedMatrix, library

KINDS = ("bfloat16", "float16", "q8_0", "q4_1")


def digest(*parts: torch.Tensor) -> str:
    """Of the bits of some tensors."""
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def main() -> None:
    """Print them."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan()
    threads = int(os.environ.get("NATIVE_THREADS", "1"))
    torch.set_num_threads(threads)
    print(f"lanes: {library().specdec_lanes()}")
    for shape in SHAPES:
        model = build(shape)
        model.execute("native")
        rows = [[token % model.vocab_size for token in row] for row in IDS]
        steps, _ = in_steps(model, "inplace", rows, 0)
        alignment, names = InplaceAlignment(model, Clock(), shared_prefix=8), list(range(len(rows)))
        alignment.admit(names, [[*rows[0], *row] for row in rows])
        shared = alignment.forward(names, torch.tensor([[1, 2, 3, 4]] * len(rows)), parents=[[-1, 0, 0, 2]] * len(rows))
        print(f"{shape}: {digest(*whole(model, 'inplace', rows, model.vocab_size), *steps, shared)}")
    for kind in KINDS:
        packed = PackedMatrix((quantised(kind, 70, 640), None))
        x_MI = torch.randn(33, 640, generator=torch.Generator().manual_seed(1))
        print(f"{packed.format}: {digest(packed(x_MI[:5], threads), packed(x_MI, threads))}")


if __name__ == "__main__":
    main()
