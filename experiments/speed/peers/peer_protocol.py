"""The loop of every peer: a request per line on stdin, a reply per line on stdout (form: specdec/bench/peers.py).

Needs the standard library only: peers run in environments without specdec.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LONGEST_NGRAM = 3  # of prompt lookup, as in drafter=prompt_lookup
Request = dict[str, Any]
Handler = Callable[[Request], tuple[list[list[int]], float]]


def serve(handler: Handler, packages: tuple[str, ...]) -> None:
    """Answer requests until stdin ends; ``handler`` returns outputs and the seconds that they took.

    Whatever a library prints goes to stderr, so that stdout holds replies only.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        try:
            outputs, seconds = handler(request)
            reply: dict[str, Any] = {"outputs": outputs, "seconds": seconds, "versions": versions(packages)}
        except Exception as error:
            import traceback

            traceback.print_exc()
            reason = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
            reply = {"error": f"{type(error).__name__}: {reason}"}
        replies.write(json.dumps({"id": request["id"], **reply}) + "\n")
        replies.flush()


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Versions of the packages that the peer consists of."""
    found: dict[str, str | None] = {"python": sys.version.partition(" ")[0]}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def cut(ids: list[int], stop_ids: list[int], max_new_tokens: int) -> list[int]:
    """New tokens up to the first stop, which is kept, or to the budget: an engine may pad behind it."""
    for place, token in enumerate(ids[:max_new_tokens]):
        if token in stop_ids:
            return ids[: place + 1]
    return ids[:max_new_tokens]
