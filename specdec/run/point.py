"""Compute one point: load and check what it needs, decode what is missing, classify differences, summarize."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from specdec.config.checks import is_serving
from specdec.config.plugins import plugin
from specdec.config.reference import has_reference, is_baseline
from specdec.config.schema import RANDOM_WEIGHTS_PROMPTS, RunConfig
from specdec.core.clock import Clock
from specdec.core.metrics import ratio
from specdec.core.prompts import Prompt, declared_tokens, load_prompts
from specdec.drafters.base import Drafter
from specdec.errors import ConfigError
from specdec.models.pair import Pair, load_pair
from specdec.run.decode_rows import decode_rows
from specdec.run.distributed import Ranks
from specdec.run.divergences import classify_divergences
from specdec.run.factory import build_arrivals, build_engine, build_tree, execution_notes, executions
from specdec.run.folder import RunFolder
from specdec.run.loggers.base import Logger
from specdec.run.loggers.none import NoLogger
from specdec.run.loggers.secrets import RedactingLogger
from specdec.run.memory_check import check_run_fits, check_weights_fit
from specdec.run.progress import reporting
from specdec.run.provenance import environment
from specdec.run.reference_outputs import references
from specdec.run.resume import Attempt, begin
from specdec.run.run import Run
from specdec.run.summary import summarize


@contextmanager
def opened_logger(config: RunConfig, ranks: Ranks) -> Iterator[Logger]:
    """The logger of a point, which is told if the block fails, started or not."""
    logger: Logger = RedactingLogger(plugin(config, "logger")) if ranks.is_main else NoLogger()
    try:
        yield logger
    except BaseException as error:
        logger.fail(f"{type(error).__name__}: {error}")
        raise


def prepare(config: RunConfig, folder: RunFolder, overrides: list[str], ranks: Ranks) -> Run:
    """Load the pair and the prompts, refuse what cannot run, and complete the reference outputs.

    Called in every process of the run.
    """
    threads = config.runner.threads or config.pair.threads
    if threads is not None:
        torch.set_num_threads(threads)
    build_tree(config)  # its settings may be wrong
    check_weights_fit(config)
    with reporting(
        lambda seconds: f"loading pair={config.pair.name}: {seconds:,.0f} s", config.progress and ranks.is_main
    ):
        pair = load_pair(config)
        prompts, notes = _prompts(config, pair)
        drafter = _check_parts(config, pair, prompts)
        plan, config, advice = check_run_fits(config, pair, prompts, drafter)
        del drafter  # its weights are loaded again for the run
    notes = [*pair.notes, *notes, *execution_notes(pair), *advice]
    for note in notes:
        ranks.say(f"note: {note}")
    env = environment(config, overrides, pair, notes)
    compared = config.reference and has_reference(config)
    store = references(config, pair, prompts, ranks) if compared else None
    return Run(config, folder, ranks, pair, prompts, plan, env, store)


def compute(run: Run, overrides: list[str], baseline: dict[str, Any] | None, logger: Logger) -> dict[str, Any]:
    """Decode a prepared point and write its folder; returns the summary. Called in every process of the run."""
    run.env["execution"] = executions(run.config, run.pair)
    attempt = _begin(run)
    resumed = {"run": attempt.run, "num_earlier_rounds": attempt.num_earlier_rounds}
    logger.start(run.folder.hash, run.folder.settings, overrides, {**run.env, **resumed})
    decode_rows(run, attempt, logger)
    run.ranks.gather(None)  # from here on all rows are on disk
    classify_divergences(run)
    summary = run.ranks.from_main(lambda: _finish(run, baseline))
    logger.finish(summary, list(run.folder.samples().values()))
    return {**summary, "path": str(run.folder.path)}


def _prompts(config: RunConfig, pair: Pair) -> tuple[list[Prompt], list[str]]:
    budget = pair.context_length - config.max_new_tokens
    if budget < 1:
        raise ConfigError(
            f"max_new_tokens={config.max_new_tokens} leaves no room for a prompt: the pair's context length is "
            f"{pair.context_length}"
        )
    prompts, notes = load_prompts(config.data, pair.tokenizer, budget)
    if config.weights == "random" and config.data.num_prompts == RANDOM_WEIGHTS_PROMPTS:
        notes.append(f"random weights: the first {len(prompts)} prompts (data.num_prompts=N for another number)")
    return prompts, notes


def _check_parts(config: RunConfig, pair: Pair, prompts: list[Prompt]) -> Drafter:
    """Build every part of the run once, so that what does not fit is refused before the long work.

    Returns its drafter, which knows the memory that it will take.
    """
    engine = build_engine(config, pair, Clock(), first_tokens=declared_tokens(prompts))
    build_arrivals(config).times(sum(prompt.turn == 0 for prompt in prompts))  # a trace may be too short
    return engine.drafter


def _begin(run: Run) -> Attempt:
    reference = run.store.key if run.store else None
    force = run.config.force or is_serving(run.config)
    attempt, note = run.ranks.from_main(
        lambda: begin(run.folder, run.env, reference, run.prompts, batch=run.config.batch, force=force)
    )
    if note:
        run.ranks.say(f"note: {note}")
    return attempt


def _finish(run: Run, baseline: dict[str, Any] | None) -> dict[str, Any]:
    """Summarize what is on disk, and mark the run as done."""
    summary = summarize(run)
    summary["predicted_memory_bytes"] = run.plan.peak_bytes
    if is_baseline(run.config):
        summary["speedup_vs_ar"] = 1.0
    elif baseline is not None:
        summary["speedup_vs_ar"] = ratio(summary["tokens_per_s"], baseline["tokens_per_s"])
        summary["baseline"] = baseline["hash"]
    samples = run.folder.samples()
    run.folder.finish([samples[index] for index in sorted(samples)], summary)
    return summary
