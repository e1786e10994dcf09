"""Draws one round of a real run: the ragged trees of a batch, and what each verifier keeps of them.

    python experiments/trees/picture.py        # the built-in pair, four rows, three paths of four tokens; picture.svg

One panel per row and verifier. Filled: the accepted path; below it, the token that follows. All decide the same drafts
by the same random numbers.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import torch
from decoding import configured, engine_of, make_rows, read_prompts, rounds
from study import judging

from specdec.core.round import Draft, Verdict
from specdec.core.sampling import Noise
from specdec.core.target_law import TargetLaw
from specdec.models.pair import load_pair
from specdec.registry import create
from specdec.verifiers.base import LawVerifier, Verifier, parents_of

PARTS = ["pair=tiny", "temperature=1", "gamma=4", "tree=paths", "tree.num_paths=3", "verifier=naive", "batch=4"]
ROUND = 6  # the one that is drawn
CELL_W, CELL_H, STEP_X, STEP_Y = 190, 178, 56, 30
KEPT, LINE, TEXT = "#0b7a55", "#9aa5b1", "#1f2933"


class Snapshot(LawVerifier):
    """Decides as naive does, and keeps the draft and every verifier's verdict of its last round."""

    def __init__(self) -> None:
        self.verifiers: dict[str, Verifier] = {name: create("verifier", name) for name in judging("paths")}

    def verify_law(self, draft: Draft, law: TargetLaw, noise: Noise) -> Verdict:
        """The naive verdict."""
        ready = TargetLaw.of(law.whole())
        self.draft = draft
        self.verdicts = {name: verifier.verify_law(draft, ready, noise) for name, verifier in self.verifiers.items()}
        return self.verdicts["naive"]


def places(parents: list[int]) -> list[tuple[int, float]]:
    """(depth, column) of each node: leaves side by side, parents above the middle of their children."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    found: dict[int, tuple[int, float]] = {}
    leaves = 0

    def place(node: int, depth: int) -> float:
        nonlocal leaves
        columns = [place(child, depth + 1) for child in children.get(node, [])]
        if not columns:
            columns, leaves = [float(leaves)], leaves + 1
        found[node] = (depth, sum(columns) / len(columns))
        return found[node][1]

    place(-1, 0)
    return [found[node] for node in range(-1, len(parents))]


def panel(draft: Draft, b: int, verdict: Verdict, tokenizer: object, left: float, top: float) -> list[str]:
    """The SVG elements of one row under one verifier."""
    parents, kept = parents_of(draft, b), set(verdict.paths[b])
    where = [(left + 28 + STEP_X * column, top + 14 + STEP_Y * depth) for depth, column in places(parents)]
    elements = []
    for node, parent in enumerate(parents):
        (x, y), (from_x, from_y) = where[node + 1], where[parent + 1]
        colour, width = (KEPT, 2.5) if node in kept else (LINE, 1)
        ends = f'x1="{from_x:.0f}" y1="{from_y:.0f}" x2="{x:.0f}" y2="{y:.0f}"'
        elements.append(f'<line {ends} stroke="{colour}" stroke-width="{width}"/>')
    for node, (x, y) in enumerate(where, start=-1):
        fill = KEPT if node in kept or node < 0 else "white"
        elements.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4.5" fill="{fill}" stroke="{KEPT}"/>')
        if node >= 0:
            label = _text(tokenizer, draft.ids[b][node])
            elements.append(f'<text x="{x + 7:.0f}" y="{y + 4:.0f}">{label}</text>')
    following = _text(tokenizer, verdict.next_tokens[b])
    note = f"{len(verdict.paths[b])} kept, then {following}"
    elements.append(f'<text x="{left + 8}" y="{top + CELL_H - 18}" font-weight="600">{note}</text>')
    return elements


def _text(tokenizer: object, token: int) -> str:
    """A token as it is shown: at most six characters, white space visible."""
    shown = tokenizer.decode([token])  # type: ignore[attr-defined]
    shown = shown.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "\u00b7")
    return escape(shown if len(shown) <= 6 else shown[:5] + "\u2026") or "\u2205"


def main() -> None:
    """Decode up to the round, and write picture.svg."""
    torch.set_num_threads(1)
    config = configured(*PARTS)
    pair = load_pair(config)
    engine, snapshot = engine_of(config, pair), Snapshot()
    engine.verifier = snapshot
    rows = make_rows(config, read_prompts(pair.tokenizer, None, 64)[:4], 48)
    for number, _ in enumerate(rounds(engine, rows)):
        if number == ROUND:
            break
    names, num_rows = list(snapshot.verdicts), len(snapshot.draft.num_drafted)
    width, height = 70 + CELL_W * len(names), 40 + CELL_H * num_rows
    elements = [f'<text x="{78 + CELL_W * v}" y="24" font-weight="600">{name}</text>' for v, name in enumerate(names)]
    for b in range(num_rows):
        nodes = f"{snapshot.draft.num_drafted[b]} nodes"
        elements.append(f'<text x="6" y="{56 + CELL_H * b}" font-weight="600">row {b}</text>')
        elements.append(f'<text x="6" y="{72 + CELL_H * b}">{nodes}</text>')
        for v, name in enumerate(names):
            left, top = 70 + CELL_W * v, 40 + CELL_H * b
            elements += panel(snapshot.draft, b, snapshot.verdicts[name], pair.tokenizer, left, top)
    style = f'font-family="monospace" font-size="11" fill="{TEXT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {style}>'
    back = f'<rect width="{width}" height="{height}" fill="white"/>'
    path = Path(__file__).parent / "picture.svg"
    path.write_text("\n".join([head, back, *elements, "</svg>\n"]))
    print(f"{path}: {num_rows} rows, {', '.join(names)}")


if __name__ == "__main__":
    main()
