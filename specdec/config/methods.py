"""Declares the built-in drafters, verifiers and draft-length policies. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.core.settings import setting
from specdec.core.siblings import BEAM, CHAIN, CHOSEN, IID, KINDS, WITHOUT_REPLACEMENT
from specdec.registry import register

NODES = "set tree=chain, and drafter.nodes for a tree of its own"
_MATCHES = "set tree=chain, and drafter.matches for a tree of its own"


@register(
    "drafter",
    "model",
    target="specdec.drafters.model:ModelDrafter",
    grows=True,
    learner="specdec.training.online_model:ModelLearner",
)
@dataclass
class ModelDrafterConfig:
    """The pair's draft model, with a KV cache that is aligned like the target's."""

    window: int | None = setting(
        None, "last tokens of a row that the draft sees, in a cache of constant size; null: all"
    )
    sinks: int = setting(4, "with window: first tokens of a row that it sees too")


@register("drafter", "retokenize", target="specdec.drafters.retokenize:RetokenizeDrafter", by_text=True)
@dataclass
class RetokenizeDrafterConfig:
    """The pair's draft model with a tokenizer of its own: tokens are translated by way of their text."""


@register("drafter", "self", target="specdec.drafters.early_exit:SelfDrafter", grows=True)
@dataclass
class SelfDrafterConfig:
    """The target's own first layers (early exit), or all with a sparse view of the target's own cache."""

    num_layers: int | None = setting(None, "first layers that draft; null: 2, or with a window all")
    window: int | None = setting(
        None, "all layers draft from the target's own cache, of which they see so many last tokens; null: early exit"
    )
    sinks: int = setting(4, "with window: first tokens of a row that they see too")


@register("drafter", "early_exit", target="specdec.drafters.early_exit:EarlyExitDrafter", grows=True)
@dataclass
class EarlyExitDrafterConfig:
    """The target's own first layers with a trained norm and head after them (train.py task=heads)."""

    path: str | None = setting(None, "folder that train.py wrote; null needs untrained=true")
    untrained: bool = setting(False, "allow path=null: drafts with the target's own norm and head, like drafter=self")
    num_layers: int = setting(2, "if path is null: layers of the target that draft")


@register("drafter", "ppd", target="specdec.drafters.ppd:PpdDrafter", siblings=CHOSEN, trees=NODES)
@dataclass
class PpdConfig:
    """Trained prompt tokens after every candidate: the target drafts while it verifies (train.py task=heads)."""

    path: str | None = setting(None, "folder that train.py wrote; null needs untrained=true")
    untrained: bool = setting(False, "allow path=null: drafts badly, with untrained prompt tokens")
    num_tokens: int = setting(3, "if path is null: prompt tokens, and so the deepest draft")
    nodes: int | None = setting(None, "drafted and prompt tokens of a dynamic sparse tree, per row; null: a chain")
    fit_nodes: bool = setting(False, "of trees of up to nodes, the one with the most tokens per second, measured")


@register("drafter", "prompt_lookup", target="specdec.drafters.lookup:PromptLookupDrafter", trees=_MATCHES)
@dataclass
class PromptLookupConfig:
    """Copies what followed an earlier occurrence of the last few tokens in the row's own prompt and output."""

    max_ngram: int = setting(3, "most tokens to match")
    min_ngram: int = setting(1, "fewest tokens to match")
    matches: int = setting(1, "different continuations that are copied; from 2 on they make a tree")


@register("drafter", "trigram", target="specdec.drafters.trigram:TrigramDrafter", trees=NODES)
@dataclass
class TrigramConfig:
    """Adaptive trigrams: weights from a corpus, with an overlay of the row's own text."""

    corpus: str | None = setting(None, "text file, one document per line; null: the row's own text only")
    successors: int = setting(12, "successors kept per pair of tokens of the corpus")
    window: int = setting(16, "last tokens whose trigrams gain weight at every step")
    gain: float = setting(0.04, "weight that they gain")
    cap: float = setting(3.0, "largest weight")
    nodes: int | None = setting(None, "tokens of a tree found by Monte-Carlo search, per row; null: a chain")
    searches: int = setting(150, "with nodes: paths that the search follows, per row and round")


@register("drafter", "suffix", target="specdec.drafters.suffix:SuffixDrafter", trees=NODES)
@dataclass
class SuffixConfig:
    """The most frequent continuation of the last tokens, in the row's own text and in a store of earlier outputs."""

    depth: int = setting(32, "longest substring that is counted; a match is at most half of it")
    factor: float = setting(2.0, "drafted tokens per matched token, at most")
    min_prob: float = setting(0.1, "the draft stops where its path is less probable than this")
    store: str | None = setting(None, "earlier outputs: a run's samples.jsonl, or a text file with a document per line")
    store_tokens: int = setting(200_000, "tokens of the store that are kept, the last of the file")
    nodes: int | None = setting(None, "tokens of a tree of the most frequent continuations, per row; null: a chain")


@register("drafter", "recycling", target="specdec.drafters.recycling:RecyclingDrafter", trees=NODES)
@dataclass
class RecyclingConfig:
    """Token recycling: the target's own top continuations of tokens that it has read before in the row."""

    choices: int = setting(8, "continuations kept per token")
    nodes: int | None = setting(None, "tokens of a static tree over them, per row; null: a chain")


@register("drafter", "scripted", target="specdec.drafters.scripted:ScriptedDrafter", replays=True)
@dataclass
class ScriptedConfig:
    """Replays the reference output with seeded mistakes, for benchmarks at a set acceptance rate."""

    rate: float = setting(0.8, "probability that the draft is right at a position")
    seed: int = setting(0, "seed of the mistakes")


@register("drafter", "none", target="specdec.drafters.none:NoDrafter", drafts=False)
@dataclass
class NoDrafterConfig:
    """No drafting: plain decoding, one token per row and round."""


@register("verifier", "greedy", target="specdec.verifiers.greedy:GreedyVerifier", samples=False)
@dataclass
class GreedyVerifierConfig:
    """Longest match with the target's argmax; exact for temperature 0."""


@register("verifier", "rejection", target="specdec.verifiers.rejection:RejectionVerifier")
@dataclass
class RejectionConfig:
    """Standard speculative sampling: drafted tokens are tested one by one; lossless."""


@register("verifier", "block", target="specdec.verifiers.block:BlockVerifier")
@dataclass
class BlockConfig:
    """Block verification: the draft is tested as a whole; lossless, never accepts less than rejection."""


@register("verifier", "naive", target="specdec.verifiers.naive:NaiveVerifier", follows_plain=True, judges=KINDS)
@dataclass
class NaiveConfig:
    """Samples from the target while the draft agrees: lossless for any draft, with the tokens of plain sampling."""


@register("verifier", "specinfer", target="specdec.verifiers.specinfer:SpecInferVerifier", judges=(CHAIN, IID))
@dataclass
class SpecInferConfig:
    """Multi-round rejection of independently drawn siblings, one after the other; lossless."""


@register(
    "verifier",
    "naive_tree",
    target="specdec.verifiers.naive_tree:NaiveTreeVerifier",
    judges=(CHAIN, IID, WITHOUT_REPLACEMENT, BEAM),
)
@dataclass
class NaiveTreeConfig:
    """Rejection of the first sibling; the token that replaces it may be one of the others; lossless."""


@register("verifier", "spectr", target="specdec.verifiers.spectr:SpecTrVerifier", judges=(CHAIN, IID))
@dataclass
class SpecTrConfig:
    """K-SEQ: independently drawn siblings are tested alike, at the division factor that accepts most; lossless."""


@register(
    "verifier",
    "recursive",
    target="specdec.verifiers.recursive:RecursiveVerifier",
    judges=(CHAIN, IID, WITHOUT_REPLACEMENT, BEAM),
)
@dataclass
class RecursiveConfig:
    """Recursive rejection of siblings drawn without replacement, as in RSD-C and RSD-S; lossless."""


@register(
    "verifier",
    "traversal",
    target="specdec.verifiers.traversal:TraversalVerifier",
    judges=(CHAIN, IID, WITHOUT_REPLACEMENT, BEAM),
)
@dataclass
class TraversalConfig:
    """Judges a tree from its leaves, so that a parent stays usable after its children failed; lossless."""


@register("verifier", "gbv", target="specdec.verifiers.gbv:GbvVerifier", judges=(CHAIN, IID), averages_losers=True)
@dataclass
class GbvConfig:
    """Block verification of the best of several independent paths; lossless."""


@register("verifier", "typical", target="specdec.verifiers.typical:TypicalVerifier", lossy=True, judges=KINDS)
@dataclass
class TypicalConfig:
    """Typical acceptance, LOSSY (allow_lossy=true): keeps what the target finds plausible."""

    epsilon: float = setting(0.09, "a probability above this is always plausible")
    delta: float = setting(0.3, "share of exp(-entropy) above which a probability is plausible too")


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
    """The best draft length for the batch size, profiled once per pair and device; 0 where that is best."""

    max_gamma: int = setting(8, "longest draft profiled")


@register("draft_length", "goodput", target="specdec.draft_lengths.goodput:GoodputLength")
@dataclass
class GoodputLengthConfig:
    """The draft length with the most tokens per second, by a profile and the run's own times; 0 where that is best."""

    max_gamma: int = setting(8, "longest draft considered")
    probe_share: float = setting(0.01, "largest share of the time for testing whether drafting pays again")
    profile: bool = setting(True, "start from trial runs, made before the clock starts, once per pair and device")


@register("draft_length", "lockstep", target="specdec.draft_lengths.lockstep:LockstepLength", reads_clock=False)
@dataclass
class LockstepLengthConfig:
    """One draft length for all rows of a round: the most that the row with the fewest tokens left may draft."""

    gamma: int = setting("${gamma}", "drafted tokens per row and round")
