"""The declaration of the built-in drafters, verifiers and draft-length policies, as in builtin.py. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.core.settings import setting
from specdec.registry import register


@register("drafter", "model", target="specdec.drafters.model:ModelDrafter")
@dataclass
class ModelDrafterConfig:
    """The pair's draft model, with a KV cache that is aligned like the target's."""


@register("drafter", "retokenize", target="specdec.drafters.retokenize:RetokenizeDrafter", by_text=True)
@dataclass
class RetokenizeDrafterConfig:
    """The pair's draft model with a tokenizer of its own: text is encoded anew between the two."""


@register("drafter", "self", target="specdec.drafters.early_exit:SelfDrafter")
@dataclass
class SelfDrafterConfig:
    """The target's own first layers, norm and head: early exit, no further weights."""

    num_layers: int = setting(2, "layers of the target that draft")


@register("drafter", "early_exit", target="specdec.drafters.early_exit:EarlyExitDrafter")
@dataclass
class EarlyExitDrafterConfig:
    """The target's own first layers behind which a norm and a head of their own are trained (train.py task=heads)."""

    path: str | None = setting(None, "folder that train.py wrote; null needs untrained=true")
    untrained: bool = setting(False, "draft without a path: with the target's own norm and head, as drafter=self does")
    num_layers: int = setting(2, "without a path: layers of the target that draft")


@register("drafter", "medusa", target="specdec.drafters.medusa:MedusaDrafter")
@dataclass
class MedusaConfig:
    """Independent heads on the target's last hidden state, each for one token further ahead (train.py task=heads)."""

    path: str | None = setting(None, "folder that train.py wrote; null needs untrained=true")
    untrained: bool = setting(False, "draft without a path: with heads that guess badly")
    num_heads: int = setting(4, "without a path: tokens that are drafted, at most")


@register("drafter", "eagle", target="specdec.drafters.eagle:EagleDrafter")
@dataclass
class EagleConfig:
    """One decoder layer over the target's hidden states and the next tokens, as EAGLE (train.py task=heads)."""

    path: str | None = setting(None, "folder that train.py wrote; null needs untrained=true")
    untrained: bool = setting(False, "draft without a path: with a layer that guesses badly")


@register("drafter", "ppd", target="specdec.drafters.ppd:PpdDrafter")
@dataclass
class PpdConfig:
    """Trained prompt tokens behind every candidate: the target drafts while it verifies (train.py task=heads)."""

    path: str | None = setting(None, "folder that train.py wrote; null needs untrained=true")
    untrained: bool = setting(False, "draft without a path: with prompt tokens that guess badly")
    num_tokens: int = setting(3, "without a path: prompt tokens, and tokens that are drafted at most")


@register("drafter", "prompt_lookup", target="specdec.drafters.lookup:PromptLookupDrafter")
@dataclass
class PromptLookupConfig:
    """Copies what followed the last few tokens when they occurred before, in the row's own prompt and output."""

    max_ngram: int = setting(3, "tokens to match, at most")
    min_ngram: int = setting(1, "and at least")


@register("drafter", "trigram", target="specdec.drafters.trigram:TrigramDrafter")
@dataclass
class TrigramConfig:
    """Adaptive trigram store: weights of a corpus, and an overlay of what the row itself says."""

    corpus: str | None = setting(None, "text file, one document per line; null: the row's own text only")
    successors: int = setting(12, "successors kept per pair of tokens of the corpus")
    window: int = setting(16, "last tokens whose trigrams gain weight at every step")
    gain: float = setting(0.04, "what they gain")
    cap: float = setting(3.0, "the most that a weight can be")


@register("drafter", "scripted", target="specdec.drafters.scripted:ScriptedDrafter", replays=True)
@dataclass
class ScriptedConfig:
    """Replays the reference output with seeded mistakes, for benchmarks at a set acceptance rate."""

    rate: float = setting(0.8, "chance that the draft is right at a position")
    seed: int = setting(0, "of the mistakes")


@register("drafter", "none", target="specdec.drafters.none:NoDrafter", drafts=False)
@dataclass
class NoDrafterConfig:
    """No drafting: plain decoding, one token per row and round."""


@register("verifier", "greedy", target="specdec.verifiers.greedy:GreedyVerifier", samples=False)
@dataclass
class GreedyConfig:
    """Longest match with the target's argmax; exact for temperature 0."""


@register("verifier", "rejection", target="specdec.verifiers.rejection:RejectionVerifier")
@dataclass
class RejectionConfig:
    """Standard speculative sampling: every drafted token is tested for itself; lossless."""


@register("verifier", "block", target="specdec.verifiers.block:BlockVerifier")
@dataclass
class BlockConfig:
    """Block verification: the whole draft is weighed together; lossless, never accepts less than rejection."""


@register("verifier", "naive", target="specdec.verifiers.naive:NaiveVerifier", follows_plain=True)
@dataclass
class NaiveConfig:
    """The target samples, the draft is followed while it agrees: lossless for any draft, plain sampling's tokens."""


@register("verifier", "typical", target="specdec.verifiers.typical:TypicalVerifier", lossy=True)
@dataclass
class TypicalConfig:
    """Typical acceptance, LOSSY (allow_lossy=true): keeps what the target finds plausible."""

    epsilon: float = setting(0.09, "a probability above this is always plausible")
    delta: float = setting(0.3, "share of exp(-entropy) that is plausible where the law is flat")


@register("verifier", "dsd", target="specdec.verifiers.dsd:DsdVerifier", known_incorrect=True, samples=False)
@dataclass
class DsdVerifierConfig:
    """DSD's acceptance as published, known incorrect: the draft's rejected token is kept."""

    keep_rejected: bool = setting(True, "defect: the draft's rejected token is emitted in place of the target's own")
    no_bonus: bool = setting(True, "full acceptance emits no bonus token: exact, but slower")


@register("draft_length", "fixed", target="specdec.draft_lengths.fixed:FixedLength", per_row=True, reads_clock=False)
@dataclass
class FixedLengthConfig:
    """The same draft length in every round."""

    gamma: int = setting("${gamma}", "drafted tokens per row and round")


@register("draft_length", "batch_table", target="specdec.draft_lengths.batch_table:BatchTableLength")
@dataclass
class BatchTableLengthConfig:
    """The best draft length for the batch size, profiled once per pair and device; nothing where that is best."""

    max_gamma: int = setting(8, "longest draft profiled")


@register("draft_length", "goodput", target="specdec.draft_lengths.goodput:GoodputLength")
@dataclass
class GoodputLengthConfig:
    """What emits the most tokens per second by a profile and the run's own measurements; nothing where that is best."""

    max_gamma: int = setting(8, "longest draft considered")
    probe_share: float = setting(0.01, "of the time, at most, to see whether drafting would pay again")
    profile: bool = setting(
        True, "begin with what short runs show, made before the clock starts, once per pair and device"
    )


@register("draft_length", "lockstep", target="specdec.draft_lengths.lockstep:LockstepLength", reads_clock=False)
@dataclass
class LockstepLengthConfig:
    """One draft length for all rows of a round: what the row with the least room left may draft."""

    gamma: int = setting("${gamma}", "drafted tokens per row and round")
