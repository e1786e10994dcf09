"""SmolLM2-135M-Instruct on Spec-Bench's first turns: are outputs exact, what do drafts gain, where does it not pay.

    python -m specdec.models.fetch smollm2-135m
    python experiments/real/study.py --data spec_bench.jsonl            # goes on where it stopped; hours on one core
    python experiments/real/study.py --data spec_bench.jsonl --rehearse # every line of it on two prompts per category
    python experiments/real/study.py --data spec_bench.jsonl --part head # after train.py recipe=smollm2_draft

Parts (`--part NAME` for one): `sample`, eight prompts of each category with every drafter that needs no training;
`all`, the 480 prompts with three methods; `bfloat16`, two prompts of each category in 16 bit, where every difference
from the reference has to be explained; `head`, the sample with the head that was trained for this model. Inputs are cut
at 512 tokens; 64 tokens are decoded. Speed is measured in turns by `python -m specdec.bench suite=real`. Writes a table
and the figures of each part.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

import specdec.config  # noqa: F401  (declares the plug-ins)
from specdec.core.columns import columns
from specdec.core.files import append_line, read_lines
from specdec.core.tables import Column, markdown, record_table, text_table
from specdec.run.runner import run_point

FOLDER = Path(__file__).parent
HEAD = "outputs/train/smollm2_draft/export"
PER_CATEGORY = {"sample": 8, "bfloat16": 2, "head": 8}
"""Prompts of each category; a part that is not named here takes all."""
CONTINUOUS = ["scheduler=continuous", "alignment=inplace"]
DRAFTERS = {
    "none": ["drafter=none"],
    "prompt_lookup": ["drafter=prompt_lookup"],
    "trigram": ["drafter=trigram"],
    "self, 10 of 30 layers": ["drafter=self", "drafter.num_layers=10"],
}
LOOKUP = DRAFTERS["prompt_lookup"]
WHOLE = [
    ("continuous", [*CONTINUOUS, *LOOKUP, "batch=8"]),
    ("eqspec", ["scheduler=eqspec", *LOOKUP, "batch=4"]),
    ("exspec", ["scheduler=exspec", *LOOKUP, "batch=8"]),
]
SAMPLE = [
    (f"{scheduler}, {name}", [*settings, *drafter, f"batch={batch}"])
    for scheduler, settings, batches in (
        ("continuous", CONTINUOUS, (1, 4, 8)),
        ("eqspec", ["scheduler=eqspec"], (4,)),
        ("exspec", ["scheduler=exspec"], (8,)),
    )
    for name, drafter in DRAFTERS.items()
    for batch in batches
    if scheduler == "continuous" or name != "none"
]
SCHEDULERS = {"continuous": CONTINUOUS, "eqspec": ["scheduler=eqspec"], "exspec": ["scheduler=exspec"]}
BFLOAT16 = [
    (name, [*settings, *LOOKUP, "runner.dtype=bfloat16", f"batch={batch}"])
    for name, settings in SCHEDULERS.items()
    for batch in (1, 4, 8)
]
TRAINED = ["drafter=eagle3", f"drafter.path={HEAD}", "gamma=4"]
WITH_HEAD = [
    ("head", [*CONTINUOUS, *TRAINED, "batch=1"]),
    ("head, batch 8", [*CONTINUOUS, *TRAINED, "batch=8"]),
    ("head, eqspec", ["scheduler=eqspec", *TRAINED, "batch=4"]),
    ("prompt_lookup", [*CONTINUOUS, *LOOKUP, "gamma=4", "batch=8"]),
]
PARTS = {"sample": SAMPLE, "all": WHOLE, "bfloat16": BFLOAT16, "head": WITH_HEAD}
POINT = columns("batch", "num_exact", "num_explained", "num_failures", "mean_acceptance_length", "acceptance_rate")


def selected(source: Path, part: str, folder: Path, rehearse: bool) -> Path:
    """The file of a part's prompts: the first few of each category, or all."""
    count = 2 if rehearse else PER_CATEGORY.get(part)
    if count is None:
        return source
    path, seen = folder / f"first-{count}.jsonl", Counter[str]()
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for question in read_lines(source):
            seen[question["category"]] += 1
            if seen[question["category"]] <= count:
                append_line(path, question)
    return path


def measure(part: str, source: Path, results: Path, rehearse: bool, settings: list[str]) -> list[dict[str, Any]]:
    """Run a part's points; finished ones are taken from disk."""
    prompts = selected(source, part, results, rehearse)
    summaries = []
    for label, method in PARTS[part]:
        overrides = [
            *("pair=smollm2_135m", "data=spec_bench", f"data.path={prompts}", "data.max_input_tokens=512"),
            *("max_new_tokens=64", "baseline=false", "runner.threads=1", f"results_dir={results / 'decoding'}"),
            *method,
            *settings,
        ]
        print(f"[{part}: {label}, {method[-1]}]", flush=True)
        with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
            cfg = compose(config_name="config", overrides=overrides)
        summaries.append({"label": label, **run_point(cfg, overrides)})
    return summaries


def by_category(summaries: Iterable[dict[str, Any]]) -> str:
    """Tokens emitted per row and verify call, by category; a row's first token comes from its prompt's forward."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for summary in summaries:
        tokens, calls = Counter[str](), Counter[str]()
        for sample in read_lines(Path(summary["path"]) / "samples.jsonl"):
            tokens[sample["category"]] += sum(accepted + 1 for accepted in sample["accepted_lengths"])
            calls[sample["category"]] += len(sample["accepted_lengths"])
        for category, count in calls.items():
            cells[category][summary["label"]] = f"{tokens[category] / count:.2f}"
    labels = [summary["label"] for summary in summaries]
    rows = [[name, *(row.get(label, "-") for label in labels)] for name, row in cells.items()]
    return markdown(text_table(["category", *labels], rows))


def by_place(summaries: Iterable[dict[str, Any]]) -> str:
    """How often the target accepts the draft's token number j, where it was drafted and all before it were accepted."""
    rows = []
    for summary in summaries:
        reached, accepted = Counter[int](), Counter[int]()
        for drafted, kept in _drafts(Path(summary["path"])):
            reached.update(range(1, min(kept + 1, drafted) + 1))
            accepted.update(range(1, kept + 1))
        places = [f"{accepted[j] / reached[j]:.2f} of {reached[j]:,}" if reached[j] else "-" for j in range(1, 6)]
        rows.append([summary["label"], *places])
    return markdown(text_table(["method", *(f"place {j}" for j in range(1, 6))], rows))


def _drafts(folder: Path) -> Iterator[tuple[int, int]]:
    """Tokens drafted and accepted, per row and round."""
    for line in read_lines(folder / "rounds.jsonl"):
        yield from zip(line["num_drafted"], line["num_accepted"], strict=True)


def differences(summaries: Iterable[dict[str, Any]]) -> str:
    """Every row that differs from its reference, and what explains it."""
    rows = []
    for summary in summaries:
        for sample in read_lines(Path(summary["path"]) / "samples.jsonl"):
            if sample["exact"]:
                continue
            why, where = sample["explanation"], (summary["batch"], sample["question_id"], sample["first_divergence"])
            figures = [f"{why[key]:.3g}" if key in why else "-" for key in ("margin", "difference", "noise")]
            rows.append([summary["label"], *map(str, where), why["kind"], *figures])
    headings = ["method", "batch", "question", "token", "kind", "margin", "difference", "noise"]
    return markdown(text_table(headings, rows)) if rows else "No row differs from its reference.\n"


def table(part: str, summaries: list[dict[str, Any]]) -> str:
    """What a part shows."""
    label = Column("method", "label")
    shown = {(s["drafter"], s["scheduler"]): s for s in summaries if s["drafter"] != "none"}.values()
    text = f"{markdown(record_table([label, *POINT], summaries))}\n"
    if part != "bfloat16":
        text += f"Tokens per row and verify call, by category:\n\n{by_category(list(shown))}\n"
        text += f"Share of drafted tokens that are accepted, by their place in the draft:\n\n{by_place(shown)}\n"
    return f"{text}Rows that differ from the reference:\n\n{differences(summaries)}"


def main() -> None:
    """Decode what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Spec-Bench's question.jsonl")
    parser.add_argument("--part", choices=[*PARTS, "every"], default="every")
    parser.add_argument("--rehearse", action="store_true", help="two prompts of each category; figures mean nothing")
    parser.add_argument("--results", type=Path, default=Path("results/real"))
    parser.add_argument("--out", type=Path, default=None, help="where the tables go (default: beside this file)")
    parser.add_argument("settings", nargs="*", help="further settings as for run.py")
    arguments = parser.parse_args()
    results = (arguments.results / ("rehearsal" if arguments.rehearse else "full")).resolve()
    out = arguments.out or (results if arguments.rehearse else FOLDER)
    out.mkdir(parents=True, exist_ok=True)
    for part in ("sample", "all", "bfloat16") if arguments.part == "every" else [arguments.part]:
        summaries = measure(part, arguments.data.resolve(), results, arguments.rehearse, arguments.settings)
        (out / f"{part}.md").write_text(table(part, summaries))
        (out / f"{part}.json").write_text(json.dumps(summaries, indent=1) + "\n")
        print(table(part, summaries), flush=True)


if __name__ == "__main__":
    main()
