"""``python run.py --help``: every group with its options, every setting with its value and its meaning, in a second.

Hydra can print such a page itself, but needs seconds for as many groups as there are here.
"""

from __future__ import annotations

import re
from importlib.resources import files
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from specdec.config.schema import RunConfig
from specdec.core.settings import help_texts
from specdec.registry import PLUGIN_GROUPS, lookup, names

COMMENT_COLUMN = 44
GROUPS = (
    *("pair", "data", "scheduler", "batching", "alignment", "drafter", "tree", "selector", "verifier"),
    *("draft_length", "budget", "arrivals", "runner", "logger", "experiment", "debug"),
)
HEADER = """specdec decodes prompts with a target and a draft model, checks the output and prints the speed.
Without arguments: the built-in pair, plain decoding compared with EQSPEC, EXSPEC and continuous batching.

  python run.py pair=vicuna scheduler=exspec batch=1,2,4,8 -m     sweep (-m) over four batch sizes
  python run.py pair=vicuna pair.target=/models/vicuna-7b         a local folder in Hub format
  python run.py data=jsonl data.path=FILE data.num_prompts=100    your own prompts
  python run.py scheduler=exspec --help                           this page, with that option's settings
  python run.py --cfg job                                         the composed config, to keep or to compare
"""
FOOTER = """Results: one folder per point under results_dir; a finished point is skipped unless force=true.
Afterwards: python -m specdec.report results/ makes one page of tables, plots and samples. More: docs/index.md.
Further flags: -m (sweep), --cfg job, --info defaults, --hydra-help. SPECDEC_TRACEBACK=1 shows full tracebacks."""


def print_help(overrides: list[str]) -> None:
    """Print the page, with the settings that result from ``overrides``."""
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        cfg = compose(config_name="config", overrides=overrides)
    width = max(60, get_terminal_size((120, 0)).columns)
    print(HEADER)
    print("== Groups: GROUP=OPTION ==\n")
    for group in GROUPS:
        print(group)
        for option, description in sorted(option_descriptions(group).items()):
            print("\n".join(wrap(f"  {option:<24} {description}".rstrip(), width, subsequent_indent=" " * 27)))
    print("\n== Settings: KEY=VALUE ==\n")
    print(commented(OmegaConf.to_yaml(cfg), meanings(OmegaConf.to_container(cfg)), width))
    print(FOOTER)


def meanings(settings: Any) -> dict[str, str]:
    """The meaning of each setting of a composed config, by its dotted name.

    Args:
        settings: the config as a plain dict; a group's ``name`` says which plug-in's settings it holds.
    """
    found = help_texts(RunConfig)
    for group in PLUGIN_GROUPS:
        name = settings[group]["name"]
        found |= help_texts(lookup(group, name).config, f"{group}.") if name in names(group) else {}
    return found


def commented(settings: str, meaning: dict[str, str], width: int) -> str:
    """YAML with the meaning of each setting as a comment, wrapped to ``width``."""
    lines, path = [], list[str]()
    for line in settings.splitlines():
        key = re.match(r"( *)([\w-]+):", line)
        if key:
            path = [*path[: len(key[1]) // 2], key[2]]
        text = meaning.get(".".join(path), "") if key else ""
        room = max(width - COMMENT_COLUMN - 2, 24)
        first, *more = wrap(text, room) or [""]
        lines.append(f"{line:<{COMMENT_COLUMN - 1}} # {first}" if first else line)
        lines += [f"{'':<{COMMENT_COLUMN}}# {part}" for part in more]
    return "\n".join(lines) + "\n"


def option_descriptions(group: str) -> dict[str, str]:
    """A line about each option of a group: from the comment of a preset or the docstring of a plug-in."""
    found = {}
    if group in PLUGIN_GROUPS:
        found = {name: lookup(group, name).doc for name in names(group)}
    for name in ConfigStore.instance().list(group) if group in ConfigStore.instance().repo else []:
        if name.endswith(".yaml"):
            found.setdefault(name.removesuffix(".yaml"), "")
    folder = files("specdec.conf") / group
    for file in folder.iterdir() if folder.is_dir() else []:
        if file.name.endswith(".yaml"):
            comment = " ".join(re.findall(r"^# (?!@package)(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE))
            found[file.name.removesuffix(".yaml")] = re.split(r"(?<=\.) (?=[A-Z])", comment, maxsplit=1)[0]
    return found
