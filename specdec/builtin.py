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


@register("scheduler", "continuous", target="specdec.schedulers.continuous:ContinuousScheduler")
@dataclass
class ContinuousConfig:
    """Continuous batching: a finished row's place is taken by the next prompt, which is read between the rounds."""

    prefill_share: float = 0.75  # of the time, for reading newcomers' prompts while others wait for it; 1: at once
    label: str = "${.name}"


@register("scheduler", "exspec", target="specdec.schedulers.exspec:ExspecScheduler", preset=True)
@dataclass
class ExspecConfig:
    """Sliding window over a pool: rows of equal length run together, otherwise any rows realigned."""

    max_wait_rounds: int | None = None  # rounds in a row that may pass a row over; null: no bound, as published
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


@register("drafter", "early_exit", target="specdec.drafters.early_exit:EarlyExitDrafter")
@dataclass
class EarlyExitDrafterConfig:
    """The target's own first layers behind which a norm and a head of their own are trained (train.py task=heads)."""

    path: str | None = None  # folder that train.py wrote; null: the target's own norm and head, as drafter=self
    num_layers: int = 2  # without a path: layers of the target that draft


@register("drafter", "medusa", target="specdec.drafters.medusa:MedusaDrafter")
@dataclass
class MedusaConfig:
    """Independent heads on the target's last hidden state, each for one token further ahead (train.py task=heads)."""

    path: str | None = None  # folder that train.py wrote; null: untrained heads, which guess badly
    num_heads: int = 4  # without a path: tokens that are drafted, at most


@register("drafter", "eagle", target="specdec.drafters.eagle:EagleDrafter")
@dataclass
class EagleConfig:
    """One decoder layer over the target's hidden states and the next tokens, as EAGLE (train.py task=heads)."""

    path: str | None = None  # folder that train.py wrote; null: an untrained layer, which guesses badly


@register("drafter", "ppd", target="specdec.drafters.ppd:PpdDrafter")
@dataclass
class PpdConfig:
    """Trained prompt tokens behind every candidate: the target drafts while it verifies (train.py task=heads)."""

    path: str | None = None  # folder that train.py wrote; null: untrained prompt tokens, which guess badly
    num_tokens: int = 3  # without a path: prompt tokens, and tokens that are drafted at most


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


@register("draft_length", "batch_table", target="specdec.draft_lengths.batch_table:BatchTableLength")
@dataclass
class BatchTableLengthConfig:
    """The best draft length for the batch size, profiled once per pair and device; nothing where that is best."""

    max_gamma: int = 8  # longest draft profiled


@register("draft_length", "goodput", target="specdec.draft_lengths.goodput:GoodputLength")
@dataclass
class GoodputLengthConfig:
    """What emits the most tokens per second by this run's own acceptance and costs; nothing where that is best."""

    max_gamma: int = 8  # longest draft considered
    probe_share: float = 0.01  # of the time, at most, to see whether drafting would pay again


@register("draft_length", "lockstep", target="specdec.draft_lengths.lockstep:LockstepLength")
@dataclass
class LockstepLengthConfig:
    """One draft length for all rows of a round: what the row with the least room left may draft."""

    gamma: int = "${gamma}"  # type: ignore[assignment]


# --- arrivals ---------------------------------------------------------------------------------------------------


@register("arrivals", "none", target="specdec.serving.none:NoArrivals")
@dataclass
class NoArrivalsConfig:
    """All prompts are there at the start."""


@register("arrivals", "poisson", target="specdec.serving.poisson:PoissonArrivals")
@dataclass
class PoissonConfig:
    """Online serving, simulated: conversations begin at random, independently of each other."""

    rate: float = 1.0  # conversations per second, in the mean
    think_s: float = 0.0  # mean seconds between an answer and the next question of its conversation
    seed: int = 0  # of the arrivals
    clock: str = "virtual"  # virtual: only rounds take time, idle time is skipped; real: it is waited for


@register("arrivals", "trace", target="specdec.serving.trace:TraceArrivals")
@dataclass
class TraceConfig:
    """Online serving, simulated: conversations begin when a recorded trace says."""

    path: str | None = None  # JSONL file, one line with arrival_s (seconds) per conversation
    speed: float = 1.0  # 2 halves the time between arrivals
    think_s: float = 0.0
    seed: int = 0  # of the time that users think
    clock: str = "virtual"


# --- loggers ----------------------------------------------------------------------------------------------------


@register("logger", "none", target="specdec.loggers.none:NoLogger")
@dataclass
class NoLoggerConfig:
    """Nothing beyond the run folder."""


@register("logger", "csv", target="specdec.loggers.csv:CsvLogger")
@dataclass
class CsvLoggerConfig:
    """One row per finished point, appended to a CSV file."""

    path: str = "${results_dir}/points.csv"  # the file


@register("logger", "wandb", target="specdec.loggers.wandb:WandbLogger")
@dataclass
class WandbConfig:
    """A Weights & Biases run per point; offline unless told otherwise, or a key is there."""

    project: str = "specdec"  # where runs go
    entity: str | None = None  # user or team; null: the key's own
    group: str | None = None  # of runs that belong together; null: the sweep
    mode: str = "auto"  # auto: online if WANDB_API_KEY or netrc has a key; offline, online, disabled
    directory: str = "${results_dir}"  # where offline runs are kept
    num_samples: int = 100  # rows of the sample table, divergences first


@register("logger", "tensorboard", target="specdec.loggers.tensorboard:TensorboardLogger")
@dataclass
class TensorboardConfig:
    """Event files per point, for tensorboard --logdir (pip install 'specdec[tensorboard]')."""

    directory: str = "${results_dir}/tensorboard"  # the folder to give to --logdir
    num_samples: int = 20  # rows of the sample table, divergences first
