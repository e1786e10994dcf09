"""One audit: load the target, read the rows, judge them, and say by which criterion and in which precision."""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import torch
import transformers

from specdec.assets import local_path
from specdec.audit.forced import Forcing
from specdec.audit.greedy import FAILURE, GreedyRules
from specdec.audit.law_tests import all_tests, mean_ratio
from specdec.audit.report import greedy_lines, sampled_lines
from specdec.audit.rows import Limits, Row, read_rows
from specdec.audit.sampled import Contexts, SampledRules, statistics_of
from specdec.audit.text_outputs import judge_text
from specdec.audit.verdicts import counts_of, judged
from specdec.config.identity import hash_files
from specdec.config.schema import PairConfig
from specdec.core.sampling_params import SamplingParams
from specdec.errors import ConfigError, PairError
from specdec.models.causal_lm import CausalLM
from specdec.models.checkpoints import load_model, load_tokenizer
from specdec.models.pair import DTYPES, choose_device
from specdec.models.vocabulary import check_ids, check_tokenizer

CONSISTENT = "consistent"
_HASHED_BYTES = 256 * 1024 * 1024
_NOT_IDENTITY = ("outputs", "target", "tokenizer", "out", "json", "quiet", "skip_invalid", "level", "device")


def audit(given: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Judge the file that the command names.

    Returns:
        The JSON document, with ``passed``, and the lines of the text report.

    Raises:
        SpecdecError: the target, the tokenizer, a setting or a line of the file is wrong.
    """
    params = SamplingParams(given.temperature, given.top_k, given.top_p, given.min_p, given.repetition_penalty)
    pair = PairConfig(name="audit")
    device = choose_device(given.device)
    model = CausalLM(load_model("target", given.target, pair, DTYPES[given.dtype], device))
    tokenizer = _tokenizer(given, pair, model)
    limits = Limits(model.vocab_size, model.context_length, tokenizer, not given.no_special_tokens, not params.greedy)
    rows, problems = read_rows(given.outputs, limits, given.skip_invalid)
    stop_ids = _stop_ids(given, model)
    document: dict[str, Any] = {
        "outputs": str(given.outputs),
        "target": given.target,
        "precision": f"{given.dtype} on {device.type}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "num_rows": len(rows),
        "num_invalid": len(problems),
        "invalid": problems,
    }
    settings = {key: value for key, value in vars(given).items() if key not in _NOT_IDENTITY}
    settings |= {"stop_ids": sorted(stop_ids), "device": device.type, "versions": document["versions"]}
    settings |= {"target": _identity(given.target), "outputs": hash_files([given.outputs], _HASHED_BYTES)}
    forcing = Forcing(model, given.batch, given.gamma + 1)

    def show(token: int) -> str:
        return f"{tokenizer.decode([token])!r} ({token})" if tokenizer is not None else str(token)

    if params.greedy:
        rules = GreedyRules(
            params, given.noise_factor, stop_ids, given.max_new_tokens, given.logprobs == "raw", given.logprob_tolerance
        )
        verdicts = judged(
            rows,
            partial(judge_text, tokenizer=tokenizer, forcing=forcing, rules=rules),
            given.out,
            settings,
            given.quiet,
        )
        document |= {"criterion": _greedy_criterion(rules), "counts": counts_of(verdicts), "rows": verdicts}
        lines = greedy_lines(verdicts, show)
    else:
        document |= _sampled(rows, forcing, given, params, settings)
        lines = sampled_lines(document["rows"], document["tests"], given.level, show)
    failed = any(verdict["verdict"] == FAILURE for verdict in document["rows"])
    rejected = any(test["rejects"] for test in document.get("tests", []))
    document["passed"] = not (failed or rejected or problems)
    lines = [f"{document['criterion']}; {document['precision']}", *lines, *(f"not judged: {text}" for text in problems)]
    return document, lines


def _sampled(
    rows: list[Row], forcing: Forcing, given: argparse.Namespace, params: SamplingParams, settings: dict[str, Any]
) -> dict[str, Any]:
    """Statistics of every row, the tests of all, and each row's own verdict."""
    contexts = Contexts.of(rows)
    rules = SampledRules(params, given.noise_factor, given.seed)

    def judge(row: Row) -> dict[str, Any]:
        return {"verdict": CONSISTENT, **statistics_of(row, forcing, rules, contexts)}

    verdicts = judged(rows, judge, given.out, settings, given.quiet, contexts.recall)
    tests = all_tests(verdicts)
    level = given.level / len(tests)
    for verdict in verdicts:
        evidence = mean_ratio(verdict["log_ratios"])
        if verdict["impossible"]:
            reason = f"token {verdict['impossible'][0]} is one that the settings exclude"
        elif evidence >= math.log(len(rows) / level):
            reason = f"likelihood ratio e^{evidence:.1f} against the stated law"
        else:
            continue
        verdict |= {"verdict": FAILURE, "reason": reason}
    return {
        "criterion": _sampled_criterion(params, given.level),
        "level": given.level,
        "tests": [
            {"name": test.name, "p_value": test.p_value, "rejects": test.p_value <= level, "detail": test.detail}
            for test in tests
        ],
        "counts": counts_of(verdicts),
        "rows": [{key: value for key, value in verdict.items() if key != "contexts"} for verdict in verdicts],
    }


def _tokenizer(given: argparse.Namespace, pair: PairConfig, model: CausalLM) -> Any:
    """The tokenizer, or None where the target has none and none was asked for."""
    try:
        tokenizer = load_tokenizer(given.tokenizer or given.target, pair)
    except PairError:
        if given.tokenizer is not None:
            raise
        return None
    check_tokenizer(tokenizer, model.vocab_size, "the target", "set --tokenizer to the target's own")
    return tokenizer


def _stop_ids(given: argparse.Namespace, model: CausalLM) -> frozenset[int]:
    if given.stop_ids is None:
        own = model.module.generation_config.eos_token_id
        return frozenset([] if own is None else [own] if isinstance(own, int) else own)
    if given.stop_ids == "none":
        return frozenset()
    try:
        ids = [int(part) for part in given.stop_ids.split(",")]
    except ValueError:
        raise ConfigError(f"--stop-ids {given.stop_ids}: give ids as in 2,5, or none") from None
    check_ids("--stop-ids", ids, model.vocab_size)
    return frozenset(ids)


def _identity(target: str) -> str:
    """Changes with the target's weights, where they are local."""
    path = local_path(target)
    files = sorted(file for file in path.glob("*") if file.is_file()) if path.is_dir() else [path]
    return hash_files(files, _HASHED_BYTES) if path.exists() else target


def _greedy_criterion(rules: GreedyRules) -> str:
    budget = "ends not judged" if rules.max_new_tokens is None else f"budget {rules.max_new_tokens}"
    return (
        "greedy: every token given the engine's own before it; a near-tie is a margin of at most 2 x "
        f"{rules.noise_factor:g} x the measured rounding of a logit; stop tokens {sorted(rules.stop_ids)}, {budget}"
    )


def _sampled_criterion(params: SamplingParams, level: float) -> str:
    shown = f"temperature {params.temperature:g}"
    shown += f", top-k {params.top_k}" if params.top_k is not None else ""
    shown += f", top-p {params.top_p:g}" if params.top_p < 1 else ""
    shown += f", min-p {params.min_p:g}" if params.min_p else ""
    shown += f", repetition penalty {params.repetition_penalty:g}" if params.penalizes else ""
    return f"sampled: the target's law given the engine's own tokens, {shown}; level {level:g} for all tests together"
