"""The plug-ins that a run's config chooses: what they declare, and their settings. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from specdec.config.schema import RunConfig
from specdec.registry import NOT_PARAMS, Entry, create, lookup


def declared(config: RunConfig, group: str) -> Entry:
    """The registry entry of the plug-in chosen for ``group``."""
    return lookup(group, getattr(config, group).name)


def plugin_config(group: str, name: str, **settings: Any) -> Any:
    """The config of ``group=name``: ``settings``, and defaults for the others."""
    return OmegaConf.to_object(OmegaConf.structured(lookup(group, name).config(**settings)))


def plugin(config: RunConfig, group: str, *dependencies: Any) -> Any:
    """Build the plug-in chosen for ``group``, with its settings as keywords."""
    settings = asdict(getattr(config, group))
    params = {key: value for key, value in settings.items() if key not in NOT_PARAMS}
    return create(group, settings["name"], *dependencies, **params)
