"""Print the classes of shapes of numerics=invariant for a pair: `python -m specdec.models.numerics pair=tiny`."""

from __future__ import annotations

import sys
import time

import torch
from hydra import compose, initialize_config_module

import specdec.config  # noqa: F401  (declares the plug-ins)
from specdec.config.resolve import resolve
from specdec.errors import SpecdecError
from specdec.models.pair import load_pair

USAGE = """python -m specdec.models.numerics [settings, as for run.py]

    python -m specdec.models.numerics pair=tiny runner.dtype=bfloat16
    python -m specdec.models.numerics pair=FOLDER runner.dtype=float16 execution=eager runner.threads=1
"""


def main(settings: list[str]) -> None:
    """Measure what is not known yet, and print each model's execution and classes."""
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        config = resolve(compose(config_name="config", overrides=["numerics=invariant", *settings]))
    if (threads := config.runner.threads or config.pair.threads) is not None:
        torch.set_num_threads(threads)
    pair = load_pair(config)
    for role, model in (("target", pair.target), ("draft", pair.draft)):
        if model is None:
            continue
        start = time.perf_counter()
        execution = model.execute(config.execution, "invariant")
        print(f"{role}: execution={execution.name}, {config.runner.dtype}, {time.perf_counter() - start:.1f} s")
        if execution.bits == "native":
            print("  every sum runs in one order by construction: nothing to measure")
            continue
        meanings = {"rows": "tokens per forward", "queries": "tokens of a row per attention", "widths": "columns"}
        for name, meaning in meanings.items():
            print(f"  {meaning}: {', '.join(map(str, execution.bits[name]))}")
        print(f"  kept as {execution.bits['measured']}")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(USAGE))
    try:
        main(sys.argv[1:])
    except SpecdecError as error:
        sys.exit(f"error: {error}")
