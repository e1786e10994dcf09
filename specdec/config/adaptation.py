"""Which runs a drafter may learn in while it serves. Imports no torch."""

from __future__ import annotations

from specdec.config.plugins import declared
from specdec.config.schema import RunConfig
from specdec.errors import ConfigError
from specdec.registry import declared_so_far, load_entry_points, unknown

OFF = "none"
POLICIES = (OFF, "always", "bandit")
_LEAST = {"rows": 1, "depth": 1, "max_tokens": 2}


def adapts(config: RunConfig) -> bool:
    """Whether the drafter learns while it serves."""
    return config.adapt.policy != OFF


def check_adaptation(config: RunConfig) -> None:
    """Refuse settings of ``adapt`` that are out of range or do not fit the run.

    Raises:
        ConfigError: with the reason, and what would be valid.
    """
    adapt, name = config.adapt, config.drafter.name
    if adapt.policy not in POLICIES:
        raise ConfigError(unknown("adapt.policy", adapt.policy, POLICIES))
    for key, least in _LEAST.items():
        if getattr(adapt, key) < least:
            raise ConfigError(f"adapt.{key}={getattr(adapt, key)}: it must be at least {least}")
    if adapt.horizon is not None and adapt.horizon < 1:
        raise ConfigError(f"adapt.horizon={adapt.horizon}: it must be at least 1, or null")
    if adapt.lr <= 0 or not 0 < adapt.trial_share <= 1:
        raise ConfigError(f"adapt.lr={adapt.lr}, adapt.trial_share={adapt.trial_share}: above 0, and a share up to 1")
    if adapt.policy == OFF and adapt.arm is not None:
        raise ConfigError(f"adapt.arm={adapt.arm} with adapt.policy=none: set adapt.policy=always or bandit")
    if adapt.policy == OFF:
        return
    asked = f"adapt.policy={adapt.policy}"
    if not declared(config, "drafter").learner:
        load_entry_points()
        able = "|".join(sorted(entry.name for entry in declared_so_far("drafter") if entry.learner))
        raise ConfigError(f"{asked} with drafter={name}: it cannot learn; set drafter={able}, or adapt.policy=none")
    if config.runner.tensor_parallel:
        raise ConfigError(
            f"{asked} with runner.tensor_parallel=true: processes would learn apart; set adapt.policy=none"
        )
    if config.numerics != "default":
        raise ConfigError(f"{asked} with numerics={config.numerics}: updates are not measured; set adapt.policy=none")
    if config.debug.invariants and name == "model":
        raise ConfigError(
            f"{asked} with debug.invariants=true: the draft's cache keeps what its old weights made; set either off"
        )
