"""One line for any error: the setting that is wrong, its value, and what would be valid."""

from __future__ import annotations

import errno
import os
import re
import sys

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from specdec.errors import SpecdecError, first_line, is_out_of_memory, type_and_message
from specdec.registry import unknown

_NO_OPTION = re.compile(r"Could not find '(?P<group>[^']+?)/(?P<name>[^'/]+)'")
_NO_GROUP = re.compile(r"Could not override '(?P<key>[^'@]+)[^']*'\.\s*No match in the defaults list")
_NO_KEY = re.compile(r"Could not override '(?P<key>[^']+)'")
_AMBIGUOUS = re.compile(r"Ambiguous value for argument '(?P<override>[^']+)'")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException, config_name: str = "config") -> str:
    """A message of one line. Errors of this package have one; those of Hydra and of the system are rewritten.

    Args:
        config_name: the root of the config in ``specdec/conf``, whose settings a message may list.
    """
    if isinstance(error, SpecdecError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_config(error, config_name)
    if is_out_of_memory(error):
        return (
            "out of memory: set a smaller batch, max_new_tokens or data.max_input_tokens, or "
            f"runner.on_out_of_memory=shrink ({first_line(error)})"
        )
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return (
            f"no space left under {error.filename or 'results_dir'} ({os.strerror(error.errno)}): free space and run "
            "the same command again; what is finished is kept"
        )
    if isinstance(error, OSError):
        return first_line(error)
    return f"{type_and_message(error)} (set SPECDEC_TRACEBACK=1 for the traceback)"


def _explain_config(error: BaseException, config_name: str) -> str:
    text = str(error)
    if match := _NO_OPTION.search(text):
        return unknown(match["group"], match["name"], _options(match["group"]))
    if match := _NO_GROUP.search(text):
        return unknown("config group", match["key"], _options(""))
    if match := _NO_KEY.search(text):
        return _unknown_key(match["key"], config_name)
    if match := _AMBIGUOUS.search(text):
        key, _, value = match["override"].partition("=")
        return f"{key}={value}: add -m for a sweep over these values (a list is written {key}=[{value}])"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ValidationError):
        return f"{cause.full_key or 'a setting'}: {first_line(cause)}"
    if isinstance(cause, ConfigKeyError) and cause.full_key:
        return _unknown_key(str(cause.full_key), config_name)
    return first_line(error)


def _unknown_key(key: str, config_name: str) -> str:
    """The message for an unknown setting: the settings that exist in its place."""
    parent, _, name = key.rpartition(".")
    try:
        with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
            groups = [o for o in sys.argv[1:] if re.fullmatch(r"(" + "|".join(_options("")) + r")=[\w-]+", o)]
            whole = cfg = OmegaConf.to_container(compose(config_name=config_name, overrides=groups), resolve=False)
        for part in parent.split("."):
            if part:
                cfg = cfg[part]  # type: ignore[index,call-overload]
        assert isinstance(cfg, dict)
        options = [str(option) for option in cfg]
    except Exception:
        program = {"config": "run"}.get(config_name, config_name)
        return f"unknown setting {key!r}; `python {program}.py --help` lists them all"
    if elsewhere := [path for path in _paths(whole, name) if path != key]:
        return f"unknown setting {key!r}: did you mean {' or '.join(elsewhere)}?"
    return unknown("setting", name, options) + (f" (in {parent})" if parent else "")


def _paths(cfg: object, name: str, parent: str = "") -> list[str]:
    """The settings of this name, wherever they stand."""
    if not isinstance(cfg, dict):
        return []
    here = [parent + name] if name in cfg else []
    return here + [path for part, inner in cfg.items() for path in _paths(inner, name, f"{parent}{part}.")]


def _options(group: str) -> list[str]:
    """Options of a config group, or the groups themselves for the empty name."""
    if not GlobalHydra.instance().is_initialized():
        with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
            return _options(group)
    loader = GlobalHydra.instance().config_loader()
    kind = ObjectType.CONFIG if group else ObjectType.GROUP
    found: list[str] = loader.get_group_options(group, kind)
    return [name for name in found if name not in ("hydra", "config", "train")]
