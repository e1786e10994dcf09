"""No logger: results are in the run folder alone."""

from __future__ import annotations

from specdec.run.loggers.base import Logger


class NoLogger(Logger):
    """Ignores everything."""
