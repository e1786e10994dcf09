"""Compute one point: load, reference, baseline, decode what is missing, explain, sum up."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict

from specdec.config.checks import is_serving
from specdec.config.identity import plain_copy
from specdec.config.reference import baseline_run, follows_plain, has_reference, is_baseline, reference_key
from specdec.config.schema import RANDOM_WEIGHTS_PROMPTS
from specdec.core.clock import Clock
from specdec.core.lock import locked
from specdec.core.metrics import ratio
from specdec.core.prompts import Prompt, load_prompts
from specdec.core.sequence import Sequence
from specdec.equivalence.near_ties import classify_row
from specdec.equivalence.store import ReferenceStore
from specdec.equivalence.witness import Witness, WitnessFiles
from specdec.errors import ConfigError
from specdec.models.pair import Pair, load_pair
from specdec.run.decode import row_sampling
from specdec.run.distributed import Ranks
from specdec.run.factory import build_arrivals, build_engine, execution_notes, executions, plugin
from specdec.run.folder import RunFolder
from specdec.run.loggers.base import Logger
from specdec.run.loggers.none import NoLogger
from specdec.run.loggers.secrets import RedactingLogger
from specdec.run.memory_check import check_run, check_weights
from specdec.run.memory_plan import MemoryPlan
from specdec.run.out_of_memory import decode_rows
from specdec.run.progress import RoundProgress
from specdec.run.provenance import environment
from specdec.run.reference_outputs import complete_reference, reference_settings
from specdec.run.resume import Attempt, begin
from specdec.run.summary import summarize


def compute_point(cfg: DictConfig, folder: RunFolder, overrides: list[str], ranks: Ranks) -> dict[str, Any]:
    """Run a resolved config and write its folder; returns the summary. Called in every process of the run."""
    threads = cfg.runner.threads or cfg.pair.threads
    if threads is not None:
        torch.set_num_threads(threads)
    logger: Logger = RedactingLogger(plugin(cfg, "logger")) if ranks.is_main else NoLogger()
    try:
        check_weights(cfg)
        asked = plain_copy(cfg)  # what memory makes of it below is not the baseline's business
        pair = load_pair(cfg)
        prompts, notes = _prompts(cfg, pair)
        build_engine(cfg, pair, Clock())  # settings that do not go together are refused before the long work
        build_arrivals(cfg).times(sum(prompt.turn == 0 for prompt in prompts))  # and so is a trace that is too short
        plan, advice = check_run(cfg, pair, prompts)
        notes += execution_notes(pair) + advice
        for note in pair.notes + notes:
            ranks.say(f"note: {note}")
        store = _reference(cfg, pair, prompts, ranks) if cfg.reference and has_reference(cfg) else None
        env = environment(cfg, overrides, pair.fingerprint, pair.draft_fingerprint, pair.notes + notes)
        baseline = _baseline(asked, overrides, ranks, env) if cfg.baseline and not is_baseline(asked) else None
        env["execution"] = executions(cfg, pair)
        attempt = _begin(cfg, folder, env, store, prompts, ranks)
        logger.start(folder.hash, folder.settings, overrides, env)
        todo = [prompt for prompt in prompts if prompt.index in attempt.todo]
        decode_rows(cfg, folder, pair, ranks.share(todo, cfg.max_new_tokens), store, attempt.number, ranks, logger)
        ranks.gather(None)  # from here on all rows are on disk
        if store is not None:
            _explain(cfg, folder, pair, prompts, store, ranks)
        summary = ranks.from_main(lambda: _finish(cfg, folder, store, baseline, plan, ranks))
        logger.finish(summary, list(folder.samples().values()))
    except BaseException as error:
        logger.fail(f"{type(error).__name__}: {error}")
        raise
    return {**summary, "path": str(folder.path)}


def _prompts(cfg: DictConfig, pair: Pair) -> tuple[list[Prompt], list[str]]:
    prompts, notes = load_prompts(cfg.data, pair.tokenizer, _input_budget(cfg, pair))
    if cfg.weights == "random" and cfg.data.num_prompts == RANDOM_WEIGHTS_PROMPTS:
        notes.append(f"random weights: the first {len(prompts)} prompts (data.num_prompts=N for another number)")
    return prompts, notes


def _input_budget(cfg: DictConfig, pair: Pair) -> int:
    """Prompt tokens that fit beside the output."""
    budget = pair.context_length - int(cfg.max_new_tokens)
    if budget < 1:
        raise ConfigError(
            f"max_new_tokens={cfg.max_new_tokens} leaves no room for a prompt: the pair's context length is "
            f"{pair.context_length}"
        )
    return budget


def _reference(cfg: DictConfig, pair: Pair, prompts: list[Prompt], ranks: Ranks) -> ReferenceStore:
    """The reference outputs, completed by all processes; points that run elsewhere wait for them, or share them."""
    folder, settings = Path(cfg.results_dir) / "reference", reference_settings(cfg, pair)
    store = ReferenceStore(folder, settings, writes=ranks.writes)
    with ExitStack() as stack:

        def known() -> dict[str, list[int]]:
            stack.enter_context(locked(cfg.results_dir, f"reference-{store.key}"))
            store.reload()
            return store.outputs

        store.outputs = dict(ranks.from_main(known))
        missing = [prompt for prompt in prompts if store.get(reference_key(cfg, prompt.index, prompt.ids)) is None]
        if is_serving(cfg):  # the prompts of later turns are not known yet
            missing = prompts
        mine = ranks.share(missing, cfg.max_new_tokens)
        way = "transformers' generate, once" if follows_plain(cfg) else "batch 1"
        with RoundProgress(f"reference ({way})", len(mine), cfg.progress and ranks.is_main) as progress:
            complete_reference(cfg, pair, mine, store, progress.observe_row)
        for outputs in ranks.gather(store.outputs if missing else {}):
            store.outputs.update(outputs)
    return store


def _baseline(cfg: DictConfig, overrides: list[str], ranks: Ranks, env: dict[str, Any]) -> dict[str, Any]:
    """scheduler=plain at the same batch size, as a point of its own; one of this code and machine is not run again."""
    from specdec.run.runner import run_in_ranks

    without = baseline_run(cfg)
    with open_dict(without):
        without.logger = {"name": "none"}
        without.force = False
        without.baseline = False
        without.runner.on_locked = "wait"
    title = f"measuring the baseline: scheduler=plain, batch {cfg.batch}"
    return run_in_ranks(ranks, without, overrides, title, env)


def _begin(
    cfg: DictConfig,
    folder: RunFolder,
    env: dict[str, Any],
    store: ReferenceStore | None,
    prompts: list[Prompt],
    ranks: Ranks,
) -> Attempt:
    reference = store.key if store else None
    attempt, note = ranks.from_main(
        lambda: begin(folder, env, reference, prompts, batch=cfg.batch, force=cfg.force or is_serving(cfg))
    )
    if note:
        ranks.say(f"note: {note}")
    return attempt


def _explain(
    cfg: DictConfig, folder: RunFolder, pair: Pair, prompts: list[Prompt], store: ReferenceStore, ranks: Ranks
) -> None:
    """Classify what differs from the reference; each process a part, and in tensor parallel all of them everything."""
    samples = ranks.from_main(folder.samples)
    unclear = [index for index, sample in sorted(samples.items()) if not (sample["exact"] or sample["explanation"])]
    by_index = {prompt.index: prompt for prompt in prompts}
    logits = WitnessFiles(folder.path, pair.target.dtype)
    chunk = 1 if cfg.drafter.name == "none" else 1 + int(cfg.gamma)
    batch = min(line["batch"] for line in folder.attempts())  # what fits, where memory ran out
    mine = unclear[ranks.rank % ranks.num_shares :: ranks.num_shares]
    with ExitStack() as stack:
        lines = stack.enter_context(folder.open_lines("samples", ranks.rank)) if mine and ranks.writes else None
        for index in mine:
            row = _row_of(cfg, by_index[index], samples[index])
            reference = store.get(reference_key(cfg, index, row.prompt_ids))
            if reference is None:
                continue
            witness = Witness(lambda _: None)
            if (logits_V := logits.load(index)) is not None:
                witness.logits[index] = logits_V
            explanation = classify_row(pair.target, row, reference, witness, batch=batch, chunk=chunk)
            if lines is not None:
                lines.write({**samples[index], "explanation": explanation})
    ranks.gather(None)


def _row_of(cfg: DictConfig, prompt: Prompt, sample: dict[str, Any]) -> Sequence:
    row = Sequence(prompt.index, sample.get("prompt_ids", prompt.ids), cfg.max_new_tokens, sampling=row_sampling(cfg))
    row.output_ids = list(sample["output_ids"])
    return row


def _finish(
    cfg: DictConfig,
    folder: RunFolder,
    store: ReferenceStore | None,
    baseline: dict[str, Any] | None,
    plan: MemoryPlan,
    ranks: Ranks,
) -> dict[str, Any]:
    """Sum up what is on disk, and mark the run as done."""
    summary = summarize(cfg, folder, store.key if store else None, ranks.num_shares)
    summary["predicted_memory_bytes"] = plan.peak_bytes
    if is_baseline(cfg):
        summary["speedup_vs_ar"] = 1.0
    elif baseline is not None:
        summary["speedup_vs_ar"] = ratio(summary["tokens_per_s"], baseline["tokens_per_s"])
        summary["baseline"] = baseline["hash"]
    samples = folder.samples()
    folder.finish([samples[index] for index in sorted(samples)], summary)
    return summary
