"""How a bug is planted: by subclassing a plug-in, or by patching an attribute; never by the text of a source.

A bug is a function of a monkeypatch, which takes it out again. It returns the plug-in class to be examined, if the bug
is in a subclass, and nothing if it is patched into what the registered class is built on. A name that is patched must
exist: one that was renamed fails loudly, and is mended in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from specdec.conformance import decoding
from specdec.conformance.explore import Family
from specdec.conformance.suites import (
    STATES,
    alignment_suite,
    budget_suite,
    draft_length_suite,
    drafter_suite,
    scheduler_suite,
    selector_suite,
    tree_suite,
    verifier_suite,
)
from specdec.registry import create, lookup

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], Any]


@dataclass(frozen=True)
class Mutation:
    """A bug in the plug-in ``group=name`` (or in the engine), and the promise that it breaks first."""

    plugin: str
    name: str
    promise: str
    plant: Plant
    families: tuple[str, ...]  # of the plug-in's suite: those that are run; all by default
    settings: dict[str, Any]

    @property
    def group(self) -> str:
        """Of contracts. The engine is examined by the runs of a correct alignment."""
        return "alignment" if self.plugin == "engine" else self.plugin.partition("=")[0]

    def planted(self, patch: Patch) -> list[Family]:
        """The families of cases, with the bug."""
        broken = self.plant(patch)
        if self.plugin == "engine":
            if broken is not None:
                patch.setattr(decoding, "RoundLoop", broken)
            return self.suite(None)
        return self.suite(broken)

    def suite(self, broken: Any = None) -> list[Family]:
        """The families of cases of the plug-in's group, for the given class or for what is registered."""

        def make(*arguments: Any) -> Any:
            name = "eqspec" if self.plugin == "engine" else self.plugin.partition("=")[2]
            if broken is not None:
                return broken(*arguments, **{**lookup(self.group, name).defaults, **self.settings})
            return create(self.group, name, *arguments, **self.settings)

        suites: dict[str, Callable[[Any], list[Family]]] = {
            "alignment": lambda make: alignment_suite(make, restores_states=STATES in self.families),
            "drafter": drafter_suite,
            "verifier": verifier_suite,
            "scheduler": scheduler_suite,
            "budget": budget_suite,
            "draft_length": draft_length_suite,
            "tree": tree_suite,
            "selector": selector_suite,
        }
        families = suites[self.group](make)
        names = [family.name for family in families]
        assert set(self.families) <= set(names), f"{self.name}: {self.families} are not all among {names}"
        return [family for family in families if not self.families or family.name in self.families]


def planted(plugin: str, name: str, promise: str, *families: str, **settings: Any) -> Callable[[Plant], Mutation]:
    """Make the decorated function a mutation."""
    return lambda plant: Mutation(plugin, name, promise, plant, families, settings)


def wrapped(patch: Patch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a function or method by ``wrapper(original, *arguments)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *arguments, **more: wrapper(original, *arguments, **more))


class Intercepting:
    """A model whose forward is answered by ``forward(model, *arguments)``; everything else is the model's own."""

    def __init__(self, model: Any, forward: Callable[..., Any]) -> None:
        self._model, self._forward = model, forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, *arguments: Any, **more: Any) -> Any:
        """As the bug has it."""
        return self._forward(self._model, *arguments, **more)
