"""A draft model before training: of the target's architecture, with fewer layers, or with other widths too.

Everything else in its config is the target's: rotary frequencies, norms, ties, biases, windows, special tokens.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from specdec.models.causal_lm import CausalLM
from specdec.models.compatibility import supported
from specdec.models.small_copy import field
from specdec.models.tensor_parallel import whole
from specdec.training import TrainingError
from specdec.training.config import DraftConfig, TrainConfig
from specdec.training.model import load_weights
from specdec.training.split import check_copied

WIDTHS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
"""Settings of a draft, and the names of configs in `transformers`."""


def new_draft(cfg: TrainConfig, target: CausalLM) -> Any:
    """Given weights, or a model made like the target with its evenly spaced layers or with random weights; float32.

    Raises:
        TrainingError: names the setting: the model cannot be made, copied or loaded.
    """
    if cfg.start is not None:
        return load_weights(cfg.start, "start", target.vocab_size)
    if cfg.new_draft not in ("target", "random"):
        raise TrainingError(f"new_draft={cfg.new_draft}: choose target (copies of its layers) or random")
    if cfg.device.tensor_parallel and cfg.new_draft == "target":
        check_copied(target.module)
    return make_draft(target.module, cfg.draft_model, cfg.seed + 1, copied=cfg.new_draft == "target")


def make_draft(target: Any, shape: DraftConfig, seed: int, *, copied: bool) -> Any:
    """A float32 draft for a target module.

    Args:
        copied: take the target's embeddings, norms, head and evenly spaced layers; otherwise seeded random weights.
    """
    theirs = target.config.get_text_config()
    changed = [name for name in WIDTHS if getattr(shape, name) not in (None, field(theirs, WIDTHS[name]))]
    if copied and changed:
        name = changed[0]
        raise TrainingError(
            f"draft_model.{name}={getattr(shape, name)}: layers of the target have {field(theirs, WIDTHS[name])}; "
            f"set draft_model.{name}=null to copy them, or new_draft=random"
        )
    total = theirs.num_hidden_layers
    if not 1 <= shape.num_layers <= total and copied:
        raise TrainingError(f"draft_model.num_layers={shape.num_layers}: choose 1 to {total}, the target's layers")
    chosen = np.linspace(0, total - 1, shape.num_layers).round().astype(int).tolist()
    torch.manual_seed(seed)
    try:
        draft: Any = AutoModelForCausalLM.from_config(_config(theirs, shape, chosen), dtype=torch.float32)
        if copied:
            _copy(draft, target, chosen)
    except (RuntimeError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise TrainingError(
            f"draft_model: no {theirs.model_type} of these sizes can be made: {str(error).strip().splitlines()[0]}; "
            "train one with task=lm, and give it by start="
        ) from error
    return draft


def aligned(draft: Any, target: CausalLM) -> CausalLM:
    """The draft for the engine, whose masks are found by trial unless it is of the target's own architecture."""
    if type(draft) is type(target.module):
        return CausalLM(draft, target.architecture.mask_form)
    return supported(draft, "start")


def _config(theirs: Any, shape: DraftConfig, chosen: list[int]) -> Any:
    """The target's config with the draft's depth and widths."""
    total, config = theirs.num_hidden_layers, copy.deepcopy(theirs)
    for name, value in theirs.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == total:  # a value per layer
            setattr(config, name, [value[index] for index in chosen])
    vars(config).pop("distributed_config", None)  # of a target that is split over processes
    config.num_hidden_layers = shape.num_layers
    for name, theirs_name in WIDTHS.items():
        if (value := getattr(shape, name)) is not None:
            if name == "num_kv_heads" and field(config, theirs_name) is None and value == config.num_attention_heads:
                continue  # every head has keys of its own
            setattr(config, theirs_name, value)
    heads = config.num_attention_heads
    if (shape.hidden_size or shape.num_heads) and config.hidden_size % heads:
        raise TrainingError(
            f"draft_model.hidden_size={config.hidden_size} is no multiple of draft_model.num_heads={heads}"
        )
    if (shape.hidden_size or shape.num_heads) and field(config, "head_dim") is not None:
        config.head_dim = config.hidden_size // heads
    return config


def _copy(draft: Any, target: Any, chosen: list[int]) -> None:
    """Copy the decoder, with layer i of the draft from layer ``chosen[i]``, and the head."""
    (ours, name), (theirs, their_name) = (_decoder(module) for module in (draft, target))
    state, weights = theirs.state_dict(), {}
    for key in ours.state_dict():
        number, _, rest = key.removeprefix(f"{name}.").partition(".")
        of_layer = key.startswith(f"{name}.") and number.isdigit()
        weights[key] = whole(state[f"{their_name}.{chosen[int(number)]}.{rest}" if of_layer else key])
    ours.load_state_dict(weights)
    draft.get_output_embeddings().load_state_dict(target.get_output_embeddings().state_dict())


def _decoder(module: Any) -> tuple[Any, str]:
    """The part that holds the layers, and the name of their list in it."""
    total = module.config.get_text_config().num_hidden_layers
    for part in module.modules():
        for name, child in part.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == total:
                return part, name
    raise TrainingError(f"new_draft=target does not find the layers of a {type(module).__name__}: set new_draft=random")
