"""Compute one point: load, reference, baseline, decode, compare, write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict

from specdec.build import build_engine, plugin
from specdec.clock import STAGES, Clock
from specdec.decode import complete_reference, decode, reference_settings
from specdec.engine import Round
from specdec.equivalence import ReferenceStore, compare
from specdec.errors import ConfigError
from specdec.metrics import latencies, ratio, timing
from specdec.oracle import NEAR_TIE, Witness, explain_row
from specdec.pair import Pair, load_pair
from specdec.progress import RoundProgress
from specdec.prompts import Prompt, load_prompts
from specdec.provenance import environment
from specdec.reference import has_reference, plain, reference_key
from specdec.results import RunFolder, identity
from specdec.sequence import Sequence

RANDOM_WEIGHTS_PROMPTS = 8


def compute_point(cfg: DictConfig, folder: RunFolder, overrides: list[str]) -> dict[str, Any]:
    """Run a resolved config and write its folder; returns the summary."""
    threads = cfg.runner.threads or cfg.pair.threads
    if threads is not None:
        torch.set_num_threads(threads)
    logger = plugin(cfg, "logger")
    try:
        pair = load_pair(cfg)
        few = cfg.weights == "random" and cfg.data.num_prompts is None  # nobody waits an hour for noise
        with open_dict(cfg):
            cfg.data.num_prompts = RANDOM_WEIGHTS_PROMPTS if few else cfg.data.num_prompts
        prompts, notes = load_prompts(cfg.data, pair.tokenizer, _input_budget(cfg, pair))
        if few:
            notes.append(f"random weights: the first {len(prompts)} prompts (data.num_prompts=N for another number)")
        build_engine(cfg, pair, Clock())  # settings that do not go together are refused before the long work
        for note in pair.notes + notes:
            print(f"note: {note}", flush=True)
        store = _reference(cfg, pair, prompts) if cfg.reference and has_reference(cfg) else None
        baseline = _baseline(cfg, overrides) if cfg.baseline and cfg.drafter.name != "none" else None
        folder.start(environment(cfg, overrides, pair.fingerprint, pair.notes + notes))
        logger.start(folder.hash, folder.settings, overrides)
        summary = _decode_and_write(cfg, folder, pair, prompts, store, baseline)
        logger.finish(summary)
    except BaseException as error:
        logger.fail(f"{type(error).__name__}: {error}")
        raise
    return summary


def _input_budget(cfg: DictConfig, pair: Pair) -> int:
    """Prompt tokens that fit beside the output."""
    budget = pair.context_length - int(cfg.max_new_tokens)
    if budget < 1:
        raise ConfigError(
            f"max_new_tokens={cfg.max_new_tokens} leaves no room for a prompt: the pair's context length is "
            f"{pair.context_length}"
        )
    return budget


def _reference(cfg: DictConfig, pair: Pair, prompts: list[Prompt]) -> ReferenceStore:
    store = ReferenceStore(Path(cfg.results_dir) / "reference", reference_settings(cfg, pair))
    num_missing = sum(store.get(reference_key(cfg, prompt.index, prompt.ids)) is None for prompt in prompts)
    with RoundProgress("reference (batch 1)", num_missing, cfg.progress) as progress:
        complete_reference(cfg, pair, prompts, store, progress.observe)
    return store


def _baseline(cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Plain decoding under the same scheduler, as a point of its own that is skipped when it is there."""
    from specdec.runner import run_point

    without = plain(cfg)
    with open_dict(without):
        without.logger = {"name": "none"}
        without.force = False
    finished = RunFolder(cfg.results_dir, identity(without)).finished()
    if finished is not None:
        return finished
    print(f"measuring the baseline: plain decoding, {cfg.scheduler.name} scheduler, batch {cfg.batch}", flush=True)
    return run_point(without, overrides)


def _decode_and_write(
    cfg: DictConfig,
    folder: RunFolder,
    pair: Pair,
    prompts: list[Prompt],
    store: ReferenceStore | None,
    baseline: dict[str, Any] | None,
) -> dict[str, Any]:
    samples: dict[int, dict[str, Any]] = {}
    title = f"{cfg.scheduler.label} batch {cfg.batch}"
    with (
        folder.open_samples() as sample_lines,
        folder.open_rounds() as round_lines,
        RoundProgress(title, len(prompts), cfg.progress) as progress,
    ):
        before = dict.fromkeys(STAGES, 0.0)

        def known_output(row: Sequence) -> list[int] | None:
            return store.get(reference_key(cfg, row.index, row.prompt_ids)) if store else None

        def observe(outcome: Round, clock: Clock) -> None:
            for row in outcome.finished:
                samples[row.index] = _sample(row, prompts[row.index], pair, known_output(row))
                sample_lines.write(json.dumps(samples[row.index]) + "\n")
                sample_lines.flush()
            round_lines.write(json.dumps(_round(outcome, clock, before)) + "\n")
            before.update(clock.seconds)
            progress.observe(outcome, clock)

        witness = Witness(known_output) if store else None
        rows, tally, clock, memory = decode(cfg, pair, prompts, observe, known_output, witness)
        for row in rows:
            reference = known_output(row)
            if witness is not None and reference is not None and not samples[row.index]["exact"]:
                chunk = 1 if cfg.drafter.name == "none" else 1 + int(cfg.gamma)
                explanation = explain_row(pair.target, row, reference, witness, batch=cfg.batch, chunk=chunk)
                samples[row.index]["explanation"] = explanation
    summary = {
        **_choices(cfg, folder),
        "num_prompts": len(rows),
        **tally.counts(),
        **timing(clock.seconds, tally.num_output_tokens),
        **latencies(rows),
        "peak_memory_bytes": memory.bytes,
        **_equivalence(list(samples.values()), store),
        "speedup_vs_ar": None,
        "baseline": None,
        "status": "done",
    }
    if cfg.drafter.name == "none":
        summary["speedup_vs_ar"] = 1.0
    elif baseline is not None:
        summary["speedup_vs_ar"] = ratio(summary["tokens_per_s"], baseline["tokens_per_s"])
        summary["baseline"] = baseline["hash"]
    folder.finish([samples[index] for index in sorted(samples)], summary)
    return {**summary, "path": str(folder.path)}


def _choices(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Who made this summary."""
    groups = ("alignment", "drafter", "verifier", "batching", "draft_length")
    return {
        "hash": folder.hash,
        "path": str(folder.path),
        "pair": cfg.pair.name,
        "data": _data_label(cfg),
        "scheduler": cfg.scheduler.label,
        **{group: cfg[group].name for group in groups},
        "batch": cfg.batch,
        "gamma": 0 if cfg.drafter.name == "none" else cfg.gamma,
        "temperature": cfg.temperature,
        "max_new_tokens": cfg.max_new_tokens,
        "dtype": cfg.runner.dtype,
        "weights": cfg.weights,
    }


def _data_label(cfg: DictConfig) -> str:
    """The name of the data group, or of the file that was put in its place."""
    path = str(cfg.data.path)
    return Path(path).stem if Path(path).is_file() else str(cfg.data.name)


def _sample(row: Sequence, prompt: Prompt, pair: Pair, reference: list[int] | None) -> dict[str, Any]:
    match = compare(row.output_ids, reference) if reference is not None else None
    return {
        "index": row.index,
        "question_id": prompt.question_id,
        "category": prompt.category,
        "num_prompt_tokens": len(row.prompt_ids),
        "output_ids": row.output_ids,
        "text": pair.tokenizer.decode(row.output_ids, skip_special_tokens=True),
        "stop_reason": row.stop_reason,
        "exact": match.exact if match else None,
        "first_divergence": match.first_divergence if match else None,
        "matched_share": match.share if match else None,
        "explanation": None,
        "accepted_lengths": row.accepted_lengths,
        "num_drafted": row.num_drafted,
        "ttft_s": (row.first_token_s or 0.0) - row.arrived_s,
        "latency_s": (row.finished_s or 0.0) - row.arrived_s,
    }


def _round(outcome: Round, clock: Clock, before: dict[str, float]) -> dict[str, Any]:
    return {
        "rows": [row.index for row in outcome.rows],
        "num_drafted": outcome.num_drafted,
        "num_accepted": outcome.num_accepted,
        "num_emitted": [len(tokens) for tokens in outcome.emitted],
        "same_length": outcome.same_length,
        **{f"{stage}_s": round(clock.seconds[stage] - before[stage], 7) for stage in STAGES},
    }


def _equivalence(samples: list[dict[str, Any]], store: ReferenceStore | None) -> dict[str, Any]:
    if store is None:
        return dict.fromkeys(
            (
                *("exact_match", "partial_match", "num_exact", "num_divergences", "num_explained", "num_failures"),
                "reference",
            )
        )
    num_exact = sum(sample["exact"] for sample in samples)
    num_explained = sum((sample["explanation"] or {}).get("kind") == NEAR_TIE for sample in samples)
    return {
        "exact_match": num_exact / len(samples),
        "partial_match": sum(sample["matched_share"] for sample in samples) / len(samples),
        "num_exact": num_exact,
        "num_divergences": len(samples) - num_exact,
        "num_explained": num_explained,
        "num_failures": len(samples) - num_exact - num_explained,
        "reference": store.key,
    }
