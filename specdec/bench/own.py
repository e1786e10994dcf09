"""Measuring this project's own methods, in this process: one decode of a cell's prompts, timed and compared."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, open_dict

from specdec.bench.prompts import cell_prompts, data_overrides, uneven
from specdec.bench.suite import Method, Study, Suite
from specdec.config.drafter_weights import drafter_label
from specdec.config.identity import content, named
from specdec.config.reference import reference_key
from specdec.core.metrics import latencies, ratio, timing
from specdec.core.prompts import Prompt, load_prompts
from specdec.equivalence.store import ReferenceStore, compare
from specdec.models.pair import Pair, load_pair
from specdec.run.decode import decode
from specdec.run.forward_bound import bound_counts, bound_figures
from specdec.run.forward_log import ForwardLog
from specdec.run.reference_outputs import complete_reference, reference_settings
from specdec.run.runner import resolve

WARMUP_TOKENS = 8


def config(suite: Suite, study: Study, pair: list[str], method: list[str], batch: int) -> DictConfig:
    """The run config of a method in a cell, checked as a run's is."""
    overrides = [
        *("baseline=false", "progress=false", "warmup=false", f"runner.threads={suite.threads}"),
        *(f"batch={batch}", f"max_new_tokens={study.longest_output}", f"results_dir={suite.cache}"),
        *data_overrides(suite.data),
        *pair,
        *study.overrides,
        *(override.replace("{batch}", str(batch)) for override in method),
    ]
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=overrides))


class Bench:
    """One pair, its prompts, and the outputs that every method must give."""

    def __init__(self, suite: Suite, pair: list[str]) -> None:
        self.suite = suite
        self.overrides = pair
        self._configs: dict[tuple[Any, ...], DictConfig] = {}
        self._pools: dict[int, list[Prompt]] = {}
        self._stores: dict[str, ReferenceStore] = {}

    def load(self, study: Study, method: list[str], batch: int) -> tuple[DictConfig, Pair]:
        """A cell's config and the pair, which is loaded once."""
        key = (study.title, study.longest_output, *study.overrides, *method, batch)
        if key not in self._configs:
            self._configs[key] = config(self.suite, study, self.overrides, method, batch)
        cfg = self._configs[key]
        return cfg, load_pair(cfg)

    def prompts(
        self, cfg: DictConfig, pair: Pair, count: int, context: int | None, spread: float = 0.0
    ) -> list[Prompt]:
        """The prompts of a cell."""
        limit = pair.context_length - int(cfg.max_new_tokens)
        if limit not in self._pools:
            self._pools[limit] = load_prompts(cfg.data, pair.tokenizer, limit)[0]
        prompts = cell_prompts(self._pools[limit], count, context, limit)
        return uneven(prompts, int(cfg.max_new_tokens), spread) if spread else prompts

    def reference(self, cfg: DictConfig, pair: Pair, prompts: list[Prompt]) -> ReferenceStore:
        """What the target alone says to the prompts, at batch 1; computed where it is not on disk."""
        settings = reference_settings(cfg, pair)
        store = self._stores.setdefault(str(settings), ReferenceStore(Path(self.suite.cache) / "reference", settings))
        complete_reference(cfg, pair, prompts, store)
        return store

    def warm_up(
        self, cfg: DictConfig, pair: Pair, prompts: list[Prompt], method: Method, store: ReferenceStore
    ) -> float:
        """Decode something that is not counted; returns seconds, compiling included."""
        started = time.perf_counter()
        if method.warmup == "full":
            decode(cfg, pair, prompts, known_output=_known(cfg, store))
        else:
            short = cfg.copy()
            with open_dict(short):
                short.max_new_tokens = min(WARMUP_TOKENS, cfg.max_new_tokens)
            decode(short, pair, prompts[: cfg.batch], known_output=_known(cfg, store))
        return time.perf_counter() - started

    def measure(
        self, cfg: DictConfig, pair: Pair, prompts: list[Prompt], store: ReferenceStore, bound: bool
    ) -> dict[str, Any]:
        """Decode a cell's prompts; seconds are those from the first prompt's arrival to the last row's end."""
        log = ForwardLog() if bound else None
        rows, tally, clock, memory = decode(cfg, pair, prompts, known_output=_known(cfg, store), forwards=log)
        wall_s = max(row.finished_s or 0.0 for row in rows) - rows[0].arrived_s - (log.overhead_s if log else 0.0)
        times = timing(clock.seconds, tally.num_output_tokens)
        figures: dict[str, Any] = {
            **outcome(cfg, [row.output_ids for row in rows], prompts, store),
            **tally.counts(),
            **times,
            **latencies(rows),
            "wall_s": wall_s,
            "tokens_per_s": ratio(tally.num_output_tokens, wall_s),
            "decode_tokens_per_s": ratio(tally.num_output_tokens, times["decode_s"]),
            "align_s_per_round": ratio(times["align_s"], tally.num_verify_calls),
            "peak_memory_bytes": memory.bytes,
        }
        if log is not None:
            figures.update(bound_figures([bound_counts(log, clock, pair.target.device)]))
        return figures


def outcome(cfg: DictConfig, outputs: list[list[int]], prompts: list[Prompt], store: ReferenceStore) -> dict[str, Any]:
    """How many rows say exactly what the target alone says."""
    known = [store.get(reference_key(cfg, prompt.index, prompt.ids)) for prompt in prompts]
    matches = [
        compare(ids, (reference or [])[: prompt.max_new_tokens])
        for ids, reference, prompt in zip(outputs, known, prompts, strict=True)
    ]
    return {
        "num_prompts": len(prompts),
        "num_prompt_tokens": sum(len(prompt.ids) for prompt in prompts),
        "num_exact": sum(match.exact for match in matches),
        "exact_match": sum(match.exact for match in matches) / len(matches),
        "num_output_tokens": sum(map(len, outputs)),
    }


def made_of(cfg: DictConfig, pair: Pair) -> dict[str, Any]:
    """What a measurement is of: fingerprints of the models, the drafter as tables call it, the files that were read."""
    return {
        "target_fingerprint": pair.fingerprint,
        "draft_fingerprint": pair.draft_fingerprint,
        "drafter": drafter_label(cfg.drafter),
        "inputs": {name: known for name in named(cfg).values() if (known := content(name)) is not None},
    }


def _known(cfg: DictConfig, store: ReferenceStore) -> Any:
    return lambda row: store.get(reference_key(cfg, row.index, row.prompt_ids))
