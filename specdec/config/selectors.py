"""Declares the built-in selectors. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.core.settings import setting
from specdec.registry import register


@register("selector", "none", target="specdec.selectors.none:NoSelector")
@dataclass
class NoSelectorConfig:
    """All rows have the tree's own shape."""


@register("selector", "static", target="specdec.selectors.static:StaticSelector")
@dataclass
class StaticSelectorConfig:
    """The best fixed shape for the temperature and batch size, from a table of measured ones."""

    path: str | None = setting(None, "JSON file that python -m specdec.selectors wrote")


@register("selector", "estimate", target="specdec.selectors.estimate:EstimateSelector")
@dataclass
class EstimateSelectorConfig:
    """The best shape at each root, by target forwards over sampled trees: what selection could reach; slow."""

    samples: int = setting(4, "trees per root")
    by: str = setting("speed", "speed: expected tokens per second; tokens: expected tokens per round")


@register("selector", "trained", target="specdec.selectors.trained:TrainedSelector")
@dataclass
class TrainedSelectorConfig:
    """A small network's choice (train.py task=selector): one call per round for all rows."""

    path: str | None = setting(None, "folder that train.py wrote")
