"""The kit in pytest: a fixture, and ``pytest --conformance alignment=NAME`` for a test per plug-in.

Loaded through the entry point ``pytest11`` of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--conformance``."""
    group = parser.getgroup("specdec", "conformance of specdec plug-ins")
    group.addoption(
        "--conformance",
        action="append",
        default=[],
        metavar="GROUP=NAME",
        help="add a test that runs specdec's conformance kit on a plug-in, as in alignment=inplace; may be repeated",
    )
    group.addoption(
        "--conformance-scale", type=float, default=1.0, help="multiplies the number of drawn cases (default: 1)"
    )


@pytest.fixture
def conformance() -> Callable[..., None]:
    """The function :func:`specdec.conformance.conformance`: call it with ``alignment="mine"`` and the like."""
    from specdec.conformance import conformance as run

    return run


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add one test for every plug-in on the command line."""
    for plugin in config.getoption("--conformance"):
        group, equals, name = plugin.partition("=")
        if not equals:
            raise pytest.UsageError(f"--conformance {plugin}: write GROUP=NAME, as in alignment=inplace")
        items.append(ConformanceItem.from_parent(session, name=f"conformance[{plugin}]", plugin=(group, name)))


class ConformanceItem(pytest.Item):
    """Runs the kit on one plug-in."""

    def __init__(self, *, plugin: tuple[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plugin = plugin

    def runtest(self) -> None:
        """Raise ConformanceError where a promise is broken."""
        from specdec.conformance import conformance as run

        group, name = self.plugin
        run(scale=self.config.getoption("--conformance-scale"), **{group: name})  # type: ignore[arg-type]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The broken promises, without a traceback into the kit."""
        from specdec.errors import SpecdecError

        return str(excinfo.value) if isinstance(excinfo.value, SpecdecError) else str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where the item comes from."""
        return self.path, None, self.name
