"""Decode several prompts side by side in the terminal, drafted tokens in colour: ``python -m specdec.demo``.

If stdout is not a terminal, the final texts are printed instead, recovered tokens as [-x-] and bonus tokens as [+x+].
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from specdec.errors import SpecdecError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from specdec.engine.output import Event
    from specdec.models.pair import Pair

PROMPTS = (  # from the held-out files of the built-in pair
    "class E:\n    'Test propagation of exceptions'",
    "import unittest\nfrom test import support\n\nfrom . import tomllib\n\n\nclass TestMiscellane",
    "def load_tests(loader, tests, pattern):\n    import os.path\n    # top level directory cached on loader",
    "    def get_int(self, node):\n        assert node.type == token.NUMBER",
)
STYLES = {"prompt": "dim", "accepted": "green", "recovered": "bold red", "bonus": "bold cyan", "plain": "default"}
MARKS = {"prompt": "{}", "accepted": "{}", "recovered": "[-{}-]", "bonus": "[+{}+]", "plain": "{}"}
Piece = tuple[str, str]  # kind and text


def parser() -> argparse.ArgumentParser:
    """The command line."""
    about = argparse.ArgumentParser("python -m specdec.demo", description=(__doc__ or "").split("\n\n")[0])
    about.add_argument(
        "prompts", nargs="*", help="texts to continue (default: four from the built-in pair's held-out files)"
    )
    about.add_argument("--pair", default="tiny", help="a pair of conf/pair (default: the built-in tiny)")
    about.add_argument("--tokens", type=int, default=64, help="new tokens per prompt (default: 64)")
    about.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default); above: sampling")
    about.add_argument("--seed", type=int, default=0, help="random seed of sampling (default: 0)")
    about.add_argument(
        "--gamma", type=int, default=None, help="drafted tokens per round (default: chosen automatically)"
    )
    return about


class ColouredRow:
    """One prompt and its output so far, as pieces of text of one kind each."""

    def __init__(self, prompt: str, pair: Pair) -> None:
        self.pieces: list[Piece] = [("prompt", prompt)]
        self._pair = pair
        self._ids: list[int] = []
        self._text = ""

    def add(self, event: Event) -> None:
        """Append an event's tokens; part of a character appears with the token that completes it."""
        for token, kind in zip(event.tokens, event.kinds, strict=True):
            self._ids.append(token)
            text = self._pair.tokenizer.decode(self._ids, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
            if text[len(self._text) :]:
                self.pieces.append((kind, text[len(self._text) :]))
            self._text = text


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    args = parser().parse_args(arguments)
    try:
        show(args)
    except SpecdecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def show(args: argparse.Namespace) -> None:
    """Decode with the draft and without, and print both speeds."""
    from rich.console import Console

    from specdec.engine.api import Engine

    pair = load(args.pair)
    prompts = list(args.prompts) or list(PROMPTS)
    engine = Engine(pair.target, pair.draft, tokenizer=pair.tokenizer, gamma=args.gamma)
    plain = Engine(pair.target, None, tokenizer=pair.tokenizer)
    settings: dict[str, Any] = {"max_new_tokens": args.tokens, "eos_token_id": sorted(pair.stop_ids) or None}
    if args.temperature:
        settings |= {"do_sample": True, "temperature": args.temperature, "top_k": None, "seed": args.seed}
    for one in (engine, plain):  # warm up outside of the timing
        list(one.stream(prompts, **{**settings, "max_new_tokens": 2}))
    rows = [ColouredRow(prompt, pair) for prompt in prompts]
    console = Console()
    if console.is_terminal:
        counts = _live(console, rows, engine.stream(prompts, **settings))
    else:
        counts = _timed(engine.stream(prompts, **settings), rows)
        for number, row in enumerate(rows):
            print(f"--- {number} ---\n{marked(row)}")
    theirs = _timed(plain.stream(prompts, **settings))
    print(summary(counts, theirs, engine.gamma, sampled=bool(args.temperature)))


def load(name: str) -> Pair:
    """A pair by its name in the config."""
    from hydra import compose, initialize_config_module

    import specdec.config  # noqa: F401  (declares the built-in plug-ins)
    from specdec.config.resolve import resolve
    from specdec.models.pair import load_pair

    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return load_pair(resolve(compose(config_name="config", overrides=[f"pair={name}"])))


def marked(row: ColouredRow) -> str:
    """The text with recovered and bonus tokens in brackets."""
    return "".join(MARKS[kind].format(text) for kind, text in row.pieces)


def summary(ours: StreamCounts, theirs: StreamCounts, gamma: int, *, sampled: bool) -> str:
    """Speeds with the draft and without, and whether both gave the same tokens."""
    fast, slow = ours.num_tokens / ours.wall_s, theirs.num_tokens / theirs.wall_s
    drawn = "other samples of the same distribution" if sampled else "OTHER TOKENS: a tie within rounding, or a bug"
    same = "the same tokens" if ours.tokens == theirs.tokens else drawn
    return (
        f"speculative: {ours.num_tokens} tokens, {fast:.0f} tokens/s, gamma {gamma}, "
        f"{ours.num_accepted} of {ours.num_drafted} drafted tokens accepted\n"
        f"plain:       {theirs.num_tokens} tokens, {slow:.0f} tokens/s, {same}\n"
        f"speed-up:    {fast / slow:.2f} over plain batched decoding, {len(ours.tokens)} rows in the batch"
    )


class StreamCounts:
    """Tokens of a stream, and the time spent decoding them; drawing the screen is not counted."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.num_drafted = self.num_accepted = 0
        self.wall_s = 0.0

    @property
    def num_tokens(self) -> int:
        """New tokens of all rows."""
        return sum(map(len, self.tokens.values()))

    def watch(self, events: Iterator[Event]) -> Iterator[Event]:
        """Yield the events, and count them."""
        while True:
            started = time.perf_counter()
            event = next(events, None)
            self.wall_s += time.perf_counter() - started
            if event is None:
                return
            self.tokens.setdefault(event.row, []).extend(event.tokens)
            self.num_drafted += event.num_drafted
            self.num_accepted += event.num_accepted
            yield event


def _timed(events: Iterator[Event], rows: list[ColouredRow] | None = None) -> StreamCounts:
    counts = StreamCounts()
    for event in counts.watch(events):
        if rows is not None:
            rows[event.row].add(event)
    return counts


def _live(console: Any, rows: list[ColouredRow], events: Iterator[Event]) -> StreamCounts:
    """Redraw after every event, at most 15 times a second."""
    from rich.live import Live

    counts = StreamCounts()
    with Live(_panels(rows), console=console, auto_refresh=False) as live:
        drawn_s = 0.0
        for event in counts.watch(events):
            rows[event.row].add(event)
            if time.perf_counter() - drawn_s > 1 / 15:
                live.update(_panels(rows, height=max(console.height // -(-len(rows) // 2), 5)), refresh=True)
                drawn_s = time.perf_counter()
        live.update(_panels(rows), refresh=True)
    console.print(*(f"[{STYLES[kind]}]{kind}[/]" for kind in ("prompt", "accepted", "recovered", "bonus")))
    return counts


def _panels(rows: list[ColouredRow], height: int | None = None) -> RenderableType:
    """Two prompts per line; with a height, only the last lines of each."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(expand=True)
    for _ in range(min(len(rows), 2)):
        grid.add_column(ratio=1)
    panels = []
    for number, row in enumerate(rows):
        text = Text()
        for kind, piece in row.pieces:
            text.append(piece, style=STYLES[kind])
        if height is not None:
            text = Text("\n").join(text.split("\n", allow_blank=True)[-(height - 2) :])
        panels.append(Panel(text, title=str(number)))
    for first in range(0, len(panels), 2):
        grid.add_row(*panels[first : first + 2])
    return grid


if __name__ == "__main__":
    sys.exit(main())
