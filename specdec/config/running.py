"""The declaration of every built-in plug-in: its name, its settings, and where its class is found. Imports no torch.

Help texts are for `--help` and docs/config.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdec.core.settings import setting
from specdec.registry import register

# --- schedulers -------------------------------------------------------------------------------------------------


@register("scheduler", "static", target="specdec.schedulers.static:StaticScheduler")
@dataclass
class StaticConfig:
    """A batch runs until its last row ends; finished rows leave it at once."""

    label: str = setting("${.name}", "how tables call it; presets such as eqspec set their own")


@register("scheduler", "continuous", target="specdec.schedulers.continuous:ContinuousScheduler")
@dataclass
class ContinuousConfig:
    """Continuous batching: a finished row's place is taken by the next prompt, which is read between the rounds."""

    prefill_share: float = setting(
        0.75, "of the time, for reading newcomers' prompts while others wait for it; 1: at once"
    )
    label: str = "${.name}"


@register("scheduler", "exspec", target="specdec.schedulers.exspec:ExspecScheduler", preset=True, windowed=True)
@dataclass
class ExspecConfig:
    """Sliding window over a pool: rows of equal length run together, otherwise any rows realigned."""

    max_wait_rounds: int | None = setting(
        None, "rounds in a row that may pass a row over; null: no bound, as published"
    )
    label: str = "${.name}"


@register("scheduler", "lockstep", target="specdec.schedulers.lockstep:LockstepScheduler", known_incorrect=True)
@dataclass
class LockstepConfig:
    """Static batches as DSD runs them, known incorrect: when the fastest row is done, the others are truncated."""

    stop_with_fastest: bool = setting(True, "defect: rows that are not done when the first is are cut off")
    label: str = "${.name}"


# --- batching policies ------------------------------------------------------------------------------------------


@register("batching", "fifo", target="specdec.schedulers.order:Fifo")
@dataclass
class FifoConfig:
    """Prompts in the order they come."""

    window: int = setting(48, "rows in flight that exspec may group (at least the batch size)")


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
    bucket_tokens: int = setting(32, "width of a bucket")


# --- alignment --------------------------------------------------------------------------------------------------


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

    max_hole_share: float = setting(
        0.25, "share of the columns that all rows could do without, before they are squeezed out"
    )


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

    count_padding: bool = setting(True, "defect: the padding of a shorter prompt shifts its positions")
    count_holes: bool = setting(True, "defect: rejected tokens shift the positions of those after them")


@register("alignment", "dsd", target="specdec.alignment.dsd:DsdAlignment", known_incorrect=True)
@dataclass
class DsdConfig:
    """DSD as published, known incorrect: left padding that is attended and piles up; all is computed anew."""

    attend_padding: bool = setting(True, "defect: no attention mask, padding is read as text")
    pile_up_padding: bool = setting(True, "defect: padded rows are padded again; harmless alone")
    absolute_positions: bool = setting(True, "defect: positions count padding; harmless alone for rotary positions")
    pad_id: int = setting(0, "token that stands in the padding")


# --- arrivals ---------------------------------------------------------------------------------------------------


@register("arrivals", "none", target="specdec.run.serving.none:NoArrivals", timed=False)
@dataclass
class NoArrivalsConfig:
    """All prompts are there at the start."""


@register("arrivals", "poisson", target="specdec.run.serving.poisson:PoissonArrivals")
@dataclass
class PoissonConfig:
    """Online serving, simulated: conversations begin at random, independently of each other."""

    rate: float = setting(1.0, "conversations per second, in the mean")
    think_s: float = setting(0.0, "mean seconds between an answer and the next question of its conversation")
    seed: int = setting(0, "of the arrivals")
    clock: str = setting("virtual", "virtual: only rounds take time, idle time is skipped; real: it is waited for")


@register("arrivals", "trace", target="specdec.run.serving.trace:TraceArrivals")
@dataclass
class TraceConfig:
    """Online serving, simulated: conversations begin when a recorded trace says."""

    path: str | None = setting(None, "JSONL file, one line with arrival_s (seconds) per conversation")
    speed: float = setting(1.0, "2 halves the time between arrivals")
    think_s: float = 0.0
    seed: int = setting(0, "of the time that users think")
    clock: str = "virtual"


# --- loggers ----------------------------------------------------------------------------------------------------


@register("logger", "none", target="specdec.run.loggers.none:NoLogger")
@dataclass
class NoLoggerConfig:
    """Nothing beyond the run folder."""


@register("logger", "csv", target="specdec.run.loggers.csv:CsvLogger")
@dataclass
class CsvLoggerConfig:
    """One row per finished point, appended to a CSV file."""

    path: str = setting("${results_dir}/points.csv", "the file")


@register("logger", "wandb", target="specdec.run.loggers.wandb:WandbLogger")
@dataclass
class WandbConfig:
    """A Weights & Biases run per point; offline unless told otherwise, or a key is there."""

    project: str = setting("specdec", "where runs go")
    entity: str | None = setting(None, "user or team; null: the key's own")
    group: str | None = setting(None, "of runs that belong together; null: the sweep")
    mode: str = setting("auto", "auto: online if WANDB_API_KEY or netrc has a key; offline, online, disabled")
    directory: str = setting("${results_dir}", "where offline runs are kept")
    num_samples: int = setting(100, "rows of the sample table, divergences first")


@register("logger", "tensorboard", target="specdec.run.loggers.tensorboard:TensorboardLogger")
@dataclass
class TensorboardConfig:
    """Event files per point, for tensorboard --logdir (pip install 'specdec[tensorboard]')."""

    directory: str = setting("${results_dir}/tensorboard", "the folder to give to --logdir")
    num_samples: int = setting(20, "rows of the sample table, divergences first")
