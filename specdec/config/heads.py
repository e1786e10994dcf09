"""Declares the drafters that are heads beside the target. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.config.methods import NODES
from specdec.core.settings import setting
from specdec.registry import register


@dataclass
class HeadConfig:
    """A published head."""

    path: str | None = setting(None, "a head's folder or Hub name; null needs untrained=true")
    untrained: bool = setting(False, "allow path=null: drafts badly, with a random layer")


@register("drafter", "medusa", target="specdec.heads.medusa:MedusaDrafter", trees=NODES)
@dataclass
class MedusaConfig:
    """Independent heads on the target's last hidden state, each for a token further ahead: Medusa-1, train.py's own."""

    path: str | None = setting(None, "a head's folder or Hub name, or what train.py wrote; null needs untrained=true")
    untrained: bool = setting(False, "allow path=null: drafts badly, with untrained heads")
    num_heads: int = setting(4, "if path is null: heads, and so the deepest draft")
    nodes: int | None = setting(None, "tokens of a tree of the heads' most probable tokens, per row; null: a chain")


@register("drafter", "eagle", target="specdec.heads.eagle:EagleDrafter", grows=True)
@dataclass
class EagleConfig:
    """One decoder layer over the target's last hidden states and the next tokens: EAGLE, EAGLE-2, train.py's own."""

    path: str | None = setting(None, "a head's folder or Hub name, or what train.py wrote; null needs untrained=true")
    untrained: bool = setting(False, "allow path=null: drafts badly, with an untrained layer")


@register(
    "drafter",
    "eagle3",
    target="specdec.heads.eagle3:Eagle3Drafter",
    grows=True,
    learner="specdec.training.online_eagle3:Eagle3Learner",
)
@dataclass
class Eagle3Config(HeadConfig):
    """A decoder layer over the hidden states of three of the target's layers and the next tokens: EAGLE-3."""


@register("drafter", "peagle", target="specdec.heads.peagle:PEagleDrafter")
@dataclass
class PEagleConfig(HeadConfig):
    """P-EAGLE: an EAGLE-3 layer that drafts all tokens in one forward."""


@register(
    "drafter",
    "specblock",
    target="specdec.heads.specblock:SpecBlockDrafter",
    trees=NODES,
    learner="specdec.training.online_specblock:SpecBlockLearner",
)
@dataclass
class SpecBlockConfig(HeadConfig):
    """SpecBlock: an EAGLE-3 layer that drafts blocks of several tokens, and branches where it expects to be wrong."""

    nodes: int | None = setting(None, "tokens of a tree that branches by the rank head, per row; null: a chain")
    leaves: int = setting(10, "with nodes: blocks of a row in one forward, at most")


@register("drafter", "dflash", target="specdec.heads.dflash:DFlashDrafter")
@dataclass
class DFlashConfig(HeadConfig):
    """DFlash: a block of mask tokens, filled in one forward over the hidden states of several layers of the target."""


@register("drafter", "dspark", target="specdec.heads.dspark:DSparkDrafter")
@dataclass
class DSparkConfig(HeadConfig):
    """DSpark: DFlash's block, in which each token's logits get a bias by the token before it."""


@register("drafter", "longspec", target="specdec.heads.longspec:LongSpecDrafter", grows=True)
@dataclass
class LongSpecConfig:
    """LongSpec: a layer with a window of its own that attends to the target's last keys and values (train.py)."""

    path: str | None = setting(None, "folder that train.py wrote; null needs untrained=true")
    untrained: bool = setting(False, "allow path=null: drafts badly, with copies of the target's own layers")
    window: int | None = setting(None, "with path=null: tokens that its self-attention sees; null: 512")


@register("drafter", "mtp", target="specdec.heads.mtp:MtpDrafter", grows=True)
@dataclass
class MtpConfig(HeadConfig):
    """Multi-token prediction: a layer that was trained with its target, over its last hidden states."""

    path: str | None = setting(None, "a head's folder or Hub name, or the target's own; null needs untrained=true")
