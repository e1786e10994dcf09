"""What runs take of memory beside what was predicted, one JSON line per run: a process of its own for test_memory.py.

python tests/memory_of_runs.py
"""

from __future__ import annotations

import ctypes
import gc
import json

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from specdec.config.resolve import resolve
from specdec.core.clock import Clock
from specdec.core.prompts import Prompt
from specdec.models.memory import used_bytes
from specdec.models.pair import Pair, load_pair
from specdec.run import memory_check as fitting
from specdec.run.decode import decode
from specdec.run.factory import build_engine

CPU = torch.device("cpu")
SYNTHETIC = ("pair=synthetic", "pair.hidden_size=256", "pair.num_layers=4")
TINY = ("pair=tiny", "drafter.untrained=true")
RUNS = [  # settings, alignment, batch, prompt tokens, groups of prompts that have more than their first half in common
    (("pair=tiny",), "eqspec", 16, 300),
    (("pair=tiny",), "inplace", 16, 300),
    (("pair=tiny", "alignment.shared_prefix=64"), "inplace", 16, 300),
    (("pair=tiny", "alignment.shared_prefix=64"), "inplace", 16, 900, 4),
    (("pair=tiny",), "expansion", 4, 200),
    (("pair=tiny", "drafter=self", "drafter.window=64"), "inplace", 16, 300),
    (("pair=tiny", "tree=paths", "tree.num_paths=6", "temperature=1", "verifier=naive"), "inplace", 8, 300),
    (SYNTHETIC, "masked", 12, 250),
    ((*SYNTHETIC, "execution=eager"), "inplace", 12, 250),
    ((*SYNTHETIC, "execution=fused"), "inplace", 12, 250),
    ((*TINY, "drafter=medusa", "drafter.nodes=32"), "inplace", 16, 300),
    ((*TINY, "drafter=ppd", "drafter.nodes=32"), "inplace", 16, 300),
    ((*TINY, "drafter=eagle3", "tree=beam"), "inplace", 16, 300),
    ((*TINY, "drafter=dflash"), "inplace", 16, 300),
    ((*TINY, "drafter=longspec"), "inplace", 16, 300),
    (("pair=tiny", "drafter=suffix"), "inplace", 16, 300),
]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose("config", ["runner.accelerator=cpu", "warmup=false", "data.num_prompts=4", *overrides]))


def prompts_of(pair: Pair, count: int, length: int, groups: int = 1) -> list[Prompt]:
    def ids(index: int) -> list[int]:
        group = index % groups
        return [(7 * i + group * (i >= length // 2)) % (pair.target.vocab_size - 1) for i in range(length - 1)]

    return [Prompt(index, str(index), "", [*ids(index), index]) for index in range(count)]


def give_back() -> None:
    """Return what earlier tests have freed to the system, so that the resident set says what is in use."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def measure(settings: tuple[str, ...], alignment: str, batch: int, length: int, groups: int = 1) -> dict[str, object]:
    """Predicted and taken bytes of one run."""
    cfg = composed(*settings, "scheduler=continuous", f"alignment={alignment}", f"batch={batch}", "max_new_tokens=8")
    loaded = load_pair(cfg)
    prompts = prompts_of(loaded, batch, length, groups)
    decode(cfg, loaded, prompts[:1])  # what the first forwards of a process load is not the run's
    drafter = build_engine(cfg, loaded, Clock()).drafter
    give_back()
    predicted, before = fitting.plan_run(cfg, loaded, prompts, drafter).run_bytes, used_bytes(CPU)
    del drafter  # the run loads its weights again
    give_back()
    taken = decode(cfg, loaded, prompts).memory.bytes - before
    return {"run": [*settings, alignment], "predicted": predicted, "taken": taken, "ratio": predicted / taken}


if __name__ == "__main__":
    for run in RUNS:
        print(json.dumps(measure(*run)), flush=True)
