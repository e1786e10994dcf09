"""The command: parse ``group=name``, run the kit, print the table. ``--help`` answers without torch."""

from __future__ import annotations

import argparse
import sys
import time

from specdec.conformance import GROUPS, examine
from specdec.errors import ConfigError, SpecdecError

_USAGE = "python -m specdec.conformance alignment=NAME [alignment.SETTING=VALUE ...]"
_DESCRIPTION = """Checks that a plug-in keeps the promises of its contract, on small random models, and prints which
it keeps and which it breaks, with the smallest failing case. Plug-ins of other installed packages are found by
their entry points. Exit code 0: all kept; 1: at least one broken, or a setting is wrong."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser("specdec.conformance", _USAGE, _DESCRIPTION)
    parser.add_argument("plugin", nargs="+", help=f"{'=NAME, '.join(GROUPS)}=NAME; GROUP.SETTING=VALUE for settings")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the number of drawn cases (default: %(default)s)"
    )
    parser.add_argument(
        "--accelerator",
        choices=("cpu", "cuda", "auto"),
        default="cpu",
        help="where models and tensors are; auto: a GPU if there is one (default: %(default)s)",
    )
    parser.add_argument(
        "--execution",
        default="eager",
        help="of the models; all but eager run every case in float32 (default: %(default)s)",
    )
    parser.add_argument("--no-shrink", action="store_true", help="do not look for the smallest failing case")
    arguments = parser.parse_args(argv)
    try:
        chosen, params = _parse(arguments.plugin)
        return max(_examine(group, name, params, arguments) for group, name in chosen)
    except SpecdecError as error:
        print(f"specdec: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("specdec: interrupted", file=sys.stderr)
        return 130


def _examine(group: str, name: str, params: dict[str, dict[str, object]], arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from specdec.conformance.report import print_report

    started = time.perf_counter()
    console = Console()
    with console.status(f"{group}={name}") as status:
        findings = examine(
            group,
            name,
            params.get(group),
            scale=arguments.scale,
            shrink=not arguments.no_shrink,
            accelerator=arguments.accelerator,
            execution=arguments.execution,
            progress=lambda what: status.update(f"{group}={name}: {what}"),
        )
    settings = "".join(f" {group}.{key}={value}" for key, value in params.get(group, {}).items())
    print_report(f"{group}={name}{settings} ({time.perf_counter() - started:.0f} s)", findings, console)
    return 0 if all(finding.kept for finding in findings) else 1


def _parse(words: list[str]) -> tuple[list[tuple[str, str]], dict[str, dict[str, object]]]:
    """Plug-ins, and per group the settings; values are read as YAML, as Hydra does."""
    import yaml

    chosen: list[tuple[str, str]] = []
    params: dict[str, dict[str, object]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        group, _, setting = key.partition(".")
        if not equals or not value or group not in GROUPS:
            raise ConfigError(f"{word}: write GROUP=NAME or GROUP.SETTING=VALUE, GROUP one of {', '.join(GROUPS)}")
        if setting:
            params.setdefault(group, {})[setting] = yaml.safe_load(value)
        else:
            chosen.append((group, value))
    if lost := [group for group in params if group not in dict(chosen)]:
        raise ConfigError(f"{lost[0]}.{next(iter(params[lost[0]]))} is set, but {lost[0]}=NAME is not")
    return chosen, params


if __name__ == "__main__":
    sys.exit(main())
