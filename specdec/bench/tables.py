"""The summary as Markdown for readers and as booktabs tables for a paper."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from specdec.bench.run import DONE

Entry = dict[str, Any]
_DETAILS = (
    *("method", "batch", "tokens/s", "vs baseline", "accept", "tokens/call", "prefill", "draft", "verify", "align"),
    *("other", "align us/round", "loop eff.", "bandwidth", "memory MiB", "warm-up s", "exact"),
)


def markdown(document: dict[str, Any]) -> str:
    """Claims first, then per study, pair and context a table of speeds and one of where the time goes."""
    suite = document["suite"]
    parts = [f"# {suite['title']}", _conditions(document)]
    if document["claims"]:
        parts += ["## What it must show", _claims(document["claims"])]
    for (study, pair, context), entries in blocks(document):
        parts.append(f"## {heading(document, study, pair, context)}")
        batches = _batches(entries)
        head = ["method", *(f"batch {batch}" for batch in batches), "exact"]
        rows = [[name, *cells, exact] for name, cells, exact in _speeds(document, study, pair, entries)]
        parts.append(_markdown_table(head, rows))
        parts += _remarks(entries)
        details = [_detail(entry) for entry in entries if entry["status"] == DONE]
        used = [i for i in range(len(_DETAILS)) if i < 3 or any(row[i] != "" for row in details)]
        if details:
            table = _markdown_table([_DETAILS[i] for i in used], [[row[i] for i in used] for row in details])
            parts.append(f"<details><summary>where the time goes</summary>\n\n{table}\n\n</details>")
    notes = [f"- {name}: {note}" for name, note in document["notes"].items() if _used(document, name)]
    if notes:
        parts += ["## Notes", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def latex(document: dict[str, Any]) -> str:
    """The tables of speeds; needs the booktabs package."""
    parts = ["% needs \\usepackage{booktabs}", f"% {_conditions(document)}".replace("\n", "\n% ")]
    for (study, pair, context), entries in blocks(document):
        batches = _batches(entries)
        head = " & ".join(["method", *(f"$B={batch}$" for batch in batches), "exact"])
        rows = [
            " & ".join(map(_escaped, [name, *cells, exact])) + r" \\"
            for name, cells, exact in _speeds(document, study, pair, entries)
        ]
        body = "\n".join([r"\toprule", head + r" \\", r"\midrule", *rows, r"\bottomrule"])
        columns = "l" + "r" * (len(batches) + 1)
        title = heading(document, study, pair, context)
        parts.append(f"% {title}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}")
    return "\n\n".join(parts) + "\n"


def speed(entry: Entry) -> str:
    """Median, interval and ratio; or why there is no figure."""
    if entry["status"] != DONE:
        return str(entry["status"])
    rate, ratio = entry["tokens_per_s"], entry.get("ratio")
    text = f"{rate['value']:,.0f} [{rate['low']:,.0f}, {rate['high']:,.0f}]"
    return text + (f" {ratio['value']:.2f}x" if ratio else "")


def blocks(document: dict[str, Any]) -> Iterator[tuple[tuple[str, str, int | None], list[Entry]]]:
    """Cells by study, pair and context."""
    for key, entries in groupby(document["cells"], lambda entry: (entry["study"], entry["pair"], entry["context"])):
        yield key, list(entries)


def _speeds(
    document: dict[str, Any], study: str, pair: str, entries: list[Entry]
) -> Iterator[tuple[str, list[str], str]]:
    """Per method its name, a cell per batch size, and how many rows were exact; then published figures."""
    batches = _batches(entries)
    for method, own in groupby(entries, lambda entry: entry["method"]):
        measured = {entry["batch"]: entry for entry in own}
        yield method, [speed(measured[batch]) for batch in batches], _exact(list(measured.values()))
    for name in document["suite"]["studies"][study]["published"]:
        published = document["published"][name]
        figures = published["tokens_per_s"].get(pair, {})
        if figures:
            cells = [f"{figures[batch]:,.0f}" if batch in figures else "-" for batch in batches]
            yield f"{name} ({published['label']})", cells, "-"


def _exact(entries: list[Entry]) -> str:
    """All rows, or how many at which batch size."""
    done = [entry for entry in entries if entry["status"] == DONE]
    if not done:
        return "-"
    short = [entry for entry in done if entry["num_exact"] < entry["num_prompts"]]
    if not short:
        return "all"
    return ", ".join(f"{entry['num_exact']}/{entry['num_prompts']} at {entry['batch']}" for entry in short)


def _detail(entry: Entry) -> list[str]:
    def value(key: str, pattern: str, scale: float = 1.0) -> str:
        figure = entry.get(key)
        return "" if figure is None else format(scale * figure["value"], pattern)

    def share(key: str) -> str:
        if entry.get(key) is None or not entry["wall_s"]["value"]:
            return ""
        return f"{100 * entry[key]['value'] / entry['wall_s']['value']:.1f}%"

    return [
        entry["method"],
        str(entry["batch"]),
        value("tokens_per_s", ",.0f"),
        value("ratio", ".2f"),
        value("acceptance_rate", ".2f"),
        value("mean_acceptance_length", ".2f"),
        *(share(f"{stage}_s") for stage in ("prefill", "draft", "verify", "align", "other")),
        value("align_s_per_round", ",.0f", 1e6),
        value("loop_efficiency", ".2f"),
        value("bandwidth_share", ".0%"),
        value("peak_memory_bytes", ",.0f", 2**-20),
        value("warm_up_s", ".1f"),
        f"{entry['num_exact']}/{entry['num_prompts']}",
    ]


def _claims(claims: list[Entry]) -> str:
    head = ["claim", "method", "pair", "batch", "context", "figure", "wanted", "verdict"]
    rows = []
    for claim in claims:
        figure = claim["value"]
        text = "-" if figure is None else f"{figure['value']:.3g} [{figure['low']:.3g}, {figure['high']:.3g}]"
        of = claim["method"] + (f" / {claim['over']}" if claim["over"] else "")
        context = "-" if claim["context"] is None else str(claim["context"])
        rows.append(
            [claim["text"], of, claim["pair"], str(claim["batch"]), context, text, claim["wanted"], claim["verdict"]]
        )
    return _markdown_table(head, rows)


def _remarks(entries: list[Entry]) -> list[str]:
    """One line for each reason why a method has no figure."""
    reasons: dict[str, list[int]] = {}
    for entry in entries:
        if entry["status"] != DONE:
            line = f"- {entry['method']}: {entry['status']}" + (f": {entry['error']}" if entry["error"] else "")
            reasons.setdefault(line, []).append(entry["batch"])
    return ["\n".join(f"{line} (batch {', '.join(map(str, batches))})" for line, batches in reasons.items())] * bool(
        reasons
    )


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


def heading(document: dict[str, Any], study: str, pair: str, context: int | None) -> str:
    """What a table or a picture is about."""
    about = document["suite"]["studies"][study]["title"]
    return f"{about}: pair {pair}" + (f", contexts of about {context} tokens" if context is not None else "")


def _batches(entries: list[Entry]) -> list[int]:
    return list(dict.fromkeys(entry["batch"] for entry in entries))


def _used(document: dict[str, Any], method: str) -> bool:
    return any(method in study["methods"] for study in document["suite"]["studies"].values())


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


_SPECIAL: dict[str, str] = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#"}


def _escaped(text: str) -> str:
    for character, written in _SPECIAL.items():
        text = text.replace(character, written)
    return text
