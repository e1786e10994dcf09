"""Turns the config that Hydra composed into a typed `RunConfig`, once per run. Imports no torch."""

from __future__ import annotations

from dataclasses import fields

from omegaconf import DictConfig, OmegaConf

from specdec.config.checks import check
from specdec.config.drafter_weights import take_shipped_head
from specdec.config.pair_folder import fill_from_folder
from specdec.config.schema import RANDOM_WEIGHTS_PROMPTS, RunConfig
from specdec.errors import ConfigError
from specdec.registry import PLUGIN_GROUPS, lookup, unknown


def resolve(composed: DictConfig) -> RunConfig:
    """The config of one point, with defaults that depend on other settings filled in, and checked.

    Raises:
        ConfigError: a setting is unknown or out of range, or settings contradict each other.
    """
    config = typed(composed)
    fill_from_folder(config.pair)
    if config.weights == "random" and config.data.num_prompts is None:
        config.data.num_prompts = RANDOM_WEIGHTS_PROMPTS
    take_shipped_head(config)
    check(config)
    return config


def typed(composed: DictConfig) -> RunConfig:
    """The same settings as dataclasses, including those of plug-ins."""
    known = [field.name for field in fields(RunConfig)]
    for key in composed:
        if key not in known:
            raise ConfigError(unknown("setting", str(key), known))
    schema = OmegaConf.structured(RunConfig)
    for group in PLUGIN_GROUPS:
        schema[group] = OmegaConf.structured(lookup(group, composed[group].name).config)
    config = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.to_container(composed, resolve=True)))
    assert isinstance(config, RunConfig)
    return config
