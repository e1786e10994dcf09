"""The summary as Markdown for readers and as booktabs tables for a paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

from specdec.bench.suite import DONE, NO_TIME
from specdec.core.columns import columns
from specdec.core.tables import Table, latex, markdown, record_table, text_table

Entry = dict[str, Any]
_DETAILS = [
    # Prefill is part of a measurement's wall time, and not of its decode time.
    replace(column, per="wall_s") if column.per == "decode_s" else column
    for column in columns(
        *("method", "batch", "tokens_per_s", "ratio", "acceptance_rate", "mean_acceptance_length", "prefill_share"),
        *("draft_share", "verify_share", "align_share", "other_share", "align_s_per_round", "loop_efficiency"),
        *("bandwidth_share", "peak_memory_bytes", "warm_up_s", "num_exact"),
    )
]


def to_markdown(document: dict[str, Any]) -> str:
    """Claims first, then per study, pair and context a table of speeds and one of where the time goes."""
    parts = [f"# {document['suite']['title']}", _conditions(document)]
    if document["claims"]:
        parts += ["## What it must show", markdown(_claims(document["claims"]))]
    if document.get("checks"):
        parts += [f"## Checks ({document['machine']['device']})", markdown(_checks(document["checks"]))]
    for block in blocks(document):
        (study, pair, context), entries = block
        parts += [f"## {heading(document, study, pair, context)}", markdown(_speeds(document, *block))]
        parts += _remarks(entries)
        if details := _details(entries):
            parts.append(f"<details><summary>where the time goes</summary>\n\n{markdown(details)}\n</details>")
    notes = [f"- {name}: {note}" for name, note in document["notes"].items() if _is_used(document, name)]
    if notes:
        parts += ["## Notes", "\n".join(notes)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def to_latex(document: dict[str, Any]) -> str:
    """The tables of speeds; needs the booktabs package."""
    parts = ["% needs \\usepackage{booktabs}", f"% {_conditions(document)}"]
    parts += [f"% {heading(document, *key)}\n{latex(_speeds(document, key, own))}" for key, own in blocks(document)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def blocks(document: dict[str, Any]) -> Iterator[tuple[tuple[str, str, int | None], list[Entry]]]:
    """Cells by study, pair and context."""
    for key, entries in groupby(document["cells"], lambda entry: (entry["study"], entry["pair"], entry["context"])):
        yield key, list(entries)


def heading(document: dict[str, Any], study: str, pair: str, context: int | None) -> str:
    """What a table or a picture is about."""
    about = document["suite"]["studies"][study]["title"]
    return f"{about}: pair {pair}" + (f", contexts of about {context} tokens" if context is not None else "")


def _speeds(document: dict[str, Any], key: tuple[str, str, int | None], entries: list[Entry]) -> Table:
    """A row per method with its speed at every batch size and how many rows were exact; then published figures."""
    study, pair, _ = key
    batches = list(dict.fromkeys(entry["batch"] for entry in entries))
    rows = []
    for method, own in groupby(entries, lambda entry: entry["method"]):
        measured = {entry["batch"]: entry for entry in own}
        rows.append([method, *(_speed(measured[batch]) for batch in batches), _exact(list(measured.values()))])
    for name in document["suite"]["studies"][study]["published"]:
        published = document["published"][name]
        if figures := published["tokens_per_s"].get(pair):
            cells = [f"{figures[batch]:,.0f}" if batch in figures else "-" for batch in batches]
            rows.append([f"{name} ({published['label']})", *cells, "-"])
    return text_table(["method", *(f"batch {batch}" for batch in batches), "exact"], rows)


def _speed(entry: Entry) -> str:
    """Median, interval and ratio to the baseline; or why there is no figure."""
    if entry["status"] != DONE:
        return str(entry["status"])
    ratio = entry.get("ratio")
    return _written(entry["tokens_per_s"], ",.0f") + (f" {ratio['value']:.2f}x" if ratio else "")


def _written(estimate: Entry, pattern: str) -> str:
    return "{:{p}} [{:{p}}, {:{p}}]".format(*(estimate[key] for key in ("value", "low", "high")), p=pattern)


def _exact(entries: list[Entry]) -> str:
    """All rows, or how many at which batch size."""
    done = [entry for entry in entries if entry["status"] == DONE]
    short = [entry for entry in done if entry["num_exact"] < entry["num_prompts"]]
    if not short:
        return "all" if done else "-"
    return ", ".join(f"{entry['num_exact']}/{entry['num_prompts']} at {entry['batch']}" for entry in short)


def _details(entries: list[Entry]) -> Table | None:
    """Medians of the measured cells, in columns that at least one of them has."""
    done = [{key: _value(figure) for key, figure in entry.items()} for entry in entries if entry["status"] == DONE]
    used = [column for column in _DETAILS if any(column.value(entry) is not None for entry in done)]
    return record_table(used, done) if done else None


def _value(figure: Any) -> Any:
    return figure.get("value") if isinstance(figure, dict) else figure


def _claims(claims: list[Entry]) -> Table:
    rows = []
    for claim in claims:
        figure = "-" if claim["value"] is None else _written(claim["value"], ".3g")
        of = claim["method"] + (f" / {claim['over']}" if claim["over"] else "")
        context = "-" if claim["context"] is None else str(claim["context"])
        place = [claim["pair"], str(claim["batch"]), context]
        rows.append([claim["text"], of, *place, figure, claim["wanted"], claim["verdict"]])
    return text_table(["claim", "method", "pair", "batch", "context", "figure", "wanted", "verdict"], rows, 3)


def _checks(checks: list[Entry]) -> Table:
    rows = []
    for check in checks:
        verdict = check["status"] if check["status"] == NO_TIME else "passed" if check["passed"] else "NOT PASSED"
        seconds = f"{check['seconds']:.0f}" if "seconds" in check else "-"
        rows.append([check["title"], verdict, check.get("found", "-"), seconds])
    return text_table(["check", "verdict", "found", "seconds"], rows, 3)


def _remarks(entries: list[Entry]) -> list[str]:
    """One line for each reason why a method has no figure."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry["status"] != DONE:
            line = f"- {entry['method']}: {entry['status']}" + (f": {entry['error']}" if entry["error"] else "")
            reasons.setdefault(line, []).append(str(entry["batch"]))
    lines = [f"{line} (batch {', '.join(batches)})" for line, batches in reasons.items()]
    return ["\n".join(lines)] if lines else []


def _conditions(document: dict[str, Any]) -> str:
    suite, machine = document["suite"], document["machine"]
    cores = ", ".join(map(str, machine["cores"])) or "not pinned"
    return (
        "Medians of turns in rotation, [95% bootstrap interval], ratio to the study's baseline; tokens per second "
        f"of all prompts, their prefill included. {machine['processor']}, {machine['device']}, {suite['threads']} "
        f"thread(s) on core(s) {cores}; revision {machine['git_revision'] or 'unknown'}, torch "
        f"{machine['versions']['torch']}; load average up to {document['max_load_average'] or 0:.1f}. "
        "Exact: rows whose tokens all equal the target alone at batch 1, worst turn."
    )


def _is_used(document: dict[str, Any], method: str) -> bool:
    return any(method in study["methods"] for study in document["suite"]["studies"].values())
