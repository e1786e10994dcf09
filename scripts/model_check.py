"""One architecture, every strategy: ragged rows decoded by specdec against each row's own `generate`."""

from __future__ import annotations

import copy
import re
import traceback
from dataclasses import asdict, dataclass, field
from typing import Any

from model_reference import ENOUGH, LENGTHS, MARGIN, NEW, Reference, agreement, find_bites, find_reference, make_draft
from model_zoo import Entry
from torch import Tensor

import specdec
from specdec.alignment.base import Alignment
from specdec.core.clock import Clock
from specdec.drafters.context import DrafterContext
from specdec.engine.api import _Parts
from specdec.engine.wrapping import wrapped
from specdec.errors import SpecdecError
from specdec.models.causal_lm import CausalLM
from specdec.registry import create

STRATEGIES = ("eqspec", "inplace", "masked", "rollback", "expansion")
BATCH, GAMMA = 4, 3
"""Rows in flight: the last one joins where others are long under way. Tokens drafted a round."""
EXACT, REFUSED, UNBUILT, WRONG, TRACEBACK = "exact", "refused", "not built", "WRONG", "TRACEBACK"


@dataclass
class Result:
    """What became of one entry."""

    name: str
    class_name: str = ""
    bites: list[str] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)  # by strategy: one of the words above
    remarks: dict[str, list[str]] = field(default_factory=dict)  # the strategies that each is about; none: all
    acceptance: float = 0.0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether a row of the table is a fault."""
        return bool({WRONG, TRACEBACK} & set(self.outcomes.values()))

    @property
    def remark(self) -> str:
        """All remarks in one line."""
        return "; ".join(
            f"{', '.join(about)}: {text}" if 0 < len(about) < len(STRATEGIES) else text
            for text, about in self.remarks.items()
        )

    def note(self, text: str, strategy: str = "") -> None:
        """Add to the remarks."""
        self.remarks.setdefault(text, []).extend([strategy] if strategy else [])

    def as_dict(self) -> dict[str, Any]:
        """For a pipe or a file."""
        return asdict(self)


class AlignedEngine(specdec.Engine):
    """The public engine with a strategy of one's choice in the place of inplace."""

    def __init__(self, *models: Any, strategy: str, **settings: Any) -> None:
        self.strategy = strategy
        super().__init__(*models, **settings)

    def _parts(self) -> _Parts:
        clock = Clock()

        def align(model: CausalLM) -> Alignment:
            alignment: Alignment = create("alignment", self.strategy, model, clock)
            return alignment

        context = DrafterContext(self.target, self.draft, align, clock, self.tokenizer, self._draft_tokenizer)
        return _Parts(align(self.target), create("drafter", self._drafter, context), clock, alignments=[])


def decode(models: tuple[Any, Any], rows: list[list[int]], strategy: str) -> tuple[list[list[int]], float]:
    """The new tokens of each row by specdec, and the share of drafted tokens that was accepted."""
    engine = AlignedEngine(*models, strategy=strategy, gamma=GAMMA)
    result: Any = engine.generate(rows, max_new_tokens=NEW, batch=BATCH, pad_token_id=0, return_dict_in_generate=True)
    assert isinstance(result.sequences, Tensor)
    start = result.sequences.shape[1] - NEW
    return [row[start:].tolist() for row in result.sequences], result.acceptance_rate


def check(entry: Entry) -> Result:
    """Everything about one entry; no exception leaves this function."""
    result = Result(entry.name)
    try:
        reference = find_reference(entry)
    except Exception as error:
        result.outcomes = dict.fromkeys(STRATEGIES, UNBUILT)
        result.note(_one_line(error))
        return result
    result.class_name = type(reference.module).__name__
    try:
        draft = make_draft(reference)
        result.bites = find_bites(entry, reference)
    except Exception as error:
        result.outcomes = dict.fromkeys(STRATEGIES, UNBUILT)
        result.note(f"no draft: {_one_line(error)}")
        return result
    share = agreement(reference.module, reference)
    if share < 1:
        result.note(f"transformers' own generate and its forward without a cache disagree ({share:.0%} equal)")
    if reference.num_varied < ENOUGH:
        result.note("its random outputs vary little")
    decode_all(reference, draft, result)
    return result


def decode_all(reference: Reference, draft: Any, result: Result) -> None:
    """Note what becomes of every strategy; the models are asked once whether they can be run."""
    try:
        models = wrapped(reference.module, "target"), wrapped(draft, "draft")
    except Exception as error:
        result.outcomes = dict.fromkeys(STRATEGIES, _failure(error, "", result))
        return
    for strategy in STRATEGIES:
        result.outcomes[strategy] = _outcome(reference, models, strategy, result)


def _outcome(reference: Reference, models: tuple[Any, Any], strategy: str, result: Result) -> str:
    try:
        outputs, result.acceptance = decode(models, reference.prompts, strategy)
        wrong = _first_difference(reference, outputs)
        if wrong is not None and wrong[2] < MARGIN:
            result.note("float32 has a near tie: compared in float64")
            reference = reference.in_float64()
            twins = tuple(copy.deepcopy(model.module).double() for model in models)
            wrong = _first_difference(reference, decode(twins, reference.prompts, strategy)[0])
    except Exception as error:
        return _failure(error, strategy, result)
    if wrong is None:
        return EXACT
    row, place, margin = wrong
    result.note(f"row of {LENGTHS[row]} tokens differs from new token {place + 1} on (margin {margin:.2g})", strategy)
    return WRONG


def _failure(error: Exception, strategy: str, result: Result) -> str:
    if isinstance(error, SpecdecError):
        result.note(_one_line(error), strategy)
        return REFUSED
    frame = traceback.extract_tb(error.__traceback__)[-1]
    result.note(f"{_one_line(error)} ({frame.filename.rpartition('/')[2]}:{frame.lineno})", strategy)
    return TRACEBACK


def _first_difference(reference: Reference, outputs: list[list[int]]) -> tuple[int, int, float] | None:
    """The worst one of the rows' first differences: row, place, and how clear the reference is there."""
    found = []
    for row, (expected, output) in enumerate(zip(reference.outputs, outputs, strict=True)):
        place = next((i for i, pair in enumerate(zip(expected, output, strict=True)) if pair[0] != pair[1]), None)
        if place is not None:
            found.append((row, place, reference.margins[row][place]))
    return max(found, key=lambda difference: difference[2]) if found else None


def _one_line(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return text if isinstance(error, SpecdecError) else f"{type(error).__name__}: {text[:200]}"
