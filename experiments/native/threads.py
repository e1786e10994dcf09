"""What a second thread brings to a forward, and that the bits stay the same.

    python experiments/native/threads.py                              # the built-in target
    python experiments/native/threads.py model=FOLDER threads=2       # another one

One and several threads in turn, wall time, ratio of medians [range of the turns]. The machine's own gain stands in the
last lines: a large product of PyTorch's and a read of more memory than any cache holds. To be run on an idle machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from specdec.assets import local_path
from specdec.core.tables import markdown, text_table
from specdec.models.causal_lm import CausalLM

SHAPES = {
    "1 row": (1, 1),
    "1 row, 6 tokens": (1, 6),
    "8 rows": (8, 1),
    "8 rows, 6 tokens": (8, 6),
    "32 rows": (32, 1),
    "a prompt of 512": (1, 512),
}
TURNS, CONTEXT = 15, 100


def forward(lm: CausalLM, batch: int, tokens: int) -> Callable[[], Tensor]:
    """A forward of `tokens` new tokens in each row, behind `CONTEXT` columns."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(lm.module.config.vocab_size, (batch, tokens), generator=generator)
    prompt_BT = torch.randint(lm.module.config.vocab_size, (batch, CONTEXT), generator=generator)
    storage = lm.empty_storage(batch, CONTEXT + tokens)
    rows = list(range(batch))
    lm.forward_chains(prompt_BT, storage.scatter(rows, [0] * batch, CONTEXT))

    def run() -> Tensor:
        return lm.forward_chains(ids_BT, storage.scatter(rows, [CONTEXT] * batch, tokens))

    return run


def compare(run: Callable[[], Tensor], threads: int) -> tuple[str, str]:
    """The gain of `threads` threads, and whether their result has the same bits."""
    results: dict[int, Tensor] = {}
    ratios = []
    for _ in range(TURNS):
        seconds = {}
        for count in (1, threads):
            torch.set_num_threads(count)
            start = time.perf_counter()
            results[count] = run().clone()
            seconds[count] = time.perf_counter() - start
        ratios.append(seconds[1] / seconds[threads])
    gain = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    return gain, "equal" if torch.equal(results[1], results[threads]) else "DIFFERENT"


def main() -> None:
    """Print the table."""
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    threads = int(settings.get("threads", torch.get_num_threads()))
    folder = settings.get("model", str(local_path("asset:tiny/target")))
    lm = CausalLM(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    torch.set_num_threads(1)
    lm.execute("native")
    rows = [[name, *compare(forward(lm, *shape), threads)] for name, shape in SHAPES.items()]
    square, memory = torch.randn(2048, 2048), torch.ones(1 << 27)
    rows.append(["a large product", *compare(lambda: square @ square, threads)])
    rows.append(["reading memory", compare(memory.sum, threads)[0], ""])
    print(markdown(text_table(["forward", f"{threads} threads over one", "bits"], rows)))


if __name__ == "__main__":
    main()
