"""The adaptive trigram store: weights of (t1, t2) -> t3 that grow with the row's own tokens.

A weight starts from a corpus (frequency among the successors of its key, the heaviest ``successors`` kept) and gains
``gain`` for every step that its trigram stays within the last ``window`` tokens of the row, up to ``cap``. The store of
the corpus is shared and never changes; each row learns into an overlay of its own, so that its draft never depends on
its neighbours. The draft is the chain of heaviest successors; with ``nodes``, a tree that a search over the store finds
(`specdec.drafters.tree_search`). Source: Liu et al. 2024 (ADED, AAAI 2025), which has one store for all requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial

from specdec.assets import local_path
from specdec.core.random_numbers import SEARCH, uniforms
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHOSEN
from specdec.core.text_files import read_text
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.token_trees import TokenTree, chosen_trees, merged
from specdec.drafters.tree_search import Ranked, ranked, search
from specdec.errors import ConfigError, DataError
from specdec.models.vocabulary import check_fit

Weights = dict[tuple[int, int], dict[int, float]]


class TrigramDrafter(Drafter):
    """Chains of the heaviest trigrams, or trees of several; no model, no probabilities."""

    def __init__(
        self,
        context: DrafterContext,
        *,
        corpus: str | None,
        successors: int,
        window: int,
        gain: float,
        cap: float,
        nodes: int | None,
        searches: int,
    ) -> None:
        if window < 3:
            raise ConfigError(f"drafter.window={window}: a trigram needs at least 3 tokens")
        if min(successors, gain, cap) <= 0:
            raise ConfigError("drafter.successors, drafter.gain and drafter.cap must be above 0")
        if nodes is not None and nodes < 1:
            raise ConfigError(f"drafter.nodes={nodes}: it must be at least 1, or null for a chain")
        if searches < 1:
            raise ConfigError(f"drafter.searches={searches}: it must be at least 1")
        if nodes is not None:
            self.siblings = CHOSEN
        self._device, self._nodes, self._searches = context.device, nodes, searches
        self._base = _corpus_store(context, corpus, successors) if corpus is not None else {}
        self._base_ranked: dict[tuple[int, int], Ranked] = {}
        self._window, self._gain, self._cap = window, gain, cap
        self._tokens: dict[int, list[int]] = {}
        self._overlay: dict[int, Weights] = {}

    def admit(self, rows: list[Sequence]) -> None:
        for row in rows:
            self._tokens[row.index], self._overlay[row.index] = [], {}
        self.commit(rows)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        if self._nodes is not None:
            trees = [self._tree(row, gamma, self._nodes) for row, gamma in zip(rows, gammas, strict=True)]
            return chosen_trees(trees, self._device)
        drafts = [self._follow(row.index, gamma) for row, gamma in zip(rows, gammas, strict=True)]
        return chosen_chains(drafts, self._device)

    def commit(self, rows: list[Sequence]) -> None:
        """Credit, for every emitted token, the trigrams that are in the window when it is emitted."""
        for row in rows:
            tokens = self._tokens[row.index]
            for token in row.tokens(len(tokens)):
                tokens.append(token)
                self._credit(self._overlay[row.index], tokens[-self._window :])

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            del self._tokens[row.index], self._overlay[row.index]

    def _credit(self, overlay: Weights, recent: list[int]) -> None:
        for first, second, third in zip(recent, recent[1:], recent[2:], strict=False):
            known = overlay.setdefault((first, second), {})
            weight = known.get(third, self._base.get((first, second), {}).get(third, 0.0))
            known[third] = min(weight + self._gain, self._cap)

    def _successors(self, key: int, pair: tuple[int, int]) -> dict[int, float]:
        """The weights of the tokens after a pair: what the row has learnt replaces the corpus."""
        return {**self._base.get(pair, {}), **self._overlay[key].get(pair, {})}

    def _ranked(self, key: int, pair: tuple[int, int]) -> Ranked:
        """The same from the heaviest on; kept for pairs that only the corpus knows of, where nothing changes."""
        if pair in self._overlay[key]:
            return ranked(self._successors(key, pair))
        if pair not in self._base_ranked:
            self._base_ranked[pair] = ranked(self._base.get(pair, {}))
        return self._base_ranked[pair]

    def _tree(self, row: Sequence, gamma: int, nodes: int) -> TokenTree:
        """What a search over the store finds; the numbers that it draws are the row's own."""
        text, key = self._tokens[row.index], (row.sampling.seed if row.sampling else 0, row.index)
        if len(text) < 2:
            return TokenTree()

        def draws(count: int) -> list[float]:
            numbers: list[float] = uniforms([key], [[row.length] * count], SEARCH, range(count))[0].tolist()
            return numbers

        look_up = partial(self._ranked, row.index)
        return merged(search(look_up, (text[-2], text[-1]), gamma, nodes, self._searches, draws), nodes)

    def _follow(self, key: int, gamma: int) -> list[int]:
        text = self._tokens[key][-2:]
        if len(text) < 2:
            return []
        for _ in range(gamma):
            pair = (text[-2], text[-1])
            successors = self._successors(key, pair)
            if not successors:
                break
            text.append(max(successors, key=lambda token: (successors[token], -token)))
        return text[2:]


def _corpus_store(context: DrafterContext, corpus: str, keep: int) -> Weights:
    """Relative frequencies of a text file's trigrams, one document per line."""
    if context.tokenizer is None:
        raise ConfigError("drafter.corpus needs the pair's tokenizer, which this engine was built without")
    check_fit(context.target, None, context.tokenizer, None, by_text=False, settings=True)
    try:
        lines = read_text(local_path(corpus)).splitlines()
    except (OSError, DataError) as error:
        raise ConfigError(f"drafter.corpus={corpus}: not a readable text file ({error})") from None
    return relative_frequencies((context.tokenizer.encode(line, add_special_tokens=False) for line in lines), keep)


def relative_frequencies(documents: Iterable[list[int]], keep: int) -> Weights:
    """Per pair of tokens, the share of each of its ``keep`` most frequent successors."""
    counts: dict[tuple[int, int], Counter[int]] = {}
    for tokens in documents:
        for first, second, third in zip(tokens, tokens[1:], tokens[2:], strict=False):
            counts.setdefault((first, second), Counter())[third] += 1
    return {
        key: {token: count / total.total() for token, count in total.most_common(keep)} for key, total in counts.items()
    }
