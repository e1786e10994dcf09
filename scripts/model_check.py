"""One architecture, every strategy: ragged rows decoded by specdec against each row's own `generate`."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import traceback
from dataclasses import asdict, dataclass, field
from typing import Any

import model_sizes as sizes
import torch
from model_zoo import Entry, build
from torch import Tensor

import specdec
from specdec.alignment.base import Alignment
from specdec.api import _Parts
from specdec.api_models import wrapped
from specdec.clock import Clock
from specdec.drafters.context import DrafterContext
from specdec.errors import SpecdecError
from specdec.model import CausalLM
from specdec.registry import create

STRATEGIES = ("eqspec", "inplace", "masked", "rollback", "expansion")
LENGTHS, NEW, BATCH, GAMMA = (3, 9, 17, 30, 5), 24, 4, 3
ORDER_ROW, LONGEST_ROW = 2, 3
"""Five rows, four in flight: the last one joins where others are long under way."""
MARGIN = 1e-4
"""A difference where the reference's two best logits are closer than this proves nothing."""
SEEDS, ENOUGH = 6, 3
"""Random models tried, until as many rows vary."""
EXACT, REFUSED, UNBUILT, WRONG, TRACEBACK = "exact", "refused", "not built", "WRONG", "TRACEBACK"
BITING = (
    *("sliding_window", "sliding_window_size", "window_size", "attention_window_size", "attention_chunk_size"),
    *("floor_scale", "log_scaling_n_floor", "keep_window_size", "index_topk", "local_attention", "block_size"),
    *("rel_extent", "relative_max_distance", "position_bias_max_distance"),
)
"""Settings that should change the outputs: each is lifted once to see whether it does."""
LIFTED = 4096


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


@dataclass(frozen=True)
class Reference:
    """What the unmodified model says."""

    module: Any
    prompts: list[list[int]]
    outputs: list[list[int]]
    margins: list[list[float]]

    @property
    def num_varied(self) -> int:
        """Rows that are worth comparing with: neither one token for ever nor two in turn."""
        return sum(len(set(output)) > 3 for output in self.outputs)

    @property
    def near_tie(self) -> bool:
        """Whether some token is chosen by a hair."""
        return min(map(min, self.margins)) < 2 * MARGIN

    @property
    def ordered(self) -> bool:
        """Whether two tokens of a prompt that change places change what comes after them."""
        prompt = list(self.prompts[ORDER_ROW])
        prompt[-2], prompt[-7] = prompt[-7], prompt[-2]
        return generate_alone(self.module, prompt)[0] != self.outputs[ORDER_ROW]

    def in_float64(self) -> Reference:
        """The same model with twice the precision."""
        return _reference(copy.deepcopy(self.module).double(), self.prompts)


def prompts(vocab: int) -> list[list[int]]:
    """Ragged rows; the lowest ids, which mean padding to some models, are left out."""
    rng = random.Random(5)
    return [[rng.randrange(3, vocab) for _ in range(length)] for length in LENGTHS]


@torch.no_grad()
def generate_alone(module: Any, prompt: list[int], new: int = NEW) -> tuple[list[int], list[float]]:
    """The model's own greedy tokens after one row alone, and how far the best logit is ahead at each."""
    output = module.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
    )
    margins = []
    for logits_1V in output.logits:
        best = logits_1V[0].float().topk(2).values
        margins.append(float(best[0] - best[1]))
    return output.sequences[0, len(prompt) :].tolist(), margins


def find_reference(entry: Entry) -> Reference:
    """The first seed whose rows vary and have no near tie; the most varied one if there is none."""
    found = []
    for seed in range(SEEDS):
        module = build(entry, seed)
        vocab = module.config.get_text_config(decoder=True).vocab_size
        reference = _reference(module, prompts(min(vocab, sizes.VOCAB)))
        found.append(reference)
        if reference.num_varied >= ENOUGH and not reference.near_tie and reference.ordered:
            return reference
    return max(found, key=lambda reference: (reference.num_varied, not reference.near_tie))


def _reference(module: Any, rows: list[list[int]]) -> Reference:
    answers = [generate_alone(module, row) for row in rows]
    return Reference(module, rows, [output for output, _ in answers], [margins for _, margins in answers])


def make_draft(reference: Reference) -> Any:
    """A copy with noisy weights that agrees with its target at some places and not at others."""
    for scale in (0.03, 0.08, 0.01, 0.2, 0.003, 0.5):
        draft = _perturbed(reference.module, scale)
        if 0.4 < _agreement(draft, reference) < 0.95:
            break
    return draft


@torch.no_grad()
def _perturbed(module: Any, scale: float) -> Any:
    twin = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(7)
    for weight in twin.parameters():
        if weight.dim() > 1 and weight.numel() > 1:
            weight.add_(scale * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return twin


@torch.no_grad()
def _agreement(draft: Any, reference: Reference) -> float:
    """Share of the reference's tokens that the draft would have proposed after the same row."""
    right = total = 0
    for prompt, output in zip(reference.prompts, reference.outputs, strict=True):
        ids = torch.tensor([prompt + output])
        best = draft(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(-1)
        right += int((best == torch.tensor(output)).sum())
        total += len(output)
    return right / total


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
        return _Parts(align(self.target), create("drafter", self._drafter, context), clock)


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


def find_bites(entry: Entry, reference: Reference) -> list[str]:
    """The settings without which the same weights would have said something else."""
    config = reference.module.config.get_text_config(decoder=True)
    found = []
    for name in BITING:
        if getattr(config, name, None) is None:
            continue
        with contextlib.suppress(Exception):
            lifted = build(entry, **{name: LIFTED})
            lifted.load_state_dict(reference.module.state_dict())
            if generate_alone(lifted, reference.prompts[LONGEST_ROW])[0] != reference.outputs[LONGEST_ROW]:
                found.append(name)
    return found


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
