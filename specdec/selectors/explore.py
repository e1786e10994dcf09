"""Samples combs at the roots of rows, with caches of its own: what a shape would have accepted, without drafting it.

Its random numbers are not the draft's: they depend on the row's length alone, so that what it finds says nothing of the
tokens that will be drafted. Shape letters: B rows, S samples, T tokens fed, W nodes of a level and sample, N nodes of a
comb, C columns, V vocabulary, D and E the hidden sizes of target and draft.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.alignment.base import Alignment
from specdec.alignment.layout import padded
from specdec.core.clock import Clock
from specdec.core.outputs import NORMED, Outputs
from specdec.core.random_numbers import SEARCH, uniforms
from specdec.core.sampling import processed
from specdec.core.sampling_params import SamplingParams
from specdec.core.transfer import to_device
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.selectors.base import RootStates
from specdec.selectors.combs import CombLayout, Combs
from specdec.trees.drawing import draw_each

LAG = 2  # tokens that the caches lack between calls, so that both models are always fed the last two


@dataclass(frozen=True, slots=True)
class Explored:
    """What was found at the roots of B rows."""

    combs: Combs  # B S of them, the samples of a row together
    states: RootStates
    scores_BV: Tensor  # the draft's logits after the last token


class Explorer:
    """Holds both models' caches of the rows that it is asked about. Repetition penalties are not applied."""

    def __init__(self, target: CausalLM, draft: CausalLM, layout: CombLayout, num_samples: int, clock: Clock) -> None:
        self._layout, self._num_samples = layout, num_samples
        self._target, self._draft = (_inplace(model, clock) for model in (target, draft))
        self._known: set[int] = set()

    @torch.inference_mode()
    def explore(self, rows: list[int], tokens: list[list[int]], settings: list[SamplingParams]) -> Explored:
        """Combs at the ends of these rows, which are named by number; each must be as long as when it was last seen."""
        self._admit(rows, tokens)
        target, fed = self._feed(self._target, rows, tokens)
        draft, _ = self._feed(self._draft, rows, tokens)
        combs = self._combs(rows, [len(row) for row in tokens], fed, target, draft, settings)
        for alignment in (self._target, self._draft):
            alignment.commit(rows, [max(len(row) - LAG, 0) for row in tokens])
        hidden_B2E = torch.stack([draft.hidden_before_BD, draft.hidden_BD], dim=1)
        known = [count > 1 for count in fed]
        states = RootStates(target.hidden_before_BD, hidden_B2E, draft.before_BV, known)
        return Explored(combs, states, draft.logits_BV)

    def release(self, rows: list[int]) -> None:
        """Drop rows, known or not."""
        known = [row for row in rows if row in self._known]
        if known:
            self._target.release(known)
            self._draft.release(known)
            self._known.difference_update(known)

    def _admit(self, rows: list[int], tokens: list[list[int]]) -> None:
        new = [b for b, row in enumerate(rows) if row not in self._known]
        if new:
            for alignment in (self._target, self._draft):
                alignment.admit([rows[b] for b in new], [tokens[b][:-LAG] for b in new])
            self._known.update(rows[b] for b in new)

    def _feed(self, alignment: Alignment, rows: list[int], tokens: list[list[int]]) -> tuple[_Ends, list[int]]:
        """Feed what the caches lack."""
        model = alignment.model
        missing = [row[alignment.length(name) :] for name, row in zip(rows, tokens, strict=True)]
        counts = [len(part) for part in missing]
        with model.call_options(Outputs(hidden=(NORMED,))):
            both_BTX = alignment.forward(rows, padded(missing, model.device), counts)
        rows_B, counts_B = torch.arange(len(rows), device=model.device), to_device(counts, model.device)
        last_BX, before_BX = both_BTX[rows_B, counts_B - 1], both_BTX[rows_B, (counts_B - 2).clamp(min=0)]
        size = model.vocab_size
        return _Ends(last_BX[:, :size], before_BX[:, :size], last_BX[:, size:], before_BX[:, size:]), counts

    def _combs(
        self,
        rows: list[int],
        lengths: list[int],
        num_fed: list[int],
        target: _Ends,
        draft: _Ends,
        settings: list[SamplingParams],
    ) -> Combs:
        """Draw level by level; the last level is fed to neither model."""
        layout, samples, device = self._layout, self._num_samples, self._draft.model.device
        laws = [processed(end.logits_BV[:, None], settings).repeat_interleave(samples, 1) for end in (target, draft)]
        p_levels, q_levels = ([law_BSV[:, :, None]] for law_BSV in laws)  # (B, S, W, V) by level
        tokens_BSW, levels = torch.empty(0), list[Tensor]()
        names = [[num_fed[b] - 1] * samples for b in range(len(rows))]  # of the nodes of the level before
        for level in range(layout.depth):
            places, width = layout.parents(level), layout.width(level)
            offsets = [level + (n << 16) for n in range(samples * width)]
            keys, starts = [(0, 0)] * len(rows), [[length] * len(offsets) for length in lengths]
            numbers = to_device(uniforms(keys, starts, SEARCH, offsets), device)
            q_BSWV = q_levels[-1]
            firsts = torch.arange(len(rows) * samples, device=device)[:, None] * q_BSWV.shape[2]
            at_M = (firsts + to_device(places, device)).flatten()
            tokens_BSW = draw_each(q_BSWV, at_M, numbers.flatten()).view(len(rows), samples, width)
            levels.append(tokens_BSW)
            if level == layout.depth - 1:
                break
            size = len(names[0]) // samples
            parents = [[of_row[s * size + p] for s in range(samples) for p in places] for of_row in names]
            flat_BT = tokens_BSW.flatten(1)
            for alignment, made in ((self._target, p_levels), (self._draft, q_levels)):
                logits_BTV = alignment.forward(rows, flat_BT, [flat_BT.shape[1]] * len(rows), parents)
                made.append(processed(logits_BTV, settings).unflatten(1, (samples, width)))
            done = sum(samples * layout.width(earlier) for earlier in range(level))
            names = [[count + done + n for n in range(samples * width)] for count in num_fed]
        p_RCV, q_RCV = (torch.cat(made, dim=2).flatten(0, 1) for made in (p_levels, q_levels))
        return Combs(layout, torch.cat(levels, dim=2).flatten(0, 1), p_RCV, q_RCV)


@dataclass(frozen=True, slots=True)
class _Ends:
    """Logits and hidden states of the rows' last tokens, and of those before them."""

    logits_BV: Tensor
    before_BV: Tensor
    hidden_BD: Tensor
    hidden_before_BD: Tensor


def _inplace(model: CausalLM, clock: Clock) -> Alignment:
    alignment: Alignment = create("alignment", "inplace", model, clock)
    return alignment
