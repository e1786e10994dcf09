"""Settings of `task=selector`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.core.settings import setting


@dataclass
class SelectorConfig:
    """The selector of tree shapes, for `task=selector`: its roots, and how it learns from them."""

    draft: str = setting("asset:tiny/draft", "the pair's draft model, a folder or a Hub name; frozen is the target")
    verifier: str = setting("specinfer", "the rule that judges the trees: those with a formula of expected tokens")
    temperatures: list[float] = setting(lambda: [0.2, 0.4, 0.6, 0.8, 1.0], "temperatures that it is for")
    num_paths: int = setting(4, "most paths of a shape")
    depth: int = setting(5, "of the deepest shape")
    samples: int = setting(4, "trees per root that the expected tokens of all shapes are averaged over")
    every: int = setting(16, "tokens of an output from one root to the next")
    num_batches: int = setting(6, "batches of prompts per temperature, from the corpus' training files")
    rows: int = setting(8, "prompts of such a batch")
    new_tokens: int = setting(96, "tokens of their outputs")
    max_prompt_tokens: int = 256
    batches: list[int] = setting(lambda: [1, 4, 8], "batch sizes whose times it learns for")
    steps: int = setting(1500, "optimizer steps, 256 roots each")
    lr: float = 1e-3
    risk_weight: float = setting(0.5, "weight of the loss at the worst roots, by their squared shortfall")
    risk_share: float = setting(0.1, "share of the roots that are the worst ones")
    heldout_share: float = setting(0.15, "share of the prompts that choose the weights, instead of training them")
