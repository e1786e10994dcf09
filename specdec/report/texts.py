"""Outputs as pieces of text with what each token was: accepted, recovered, bonus or plain.

``accepted_lengths`` and ``output_ids`` tell the accepted tokens from those that the verifier added; whether an added
token was recovered or a bonus follows from what was drafted in that round (rounds.jsonl).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec import assets
from specdec.analysis import Record, per_round
from specdec.assets import local_path
from specdec.errors import SpecdecError
from specdec.report.content import Group, ReportContent, place

if TYPE_CHECKING:
    import pandas as pd

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PROMPT_CHARACTERS = 280  # of a prompt, its end


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one token (or of several that make one character)."""

    kind: str
    text: str
    is_first_difference: bool = False


@dataclass(slots=True)
class Rendering:
    """An output, and the points that gave it."""

    pieces: list[Piece]
    points: list[tuple[str, int]]  # method and batch size
    exact: bool | None
    explanation: Record | None
    num_rounds: int

    @property
    def who(self) -> str:
        """The points in few words: each method with its batch sizes."""
        batches: dict[str, list[int]] = {}
        for method, batch in self.points:
            batches.setdefault(method, []).append(batch)
        return "; ".join(f"{method} b{', '.join(map(str, sorted(sizes)))}" for method, sizes in batches.items())


@dataclass(slots=True)
class ShownPrompt:
    """A prompt and its different outputs, exact ones first."""

    question_id: str
    category: str
    num_tokens: int
    text: str | None  # its end; None where it cannot be read here
    renderings: list[Rendering] = field(default_factory=list)


def prompts(content: ReportContent, group: Group, limit: int) -> list[ShownPrompt]:
    """Up to ``limit`` prompts of a group's points, those with a divergence first; points of one pair share a tokenizer.

    Points that gave the same tokens of the same kinds share a rendering. Plain decoding shares the rendering of any
    point with its tokens.
    """
    names = {place(point): (group.series(point), point["batch"]) for point in group.done}
    samples = group.rows_of(content.samples)
    if not len(samples):
        return []
    by_prompt: dict[Any, pd.DataFrame] = dict(
        list(samples.groupby(["pair", "index", "question_id", "num_prompt_tokens"]))
    )
    chosen = sorted(by_prompt, key=lambda key: -by_prompt[key]["exact"].eq(False).sum())[:limit]
    end_depths = _end_depths(group.rows_of(content.rounds), {int(index) for _, index, _, _ in chosen})
    some = {str(point["pair"]): point for point in reversed(group.done)}
    tokenizers = {pair: local_tokenizer(point) for pair, point in some.items()}
    texts = {pair: _prompt_texts(point, tokenizers[pair]) for pair, point in some.items()}
    found = []
    for pair, index, question_id, num_tokens in chosen:
        rows = by_prompt[pair, index, question_id, num_tokens].to_dict("records")
        text = texts[pair].get((index, num_tokens))
        renderings = _renderings(rows, names, end_depths, tokenizers[pair])
        found.append(ShownPrompt(str(question_id), rows[0]["category"], num_tokens, text, renderings))
    return found


def kinds(output_ids: Sequence[int], accepted_lengths: Sequence[int], end_depths: Sequence[int] | None) -> list[str]:
    """What each token was; ``end_depths`` is per round of the row, None where it is not known ("added" then)."""
    found: list[str] = []
    for turn, accepted in enumerate(accepted_lengths):
        found += ["accepted"] * accepted
        if end_depths is None or turn >= len(end_depths):
            found.append("added")
        else:
            found.append("plain" if not end_depths[turn] else "bonus" if accepted == end_depths[turn] else "recovered")
    return found[: len(output_ids)]


def local_tokenizer(point: Record) -> Any | None:
    """The point's tokenizer, if it is here: a folder, a shipped one, or in the local cache. Nothing is downloaded."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    name = point.get("pair.tokenizer") or point.get("pair.target")
    if not name:
        return None
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return AutoTokenizer.from_pretrained(assets.resolve(str(name)), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError):
        return None
    finally:
        logging.set_verbosity(verbosity)  # type: ignore[no-untyped-call]


def _renderings(
    rows: list[Record],
    names: dict[str, tuple[str, int]],
    end_depths: dict[tuple[str, int], list[int]],
    tokenizer: Any | None,
) -> list[Rendering]:
    found: dict[tuple[Any, ...], Rendering] = {}
    for row in sorted(rows, key=lambda row: row["num_drafted"] == 0):  # plain decoding last
        tokens = tuple(row["output_ids"])
        of_row = kinds(tokens, row["accepted_lengths"], end_depths.get((row["place"], row["index"])))
        key = (tokens, tuple(of_row))
        if not row["num_drafted"]:
            key = next((other for other in found if other[0] == tokens), key)
        if key not in found:
            first = row["first_divergence"]
            pieces = _pieces(row, of_row, None if first is None or first != first else int(first), tokenizer)
            found[key] = Rendering(pieces, [], row["exact"], row["explanation"], len(row["accepted_lengths"]))
        found[key].points.append(names[row["place"]])
    return sorted(found.values(), key=lambda rendering: rendering.exact is False)


def _pieces(row: Record, of_row: Sequence[str], first: int | None, tokenizer: Any | None) -> list[Piece]:
    """Text token by token; a token that completes no character shows with the one that does."""
    if tokenizer is None:
        return [Piece("plain", row["text"])]
    found, shown, differs = [], "", False
    for at, kind in enumerate(of_row):
        text = tokenizer.decode(row["output_ids"][: at + 1], skip_special_tokens=True).rstrip(REPLACEMENT)
        differs |= at == first
        if text[len(shown) :]:
            found.append(Piece(kind, text[len(shown) :], differs))
            differs = False
        shown = text
    return found


def _end_depths(rounds: pd.DataFrame, chosen: set[int]) -> dict[tuple[str, int], list[int]]:
    """Depth at which the draft ended below what was accepted, per round of a row, by (place, index)."""
    found: dict[tuple[str, int], list[int]] = {}
    ends = per_round(rounds, "end_depth")
    for place_of_round, rows, depths in zip(rounds["place"], rounds["rows"], ends, strict=True):
        for index, count in zip(rows, depths, strict=True):
            if index in chosen:
                found.setdefault((place_of_round, index), []).append(count)
    return found


def _prompt_texts(point: Record, tokenizer: Any | None) -> dict[tuple[int, int], str]:
    """Ends of the prompts by (index, number of tokens), where the data is a file here."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from specdec.core.prompts import DataConfig, load_prompts

    path = str(point.get("data.path"))
    if tokenizer is None or not local_path(path).is_file():
        return {}
    try:
        stored = OmegaConf.to_container(OmegaConf.load(Path(point["folder"]) / "config.yaml"))
        assert isinstance(stored, dict)
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), stored["data"]))
        assert isinstance(settings, DataConfig)
        loaded, _ = load_prompts(settings, tokenizer, 10**9)
    except (SpecdecError, OmegaConfBaseException, OSError, KeyError):
        return {}
    texts = {(prompt.index, len(prompt.ids)): tokenizer.decode(prompt.ids[-400:]) for prompt in loaded}
    return {key: text[-PROMPT_CHARACTERS:] for key, text in texts.items()}
