"""Drafters with trained weights of their own: `path` is their folder, or `untrained=true` allows untrained ones.

Untrained weights draft losslessly, so only a low acceptance rate would show a forgotten path. Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specdec.assets import local_path
from specdec.errors import ConfigError

if TYPE_CHECKING:
    from specdec.config.schema import RunConfig

UNTRAINED = "untrained"
OF_TRAINING = ("medusa", "eagle", "eagle3", "longspec", "ppd", "early_exit")
"""Kinds that train.py trains."""
SHIPPED, SHIPPED_FOR = "asset:tiny/heads", "asset:tiny/target"
PRETRAINED = "pretrained"


def check_trained_weights(kind: str, path: str | None, untrained: bool) -> None:
    """Refuse a drafter with untrained weights, unless ``untrained`` allows it.

    Raises:
        ConfigError: neither the path nor ``untrained`` is given, or both are.
    """
    if path is None and not untrained:
        source = f"`python train.py task=heads heads.kind={kind}`" if kind in OF_TRAINING else "a published head"
        raise ConfigError(
            f"drafter={kind} without drafter.path would draft with untrained weights: set drafter.path=FOLDER of "
            f"{source}, or drafter.untrained=true"
        )
    if path is not None and untrained:
        raise ConfigError(f"drafter.untrained=true with drafter.path={path}: remove one of them")


def check_drafter_weights(drafter: Any) -> None:
    """The same check for a config's drafter; drafters without weights of their own pass."""
    if hasattr(drafter, UNTRAINED):
        check_trained_weights(drafter.name, drafter.path, drafter.untrained)


def take_shipped_head(config: RunConfig) -> None:
    """For the built-in target, ``drafter=KIND`` without a path takes the head that ships with it, if there is one."""
    drafter = config.drafter
    head = f"{SHIPPED}/{drafter.name}"
    without = hasattr(drafter, UNTRAINED) and drafter.path is None and not drafter.untrained
    if without and config.weights == PRETRAINED and config.pair.target == SHIPPED_FOR and local_path(head).is_dir():
        drafter.path = head


def drafter_label(name: str, untrained: bool = False) -> str:
    """A drafter's name in tables, which marks untrained weights."""
    return f"{name} ({UNTRAINED})" if untrained else name


def drafter_label_of(config: RunConfig) -> str:
    """The same of a run, which marks drafters that learn while they serve."""
    label, adapt = drafter_label(config.drafter.name, getattr(config.drafter, UNTRAINED, False)), config.adapt
    if adapt.policy == "none":
        return label
    return f"{label}, adapt={adapt.policy}" + (f" ({adapt.arm})" if adapt.arm else "")
