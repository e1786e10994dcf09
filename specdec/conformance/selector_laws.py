"""Whether a selector's choice knows the draws that it decides about, by exact enumeration of one round of a row.

The random numbers of a draft follow from a row's seed, name and length, and a selector may not know them. Here all sets
of numbers that lead to different drafts are enumerated. Each is represented by a row whose own numbers lie in it, which
is found by trying seeds, or names under the seed 0, which a plug-in might guess. Drafter, tree and models are real ones
of two tokens; drafts have two levels and at most two paths. Averaged over all sets, with their probabilities, the row
must emit as the target does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch

from specdec.conformance.checked_drafter import draft_at_once
from specdec.conformance.decoding import drafter_context
from specdec.conformance.models import device, perturbed, small_llama
from specdec.conformance.promises import Broken, construct, reporting_errors
from specdec.conformance.row_laws import LEVELS, VOCAB, Array, RowDraft, RowLaws, Text, by_token
from specdec.conformance.selector_copies import MakeSelector, copies_of, prepared_context
from specdec.core.clock import Clock
from specdec.core.random_numbers import DRAFT, uniforms
from specdec.core.round import Draft
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.drafters.model import ModelDrafter
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.trees.frontier import OFFSETS_PER_NUMBER
from specdec.trees.paths import PathsTree

EXACT = 1e-9  # total variation that rounding explains
NUM_PATHS = 2
NUM_TRIED = 20_000  # seeds or names: the rarest set has a probability of at least MARGIN**4
MARGIN = 0.15
TEMPERATURE = 2.0
OFFSETS = [level + path * OFFSETS_PER_NUMBER for level in range(LEVELS) for path in range(NUM_PATHS)]


@dataclass(frozen=True, slots=True)
class NumbersCase:
    """A prompt of random models of two tokens, and what differs between the rows that stand for its numbers."""

    seed: int
    by_name: bool = False  # False: the seed

    def __str__(self) -> str:
        what = "names, under seed 0" if self.by_name else "seeds"
        return f"a row that holds {list(_laws(self.seed)[1])}, under all random numbers by its {what}, seed {self.seed}"


NUMBERS_CASES = tuple(NumbersCase(seed, by_name) for seed in range(3) for by_name in (False, True))


@reporting_errors
def check_numbers(case: NumbersCase, make: MakeSelector) -> list[Broken]:
    """The next three tokens' distribution over all random numbers of the draft.

    Raises:
        RefusedError: the selector's constructor refuses the models or the verifier.
    """
    models = _models(case.seed, device())
    fresh = construct(copies_of, make, prepared_context(models, NUM_PATHS, LEVELS, TEMPERATURE), 1)
    align = partial(create, "alignment", "inplace")
    tools = replace(drafter_context(*models, Clock(), align, []), tree=PathsTree(num_paths=NUM_PATHS))
    laws, prompt = _laws(case.seed)
    emitted = np.zeros_like(laws.plain(()))
    for weight, number in _representatives(case):
        name, seed = (number, 0) if case.by_name else (0, number)
        row = Sequence(name, list(prompt), 100, sampling=SamplingParams(TEMPERATURE, seed=seed))
        draft = draft_at_once(ModelDrafter(replace(tools, selector=fresh())), [row], [LEVELS], models[0])
        emitted += weight * by_token(laws, RowDraft(_drawn(draft), weight), LEVELS)
    far = 0.5 * float(np.abs(emitted - laws.plain(())).sum())
    if far < EXACT:
        return []
    return [Broken("law", f"the row's next three tokens are {far:.3f} (total variation) from the target's")]


def _drawn(draft: Draft) -> tuple[Text, ...]:
    """The texts of all draws of the one row."""
    draws = range(draft.num_candidates[0]) if draft.draws is None else draft.draws[0]
    return tuple(tuple(draft.ids[0][node] for node in draft.path(0, last)) for last in draws if last >= 0)


@cache
def _models(seed: int, place: torch.device) -> tuple[CausalLM, CausalLM]:
    """A target and a draft of two tokens that differ."""
    target = small_llama(seed, torch.float64, layers=2, vocab_size=VOCAB)
    draft = perturbed(target, 1.0, seed + 100)
    for module in (target, draft):
        torch.nn.Module.to(module, place)
    return CausalLM(target), CausalLM(draft)


@cache
@torch.inference_mode()
def _laws(seed: int) -> tuple[RowLaws, Text]:
    """The models' distributions after the first prompt where none of the draft's is extreme."""
    target, draft = _models(seed, device())

    def after(model: CausalLM, prompt: Text, longest: int) -> dict[Text, Array]:
        texts = [text for size in range(longest + 1) for text in itertools.product(range(VOCAB), repeat=size)]
        logits = [model.module(torch.tensor([[*prompt, *text]], device=device())).logits[0, -1] for text in texts]
        return {
            text: (row.double() / TEMPERATURE).softmax(-1).cpu().numpy()
            for text, row in zip(texts, logits, strict=True)
        }

    for prompt in itertools.product(range(VOCAB), repeat=6):
        laws = RowLaws(after(target, prompt, LEVELS), after(draft, prompt, LEVELS - 1))
        thresholds = [q[0] for q in laws.q.values()]
        apart = abs(thresholds[1] - thresholds[2])
        if min(*thresholds, *(1 - value for value in thresholds), apart) > MARGIN:
            return laws, prompt
    raise AssertionError("no prompt of these models has moderate distributions")


def _representatives(case: NumbersCase) -> Iterator[tuple[float, int]]:
    """A seed or name of each set of numbers, and the probability of the set."""
    laws, prompt = _laws(case.seed)
    first = [laws.q[()][0]]
    second = sorted(laws.q[(token,)][0] for token in range(VOCAB))
    edges = [first] * NUM_PATHS + [second] * NUM_PATHS
    keys = [(0, number) if case.by_name else (number, 0) for number in range(NUM_TRIED)]
    numbers_RN = uniforms(keys, [[len(prompt)]] * NUM_TRIED, DRAFT, OFFSETS).numpy()
    found: dict[tuple[int, ...], int] = {}
    places_RN = np.stack([np.searchsorted(edge, numbers_RN[:, n]) for n, edge in enumerate(edges)], axis=1)
    for number, places in enumerate(places_RN.tolist()):
        found.setdefault(tuple(places), number)
    widths = [np.diff([0.0, *edge, 1.0]) for edge in edges]
    for places in itertools.product(*(range(len(width)) for width in widths)):
        yield float(np.prod([width[place] for width, place in zip(widths, places, strict=True)])), found[places]
