"""Measuring this project's own methods, in this process: one decode of a cell's prompts, timed and compared."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

from specdec.bench.plan import BenchCell, num_prompts
from specdec.bench.prompts import cell_prompts, data_overrides, uneven
from specdec.bench.suite import Method, Study, Suite
from specdec.config.drafter_weights import drafter_label_of
from specdec.config.identity import content_hash, input_names
from specdec.config.reference import reference_key
from specdec.config.resolve import resolve
from specdec.config.schema import RunConfig
from specdec.core.metrics import latencies, ratio, timing
from specdec.core.prompts import Prompt, load_prompts
from specdec.equivalence.store import ReferenceStore, compare
from specdec.models.pair import Pair, load_pair
from specdec.run.decode import Watch, decode
from specdec.run.forward_bound import bound_counts, bound_figures
from specdec.run.forward_log import ForwardLog
from specdec.run.reference_outputs import complete_reference, reference_settings

WARMUP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Workload:
    """What a method decodes in a cell, and the outputs of the target alone that it must give."""

    cfg: RunConfig
    pair: Pair
    prompts: list[Prompt]
    store: ReferenceStore

    def known_output(self, row: Any) -> list[int] | None:
        """The reference of a row, for drafters that replay it."""
        return self.store.get(reference_key(self.cfg, row.index, row.prompt_ids))

    def outcome(self, outputs: list[list[int]]) -> dict[str, Any]:
        """How many outputs equal those of the target alone."""
        known = [self.store.get(reference_key(self.cfg, prompt.index, prompt.ids)) for prompt in self.prompts]
        matches = [
            compare(ids, (reference or [])[: prompt.max_new_tokens])
            for ids, reference, prompt in zip(outputs, known, self.prompts, strict=True)
        ]
        num_exact = sum(match.exact for match in matches)
        return {
            "num_prompts": len(self.prompts),
            "num_prompt_tokens": sum(len(prompt.ids) for prompt in self.prompts),
            "num_exact": num_exact,
            "exact_match": num_exact / len(matches),
            "num_output_tokens": sum(map(len, outputs)),
        }

    def provenance(self) -> dict[str, Any]:
        """Fingerprints of the models, the drafter's name in tables, and hashes of the files that were read."""
        return {
            "target_fingerprint": self.pair.fingerprint,
            "draft_fingerprint": self.pair.draft_fingerprint,
            "drafter": drafter_label_of(self.cfg),
            "inputs": {name: found for name in input_names(self.cfg).values() if (found := content_hash(name))},
        }


class Workloads:
    """The workloads of one pair; its prompts and references are loaded once."""

    def __init__(self, suite: Suite, pair: list[str]) -> None:
        self._suite = suite
        self._pair = pair
        self._configs: dict[tuple[Any, ...], RunConfig] = {}
        self._pools: dict[tuple[str, int], list[Prompt]] = {}
        self._stores: dict[str, ReferenceStore] = {}

    def config(self, study: Study, method: list[str], batch: int) -> RunConfig:
        """The run config of a method in a cell, checked as a run's is."""
        data = study.data or self._suite.data
        key = (study.title, study.longest_output, data, *study.overrides, *method, batch)
        if key not in self._configs:
            overrides = [
                *("baseline=false", "progress=false", "warmup=false", f"runner.threads={self._suite.threads}"),
                *(f"batch={batch}", f"max_new_tokens={study.longest_output}", f"results_dir={self._suite.cache}"),
                *data_overrides(data),
                *self._pair,
                *study.overrides,
                *(override.replace("{batch}", str(batch)) for override in method),
            ]
            with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
                self._configs[key] = resolve(compose(config_name="config", overrides=overrides))
        return self._configs[key]

    def of(self, cell: BenchCell, study: Study, method: list[str]) -> Workload:
        """The workload of a cell; computes the outputs of the target alone that are not on disk."""
        cfg = self.config(study, method, cell.batch)
        pair = load_pair(cfg)
        longest = int(cfg.max_new_tokens)
        limit = pair.context_length - longest
        source = (str(cfg.data), limit)
        if source not in self._pools:
            self._pools[source] = load_prompts(cfg.data, pair.tokenizer, limit)[0]
        whole = bool(getattr(pair.tokenizer, "chat_template", None)) and cfg.data.chat_template != "never"
        prompts = cell_prompts(self._pools[source], num_prompts(study, cell.batch), cell.context, limit, whole)
        prompts = uneven(prompts, longest, study.spread) if study.spread else prompts
        settings = reference_settings(cfg, pair)
        folder = Path(self._suite.cache) / "reference"
        store = self._stores.setdefault(str(settings), ReferenceStore(folder, settings))
        complete_reference(cfg, pair, prompts, store)
        return Workload(cfg, pair, prompts, store)


def warm_up(work: Workload, method: Method) -> float:
    """Decode something that is not counted; returns seconds, compiling included."""
    started = time.perf_counter()
    cfg, prompts = work.cfg, work.prompts
    if method.warmup != "full":
        cfg = replace(cfg, max_new_tokens=min(WARMUP_TOKENS, cfg.max_new_tokens))
        prompts = prompts[: cfg.batch]
    decode(cfg, work.pair, prompts, known_output=work.known_output)
    return time.perf_counter() - started


def measure(work: Workload, bound: bool) -> dict[str, Any]:
    """Decode a cell's prompts; seconds are those from the first prompt's arrival to the last row's end."""
    log = ForwardLog() if bound else None
    decoded = decode(work.cfg, work.pair, work.prompts, work.known_output, Watch(forwards=log))
    rows, tally, clock = decoded.rows, decoded.tally, decoded.clock
    wall_s = max(row.finished_s or 0.0 for row in rows) - rows[0].arrived_s - (log.overhead_s if log else 0.0)
    times = timing(clock.seconds, tally.num_output_tokens)
    figures: dict[str, Any] = {
        **work.outcome([row.output_ids for row in rows]),
        **tally.counts(),
        **times,
        **latencies(rows),
        "wall_s": wall_s,
        "tokens_per_s": ratio(tally.num_output_tokens, wall_s),
        "decode_tokens_per_s": ratio(tally.num_output_tokens, times["decode_s"]),
        "align_s_per_round": ratio(times["align_s"], tally.num_verify_calls),
        "peak_memory_bytes": decoded.memory.bytes,
    }
    if log is not None:
        figures.update(bound_figures([bound_counts(log, clock, work.pair.target.device)]))
    return figures
