"""Folders of weights that are trained for one target: settings as JSON, weights as safetensors, and checks of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from specdec.assets import local_path
from specdec.config.drafter_weights import check_trained_weights
from specdec.core.tensor_files import write_tensors
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.fusable import changed, no_plain_weight

M = TypeVar("M", bound=nn.Module)

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def target_shape(target: CausalLM) -> dict[str, int]:
    """What trained weights and their target must agree in."""
    config = target.module.config.get_text_config()
    shape = {"hidden_size": config.hidden_size, "vocab_size": target.vocab_size}
    return {**shape, "num_target_layers": target.num_layers}


def save_heads(folder: Path, kind: str, settings: dict[str, Any], module: nn.Module, target: CausalLM) -> None:
    """Write the folder: config.json and bfloat16 weights, which are loaded in the target's number format."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().to(torch.bfloat16).contiguous() for name, value in _own(module).items()}
    write_tensors(weights, folder / WEIGHTS, of_a_model=True)
    config = {"drafter": kind, **settings, **target_shape(target)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_settings(kind: str, path: str | None, untrained: bool, target: CausalLM, **default: Any) -> dict[str, Any]:
    """The settings of the folder ``path``; without one, if ``untrained`` is set, ``default``.

    Raises:
        ConfigError: it is no such folder, it was trained for another kind of drafter or target, or none is given.
    """
    check_trained_weights(kind, path, untrained)
    if path is None:
        return default
    try:
        settings: dict[str, Any] = json.loads((local_path(path) / CONFIG).read_text())
        found = settings["drafter"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"drafter.path={path}: no folder of `python train.py task=heads heads.kind={kind}` "
            f"({type(error).__name__}: {error})"
        ) from None
    if found != kind:
        raise ConfigError(f"drafter.path={path} was trained for drafter={found}, not drafter={kind}")
    for name, value in target_shape(target).items():
        if settings.get(name) != value:
            raise ConfigError(
                f"drafter.path={path} was trained for a target with {name} {settings.get(name)}; this one has {value}"
            )
    return settings


def loaded(module: M, path: str | None, target: CausalLM) -> M:
    """The module with the folder's weights, if there is one, on the target's device, in its number format, frozen.

    Raises:
        ConfigError: the file is damaged, of another shape, or holds what are no floating-point numbers.
    """
    if path is not None:
        _load_weights(path, module)
    return module.to(device=target.device, dtype=target.dtype).eval().requires_grad_(False)


def _load_weights(path: str, module: nn.Module) -> None:
    try:
        tensors = load_file(local_path(path) / WEIGHTS)
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"drafter.path={path}: {WEIGHTS} cannot be loaded: {reason}") from None
    if unexpected or set(missing) & set(_own(module)):
        raise ConfigError(f"drafter.path={path}: {WEIGHTS} does not hold the weights that {CONFIG} promises")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(f"drafter.path={path}: its tensor {name} holds {kind}, not floating-point numbers")
        if not tensor.isfinite().all():
            raise ConfigError(f"drafter.path={path}: its tensor {name} holds NaN or infinity")


def plain_head(head: Any) -> nn.Linear:
    """A target's head, after a check that a copy of its weights computes the same.

    Raises:
        ConfigError: it is more than its matrix (an adapter, a hook, a quantised weight), which a copy would lose.
    """
    reason = changed(head, nn.Linear) or no_plain_weight(head)
    if reason is not None:
        raise ConfigError(
            f"heads that begin as copies of the target's own cannot: it {reason}; merge the adapter first"
        )
    plain: nn.Linear = head
    return plain


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if "rotary" not in name}
