"""The command line: `run.py` and `train.py`, their help, their errors, the table of a sweep."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec.cli.run import main

__all__ = ["main"]


def __getattr__(name: str) -> object:
    if name != "main":
        raise AttributeError(f"module 'specdec.cli' has no attribute {name!r}")
    from specdec.cli.run import main

    return main
