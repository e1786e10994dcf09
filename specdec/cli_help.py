"""``python run.py --help``: every group with its options, every setting with its value, in well under a second.

Hydra can print such a page itself, but takes seconds with as many groups as there are here.
"""

from __future__ import annotations

import re
from importlib.resources import files

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from specdec.registry import PLUGIN_GROUPS, lookup, names

GROUPS = (
    *("pair", "data", "scheduler", "batching", "alignment", "drafter", "verifier", "draft_length", "arrivals"),
    *("runner", "logger", "experiment", "debug"),
)
HEADER = """specdec decodes prompts with a target and a draft model, proves the output and prints what it cost.
Without arguments: the built-in pair, plain decoding against EQSPEC and EXSPEC.

  python run.py pair=vicuna scheduler=exspec batch=1,2,4,8 -m     sweep (-m) over four batch sizes
  python run.py pair=vicuna pair.target=/models/vicuna-7b         a local folder in Hub format
  python run.py data=jsonl data.path=FILE data.num_prompts=100    your own prompts
  python run.py scheduler=exspec --help                           this page, with that option's settings
  python run.py --cfg job                                         the composed config, to keep or to compare
"""
FOOTER = """Results: one folder per point under results_dir; a finished point is skipped unless force=true.
Further flags: -m (sweep), --cfg job, --info defaults, --hydra-help. SPECDEC_TRACEBACK=1 shows full tracebacks."""


def print_help(overrides: list[str]) -> None:
    """The page, with the settings that ``overrides`` lead to."""
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        settings = OmegaConf.to_yaml(compose(config_name="config", overrides=overrides))
    print(HEADER)
    print("== Groups: GROUP=OPTION ==\n")
    for group in GROUPS:
        print(group)
        for option, description in sorted(describe(group).items()):
            print(f"  {option:<24} {description}".rstrip())
    print("\n== Settings: KEY=VALUE ==\n")
    print(settings)
    print(FOOTER)


def describe(group: str) -> dict[str, str]:
    """Options of a group and a line about each: presets carry theirs as a comment, plug-ins as a docstring."""
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
