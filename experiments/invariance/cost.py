"""What numerics=invariant costs: the same decoding with and without, in turns, as a ratio of processor times.

    python experiments/invariance/cost.py pair=tiny
    python experiments/invariance/cost.py pair=synthetic pair.synthetic.residual_scale=0.018 --prompts 8 --turns 5

Each turn decodes with numerics=default and with numerics=invariant, in an order that alternates, by the pair's draft
under scheduler=continuous. Processor time of one thread is compared, which other jobs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from bits import configured

from specdec.config.schema import RunConfig
from specdec.core.files import write_json
from specdec.core.prompts import Prompt, load_prompts
from specdec.core.tables import markdown, text_table
from specdec.models.pair import Pair, load_pair
from specdec.report.intervals import ratio_of_medians
from specdec.run.decode import decode

KINDS = {
    "float32, auto": ["runner.dtype=float32"],
    "float32, fused": ["runner.dtype=float32", "execution=fused"],
    "bfloat16, auto": ["runner.dtype=bfloat16"],
}


def seconds(config: RunConfig, pair: Pair, prompts: list[Prompt]) -> float:
    """Processor time of decoding the prompts."""
    start = time.process_time()
    decode(config, pair, prompts)
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("settings", nargs="*", help="further settings, as for run.py")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    usual = ["scheduler=continuous", "alignment=inplace", "baseline=false", "runner.threads=1"]
    size = [f"data.num_prompts={arguments.prompts}", "max_new_tokens=32"]
    rows, records = [], []
    for kind in arguments.kinds:
        for batch in arguments.batches:
            settings = [*usual, *size, *KINDS[kind], *arguments.settings, f"batch={batch}"]
            configs = [configured([*settings, f"numerics={name}"]) for name in ("default", "invariant")]
            pair = load_pair(configs[0])
            context = pair.context_length - configs[0].max_new_tokens
            prompts, _ = load_prompts(configs[0].data, pair.tokenizer, context)
            times: list[list[float]] = [[], []]
            for turn in range(arguments.turns + 1):  # the first turn prepares
                for which in (0, 1) if turn % 2 else (1, 0):
                    times[which].append(seconds(configs[which], pair, prompts))
            ratio = ratio_of_medians(times[1][1:], times[0][1:])
            rows.append([kind, str(batch), f"{ratio.value:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}"])
            records.append({"kind": kind, "batch": batch, "default_s": times[0][1:], "invariant_s": times[1][1:]})
            print(" | ".join(rows[-1]), flush=True)
    print(markdown(text_table(["dtype, execution", "batch", "invariant / default", "interval"], rows)))
    if arguments.out:
        write_json(arguments.out, {"settings": arguments.settings, "measured": records})


if __name__ == "__main__":
    main()
