"""Declares the built-in verify budgets, and says which runs one may be part of. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from specdec.config.judging import drafts_own_trees
from specdec.config.plugins import declared
from specdec.config.schema import RunConfig
from specdec.core.settings import setting
from specdec.core.siblings import CHAIN, CHOSEN
from specdec.errors import ConfigError
from specdec.registry import register

NONE = "none"


@register("budget", "none", target="specdec.budgets.none:NoBudget", per_row=True, reads_clock=False)
@dataclass
class NoBudgetConfig:
    """Every drafted token is verified."""


@register("budget", "early_stop", target="specdec.budgets.early_stop:EarlyStopBudget")
@dataclass
class EarlyStopConfig:
    """Verifies slots of all rows by estimated survival, until one lowers the expected tokens per second (DSpark)."""

    max_gamma: int = setting(8, "longest draft profiled")
    convex: bool = setting(True, "lower convex hull of the measured costs; without it a dear first token ends it all")


@dataclass
class RankedBudgetConfig:
    """A number of drafted tokens per round, those of the best score over all rows."""

    tokens: int | None = setting(None, "drafted tokens of all rows in a round; null: what was best in earlier rounds")
    max_gamma: int = setting(8, "if tokens is null: longest draft profiled")


@register("budget", "top_survival", target="specdec.budgets.top_survival:TopSurvivalBudget")
@dataclass
class TopSurvivalConfig(RankedBudgetConfig):
    """Verifies a number of drafted tokens per round: those that most probably survive, over all rows."""


@register("budget", "top_max_q", target="specdec.budgets.top_max_q:TopMaxQBudget")
@dataclass
class TopMaxQConfig(RankedBudgetConfig):
    """Verifies a number of drafted tokens per round: those where the draft is most certain, over all rows."""


@register("budget", "own_q", target="specdec.budgets.own_q:OwnQBudget", known_incorrect=True)
@dataclass
class OwnQConfig(RankedBudgetConfig):
    """Known to be biased in sampled rows: ranks slots by the probability of the very token that was drawn."""


@register("budget", "global_optimum", target="specdec.budgets.global_optimum:GlobalOptimumBudget", known_incorrect=True)
@dataclass
class GlobalOptimumConfig:
    """Known to be biased in sampled rows: the best prefix of slots, which later slots may move."""

    max_gamma: int = setting(8, "longest draft profiled")


def check_budget(config: RunConfig) -> None:
    """Refuse a budget whose cuts the verifier's rule does not allow for.

    Raises:
        ConfigError: with the reason, and what would be valid.
    """
    drafter, verifier = declared(config, "drafter"), declared(config, "verifier")
    if config.budget.name == NONE or config.temperature == 0 or not drafter.drafts:
        return
    siblings = declared(config, "tree").siblings if drafter.grows else drafter.siblings
    if drafts_own_trees(config.drafter):
        siblings = CHOSEN
    if verifier.averages_losers and siblings != CHAIN:
        raise ConfigError(
            f"budget={config.budget.name} with verifier={verifier.name}: its rule averages over the paths that lost, "
            "on which the cut may depend: set budget=none, tree=chain, or verifier=traversal|specinfer|spectr"
        )


def check_probes(config: RunConfig, probe_ids: Iterable[int]) -> None:
    """Refuse to cut the drafts of a drafter that reads its next guesses from them.

    Raises:
        ConfigError: names the drafter.
    """
    if config.budget.name != NONE and any(True for _ in probe_ids):
        raise ConfigError(
            f"budget={config.budget.name} with drafter={config.drafter.name}: its prompt tokens hang below the "
            "drafted ones, so a draft cannot be cut: set budget=none"
        )
