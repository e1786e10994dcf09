"""What a suite checks on the device before it measures: the plug-in kit, and outputs against the target alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.bench.prompts import count_overrides
from specdec.bench.suite import DONE, FAILED, NO_TIME, Equivalence, Kit, Library, Suite
from specdec.config.drafter_weights import UNTRAINED
from specdec.config.explain import explain
from specdec.conformance import GROUPS, examine
from specdec.core.files import append_line, digest, read_lines
from specdec.registry import lookup, names
from specdec.run.runner import run_point

RECORDS = "checks.jsonl"
OF_A_PAIR = ("selector=static", "selector=trained")  # of files made for one pair, and refuse the kit's


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table: what is checked, and how."""

    title: str
    key: str  # changes with every setting that decides it
    take: Callable[[], dict[str, Any]]  # returns whether it ``passed``, and ``found``, a few words


def take_checks(suite: Suite, library: Library, deadline: float) -> list[dict[str, Any]]:
    """Take the checks that are not on disk yet; returns all records, in order."""
    path = Path(str(suite.out)) / RECORDS
    path.parent.mkdir(parents=True, exist_ok=True)
    if suite.force:
        path.unlink(missing_ok=True)
    known = {record["key"]: record for record in read_lines(path)}
    found = []
    for check in checks_of(suite, library):
        record = known.get(check.key, {"status": NO_TIME})
        if record["status"] != DONE and time.monotonic() < deadline:
            if suite.progress:
                print(f"[check] {check.title}", flush=True)
            record = _taken(check)
            append_line(path, record)
        found.append({"key": check.key, "title": check.title, **record})
    return found


def _taken(check: Check) -> dict[str, Any]:
    """A check's record. An error is a failed check, and the others are still taken."""
    started = time.perf_counter()
    try:
        outcome = {"status": DONE, **check.take()}
    except Exception as error:
        outcome = {"status": FAILED, "passed": False, "found": explain(error)}
    return {"key": check.key, "title": check.title, "seconds": time.perf_counter() - started, **outcome}


def checks_of(suite: Suite, library: Library) -> Iterator[Check]:
    """All checks of a suite."""
    if suite.kit is not None:
        for plugin in suite.kit.plugins or list(_correct_plugins()):
            yield Check(f"kit, {plugin}", digest([plugin, asdict(suite.kit)]), _in_kit(suite.kit, plugin))
    for name, group in suite.equivalence.items():
        for method in group.methods:
            overrides = [*_settings(suite, group), *library.pairs[group.pair], *group.overrides]
            overrides += library.methods[method].overrides
            title = f"{name}, {group.pair}, {method}, batch {group.batch}"
            yield Check(title, digest([overrides, group.exact]), _against_target(group, overrides))


def _correct_plugins() -> Iterator[str]:
    for group in GROUPS:
        known = (lookup(group, name) for name in names(group) if f"{group}={name}" not in OF_A_PAIR)
        yield from (f"{group}={entry.name}" for entry in known if not entry.known_incorrect)


def _in_kit(kit: Kit, plugin: str) -> Callable[[], dict[str, Any]]:
    group, _, name = plugin.partition("=")

    def take() -> dict[str, Any]:
        is_head = any(part.name == UNTRAINED for part in fields(lookup(group, name).config))
        params = {UNTRAINED: True} if is_head else {}
        findings = examine(group, name, params, scale=kit.scale, shrink=False, accelerator=kit.accelerator)
        broken = [f"{finding.promise}: {finding.detail}" for finding in findings if not finding.kept]
        num_cases = max(finding.num_cases for finding in findings)
        found = "; ".join(broken) or f"{len(findings)} promises kept in {num_cases} cases"
        return {"passed": not broken, "found": found}

    return take


def _settings(suite: Suite, group: Equivalence) -> list[str]:
    return [
        *("baseline=false", "progress=false", f"batch={group.batch}", f"max_new_tokens={group.max_new_tokens}"),
        f"results_dir={Path(suite.cache) / 'runs'}",
        f"force={str(suite.force).lower()}",
        *count_overrides(suite.data, group.num_prompts, Path(suite.cache)),
    ]


def _against_target(group: Equivalence, overrides: list[str]) -> Callable[[], dict[str, Any]]:
    def take() -> dict[str, Any]:
        with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
            cfg = compose(config_name="config", overrides=overrides)
        outcome = run_point(cfg, overrides)
        counts = {key: outcome[key] for key in ("num_prompts", "num_exact", "num_explained", "num_failures")}
        found = "{num_exact} of {num_prompts} exact, {num_explained} explained, {num_failures} failures".format(
            **counts
        )
        short = counts["num_prompts"] < group.num_prompts
        inexact = group.exact and counts["num_exact"] < counts["num_prompts"]
        return {"passed": not (counts["num_failures"] or short or inexact), "found": found, **counts}

    return take
