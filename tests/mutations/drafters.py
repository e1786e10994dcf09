"""Bugs in drafters: in the draft model's cache, in what it says it draws from, and in what it knows of a row."""

from __future__ import annotations

from dataclasses import replace

import torch

from mutations.planting import Patch, planted, wrapped
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.reader import Reader
from specdec.drafters import draft_cache, model_tree
from specdec.drafters.lookup import PromptLookupDrafter
from specdec.drafters.model import ModelDrafter
from specdec.drafters.model_tree import ModelTreeDrafter
from specdec.heads.dspark import DSparkDrafter
from specdec.heads.medusa import MedusaDrafter
from specdec.trees import chain, frontier
from specdec.trees.growth import Growth

MODEL = "drafter=model"
RUNS = "decoding runs"


@planted(MODEL, "draft cache not rolled back", "calls", RUNS)
def not_rolled_back(patch: Patch):
    patch.setattr(draft_cache.FedRow, "kept", lambda self: self.row.length)


@planted(MODEL, "draft cache keeps rejected tokens when gamma has changed", "state", RUNS)
def rejected_kept_when_gamma_changes(patch: Patch):
    class Keeping(ModelDrafter):
        def __init__(self, context, **settings) -> None:
            super().__init__(context, **settings)
            self.asked: dict[int, int] = {}
            self.kept: dict[int, int] = {}

        def propose(self, rows, gammas):
            for row, gamma in zip(rows, gammas, strict=True):
                changed = self.asked.get(row.index, gamma) != gamma
                # All that the cache holds in the end, where it should be cut: the last drafted token is never fed.
                self.kept[row.index] = row.length + gamma - 1 if changed else 0
                self.asked[row.index] = gamma
            return super().propose(rows, gammas)

        def commit(self, rows):
            cache = self._cache
            fed = [of_row.row for of_row in cache._fed if not of_row.row.finished]
            if fed:
                kept = [max(min(self.kept[row.index], row.length), row.length - draft_cache.LAG, 0) for row in fed]
                cache.alignment.commit([row.index for row in fed], kept)
            cache._fed = []

    # The row's last token is fed all the same.
    wrapped(patch, Reader, "length", lambda original, self, row: min(original(self, row), row.length - 1))
    return Keeping


@planted(MODEL, "draft cache of a row that drafted nothing cut all the same", "calls", RUNS)
def idle_row_cut(patch: Patch):
    def propose(original, self, rows, gammas):
        draft = original(self, rows, gammas)
        self._cache._fed = [draft_cache.FedRow(row, row.length, 0, draft, b, None) for b, row in enumerate(rows)]
        return draft

    wrapped(patch, ModelTreeDrafter, "propose", propose)


@planted(MODEL, "the draft reads the last column of a ragged feed", "neighbours", RUNS)
def last_column_read(patch: Patch):
    patch.setattr(model_tree, "last_fed", lambda logits_BTV, counts: logits_BTV[:, max(counts) - 1])


@planted(MODEL, "only one token of the lag is fed", "state", RUNS)
def one_token_of_the_lag(patch: Patch):
    def grow(original, self, keys, missing, growth, view):
        original(self, keys, [tokens[-1:] for tokens in missing], growth, view)

    wrapped(patch, ModelTreeDrafter, "_grow", grow)


@planted(MODEL, "the draft's cache loses what it held when it gets more columns", "state", "growth of the cache")
def draft_cache_growth(patch: Patch):
    class Losing(InplaceAlignment):
        def forward(self, rows, tokens_BT, num_tokens=None, parents=None):
            before = self._slots.kv.data_NBHSD.shape
            logits_BTV = super().forward(rows, tokens_BT, num_tokens, parents)
            if self._slots.kv.data_NBHSD.shape != before:
                self._slots.kv.data_NBHSD[..., : before[3] // 2, :] = 0
            return logits_BTV

    class Drafting(ModelDrafter):
        def __init__(self, context, **settings) -> None:
            super().__init__(replace(context, align=lambda model: Losing(model, context.clock)), **settings)

    return Drafting


@planted(MODEL, "offers the probabilities of another step", "distribution", "drawn drafts")
def probabilities_of_another_step(patch: Patch):
    def draft(original, self):
        draft = original(self)
        return draft if draft.probs_BGV is None else replace(draft, probs_BGV=draft.probs_BGV.roll(1, 1))

    wrapped(patch, Growth, "draft", draft)


@planted(MODEL, "takes the most probable token, and says that it was drawn", "distribution", "drawn drafts")
def chosen_but_called_drawn(patch: Patch):
    patch.setattr(chain, "draw", lambda probs_BV, uniforms_B: probs_BV.argmax(-1))


@planted(MODEL, "draws every step with the number of the first", "distribution", "drawn drafts")
def one_number_for_all_steps(patch: Patch):
    def uniforms(original, keys, places, purpose, offsets):
        return original(keys, places, purpose, [0] * len(offsets))

    wrapped(patch, frontier, "uniforms", uniforms)


@planted(MODEL, "in batches of three or more a row draws as its neighbour does", "neighbours", "sampled runs")
def neighbours_probabilities(patch: Patch):
    def processed(original, scores_BTV, settings, *memory):
        probs_BTV = original(scores_BTV, settings, *memory)
        return probs_BTV if len(probs_BTV) < 3 else torch.cat([probs_BTV[:2], probs_BTV[1:2], probs_BTV[3:]])

    wrapped(patch, frontier, "processed", processed)


@planted("drafter=dspark", "a confidence reads the token that it is about", "chances", "drawn drafts", untrained=True)
def confidence_reads_its_token(patch: Patch):
    def confidences(original, self, states_BGD, before):
        return original(self, states_BGD, [*before[1:], before[-1]])

    wrapped(patch, DSparkDrafter, "_confidences", confidences)


@planted(MODEL, "drafts for fewer rows than asked, and the round breaks down", "shape", RUNS)
def fewer_rows(patch: Patch):
    class Fewer(ModelDrafter):
        def propose(self, rows, gammas):
            draft = super().propose(rows, gammas)
            return replace(draft, tokens_BG=draft.tokens_BG[:1], num_drafted=draft.num_drafted[:1])

    return Fewer


@planted("drafter=prompt_lookup", "rows share one index of n-grams", "neighbours", RUNS)
def shared_index(patch: Patch):
    class Shared(PromptLookupDrafter):
        def __init__(self, context, **settings) -> None:
            super().__init__(context, **settings)
            self._all: dict[int, list[int]] = {}

        def commit(self, rows):
            super().commit(rows)
            for row in rows:
                tokens = self._tokens[row.index]
                self._all.update({token: tokens[place:] for place, token in enumerate(tokens[:-1], start=1)})

        def _copies(self, key, gamma):
            copy = self._all.get(self._tokens[key][-1], [])[:gamma]
            return [copy] if copy else super()._copies(key, gamma)

    return Shared


@planted("drafter=medusa", "goes on from the hidden state of the first token that stays", "state", RUNS, untrained=True)
def first_hidden_state(patch: Patch):
    class First(MedusaDrafter):
        def observe_hidden(self, rows, hidden_BTD, kept):
            super().observe_hidden(rows, hidden_BTD, [places[:1] for places in kept])

    return First
