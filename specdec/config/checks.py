"""Refuses settings that are invalid or contradict each other, before anything is loaded. Imports no torch."""

from __future__ import annotations

from specdec.config.adaptation import check_adaptation
from specdec.config.budgets import check_budget
from specdec.config.drafter_weights import check_drafter_weights
from specdec.config.judging import check_selector, check_tree
from specdec.config.plugins import declared
from specdec.config.processes import launched_from_outside, num_processes, world_size
from specdec.config.reference import follows_plain, has_reference, sampling_params
from specdec.config.schema import RunConfig
from specdec.config.windows import check_window
from specdec.core.stop_strings import check_stop_strings
from specdec.errors import ConfigError
from specdec.registry import PLUGIN_GROUPS, unknown

NUMERICS = ("default", "invariant")
_OWN_HEADS = ("eagle", "medusa", "ppd")
"""Drafters that compute with weights of their own outside of a model's forward."""
_CHOICES = {
    "accelerator": ("auto", "cpu", "cuda"),
    "strategy": ("auto", "ddp", "ddp_fork"),
    "on_out_of_memory": ("fail", "shrink"),
    "on_locked": ("wait", "skip"),
}


def check(config: RunConfig) -> None:
    """Refuse a config that cannot run.

    Raises:
        ConfigError: names the setting, its value, and what would be valid.
    """
    for key in ("batch", "max_new_tokens"):
        if getattr(config, key) < 1:
            raise ConfigError(f"{key}={getattr(config, key)}: it must be at least 1")
    if config.debug.invariants_every < 1:
        raise ConfigError(f"debug.invariants_every={config.debug.invariants_every}: it must be at least 1")
    _check_runner(config)
    _check_numerics(config)
    _check_serving(config)
    check_shared_prefix(config)
    check_drafter_weights(config.drafter)
    check_window(config.drafter)
    check_tree(config)
    check_selector(config)
    check_budget(config)
    check_adaptation(config)
    _refuse_incorrect(config)
    _check_sampling(config)
    _check_replay(config)
    if config.strict and not (config.reference and has_reference(config)):
        raise ConfigError("strict=true needs a reference to compare the output with: set reference=true, temperature=0")


def is_serving(config: RunConfig) -> bool:
    """Whether requests arrive over time, or conversations continue. Such a run uses one process and cannot resume."""
    return declared(config, "arrivals").timed or config.data.turns == "conversation"


def _check_serving(config: RunConfig) -> None:
    if is_serving(config) and num_processes(config.runner) > 1 and not config.runner.tensor_parallel:
        raise ConfigError(
            f"arrivals={config.arrivals.name} with data.turns={config.data.turns} is served by one process: set "
            "runner.devices=1"
        )


def _check_numerics(config: RunConfig) -> None:
    """What decides tokens must have the same bits in every batch, or be unable to change the output."""
    if config.numerics not in NUMERICS:
        raise ConfigError(unknown("numerics", config.numerics, NUMERICS))
    if config.numerics == "default":
        return
    if config.execution == "compiled":
        raise ConfigError("execution=compiled: its kernels are not measured for numerics=invariant; set execution=auto")
    if config.runner.tensor_parallel:
        raise ConfigError(
            "numerics=invariant with runner.tensor_parallel=true: sums over processes are not measured; set "
            "runner.tensor_parallel=false, which gives each process a part of the prompts"
        )
    if config.temperature > 0 and not follows_plain(config) and config.drafter.name in _OWN_HEADS:
        raise ConfigError(
            f"numerics=invariant with drafter={config.drafter.name} and temperature={config.temperature}: its heads "
            f"are not measured, and verifier={config.verifier.name} lets drafts change outputs; set verifier=naive"
        )


def check_shared_prefix(config: RunConfig, reads_states: bool = False, reads_cache: bool = False) -> None:
    """Refuse to share where the alignment cannot, or what a drafter must have of every row.

    Args:
        reads_states: whether the drafter reads the target's hidden states of all prompt tokens.
        reads_cache: whether it reads a part of each row's own cache.

    Raises:
        ConfigError: names what to set.
    """
    name, value = "data.shared_prefix", config.data.shared_prefix
    if value is not None and not hasattr(config.alignment, "shared_prefix"):
        raise ConfigError(
            f"{name}={value}: alignment={config.alignment.name} holds no columns for several rows: set "
            f"alignment=inplace, or {name}=null"
        )
    off = "null"
    if value is None:
        name, value, off = "alignment.shared_prefix", getattr(config.alignment, "shared_prefix", None) or None, "0"
    if value is None or not (reads_states or reads_cache):
        return
    if reads_cache:
        why = "sees a part of every row's own cache, and what rows share is seen by all their tokens"
    else:
        why = (
            "reads the target's hidden states of all prompt tokens of every row, and those of shared ones are computed "
            "once"
        )
    raise ConfigError(f"{name}={value}: drafter={config.drafter.name} {why}: set {name}={off}")


def _check_runner(config: RunConfig) -> None:
    runner = config.runner
    for key, options in _CHOICES.items():
        if getattr(runner, key) not in options:
            raise ConfigError(unknown(f"runner.{key}", getattr(runner, key), options))
    if not isinstance(runner.devices, int | list) or num_processes(runner) < 1:
        raise ConfigError(f"runner.devices={runner.devices}: give a number above 0, or a list of GPUs such as [2,3]")
    if not isinstance(runner.devices, int) and runner.accelerator == "cpu":
        raise ConfigError(f"runner.devices={list(runner.devices)}: only GPUs can be listed; give a number")
    size = num_processes(runner)
    if launched_from_outside() and size != world_size():
        raise ConfigError(
            f"{world_size()} processes were started, but runner.devices={runner.devices} and "
            f"runner.num_nodes={runner.num_nodes} make {size}: set runner.devices to the processes per machine"
        )
    if runner.prefill_chunk is not None and runner.prefill_chunk < 1:
        raise ConfigError(f"runner.prefill_chunk={runner.prefill_chunk}: it must be at least 1, or null for no chunks")
    if runner.num_nodes > 1 and not launched_from_outside():
        raise ConfigError(f"runner.num_nodes={runner.num_nodes}: start it with torchrun or srun, on every machine")
    if runner.tensor_parallel:
        _check_tensor_parallel(config, size)


def _check_tensor_parallel(config: RunConfig, size: int) -> None:
    """All ranks must make the same decisions, so nothing may depend on measured time."""
    if size == 1:
        raise ConfigError("runner.tensor_parallel=true splits the target over processes: set runner.devices=2 or more")
    if config.weights != "pretrained":
        raise ConfigError(f"runner.tensor_parallel=true with weights={config.weights}: only checkpoints can be split")
    if declared(config, "draft_length").reads_clock:
        raise ConfigError(
            f"runner.tensor_parallel=true with draft_length={config.draft_length.name}: it measures time, which "
            "differs between processes; set draft_length=fixed"
        )
    if declared(config, "budget").reads_clock and getattr(config.budget, "tokens", None) is None:
        raise ConfigError(
            f"runner.tensor_parallel=true with budget={config.budget.name}: it measures time, which differs between "
            "processes; set budget.tokens, or budget=none"
        )
    if getattr(config.drafter, "fit_nodes", False):
        raise ConfigError(
            "runner.tensor_parallel=true with drafter.fit_nodes=true: it measures time, which differs between "
            "processes; set drafter.fit_nodes=false"
        )
    share = getattr(config.scheduler, "prefill_share", 1)
    if share < 1:
        raise ConfigError(
            f"runner.tensor_parallel=true with scheduler.prefill_share={share}: it measures time, which differs "
            "between processes; set scheduler.prefill_share=1"
        )
    if declared(config, "arrivals").timed:
        raise ConfigError(
            f"runner.tensor_parallel=true with arrivals={config.arrivals.name}: arrivals depend on time, which "
            "differs between processes; set arrivals=none"
        )
    if config.runner.on_out_of_memory != "fail":
        raise ConfigError(
            "runner.tensor_parallel=true: ranks cannot shrink a batch separately; set runner.on_out_of_memory=fail"
        )


def _refuse_incorrect(config: RunConfig) -> None:
    """Plug-ins with their published defects run only with allow_incorrect=true."""
    wrong = [
        f"{group}={getattr(config, group).name}" for group in PLUGIN_GROUPS if declared(config, group).known_incorrect
    ]
    if wrong and not config.allow_incorrect:
        raise ConfigError(f"{', '.join(wrong)}: known to be incorrect, as published; set allow_incorrect=true")


def _check_sampling(config: RunConfig) -> None:
    sampling_params(config)
    if config.stop_strings is not None and not all(config.stop_strings):
        raise ConfigError("stop_strings: an empty string would stop every row at once; remove it")
    check_stop_strings(config.stop_strings or ())
    verifier = declared(config, "verifier")
    if verifier.lossy and not config.allow_lossy:
        raise ConfigError(f"verifier={verifier.name} is lossy: its output is biased; set allow_lossy=true")
    check_samples(config, verifier.samples)


def check_samples(config: RunConfig, samples: bool) -> None:
    """Refuse to sample with a verifier that supports greedy decoding only (``samples=False``).

    Raises:
        ConfigError: names temperature and verifier.
    """
    if config.temperature > 0 and not samples:
        name = config.verifier.name
        raise ConfigError(
            f"temperature={config.temperature} with verifier={name}: set verifier=rejection|block (or naive), "
            f"or temperature=0; verifier={name} supports greedy decoding only"
        )


def _check_replay(config: RunConfig) -> None:
    """A drafter that replays the reference outputs needs references that the run itself must emit."""
    if not declared(config, "drafter").replays:
        return
    name = config.drafter.name
    if not config.reference:
        raise ConfigError(f"drafter={name} replays the reference outputs: set reference=true")
    if not follows_plain(config):
        raise ConfigError(
            f"drafter={name} with temperature={config.temperature}: only verifier=naive emits the outputs it replays"
        )
