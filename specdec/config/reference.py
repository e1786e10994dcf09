"""Which run a point's outputs are compared with, token by token. Imports no torch.

- Greedy: the target alone at batch 1, whatever the method.
- Sampling with drafter=none or verifier=naive: plain sampling of the target alone at batch 1 with the same seeds,
  because both emit, at every position, the token that the row's own random number there picks from the target's law.
- Sampling with another verifier: the tokens also depend on what was drafted, so plain sampling gives other tokens of
  the same law. The reference is the same method at batch 1 with the same seeds: equality shows that a row does not
  depend on its neighbours. That the law is right is shown elsewhere, by enumeration (tests/test_verifiers_exact.py).
  A draft length that looks at the batch drafts other tokens at batch 1, so there is nothing to compare with then.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from specdec.config.identity import identity, plain_copy, signature
from specdec.core.sampling_params import SamplingParams
from specdec.registry import lookup

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
_PER_ROW_DRAFT_LENGTHS = ("fixed",)


def sampling_params(cfg: DictConfig) -> SamplingParams:
    """The settings of every row of a run.

    Raises:
        ConfigError: a value is out of range.
    """
    return SamplingParams(**{key: cfg[key] for key in _SAMPLING})


def plain(cfg: DictConfig) -> DictConfig:
    """The same point with speculation off."""
    copy = plain_copy(cfg)
    with open_dict(copy):
        copy.drafter = {"name": "none"}
        # Nothing is drafted, so verifiers do not differ: one name for all, and one baseline for a sweep over them.
        copy.verifier = {"name": "greedy" if cfg.temperature == 0 else "naive"}
    return copy


def baseline_run(cfg: DictConfig) -> DictConfig:
    """What a point's speed is compared with: scheduler=plain, the best plain decoding there is at this batch size.

    That is continuous batches under alignment=inplace, whatever the point's own scheduler and alignment are.
    """
    without = plain(cfg)
    with open_dict(without):
        if cfg.scheduler.name != "continuous":
            without.scheduler = OmegaConf.structured(lookup("scheduler", "continuous").config)
        without.scheduler.label = "plain"
        if cfg.runner.tensor_parallel:
            without.scheduler.prefill_share = 1.0  # less would look at a clock, which differs between processes
        without.alignment = {"name": "inplace"}
    return plain_copy(without)


def is_baseline(cfg: DictConfig) -> bool:
    """Whether a resolved point is what others are compared with."""
    return identity(cfg) == identity(baseline_run(cfg))


def follows_plain(cfg: DictConfig) -> bool:
    """Whether the tokens must be those of plain decoding."""
    return bool(cfg.temperature == 0 or cfg.drafter.name == "none" or cfg.verifier.name == "naive")


def has_reference(cfg: DictConfig) -> bool:
    """Whether there is a run that must emit the same tokens."""
    return follows_plain(cfg) or cfg.draft_length.name in _PER_ROW_DRAFT_LENGTHS


def reference_run(cfg: DictConfig) -> DictConfig:
    """The settings of the run that is compared with: one row at a time."""
    alone = plain(cfg) if follows_plain(cfg) else plain_copy(cfg)
    with open_dict(alone):
        alone.update(batch=1, warmup=False, scheduler={"name": "static"}, batching={"name": "fifo"})
        alone.update(alignment={"name": "eqspec"}, arrivals={"name": "none"}, execution="eager")
    return alone


def method_settings(cfg: DictConfig) -> dict[str, Any]:
    """What decides the reference outputs beyond the pair and the stops; empty for plain greedy decoding."""
    settings: dict[str, Any] = {}
    if cfg.temperature != 0:
        settings["sampling"] = {key: cfg[key] for key in _SAMPLING}
    elif cfg.repetition_penalty != 1:
        settings["sampling"] = {"repetition_penalty": cfg.repetition_penalty}
    if cfg.stop_strings:
        settings["stop_strings"] = list(cfg.stop_strings)
    if not follows_plain(cfg):
        settings["method"] = [OmegaConf.to_container(cfg[part]) for part in ("drafter", "verifier", "draft_length")]
        settings["inputs"] = signature(cfg)
    return settings


def reference_key(cfg: DictConfig, index: int, prompt_ids: list[int]) -> list[int]:
    """What a row's reference is stored under: its prompt, and where it samples its place, which seeds it."""
    return prompt_ids if cfg.temperature == 0 else [index, *prompt_ids]
