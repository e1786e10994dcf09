"""Memory: what is predicted before a run is what it takes, within a factor; what does not fit is said in one line."""

from __future__ import annotations

import ctypes
import gc
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from specdec.alignment.eqspec import EqspecAlignment
from specdec.alignment.expansion import ExpansionAlignment
from specdec.alignment.inplace import InplaceAlignment
from specdec.config.resolve import resolve
from specdec.core.clock import Clock
from specdec.core.prompts import Prompt
from specdec.errors import ConfigError
from specdec.models.architecture import Architecture
from specdec.models.masks import FULL, MaskForm
from specdec.models.memory import PeakMemory, free_bytes, resident_bytes, used_bytes
from specdec.models.pair import Pair, load_pair
from specdec.run import memory_check as fitting
from specdec.run.decode import decode
from specdec.run.factory import build_engine
from specdec.run.memory_plan import MemoryPlan

CPU = torch.device("cpu")
FACTOR_ABOVE, FACTOR_BELOW = 1.25, 4.0
"""What a run takes is at most 1.25 times, and at least a quarter of, what was predicted."""
SYNTHETIC = ("pair=synthetic", "pair.hidden_size=256", "pair.num_layers=4")

SIZE = Architecture(
    num_layers=32,
    num_heads=32,
    kv_shapes=((32, 128),) * 64,
    hidden_size=4096,
    intermediate_size=11008,
    vocab_size=32000,
    dtype=torch.float16,
    mask_form=MaskForm(((None, FULL),), additive=False),
)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose("config", ["runner.accelerator=cpu", "warmup=false", "data.num_prompts=4", *overrides]))


def prompts_of(pair: Pair, count: int, length: int) -> list[Prompt]:
    ids = [(7 * i) % (pair.target.vocab_size - 1) for i in range(length)]
    return [Prompt(index, str(index), "", [*ids[:-1], index]) for index in range(count)]


def give_back() -> None:
    """Return what earlier tests have freed to the system, so that the resident set says what is in use."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def plan(**changes: object) -> MemoryPlan:
    usual = MemoryPlan(SIZE, None, EqspecAlignment, 0, 8, None, 1024, 128, 5, False, None)
    return replace(usual, **changes)


@pytest.mark.parametrize(
    ("pair", "alignment", "batch", "length"),
    [
        (("pair=tiny",), "eqspec", 16, 300),
        (("pair=tiny",), "inplace", 16, 300),
        (("pair=tiny",), "expansion", 4, 200),
        (("pair=tiny", "tree=beam", "tree.width=8"), "inplace", 16, 300),
        (("pair=tiny", "tree=paths", "tree.num_paths=6", "temperature=1", "verifier=naive"), "inplace", 8, 300),
        (SYNTHETIC, "masked", 12, 250),
        (SYNTHETIC, "inplace", 12, 250),
        ((*SYNTHETIC, "execution=eager"), "inplace", 12, 250),
    ],
)
def test_what_a_run_takes_is_what_was_predicted(pair, alignment, batch, length):
    cfg = composed(*pair, "scheduler=continuous", f"alignment={alignment}", f"batch={batch}", "max_new_tokens=8")
    loaded = load_pair(cfg)
    build_engine(cfg, loaded, Clock())
    prompts = prompts_of(loaded, batch, length)
    decode(cfg, loaded, prompts[:1])  # what the first forwards of a process load is not the run's
    give_back()
    predicted, before = fitting.plan_run(cfg, loaded, prompts), used_bytes(CPU)
    memory = decode(cfg, loaded, prompts).memory
    taken = memory.bytes - before
    assert taken > 10e6, "enough to be told from noise"
    assert predicted.run_bytes / FACTOR_BELOW < taken < predicted.run_bytes * FACTOR_ABOVE


@contextmanager
def held(num_bytes: int) -> Iterator[None]:
    """Memory from the system itself: the allocator might give what was freed before, which is resident already."""
    with mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
        yield


def test_the_peak_is_that_of_the_run_and_not_of_the_process():
    with held(240_000_000):
        with_big = PeakMemory(CPU).bytes
    memory = PeakMemory(CPU)
    assert with_big - memory.bytes > 200e6
    assert memory.bytes >= resident_bytes() * 0.99
    with held(120_000_000):
        pass
    memory.sample()
    assert memory.bytes - resident_bytes() > 100e6, "also where it was given back before anybody looked"


def test_a_plan_grows_with_what_it_should():
    usual = plan().run_bytes
    assert plan(batch=16).run_bytes > 1.8 * usual
    assert plan(alignment=ExpansionAlignment).run_bytes > 2 * usual
    assert plan(draft=SIZE).run_bytes > 1.5 * usual
    assert plan(window=48).run_bytes > 2 * usual
    assert plan(prefill_chunk=64).run_bytes < usual
    grouped = {"window": 16, "prefill_chunk": 1, "sampled": True}
    by_copy, by_slot = (plan(alignment=each, **grouped).run_bytes for each in (EqspecAlignment, InplaceAlignment))
    logits_of_8_rows = 8 * 6 * SIZE.vocab_size * SIZE.dtype.itemsize
    assert by_slot - by_copy > logits_of_8_rows, "idle slots between the rows of a group take memory too"
    assert plan(sampled=True).run_bytes >= usual
    assert plan(ragged=True).run_bytes < usual, "no padding, masks or repeated keys"
    kv_of_a_token = 2 * 32 * 4096 * 2
    assert usual > 2 * 8 * (1024 + 128) * kv_of_a_token, "Vicuna-7B takes half a megabyte per token, here twice"


def test_what_does_not_fit_is_refused_with_what_would():
    needed, free = plan().run_bytes, plan(batch=5).run_bytes
    with pytest.raises(ConfigError) as refused:
        plan().require_fit(free)
    assert re.fullmatch(
        r"batch=8 needs about \d+\.\d GB besides .*, \d+\.\d GB are free: batch=5 fits.*", str(refused.value)
    )
    plan(batch=5).require_fit(free)
    plan().require_fit(needed)
    plan().require_fit(None)
    with pytest.raises(ConfigError, match=r"runner\.prefill_chunk=\d+ fits"):
        plan().require_fit(plan(prefill_chunk=100).run_bytes)
    with pytest.raises(ConfigError, match="not even batch=1"):
        plan().require_fit(10**6)


def test_a_chunk_that_is_suggested_fits():
    free = plan(prefill_chunk=100).run_bytes
    chunk = plan().largest_chunk(free)
    assert chunk == 64
    assert plan(prefill_chunk=chunk).run_bytes <= free


@pytest.mark.parametrize("pair", [("pair=tiny",), SYNTHETIC, ("pair=vicuna", "weights=random", "pair.num_layers=1")])
def test_weights_are_counted_without_loading_them(pair):
    cfg = composed(*pair, "pair.vocab_size=4096") if "weights=random" in pair else composed(*pair)
    expected = {}
    if "pair=vicuna" not in pair:
        loaded = load_pair(cfg)
        expected["target"] = sum(part.numel() for part in loaded.target.module.parameters())
        shared = pair == SYNTHETIC
        expected["draft"] = 0 if shared else sum(part.numel() for part in loaded.draft.module.parameters())
    else:
        expected["target"] = 2 * 4096 * 4096 + 4 * 4096**2 + 3 * 4096 * 11008 + 3 * 4096
    for role, count in expected.items():
        assert fitting.num_weights(role, cfg) == count


def test_weights_that_cannot_fit_are_refused_before_they_are_made(monkeypatch):
    cfg = composed("pair=vicuna", "weights=random")
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 8 * 10**9)
    with pytest.raises(ConfigError, match=r"2[67]\.\d GB for the target's weights and .* 8\.0 GB are free: choose"):
        fitting.check_weights_fit(cfg)


def test_shrinking_reads_prompts_in_chunks_where_that_is_enough(monkeypatch):
    cfg = composed(*SYNTHETIC, "batch=2", "max_new_tokens=8", "runner.on_out_of_memory=shrink")
    loaded = load_pair(cfg)
    prompts = prompts_of(loaded, 2, 600)
    whole = fitting.plan_run(cfg, loaded, prompts)
    free = replace(whole, prefill_chunk=128).run_bytes
    assert free < whole.run_bytes
    monkeypatch.setattr(fitting, "free_bytes", lambda device: free)
    chunked, cfg, notes = fitting.check_run_fits(cfg, loaded, prompts)
    assert cfg.runner.prefill_chunk == chunked.prefill_chunk == 128
    assert "chunks of 128 tokens" in notes[0]
    cfg.runner.on_out_of_memory, cfg.runner.prefill_chunk = "fail", None
    with pytest.raises(ConfigError, match=r"runner\.prefill_chunk=128 fits"):
        fitting.check_run_fits(cfg, loaded, prompts)


def test_free_memory_is_known_here():
    free = free_bytes(CPU)
    assert free is None or 0 < free < 1 << 50
