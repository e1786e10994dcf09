"""Suffix decoding: drafts the most frequent continuation of the row's last tokens, as long as its path stays probable.

Two counted trees of substrings say what followed: one of the row's own tokens, and one of a store of earlier outputs,
which is read from a file before the run and never changes, so that a row's draft depends on that row alone. The
continuation is followed for the longest suffix that occurred before, for half of its length, and so on; the draft is
the one with the most expected right tokens. Its length follows the match: ``factor`` tokens per matched token, at most.
Source: Oliaro et al. 2024, arXiv 2411.04975; there the store also takes in the outputs of the run itself.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from specdec.assets import local_path
from specdec.core.round import Draft
from specdec.core.sequence import Sequence
from specdec.core.siblings import CHOSEN
from specdec.core.text_files import read_text
from specdec.drafters.base import Drafter
from specdec.drafters.chain import chosen_chains
from specdec.drafters.context import DrafterContext
from specdec.drafters.memory import DrafterMemory
from specdec.drafters.suffix_tree import Guess, SuffixTree
from specdec.drafters.token_trees import TokenTree, chosen_trees
from specdec.errors import ConfigError, DataError
from specdec.models.vocabulary import check_fit, check_ids

NODE_BYTES = 220
"""Of a tree, measured; a token of new text adds a node for each of its suffixes."""


@dataclass(slots=True)
class _Row:
    """What is known of a row."""

    tree: SuffixTree
    ends: deque[int]  # the row's suffixes in its own tree
    stored: deque[int]  # those that occur in the store
    length: int = 0


class SuffixDrafter(Drafter):
    """Chains or trees of the most frequent continuations; no model, no probabilities of the target."""

    def __init__(
        self,
        context: DrafterContext,
        *,
        depth: int,
        factor: float,
        min_prob: float,
        store: str | None,
        store_tokens: int,
        nodes: int | None,
    ) -> None:
        if depth < 2:
            raise ConfigError(f"drafter.depth={depth}: it must be at least 2, a matched token and one after it")
        if factor <= 0:
            raise ConfigError(f"drafter.factor={factor}: it must be above 0")
        if not 0 <= min_prob <= 1:
            raise ConfigError(f"drafter.min_prob={min_prob}: it must be from 0 to 1")
        if store_tokens < 1:
            raise ConfigError(f"drafter.store_tokens={store_tokens}: it must be at least 1")
        if nodes is not None:
            if nodes < 1:
                raise ConfigError(f"drafter.nodes={nodes}: it must be at least 1, or null for a chain")
            self.siblings = CHOSEN
        self._device, self._depth, self._factor, self._min_prob = context.device, depth, factor, min_prob
        self._nodes = nodes
        self._store = SuffixTree(depth)
        if store is not None:
            for tokens in _last(documents(context, store), store_tokens):
                self._store.extend(tokens)
        self._rows: dict[int, _Row] = {}

    @property
    def memory(self) -> DrafterMemory:
        return DrafterMemory(token_bytes=NODE_BYTES * self._depth)

    def admit(self, rows: list[Sequence]) -> None:
        for row in rows:
            tree = SuffixTree(self._depth)
            self._rows[row.index] = _Row(tree, tree.start(), tree.start())
        self.commit(rows)

    def propose(self, rows: list[Sequence], gammas: list[int]) -> Draft:
        guesses = [self._guess(self._rows[row.index], gamma) for row, gamma in zip(rows, gammas, strict=True)]
        if self._nodes is None:
            return chosen_chains([guess.tokens for guess in guesses], self._device)
        return chosen_trees([TokenTree(guess.tokens, guess.parents) for guess in guesses], self._device)

    def commit(self, rows: list[Sequence]) -> None:
        for row in rows:
            known = self._rows[row.index]
            new = row.tokens(known.length)
            known.length += len(new)
            for token in new:
                known.tree.append(known.ends, token)
                self._store.match(known.stored, token)

    def release(self, rows: list[Sequence]) -> None:
        for row in rows:
            del self._rows[row.index]

    def _guess(self, row: _Row, gamma: int) -> Guess:
        """The continuation with the most expected right tokens; of equal ones that of the longest match."""
        best = Guess()
        for tree, ends in ((row.tree, row.ends), (self._store, row.stored)):
            length = min(tree.longest_followed(ends), self._depth // 2)
            while length > 0:
                room = min(gamma, max(1, int(self._factor * length)))
                guess = self._continue(tree, ends[len(ends) - 1 - length], room)
                if guess.expected > best.expected:
                    best = guess
                length //= 2
        return best

    def _continue(self, tree: SuffixTree, node: int, room: int) -> Guess:
        if self._nodes is None:
            return tree.follow(node, room, self._min_prob)
        return tree.grow(node, room, self._nodes, self._min_prob)


def documents(context: DrafterContext, store: str) -> list[list[int]]:
    """The ids of a store: ``output_ids`` of JSON lines, such as a run's samples.jsonl, or a text file's lines.

    Raises:
        ConfigError: it cannot be read, or holds ids that are not the target's.
    """
    try:
        lines = read_text(local_path(store)).splitlines()
    except (OSError, DataError) as error:
        raise ConfigError(f"drafter.store={store}: not a readable text file ({error})") from None
    if store.endswith(".jsonl"):
        found = list(_outputs(store, lines))
        for ids in found:
            check_ids(f"drafter.store={store}", ids, context.target.vocab_size)
        return found
    if context.tokenizer is None:
        raise ConfigError(
            f"drafter.store={store}: text needs the pair's tokenizer, which this engine was built without"
        )
    check_fit(context.target, None, context.tokenizer, None, by_text=False, settings=True)
    return [context.tokenizer.encode(line, add_special_tokens=False) for line in lines]


def _outputs(store: str, lines: list[str]) -> Iterator[list[int]]:
    for number, line in enumerate(lines, 1):
        try:
            ids = json.loads(line)["output_ids"]
        except (ValueError, KeyError, TypeError):
            ids = None
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise ConfigError(f"drafter.store={store}: line {number} has no output_ids (a run's samples.jsonl has)")
        yield ids


def _last(texts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """The last texts that fit: the oldest are dropped first."""
    kept: list[list[int]] = []
    for text in reversed(texts):
        num_tokens -= len(text)
        if num_tokens < 0:
            break
        kept.append(text)
    return kept[::-1]
