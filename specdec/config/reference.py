"""Which run a point's outputs are compared with, token by token. Imports no torch.

- Greedy: the target alone at batch 1, whatever the method.
- Sampling with drafter=none or verifier=naive: plain sampling of the target alone at batch 1 with the same seeds,
  because both emit, at every position, the token that the row's own random number there picks from the target's
  distribution.
- Sampling with another verifier: the tokens also depend on what was drafted, so plain sampling gives other tokens of
  the same distribution. The reference is the same method at batch 1 with the same seeds and execution: equality shows
  that a row does not depend on its neighbours. (Another execution rounds differently, and a sampled row has hundreds
  of draws and tests that rounding may turn.) That the distribution is right is tested by enumeration
  (tests/test_verifiers_exact.py). A draft-length policy that depends on the batch drafts other tokens at batch 1, so
  then there is no reference; the same holds of a verify budget, and of a drafter that learns from other rows.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from specdec.config.identity import identity, input_hashes
from specdec.config.plugins import declared, plugin_config
from specdec.config.schema import AdaptConfig, RunConfig
from specdec.core.sampling_params import SamplingParams

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
_BASELINE = "plain"


def sampling_params(config: RunConfig) -> SamplingParams:
    """The settings of every row of a run.

    Raises:
        ConfigError: a value is out of range.
    """
    return SamplingParams(**{key: getattr(config, key) for key in _SAMPLING})


def plain(config: RunConfig) -> RunConfig:
    """The same point with speculation off."""
    # Without drafts all verifiers are equivalent: with one of them, a sweep over verifiers has one baseline.
    verifier = plugin_config("verifier", "greedy" if config.temperature == 0 else "naive")
    off = (("drafter", "none"), ("tree", "chain"), ("selector", "none"), ("budget", "none"))
    nothing = {group: plugin_config(group, name) for group, name in off}
    return replace(config, **nothing, verifier=verifier, adapt=AdaptConfig())


def baseline_run(config: RunConfig) -> RunConfig:
    """What a point's speed is compared with: scheduler=plain, the fastest plain decoding at this batch size.

    That is continuous batches under alignment=inplace, whatever the point's own scheduler and alignment are. What both
    can do (reading prompts between rounds, shared prefixes), it does as the point does.
    """
    continuous = plugin_config("scheduler", "continuous")
    if isinstance(config.scheduler, type(continuous)):
        continuous = config.scheduler
    scheduler = replace(continuous, label=_BASELINE)
    if config.runner.tensor_parallel:
        scheduler.prefill_share = 1.0  # less depends on measured time, which differs between processes
    inplace = plugin_config("alignment", "inplace")
    alignment = config.alignment if isinstance(config.alignment, type(inplace)) else inplace
    return replace(plain(config), scheduler=scheduler, alignment=alignment)


def is_baseline(config: RunConfig) -> bool:
    """Whether a point is itself a baseline."""
    return identity(config) == identity(baseline_run(config))


def follows_plain(config: RunConfig) -> bool:
    """Whether the tokens must be those of plain decoding."""
    if config.temperature == 0 or not declared(config, "drafter").drafts:
        return True
    return declared(config, "verifier").follows_plain


def has_reference(config: RunConfig) -> bool:
    """Whether there is a run that must emit the same tokens."""
    alone = declared(config, "draft_length").per_row and declared(config, "budget").per_row
    return follows_plain(config) or (alone and config.adapt.policy == "none")


def reference_run(config: RunConfig) -> RunConfig:
    """The config of the reference run: one row at a time."""
    alone = {"scheduler": "static", "batching": "fifo", "alignment": "eqspec", "arrivals": "none"}
    return replace(
        plain(config) if follows_plain(config) else config,
        batch=1,
        warmup=False,
        data=replace(config.data, shared_prefix=None),
        **{group: plugin_config(group, name) for group, name in alone.items()},
    )


def method_settings(config: RunConfig) -> dict[str, Any]:
    """What decides the reference outputs besides pair and stop tokens; empty for plain greedy decoding."""
    settings: dict[str, Any] = {}
    if config.temperature != 0:
        settings["sampling"] = {key: getattr(config, key) for key in _SAMPLING}
    elif config.repetition_penalty != 1:
        settings["sampling"] = {"repetition_penalty": config.repetition_penalty}
    if config.stop_strings:
        settings["stop_strings"] = list(config.stop_strings)
    if not follows_plain(config):
        settings["method"] = [asdict(getattr(config, part)) for part in ("drafter", "verifier", "draft_length")]
        if config.tree.name != "chain":
            settings["method"].append(asdict(config.tree))
        settings["execution"] = config.execution
        settings["inputs"] = input_hashes(config)
    return settings


def reference_key(config: RunConfig, index: int, prompt_ids: list[int]) -> list[int]:
    """The key of a row's reference: its prompt, and for a sampled row its index, which seeds it."""
    return prompt_ids if config.temperature == 0 else [index, *prompt_ids]
