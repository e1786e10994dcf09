"""Sweeps over presets: one Hydra sweep per preset, because each has its own. Imports no torch.

Hydra reads ``hydra.sweeper.params`` from the config that it composes before the sweep. With ``experiment=a,b`` that
config has neither preset, so their sweeps would be lost; and a setting that is both in a preset's sweep and on the
command line would be swept twice. So the command line is split here, and such settings are removed from the sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from specdec.errors import ConfigError
from specdec.registry import unknown

GROUP = "experiment"
SWEEP_DIR = "hydra.sweep.dir"
SWEEP_FOLDER = "${results_dir}/sweeps/${now:%Y-%m-%d_%H-%M-%S}_${process_id:}"
"""As in config.yaml."""


def split_presets(arguments: list[str]) -> list[list[str]]:
    """One command line per preset of ``experiment=a,b``; what the command line sets is removed from its sweep.

    Raises:
        ConfigError: there is no such preset.
    """
    overrides = overrides_of(arguments)
    chosen = next((override for override in overrides if override.key_or_group == GROUP), None)
    if chosen is None:
        return [arguments]
    swept = chosen.is_choice_sweep()
    names = list(chosen.sweep_string_iterator()) if swept else [str(chosen.value() or "null")]
    place = arguments.index(str(chosen.input_line))
    lines = []
    for name in names:
        params = _swept_by(name)
        left = [f"{key}={values}" for key, values in params.items() if not _sets(overrides, key)]
        # The preset's sweep is replaced as a whole: Hydra cannot delete a key that has a dot.
        cleared = ["hydra.sweeper.params=null", *left] if len(left) < len(params) else []
        # Presets of one command may start within one second: each has a folder of its own.
        folder = f"{SWEEP_DIR}={SWEEP_FOLDER}_{name}"
        named = [] if _sets(overrides, SWEEP_DIR) else [folder]
        added = [f"{GROUP}={name}", *cleared, *(named if swept else [])]
        lines.append([*arguments[:place], *added, *arguments[place + 1 :]])
    return lines


def overrides_of(arguments: Sequence[str]) -> list[Override]:
    """The settings among the arguments; those that Hydra cannot parse are left for it to report."""
    found = []
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            continue
        try:
            found.append(OverridesParser.create().parse_override(argument))
        except OverrideParseException:
            continue
    return found


def _sets(overrides: list[Override], key: str) -> bool:
    return any(override.key_or_group == key for override in overrides)


def _swept_by(name: str) -> dict[str, str]:
    """A preset's sweep: the values of each setting, as on the command line."""
    presets = {file.name.removesuffix(".yaml"): file for file in (files("specdec.conf") / GROUP).iterdir()}
    if name == "null":
        return {}
    if name not in presets:
        raise ConfigError(unknown(GROUP, name, presets))
    preset: Any = OmegaConf.create(presets[name].read_text(encoding="utf-8"))
    assert isinstance(preset, DictConfig)
    return {str(key): str(values) for key, values in (OmegaConf.select(preset, "hydra.sweeper.params") or {}).items()}
