"""The command: read results folders, write the report. ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from specdec.errors import ConfigError, SpecdecError
from specdec.registry import load_entry_points, unknown

_DESCRIPTION = """Tables, plots and samples of results folders: one HTML page that loads nothing from elsewhere, and the
same tables as Markdown, LaTeX (booktabs) and CSV; answers: the outputs as answer files of Spec-Bench. Several
folders are shown side by side; LABEL=FOLDER names one.
Intervals are 95% bootstraps over the prompts or rounds of a run. Needs: pip install 'specdec[analysis]'."""
FILES = {"html": "report.html", "md": "report.md", "latex": "report.tex", "csv": "points.csv", "answers": "answers"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    about = argparse.ArgumentParser("python -m specdec.report", description=_DESCRIPTION)
    about.add_argument("results", nargs="+", help="results_dir of run.py, or the folder of one run; LABEL=FOLDER")
    about.add_argument(
        "--group", default="", help="keys that part the tables, such as pair,batch (default: pair,data,...)"
    )
    about.add_argument("--format", default="html", help=f"any of {','.join(FILES)} (default: %(default)s)")
    about.add_argument(
        "--out", type=Path, default=None, help="where the files go (default: report/ in the first folder)"
    )
    about.add_argument(
        "--samples", type=int, default=6, help="prompts per group shown with outputs (default: %(default)s)"
    )
    about.add_argument(
        "--watch",
        type=int,
        metavar="S",
        help="write the page anew every S seconds; it reloads itself",
    )
    return about


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        for path in write(arguments):
            print(path, flush=True)
        while arguments.watch:
            time.sleep(arguments.watch)
            write(arguments)
    except SpecdecError as error:
        print(f"specdec: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"specdec: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def write(arguments: argparse.Namespace) -> list[Path]:
    """Write every format that is asked for; returns the files.

    Raises:
        ConfigError: a folder, key or format that does not exist, or a package that is not installed.
    """
    if arguments.watch is not None and arguments.watch < 1:
        raise ConfigError(f"--watch {arguments.watch}: give the seconds between two pages, from 1")
    wanted = [name for name in arguments.format.split(",") if name]
    for name in wanted:
        if name not in FILES:
            raise ConfigError(unknown("--format", name, FILES))
    from specdec.analysis import named, require

    for module in ("pandas", "matplotlib") if "html" in wanted else ("pandas",):
        require(module)
    load_entry_points()
    from specdec.report import tables
    from specdec.report.answers import write_answers
    from specdec.report.content import collect
    from specdec.report.page import render

    makers = {"md": tables.to_markdown, "latex": tables.to_latex, "csv": tables.to_csv}
    makers["html"] = lambda content: render(content, arguments.samples, arguments.watch)
    content = collect(arguments.results, [key for key in arguments.group.split(",") if key])
    folder = arguments.out or named(arguments.results)[0][1] / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        if name == "answers":
            write_answers(content, folder)
        else:
            (folder / FILES[name]).write_text(makers[name](content), encoding="utf-8")
    return [folder / FILES[name] for name in wanted]


if __name__ == "__main__":
    sys.exit(main())
