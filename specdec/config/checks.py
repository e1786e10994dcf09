"""Whether a run is served online: rows then depend on the clock, or on the answers before them. Imports no torch."""

from __future__ import annotations

from omegaconf import DictConfig

from specdec.errors import ConfigError


def is_serving(cfg: DictConfig) -> bool:
    """Whether requests arrive over time, or conversations go on. Such a run has no meaning in parts."""
    return bool(cfg.arrivals.name != "none" or cfg.data.turns == "conversation")


def check_serving(cfg: DictConfig) -> None:
    """Refuse what cannot be served.

    Raises:
        ConfigError: there are several processes with a queue each.
    """
    runner = cfg.runner
    num_devices = runner.devices if isinstance(runner.devices, int) else len(runner.devices)
    if is_serving(cfg) and num_devices * runner.num_nodes > 1 and not runner.tensor_parallel:
        raise ConfigError(
            f"arrivals={cfg.arrivals.name} with data.turns={cfg.data.turns} is served by one process: set "
            "runner.devices=1"
        )
