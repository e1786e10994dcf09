"""Batching policies: the order in which prompts are admitted. Outputs are always returned in prompt order."""

from __future__ import annotations

from abc import ABC, abstractmethod

from specdec.core.sequence import Sequence
from specdec.errors import ConfigError


class BatchingPolicy(ABC):
    """Orders the waiting prompts. ``window`` is handed to schedulers that look ahead."""

    def __init__(self, *, window: int = 48) -> None:
        if window < 1:
            raise ConfigError(f"batching.window={window}: it must be at least 1")
        self.window = window

    @abstractmethod
    def order(self, rows: list[Sequence]) -> list[Sequence]:
        """The rows in the order of their admission."""


class Fifo(BatchingPolicy):
    """First in, first out."""

    def order(self, rows: list[Sequence]) -> list[Sequence]:
        return list(rows)


class Sorted(BatchingPolicy):
    """Shortest prompt first; equal lengths keep their order."""

    def order(self, rows: list[Sequence]) -> list[Sequence]:
        return sorted(rows, key=lambda row: len(row.prompt_ids))


class Bucketed(BatchingPolicy):
    """By buckets of prompt length, shortest first; first in, first out within a bucket."""

    def __init__(self, *, window: int = 48, bucket_tokens: int = 32) -> None:
        super().__init__(window=window)
        if bucket_tokens < 1:
            raise ConfigError(f"batching.bucket_tokens={bucket_tokens}: it must be at least 1")
        self.bucket_tokens = bucket_tokens

    def order(self, rows: list[Sequence]) -> list[Sequence]:
        return sorted(rows, key=lambda row: len(row.prompt_ids) // self.bucket_tokens)
