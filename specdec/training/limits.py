"""Whether the lengths of a config fit a model's context, and the numbers of its heads, before anything is computed."""

from __future__ import annotations

from specdec.training import TrainingError
from specdec.training.config import HeadsConfig, TrainConfig


def check_lengths(cfg: TrainConfig, context_length: int, what: str, data: str) -> None:
    """Refuse rows that are longer than a model's context: positions past it fail, or train what no run will use.

    Args:
        what: the model, as a setting. data: where training batches come from, ``corpus`` or ``outputs``.

    Raises:
        TrainingError: names every setting that is too long.
    """
    block = max(phase.block for phase in cfg.fit.phases)
    some, losses, measured = cfg.greedy, cfg.distill, cfg.validation
    lengths = {}
    if cfg.task != "lm":
        lengths["heldout.max_tokens + validation.new_tokens"] = cfg.heldout.max_tokens + measured.new_tokens
    if data == "corpus":
        lengths["block of fit.phases"] = block
    elif data == "outputs":
        lengths["greedy.max_prompt_tokens + greedy.new_tokens"] = some.max_prompt_tokens + some.new_tokens
    if cfg.task == "distill" and losses.on_policy:
        longest = block if data == "corpus" else some.max_prompt_tokens + some.new_tokens
        # Prompts are first halves, or up to the first output token.
        prompt = longest // 2 if data == "corpus" else max(longest // 2, some.max_prompt_tokens)
        lengths["prompt + distill.on_policy_tokens"] = prompt + losses.on_policy_tokens
    too_long = [f"{name} = {length}" for name, length in lengths.items() if length > context_length]
    if too_long:
        raise TrainingError(f"{what} has a context of {context_length} tokens: lower {'; '.join(too_long)}")


def check_heads(cfg: HeadsConfig, vocab_size: int, *, reducible: bool) -> None:
    """Refuse numbers that no head can have.

    Args:
        reducible: whether heads of the kind can draft a part of the vocabulary.

    Raises:
        TrainingError: names the setting.
    """
    for name in ("num_heads", "num_layers", "num_anchors", "window"):
        if (value := getattr(cfg, name)) < 1:
            raise TrainingError(f"heads.{name}={value}: give at least 1")
    if cfg.max_offset is not None and cfg.max_offset < 0:
        raise TrainingError(f"heads.max_offset={cfg.max_offset}: give 0 (positions as they are) or more, or null")
    if cfg.markov_rank < 0:
        raise TrainingError(f"heads.markov_rank={cfg.markov_rank}: give 0 (no bias by the token before) or more")
    if (size := cfg.draft_vocab) is None:
        return
    if not reducible:
        raise TrainingError(f"heads.draft_vocab={size}: {cfg.kind} drafts all tokens; set it to null")
    if not 1 <= size <= vocab_size:
        raise TrainingError(f"heads.draft_vocab={size}: give 1 to {vocab_size}, the target's vocabulary, or null")
