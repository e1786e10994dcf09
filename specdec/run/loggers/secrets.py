"""Redaction of secrets: values of secret settings and environment variables, and passwords in URLs."""

from __future__ import annotations

import os
import re
from typing import Any

from specdec.run.loggers.base import Logger

HIDDEN = "***"
_SECRET_NAME = re.compile(r"(?i)(?:^|[._-])(?:(?:api|access|secret)?_?key|token|password|passwd|secret|credentials?)$")
_ASSIGNMENT = re.compile(r"(?P<name>[\w.+~/@-]+)(?P<equals>=)(?P<value>.*)", re.DOTALL)
_KNOWN_SHAPES = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), HIDDEN),  # https://user:password@host
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), HIDDEN),
)
_MIN_LENGTH = 6  # a shorter value of an environment variable would match unrelated text


def is_secret(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret: API_KEY and hf_token do, stop_tokens does not."""
    return bool(_SECRET_NAME.search(name))


def scrub(value: Any, name: str = "") -> Any:
    """A copy of plain data in which secrets are hidden; the rest of a text is kept."""
    if isinstance(value, dict):
        return {key: scrub(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(part, name) for part in value]
    if value is not None and is_secret(name):
        return HIDDEN
    return _scrub_text(value) if isinstance(value, str) else value


def _scrub_text(text: str) -> str:
    match = _ASSIGNMENT.fullmatch(text)
    if match and is_secret(match["name"]):
        return f"{match['name']}={HIDDEN}"
    for name, secret in os.environ.items():
        if is_secret(name) and len(secret) >= _MIN_LENGTH:
            text = text.replace(secret, HIDDEN)
    for shape, replacement in _KNOWN_SHAPES:
        text = shape.sub(replacement, text)
    return text


class RedactingLogger(Logger):
    """Passes everything on to a logger, without secrets."""

    def __init__(self, inner: Logger) -> None:
        self._inner = inner

    def start(self, run_hash: str, settings: dict[str, Any], overrides: list[str], env: dict[str, Any]) -> None:
        self._inner.start(run_hash, scrub(settings), scrub(overrides), scrub(env))

    def round(self, step: int, metrics: dict[str, float]) -> None:
        self._inner.round(step, metrics)

    def finish(self, summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        self._inner.finish(scrub(summary), samples)  # outputs of the models are data

    def fail(self, message: str) -> None:
        self._inner.fail(scrub(message))
