"""Batching policies: the order in which prompts wait. Outputs come back in prompt order whatever the policy."""

from __future__ import annotations

from abc import ABC, abstractmethod

from specdec.core.sequence import Sequence
from specdec.errors import ConfigError


class BatchingPolicy(ABC):
    """Orders the prompts; ``window`` is for schedulers that look ahead."""

    def __init__(self, *, window: int = 48) -> None:
        if window < 1:
            raise ConfigError(f"batching.window={window}: it must be at least 1")
        self.window = window

    @abstractmethod
    def order(self, rows: list[Sequence]) -> list[Sequence]:
        """The rows in the order they are to be admitted."""


class Fifo(BatchingPolicy):
    """As they come."""

    def order(self, rows: list[Sequence]) -> list[Sequence]:
        """Unchanged."""
        return list(rows)


class Sorted(BatchingPolicy):
    """Shortest prompt first."""

    def order(self, rows: list[Sequence]) -> list[Sequence]:
        """By prompt length; equal lengths stay in the order they came."""
        return sorted(rows, key=lambda row: len(row.prompt_ids))


class Bucketed(BatchingPolicy):
    """By length bucket, in the order they come within a bucket."""

    def __init__(self, *, window: int = 48, bucket_tokens: int = 32) -> None:
        super().__init__(window=window)
        if bucket_tokens < 1:
            raise ConfigError(f"batching.bucket_tokens={bucket_tokens}: it must be at least 1")
        self.bucket_tokens = bucket_tokens

    def order(self, rows: list[Sequence]) -> list[Sequence]:
        """Buckets from short to long."""
        return sorted(rows, key=lambda row: len(row.prompt_ids) // self.bucket_tokens)
