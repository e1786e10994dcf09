"""The declaration of every built-in plug-in: its name, its settings, and where its class is found. Imports no torch.

A field's comment is its documentation: `docs/` and `--help` are made from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdec.registry import register

# --- schedulers -------------------------------------------------------------------------------------------------


@register("scheduler", "static", target="specdec.schedulers.static:StaticScheduler")
@dataclass
class StaticConfig:
    """A batch runs until its last row ends; finished rows leave it at once."""

    label: str = "${.name}"  # how tables call it; presets such as eqspec set their own


@register("scheduler", "exspec", target="specdec.schedulers.exspec:ExspecScheduler")
@dataclass
class ExspecConfig:
    """Sliding window over a pool: rows of equal length run together, otherwise any rows realigned."""

    label: str = "${.name}"


@register("scheduler", "lockstep", target="specdec.schedulers.lockstep:LockstepScheduler", known_incorrect=True)
@dataclass
class LockstepConfig:
    """Static batches as DSD runs them, known incorrect: when the fastest row is done, the others are truncated."""

    stop_with_fastest: bool = True  # defect: rows that are not done when the first is are cut off
    label: str = "${.name}"


# --- batching policies ------------------------------------------------------------------------------------------


@register("batching", "fifo", target="specdec.schedulers.order:Fifo")
@dataclass
class FifoConfig:
    """Prompts in the order they come."""

    window: int = 48  # rows in flight that exspec may group (at least the batch size)


@register("batching", "sorted", target="specdec.schedulers.order:Sorted")
@dataclass
class SortedConfig:
    """Shortest prompts first; ties in the order they come."""

    window: int = 48


@register("batching", "bucketed", target="specdec.schedulers.order:Bucketed")
@dataclass
class BucketedConfig:
    """Prompts gathered by length bucket, buckets from short to long, in order within a bucket."""

    window: int = 48
    bucket_tokens: int = 32  # width of a bucket


# --- alignment, drafting, verification --------------------------------------------------------------------------


@register("alignment", "eqspec", target="specdec.alignment.eqspec:EqspecAlignment")
@dataclass
class EqspecConfig:
    """The reference: left padding, and unpad, append, repad after every round."""


@register("alignment", "inplace", target="specdec.alignment.inplace:InplaceAlignment")
@dataclass
class InplaceConfig:
    """Preallocated slots with one write cursor per row: what is rejected is overwritten, nothing is moved."""


@register("alignment", "masked", target="specdec.alignment.masked:MaskedAlignment")
@dataclass
class MaskedConfig:
    """Rejected tokens stay as masked holes, which are squeezed out when there are too many."""

    max_hole_share: float = 0.25  # share of the columns that all rows could do without, before they are squeezed out


@register("alignment", "rollback", target="specdec.alignment.rollback:RollbackAlignment")
@dataclass
class RollbackConfig:
    """The whole batch is cut back to its shortest acceptance; what others kept beyond is fed again."""


@register("alignment", "expansion", target="specdec.alignment.expansion:ExpansionAlignment")
@dataclass
class ExpansionConfig:
    """One copy of the row per drafted prefix, of which a commit keeps one."""


@register("alignment", "bsp", target="specdec.alignment.bsp:BspAlignment", known_incorrect=True)
@dataclass
class BspConfig:
    """BSP as published, known incorrect: masked holes, but positions are cache columns."""

    count_padding: bool = True  # defect: the padding of a shorter prompt shifts its positions
    count_holes: bool = True  # defect: rejected tokens shift the positions of those after them


@register("alignment", "dsd", target="specdec.alignment.dsd:DsdAlignment", known_incorrect=True)
@dataclass
class DsdConfig:
    """DSD as published, known incorrect: left padding that is attended and piles up; all is computed anew."""

    attend_padding: bool = True  # defect: no attention mask, padding is read as text
    pile_up_padding: bool = True  # defect: padded rows are padded again; harmless alone
    absolute_positions: bool = True  # defect: positions count padding; harmless alone for rotary positions
    pad_id: int = 0  # token that stands in the padding


@register("drafter", "model", target="specdec.drafters.model:ModelDrafter")
@dataclass
class ModelDrafterConfig:
    """The pair's draft model, with a KV cache that is aligned like the target's."""


@register("drafter", "retokenize", target="specdec.drafters.retokenize:RetokenizeDrafter")
@dataclass
class RetokenizeDrafterConfig:
    """The pair's draft model with a tokenizer of its own: text is encoded anew between the two."""


@register("drafter", "self", target="specdec.drafters.early_exit:SelfDrafter")
@dataclass
class SelfDrafterConfig:
    """The target's own first layers, norm and head: early exit, no further weights."""

    num_layers: int = 2  # layers of the target that draft


@register("drafter", "prompt_lookup", target="specdec.drafters.lookup:PromptLookupDrafter")
@dataclass
class PromptLookupConfig:
    """Copies what followed the last few tokens when they occurred before, in the row's own prompt and output."""

    max_ngram: int = 3  # tokens to match, at most
    min_ngram: int = 1  # and at least


@register("drafter", "trigram", target="specdec.drafters.trigram:TrigramDrafter")
@dataclass
class TrigramConfig:
    """Adaptive trigram store: weights of a corpus, and an overlay of what the row itself says."""

    corpus: str | None = None  # text file, one document per line; null: the row's own text only
    successors: int = 12  # successors kept per pair of tokens of the corpus
    window: int = 16  # last tokens whose trigrams gain weight at every step
    gain: float = 0.04  # what they gain
    cap: float = 3.0  # the most that a weight can be


@register("drafter", "scripted", target="specdec.drafters.scripted:ScriptedDrafter")
@dataclass
class ScriptedConfig:
    """Replays the reference output with seeded mistakes, for benchmarks at a set acceptance rate."""

    rate: float = 0.8  # chance that the draft is right at a position
    seed: int = 0  # of the mistakes


@register("drafter", "none", target="specdec.drafters.none:NoDrafter")
@dataclass
class NoDrafterConfig:
    """No drafting: plain decoding, one token per row and round."""


@register("verifier", "greedy", target="specdec.verifiers.greedy:GreedyVerifier")
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


@register("verifier", "naive", target="specdec.verifiers.naive:NaiveVerifier")
@dataclass
class NaiveConfig:
    """The target samples, the draft is followed while it agrees: lossless for any draft, plain sampling's tokens."""


@register("verifier", "typical", target="specdec.verifiers.typical:TypicalVerifier", lossy=True)
@dataclass
class TypicalConfig:
    """Typical acceptance, LOSSY (allow_lossy=true): keeps what the target finds plausible."""

    epsilon: float = 0.09  # a probability above this is always plausible
    delta: float = 0.3  # share of exp(-entropy) that is plausible where the law is flat


@register("verifier", "dsd", target="specdec.verifiers.dsd:DsdVerifier", known_incorrect=True)
@dataclass
class DsdVerifierConfig:
    """DSD's acceptance as published, known incorrect: the draft's rejected token is kept."""

    keep_rejected: bool = True  # defect: the draft's rejected token is emitted in place of the target's own
    no_bonus: bool = True  # full acceptance emits no bonus token: exact, but slower


@register("draft_length", "fixed", target="specdec.draft_lengths.fixed:FixedLength")
@dataclass
class FixedLengthConfig:
    """The same draft length in every round."""

    gamma: int = "${gamma}"  # type: ignore[assignment]


@register("draft_length", "lockstep", target="specdec.draft_lengths.lockstep:LockstepLength")
@dataclass
class LockstepLengthConfig:
    """One draft length for all rows of a round: what the row with the least room left may draft."""

    gamma: int = "${gamma}"  # type: ignore[assignment]


# --- loggers ----------------------------------------------------------------------------------------------------


@register("logger", "none", target="specdec.loggers.none:NoLogger")
@dataclass
class NoLoggerConfig:
    """Nothing beyond the run folder."""


@register("logger", "csv", target="specdec.loggers.csv:CsvLogger")
@dataclass
class CsvLoggerConfig:
    """One row per finished point, appended to a CSV file."""

    path: str = "${results_dir}/points.csv"


@register("logger", "wandb", target="specdec.loggers.wandb:WandbLogger")
@dataclass
class WandbConfig:
    """A Weights & Biases run per point; offline unless told otherwise."""

    project: str = "specdec"
    group: str | None = None
    mode: str = "offline"  # offline, online, disabled
    directory: str = "${results_dir}"
