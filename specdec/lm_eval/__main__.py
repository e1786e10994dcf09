"""The harness's own command line, with ``--model specdec`` in its registry."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from specdec.errors import ConfigError, SpecdecError


def main() -> int:
    """Run the command, whose options are those of ``lm-eval``; returns the exit code."""
    try:
        if find_spec("lm_eval") is None:
            raise ConfigError("lm_eval is not installed: pip install 'specdec[lm-eval]'")
        from lm_eval.__main__ import cli_evaluate

        import specdec.lm_eval.model  # noqa: F401  (registers itself)

        cli_evaluate()
    except SpecdecError as error:
        print(f"specdec: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
