"""Declares the built-in schedulers, batching policies, alignment strategies, arrivals and loggers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.core.settings import setting
from specdec.registry import register

# --- schedulers -------------------------------------------------------------------------------------------------


@register("scheduler", "static", target="specdec.schedulers.static:StaticScheduler")
@dataclass
class StaticConfig:
    """A batch runs until its last row ends; finished rows leave it at once."""

    label: str = setting("${.name}", "its name in tables; presets such as eqspec set their own")


@register("scheduler", "continuous", target="specdec.schedulers.continuous:ContinuousScheduler")
@dataclass
class ContinuousConfig:
    """Continuous batching: the next prompt takes a finished row's place, and is prefilled between the rounds."""

    prefill_share: float = setting(
        0.75, "largest share of the time for prefilling new rows while others wait; 1: at once"
    )
    label: str = "${.name}"


@register("scheduler", "exspec", target="specdec.schedulers.exspec:ExspecScheduler", preset=True, windowed=True)
@dataclass
class ExspecConfig:
    """Sliding window over a pool: rows of equal length run together, otherwise any rows realigned."""

    max_wait_rounds: int | None = setting(
        None, "most consecutive rounds that may leave a row out; null: no bound, as published"
    )
    label: str = "${.name}"


@register("scheduler", "lockstep", target="specdec.schedulers.lockstep:LockstepScheduler", known_incorrect=True)
@dataclass
class LockstepConfig:
    """Static batches as DSD runs them, known incorrect: when the fastest row is done, the others are truncated."""

    stop_with_fastest: bool = setting(True, "defect: rows are truncated when the first one is done")
    label: str = "${.name}"


# --- batching policies ------------------------------------------------------------------------------------------


@register("batching", "fifo", target="specdec.schedulers.order:Fifo")
@dataclass
class FifoConfig:
    """Prompts in the order of their arrival."""

    window: int = setting(48, "rows in flight that exspec may group (at least the batch size)")


@register("batching", "sorted", target="specdec.schedulers.order:Sorted")
@dataclass
class SortedConfig:
    """Shortest prompts first; ties in the order of their arrival."""

    window: int = 48


@register("batching", "bucketed", target="specdec.schedulers.order:Bucketed")
@dataclass
class BucketedConfig:
    """Prompts grouped by length in buckets, short buckets first; in the order of their arrival within a bucket."""

    window: int = 48
    bucket_tokens: int = setting(32, "width of a bucket, in tokens")


# --- alignment --------------------------------------------------------------------------------------------------


@register("alignment", "eqspec", target="specdec.alignment.eqspec:EqspecAlignment")
@dataclass
class EqspecConfig:
    """The reference: left padding, and unpad, append, repad after every round."""


@register("alignment", "inplace", target="specdec.alignment.inplace:InplaceAlignment")
@dataclass
class InplaceConfig:
    """Preallocated slots with one write cursor per row: rejected entries are overwritten, nothing is moved."""

    shared_prefix: int = setting(0, "hold first tokens that rows have in common once, from this many on; 0: never")


@register("alignment", "masked", target="specdec.alignment.masked:MaskedAlignment")
@dataclass
class MaskedConfig:
    """Rejected tokens stay as masked holes; the cache is compacted when there are too many."""

    max_hole_share: float = setting(0.25, "share of the columns that no row needs, above which the cache is compacted")


@register("alignment", "rollback", target="specdec.alignment.rollback:RollbackAlignment")
@dataclass
class RollbackConfig:
    """Rolls the whole batch back to the fewest accepted tokens; rows that accepted more feed theirs again."""


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
    """DSD as published, known incorrect: left padding is attended and accumulates; everything is recomputed."""

    attend_padding: bool = setting(True, "defect: no attention mask, padding is read as text")
    pile_up_padding: bool = setting(True, "defect: padded rows are padded again; harmless by itself")
    absolute_positions: bool = setting(True, "defect: positions count padding; harmless by itself if they are rotary")
    pad_id: int = setting(0, "id of the padding token")


# --- arrivals ---------------------------------------------------------------------------------------------------


@register("arrivals", "none", target="specdec.run.serving.none:NoArrivals", timed=False)
@dataclass
class NoArrivalsConfig:
    """All prompts arrive at the start."""


@register("arrivals", "poisson", target="specdec.run.serving.poisson:PoissonArrivals")
@dataclass
class PoissonConfig:
    """Simulated online serving: conversations start at random, independently of each other."""

    rate: float = setting(1.0, "mean conversations per second")
    think_s: float = setting(0.0, "mean seconds between an answer and the next question of its conversation")
    seed: int = setting(0, "seed of the arrivals")
    clock: str = setting("virtual", "virtual: only rounds take time, idle time is skipped; real: wall time")


@register("arrivals", "trace", target="specdec.run.serving.trace:TraceArrivals")
@dataclass
class TraceConfig:
    """Simulated online serving: conversations start at the times of a recorded trace."""

    path: str | None = setting(None, "JSONL file, one line with arrival_s (seconds) per conversation")
    speed: float = setting(1.0, "2 halves the time between arrivals")
    think_s: float = 0.0
    seed: int = setting(0, "seed of the times between an answer and the next question")
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

    path: str = setting("${results_dir}/points.csv", "file to append to")


@register("logger", "wandb", target="specdec.run.loggers.wandb:WandbLogger")
@dataclass
class WandbConfig:
    """A Weights & Biases run per point; offline unless ``mode`` says otherwise or a key is found."""

    project: str = setting("specdec", "project of the runs")
    entity: str | None = setting(None, "user or team; null: the key's default")
    group: str | None = setting(None, "group of the runs; null: the sweep")
    mode: str = setting("auto", "auto: online if WANDB_API_KEY or netrc has a key; offline, online, disabled")
    directory: str = setting("${results_dir}", "folder of offline runs")
    num_samples: int = setting(100, "rows of the sample table, divergences first")


@register("logger", "tensorboard", target="specdec.run.loggers.tensorboard:TensorboardLogger")
@dataclass
class TensorboardConfig:
    """Event files per point, for tensorboard --logdir (pip install 'specdec[tensorboard]')."""

    directory: str = setting("${results_dir}/tensorboard", "the folder to give to --logdir")
    num_samples: int = setting(20, "rows of the sample table, divergences first")
