"""Sampled rows: what their tests need of each row, computed from the target's law at every position.

The law p_t is the target's distribution after the engine's own tokens, with the stated temperature, top-k, top-p and
min-p. If the engine samples from it, then whatever the prompt and whenever the row ends:

- d_t = log p_t(x_t) - E[log p_t] are martingale differences with known moments. Their sum is the score of the
  log-likelihood in the inverse temperature, so no test sees a small error of the temperature better;
- u_t = P(more probable tokens) + v_t p_t(x_t), v_t uniform, are independent and uniform on [0, 1] (the randomised
  probability integral transform: Rosenblatt 1952, Brockwell 2007), here by rank;
- for a fixed alternative law q_t, the product of q_t(x_t) / p_t(x_t) is a martingale of mean 1, so it exceeds 1 / a
  with probability a at most (Ville 1939). The mean over several alternatives is one too.

Shape letters: n tokens, V vocabulary, A alternatives.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.audit.forced import Forcing, scores_of_row
from specdec.audit.rows import Row
from specdec.core.sampling import processed
from specdec.core.sampling_params import SamplingParams

NUM_BINS = 20  # of the uniform numbers
MIN_VISITS = 25  # of a context whose tokens are counted
MIN_EXPECTED = 5.0  # in a cell of a chi-square test
POWERS = (0.5, 0.7, 0.85, 0.93, 1.08, 1.2, 1.5, 2.0)  # alternatives: p to this power
GREEDY_SHARES = (0.1, 0.5)  # the argmax, with this probability
FLAT_SHARES = (0.001, 0.02, 0.3)  # the model's own softmax and a uniform law in equal parts, with this probability
NUM_ALTERNATIVES = len(POWERS) + len(GREEDY_SHARES) + len(FLAT_SHARES)
_TINY = 1e-300
_PART_VALUES = 1 << 22  # probabilities held at once


@dataclass(frozen=True, slots=True)
class SampledRules:
    """What sampled rows are held to."""

    params: SamplingParams
    noise_factor: float
    seed: int = 0  # of the randomised transform


@dataclass(slots=True)
class Contexts:
    """Prompts and beginnings of outputs that occur often enough to compare counts of tokens with the law itself."""

    visits: Counter[str]
    cells: dict[str, dict[int, float]] = field(default_factory=dict)  # token: probability; -1: all others

    @classmethod
    def of(cls, rows: list[Row]) -> Contexts:
        """Those of a file."""
        visits = Counter(key for row in rows for key in keys_of(row, len(row.output_ids)))
        return cls(Counter({key: count for key, count in visits.items() if count >= MIN_VISITS}))

    def recall(self, statistics: dict[str, Any]) -> None:
        """Take over the cells that an earlier, interrupted audit has chosen."""
        for key, _, *new in statistics["contexts"]:
            if new:
                self.cells[key] = {int(token): float(share) for token, share in new[0]}


def keys_of(row: Row, num_tokens: int) -> list[str]:
    """A name for every context of a row: its prompt with the first 0, 1, ... tokens of the output."""
    key, keys = hash(tuple(row.prompt_ids)), []
    for token in row.output_ids[:num_tokens]:
        keys.append(f"{key:x}")
        key = hash((key, token))
    return keys


def statistics_of(row: Row, forcing: Forcing, rules: SampledRules, contexts: Contexts) -> dict[str, Any]:
    """A row's share of every test, as plain data. A token that the law excludes is not in the sums."""
    forced = forcing.quick(row)
    scores_nV = scores_of_row(row, forced.logits_NV, rules.params)[:-1]
    step = max(_PART_VALUES // scores_nV.shape[1], 1)
    uniforms_n = torch.from_numpy(np.random.default_rng([rules.seed, row.number]).random(len(scores_nV)))
    sums, excluded = Sums(), list[int]()
    for first in range(0, len(scores_nV), step):
        part = Part(row, first, scores_nV[first : first + step], rules.params)
        excluded += part.excluded
        sums.add(part, uniforms_n[first : first + step])
        sums.contexts += _visited(row, part, contexts)
    if excluded:
        forced = forcing.measured(row)
        scores_nV = scores_of_row(row, forced.logits_NV, rules.params)[:-1]
    impossible = [place for place in excluded if not _at_the_edge(scores_nV, row, place, forced.noise, rules)]
    return {
        "num_tokens": len(row.output_ids),
        "num_edge": len(excluded) - len(impossible),
        "impossible": impossible,
        "moments": sums.moments.tolist(),
        "bins": sums.bins.tolist(),
        "log_ratios": sums.log_ratios.tolist(),
        "contexts": sums.contexts,
    }


class Part:
    """Some positions of a row: the laws there and the tokens that were emitted, without those that the laws exclude."""

    def __init__(self, row: Row, first: int, scores_nV: Tensor, params: SamplingParams) -> None:
        self.first = first
        self.whole_nV = processed(scores_nV[None], [params])[0]
        tokens_n = torch.tensor(row.output_ids[first : first + len(scores_nV)])
        own_n = self.whole_nV.gather(1, tokens_n[:, None])[:, 0]
        self.kept_n = own_n > 0
        self.excluded: list[int] = ((~self.kept_n).nonzero()[:, 0] + first).tolist()
        self.tokens_n, self.own_n = tokens_n[self.kept_n], own_n[self.kept_n]
        self.laws_nV, self.scores_nV = self.whole_nV[self.kept_n], scores_nV[self.kept_n]


@dataclass(slots=True)
class Sums:
    """The sums of a row, over its parts."""

    moments: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    bins: Tensor = field(default_factory=lambda: torch.zeros(NUM_BINS, dtype=torch.long))
    log_ratios: Tensor = field(default_factory=lambda: torch.zeros(NUM_ALTERNATIVES, dtype=torch.float64))
    contexts: list[list[Any]] = field(default_factory=list)

    def add(self, part: Part, uniforms_n: Tensor) -> None:
        """Add a part. ``uniforms_n``: a random number per position, of which the kept ones are used."""
        self.moments += _moments(part)
        self.bins += _bins(part, uniforms_n[part.kept_n])
        self.log_ratios += _log_ratios(part)


def _at_the_edge(scores_nV: Tensor, row: Row, place: int, noise: float, rules: SampledRules) -> bool:
    """Whether rounding may have kept a token that top-k, top-p or min-p exclude here."""
    params, slack = rules.params, 2 * rules.noise_factor * noise
    raised_V = scores_nV[place].float().clone()
    raised_V[row.output_ids[place]] += slack
    share = slack / max(params.temperature, slack)
    wider = replace(params, top_p=min(1.0, params.top_p + share), min_p=params.min_p * (1 - share))
    return float(processed(raised_V[None, None], [wider])[0, 0, row.output_ids[place]]) > 0


def _moments(part: Part) -> Tensor:
    """Sum of d, and the sums of its conditional variance and third moment."""
    logs_nV = part.laws_nV.clamp(min=_TINY).log()
    means_n = (part.laws_nV * logs_nV).sum(-1)
    logs_nV -= means_n[:, None]
    second_nV = part.laws_nV * logs_nV**2
    return torch.stack([(part.own_n.log() - means_n).sum(), second_nV.sum(), (second_nV * logs_nV).sum()])


def _bins(part: Part, v_n: Tensor) -> Tensor:
    """Counts of u in NUM_BINS equal bins; of equally probable tokens the smaller id comes first."""
    own_n1, ids_V = part.own_n[:, None], torch.arange(part.laws_nV.shape[1])
    before_nV = (part.laws_nV > own_n1) | ((part.laws_nV == own_n1) & (ids_V < part.tokens_n[:, None]))
    u_n = (part.laws_nV * before_nV).sum(-1) + v_n * part.own_n
    return (u_n * NUM_BINS).long().clamp(0, NUM_BINS - 1).bincount(minlength=NUM_BINS)


def _log_ratios(part: Part) -> Tensor:
    """log of the product of q / p, per alternative (A)."""
    logs_nV, own_log_n = part.laws_nV.log(), part.own_n.log()
    ratios = [((power - 1) * own_log_n - (power * logs_nV).logsumexp(-1)).sum() for power in POWERS]
    best_n = (part.laws_nV.argmax(-1) == part.tokens_n).double()
    softmax_n = part.scores_nV.double().softmax(-1).gather(1, part.tokens_n[:, None])[:, 0]
    flat_n = (softmax_n + 1 / part.laws_nV.shape[1]) / 2
    others = [(share, best_n) for share in GREEDY_SHARES] + [(share, flat_n) for share in FLAT_SHARES]
    ratios += [(1 - share + share * other_n / part.own_n).log().sum() for share, other_n in others]
    return torch.stack(ratios)


def _visited(row: Row, part: Part, contexts: Contexts) -> list[list[Any]]:
    """The often visited contexts of a part, the token that the row took, and the cells of those seen first here."""
    found: list[list[Any]] = []
    for place, key in enumerate(keys_of(row, part.first + len(part.whole_nV))[part.first :]):
        if key not in contexts.visits:
            break  # longer beginnings occur less often still
        new = key not in contexts.cells
        if new:
            contexts.cells[key] = _cells(part.whole_nV[place], contexts.visits[key])
        taken = row.output_ids[part.first + place]
        found.append([key, taken, *([list(contexts.cells[key].items())] if new else [])])
    return found


def _cells(law_V: Tensor, num_visits: int) -> dict[int, float]:
    """Tokens expected MIN_EXPECTED times; the others share a cell, with the rarest of these if it is too small."""
    often = (law_V * num_visits >= MIN_EXPECTED).nonzero()[:, 0].tolist()
    cells = dict(sorted(((token, float(law_V[token])) for token in often), key=lambda item: -item[1]))
    rest = 1.0 - sum(cells.values())
    while cells and rest > 1e-12 and rest * num_visits < MIN_EXPECTED:
        rest += cells.popitem()[1]
    return {**cells, -1: max(rest, 0.0)}
