"""The kit on the built-in selectors; faulty ones are in `tests/mutations/selectors.py`."""

from __future__ import annotations

import pytest
from selector_runs import untrained

from specdec.conformance import examine
from specdec.conformance.selector_copies import PAIR
from specdec.errors import ConfigError


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "params"), [("none", {}), ("estimate", {"samples": 1})])
def test_built_in_selectors_keep_every_promise(name, params):
    findings = examine("selector", name, params, scale=0.1)
    assert all(finding.kept for finding in findings), [f.detail for f in findings if not f.kept]


@pytest.mark.nightly
def test_the_trained_selector_keeps_every_promise(tmp_path):
    """A network of random weights: what it has learned decides how well it chooses, not what it may know."""
    folder = untrained(tmp_path / "selector", PAIR, [0.7, 1.0, 1.5, 2.0], depth=2)
    findings = examine("selector", "trained", {"path": folder}, scale=0.1)
    assert all(finding.kept for finding in findings), [f.detail for f in findings if not f.kept]
    with pytest.raises(ConfigError, match="trained for another pair"):
        examine("selector", "trained", {"path": untrained(tmp_path / "other", ["a", "b"], [1.0])})
