"""What a setting means: the comment behind its field in a config dataclass. Imports no torch.

For `--help` and for docs/config.md (scripts/make_docs.py).
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import sys
import tokenize
from functools import cache
from typing import Any

from specdec.config.schema import RunConfig
from specdec.registry import PLUGIN_GROUPS, lookup, names


def comments(config: type) -> dict[str, str]:
    """The comment behind each field of a dataclass, also of those that it inherits."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if dataclasses.is_dataclass(cls):
            try:
                found |= _comments_in(cls.__module__).get(cls.__name__, {})
            except (OSError, TypeError, KeyError):  # made at run time: its fields are those of its base
                continue
    return found


def meanings(settings: Any) -> dict[str, str]:
    """The meaning of each setting of a composed config, by its dotted name.

    Args:
        settings: the config as a plain dict; a group's ``name`` says which plug-in's settings it holds.
    """
    found = comments(RunConfig)
    for group, values in settings.items():
        if not isinstance(values, dict):
            continue
        if group in PLUGIN_GROUPS and values.get("name") in names(group):
            found |= nested_comments(lookup(group, values["name"]).config, f"{group}.")
        elif inspect.isclass(node := RunConfig.__dataclass_fields__[group].default_factory):
            found |= nested_comments(node, f"{group}.")
    return found


def nested_comments(config: type, prefix: str) -> dict[str, str]:
    """Comments under dotted names, those of nested dataclasses too."""
    found = {f"{prefix}{name}": text for name, text in comments(config).items()}
    for field in dataclasses.fields(config):
        if inspect.isclass(field.default_factory) and dataclasses.is_dataclass(field.default_factory):
            found |= nested_comments(field.default_factory, f"{prefix}{field.name}.")
    return found


@cache
def _comments_in(module: str) -> dict[str, dict[str, str]]:
    """Comments behind the fields of every class of a module, read once."""
    source = inspect.getsource(sys.modules[module])
    lines, found = source.splitlines(), dict[str, dict[str, str]]()
    starts = [(number, match[1]) for number, line in enumerate(lines) if (match := re.match(r"class (\w+)", line))]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        name = re.match(r"    (\w+):", lines[token.start[0] - 1])
        text = token.string.removeprefix("#").strip()
        if name and not text.startswith("type:"):
            owner = [cls for number, cls in starts if number < token.start[0]][-1:]
            found.setdefault("".join(owner), {})[name[1]] = text
    return found
