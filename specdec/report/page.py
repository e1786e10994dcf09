"""The HTML page: what is said on top of the tables and plots, and the template that puts it together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from specdec.analysis import Record, read_json
from specdec.core.files import read_lines
from specdec.core.tables import Table, latex, markdown, text_table
from specdec.registry import PLUGIN_GROUPS, lookup, names
from specdec.report.content import ReportContent, series
from specdec.report.figures import figures
from specdec.report.published import published_tables
from specdec.report.svg import STAGES
from specdec.report.tables import point_table
from specdec.report.texts import prompts

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure: the number, what it is, and of which point."""

    value: str
    what: str
    detail: str
    tone: str = ""


def render(content: ReportContent, num_samples: int, refresh_s: int | None = None) -> str:
    """The page as one string; it loads nothing from elsewhere.

    Args:
        num_samples: prompts per group that are shown with their outputs. refresh_s: the page loads itself again.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page: str = environment.get_template("page.html").render(
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        title=f"{', '.join(sorted({str(p['pair']) for p in content.points}))}: {len(content.points)} points",
        content=content,
        point_table=point_table,
        figures=figures,
        prompts=lambda group: prompts(content, group, num_samples) if num_samples else [],
        published=published_tables(content),
        tiles=tiles(content),
        verdicts=verdicts(content),
        provenance=provenance(content),
        unfinished=unfinished(content),
        refresh_s=refresh_s,
        stages=STAGES,
        overrides=overrides,
        markdown=markdown,
        latex=latex,
    )
    return page


def overrides(point: Record) -> str:
    """The settings of a failed point, as on the command line, without those that say only where results go."""
    given = [str(override) for override in point.get("overrides") or ()]
    return " ".join(override for override in given if not override.startswith(("results_dir=", "progress=")))


def known_incorrect(point: Record) -> bool:
    """Whether a point uses a plug-in that is kept with its published defects."""
    chosen = [(group, point.get(f"{group}.name", point.get(group))) for group in PLUGIN_GROUPS]
    return any(name in names(group) and lookup(group, str(name)).known_incorrect for group, name in chosen)


def tiles(content: ReportContent) -> list[Tile]:
    """The headline figures; speeds only of points without an unexplained difference."""
    done = [point for point in content.points if point["status"] == "done"]
    sound = [point for point in done if not point.get("num_failures") and not known_incorrect(point)]
    found = []
    if fastest := max((p for p in sound if p.get("tokens_per_s")), key=lambda p: p["tokens_per_s"], default=None):
        detail = _who(content, fastest) + _rivals(content, fastest, sound)
        found.append(Tile(f"{fastest['tokens_per_s']:,.0f}", "tokens/s, the fastest", detail))
    drafting = [p for p in sound if p.get("speedup_vs_ar") and p.get("drafter") != "none"]
    if drafting:
        found.append(_speedup(content, drafting))
    if accepting := [p for p in sound if p.get("acceptance_rate") is not None]:
        longest = max(accepting, key=lambda p: p["mean_acceptance_length"])
        detail = f"{longest['acceptance_rate']:.0%} accepted, {_who(content, longest)}"
        found.append(Tile(f"{longest['mean_acceptance_length']:.2f}", "tokens per row and verify call", detail))
    detail = ", ".join(f"{count} {status}" for status, count in Counter(p["status"] for p in content.points).items())
    found.append(Tile(str(len(content.points)), "points", detail, "bad" if content.failed else ""))
    return found


def _speedup(content: ReportContent, drafting: Sequence[Record]) -> Tile:
    """The best speed-up among those whose interval lies above 1; without one, that there is none."""
    certain = [(p, ends) for p in drafting if (ends := content.interval(p, "speedup_vs_ar")) and ends[0] > 1]
    if not certain:
        return Tile("none", "faster than plain beyond noise", "no interval of a speed-up lies above 1", "warn")
    best, (low, high) = max(certain, key=lambda each: each[0]["speedup_vs_ar"])
    detail = f"95% interval [{low:.2f}, {high:.2f}]; {_who(content, best)}"
    return Tile(f"{best['speedup_vs_ar']:.2f}x", "best speed-up over plain", detail, "good")


def _rivals(content: ReportContent, fastest: Record, sound: Sequence[Record]) -> str:
    """How many others may be as fast: their intervals overlap with that of the fastest."""
    least = (content.interval(fastest, "tokens_per_s") or (fastest["tokens_per_s"],))[0]
    ends = [content.interval(p, "tokens_per_s") for p in sound if p is not fastest]
    num = len([end for end in ends if end is not None and end[1] >= least])
    return f"; {num} of {len(ends)} others within noise" if num else ""


def _who(content: ReportContent, point: Record) -> str:
    exact = f", {point['num_exact']}/{point['num_prompts']} exact" if point.get("exact_match") is not None else ""
    several = len({str(each["pair"]) for each in content.points}) > 1
    pair = f"{point['pair']}, " if several else ""
    return f"{pair}{series(point, content.labels)}, batch {point['batch']}{exact}"


def verdicts(content: ReportContent) -> list[tuple[str, str]]:
    """What the report says first, about equivalence: (tone, sentence)."""
    compared = [p for p in content.points if p["status"] == "done" and p.get("exact_match") is not None]
    wrong = [p for p in compared if known_incorrect(p)]
    right = [p for p in compared if not known_incorrect(p)]
    said = []
    if right:
        said.append(_verdict(right))
    if wrong:
        caught = [p for p in wrong if p["num_failures"]]
        per_method = Counter({p["method"]: 0 for p in caught})
        for point in caught:
            per_method[point["method"]] += point["num_failures"]
        listed = ", ".join(f"{name} {count}" for name, count in per_method.items()) or "no row of these points differs"
        said.append(("note", f"Known incorrect, kept as published; rows that differ and are not explained: {listed}."))
    unchecked = sum(p["status"] == "done" and p.get("exact_match") is None for p in content.points)
    if unchecked:
        said.append(("warn", f"{unchecked} points were not compared with a reference."))
    if content.failed:
        said.append(("bad", f"{len(content.failed)} points failed; their errors are below."))
    if content.num_unfinished:
        said.append(("note", f"{content.num_unfinished} points are unfinished: they run now, or were interrupted."))
    return said


def _verdict(points: Sequence[Record]) -> tuple[str, str]:
    num_rows = sum(p["num_prompts"] for p in points)
    num_exact = sum(p["num_exact"] for p in points)
    num_explained, num_failures = (sum(p[key] for p in points) for key in ("num_explained", "num_failures"))
    if num_failures:
        names = ", ".join(sorted({f"{p['method']} b{p['batch']}" for p in points if p["num_failures"]}))
        return "bad", f"{num_failures} of {num_rows:,} rows differ from their reference, unexplained: {names}."
    if num_explained:
        return "good", (
            f"{num_exact:,} of {num_rows:,} rows equal their reference token for token; rounding explains the other "
            f"{num_explained} (near-ties)."
        )
    return "good", f"All {num_rows:,} rows equal their reference token for token."


def unfinished(content: ReportContent) -> Table | None:
    """Points without a summary, with the rows that are on disk, and how long ago the last of them came."""
    rows = []
    for point in content.points:
        if point["status"] == "unfinished":
            folder = Path(point["folder"])
            files = list(folder.glob("samples*.jsonl"))
            num_rows = sum(len(list(read_lines(file))) for file in files)
            ago = time.time() - max((file.stat().st_mtime for file in files), default=folder.stat().st_mtime)
            asked = point.get("data.num_prompts")
            done = f"{num_rows} of {asked}" if asked else str(num_rows)
            rows.append([str(point["method"]), str(point["batch"]), done, f"{ago:,.0f}"])
    return text_table(("method", "batch", "rows done", "seconds since the last"), rows) if rows else None


def provenance(content: ReportContent) -> Table | None:
    """Where the figures come from: machines, versions and code, and how many points of each."""
    seen: Counter[tuple[str, ...]] = Counter()
    for point in content.points:
        if point["status"] == "done" and (env := read_json(Path(point["folder"]) / "env.json")):
            versions = env.get("versions") or {}
            packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if versions.get(name))
            seen[
                point["label"],
                str(env.get("processor") if env.get("device") in (None, "cpu") else env["device"]),
                packages,
                str(env.get("git_revision") or "-").replace("-dirty", "*")[:12],
                str(env.get("started", "-"))[:10],
            ] += 1
    headings = ("results", "machine", "versions", "revision", "day", "points")
    return text_table(headings, [[*key, str(count)] for key, count in sorted(seen.items())], 5) if seen else None
