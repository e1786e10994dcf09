"""A head's weights, checked against its config and its target before anything is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from specdec.config.drafter_weights import check_trained_weights
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError, first_line
from specdec.heads.fit import TargetFacts, problems
from specdec.heads.folder import Folder, TensorInfo, open_folder
from specdec.heads.shapes import expected_shapes
from specdec.heads.spec import SPECDEC, SPECULATORS, HeadSpec, recognised, renamed
from specdec.models.causal_lm import CausalLM


@dataclass(frozen=True, slots=True)
class Head:
    """A head that fits its target."""

    spec: HeadSpec
    tensors: Mapping[str, Tensor]  # by the names of `speculators`, on the target's device and in its number format
    hidden_layers: tuple[int, ...]  # as `Drafter.hidden_layers`


def head_of(kind: str, context: DrafterContext, path: str | None, untrained: bool, **settings: Any) -> Head:
    """The head of a folder; a random one where ``untrained`` asks for it, with ``settings`` in its config.

    Raises:
        ConfigError: neither is given, or both are, or the folder's head cannot be used.
    """
    check_trained_weights(kind, path, untrained)
    return untrained_head(kind, context, **settings) if path is None else load_head(kind, path, context)


def load_head(kind: str, path: str, context: DrafterContext) -> Head:
    """The head of a folder or of a name on the Hub.

    Raises:
        ConfigError: there is none, it is of another kind, it does not fit the target, or its file is damaged.
    """
    folder = open_folder(path, allow_pickle=context.allow_pickle)
    if "hydra_num_heads" in folder.config:
        recognised(folder)  # is refused, so that nobody is asked to allow its pickle
    unpickled = _unpickled(folder, context.allow_pickle)
    if unpickled:
        infos = {name: TensorInfo(tuple(t.shape), str(t.dtype), folder.path, name) for name, t in unpickled.items()}
        folder = replace(folder, tensors=infos, pickles=())
    spec = recognised(folder)
    if not folder.tensors:
        raise ConfigError(
            f"drafter.path={path}: it has no weights in *.safetensors; pickles need pair.allow_pickle=true"
        )
    if spec.kind != kind:
        raise ConfigError(
            f"drafter.path={path} was trained for drafter={spec.kind}, not drafter={kind}"
            if spec.layout == SPECDEC
            else f"drafter.path={path} holds a head of the kind {spec.kind}: set drafter={spec.kind}"
        )
    facts = target_facts(context.target)
    if found := problems(spec, facts):
        more = f" (and {len(found) - 1} more; python -m specdec.heads lists them)" if len(found) > 1 else ""
        joint = " " if spec.layout == SPECDEC else ": "
        raise ConfigError(f"drafter.path={path}{joint}{found[0]}{more}")
    _check_tokenizer(folder, context.tokenizer)
    tensors = renamed(spec.layout, unpickled.items()) if unpickled else _read(path, spec)
    placed = _placed(tensors, context.target)
    if broken := next((name for name, t in placed.items() if t.is_floating_point() and not t.isfinite().all()), None):
        raise ConfigError(f"drafter.path={path}: its tensor {broken} holds NaN or infinity")
    return Head(spec, placed, spec.hidden_layers(facts.num_layers))


def untrained_head(kind: str, context: DrafterContext, **settings: Any) -> Head:
    """A head of random weights for the target; ``settings`` go into its config."""
    size = context.target.architecture
    layer = {
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": size.num_kv_heads if size.num_heads % size.num_kv_heads == 0 else size.num_heads,
        "head_dim": 2 * max(size.hidden_size // size.num_heads // 2, 1),  # even, because halves are rotated
        "vocab_size": context.target.vocab_size,
        "num_hidden_layers": 2 if kind == "specblock" else 1,
        "model_type": "qwen3" if kind in ("dflash", "dspark", "mtp") else "llama",
    }
    spec = HeadSpec("untrained", kind, SPECULATORS, settings, layer, {})
    facts = target_facts(context.target)
    layers = spec.hidden_layers(facts.num_layers)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in expected_shapes(spec, facts.hidden_size, len(layers)).items():
        scale = 1.0 if len(shape) == 1 else 1 / math.sqrt(shape[-1])
        tensors[name] = torch.ones(shape) if "norm" in name else scale * torch.randn(shape, generator=generator)
    return Head(spec, _placed(tensors, context.target), layers)


def target_facts(target: CausalLM) -> TargetFacts:
    """What a head must fit, of a loaded target."""
    config = target.module.config.get_text_config()
    name = getattr(config, "name_or_path", "") or f"a {type(target.module).__name__}"
    return TargetFacts(name, config.hidden_size, target.vocab_size, target.num_layers)


def _unpickled(folder: Folder, allow_pickle: bool) -> dict[str, Tensor]:
    if not folder.pickles:
        return {}
    names = ", ".join(file.name for file in folder.pickles)
    if not allow_pickle:
        raise ConfigError(
            f"drafter.path={folder.name}: its weights are a pickle ({names}), which may run code: set "
            "pair.allow_pickle=true to read its tensors alone, or convert it to safetensors"
        )
    found: dict[str, Tensor] = {}
    for file in folder.pickles:
        try:
            found |= torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds, from a damaged file or one with more than tensors
            raise ConfigError(
                f"drafter.path={folder.name}: {file.name} cannot be loaded: {first_line(error)[:120]}"
            ) from None
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()):
        raise ConfigError(f"drafter.path={folder.name}: {names} holds more than tensors")
    return found


def _read(path: str, spec: HeadSpec) -> dict[str, Tensor]:
    by_file: dict[Path, dict[str, str]] = {}
    for name, info in spec.tensors.items():
        by_file.setdefault(info.file, {})[name] = info.name
    found: dict[str, Tensor] = {}
    for file, names in by_file.items():
        try:
            with safe_open(file, framework="pt") as stream:
                found |= {name: stream.get_tensor(own) for name, own in names.items()}
        except Exception as error:  # the format's own kinds
            raise ConfigError(f"drafter.path={path}: {file.name} cannot be loaded: {first_line(error)}") from None
    return found


def _placed(tensors: Mapping[str, Tensor], target: CausalLM) -> dict[str, Tensor]:
    kinds = {name: target.dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    return {name: tensor.detach().to(target.device, kinds[name]) for name, tensor in tensors.items()}


def _check_tokenizer(folder: Folder, tokenizer: Any) -> None:
    """Refuse a head whose folder has another tokenizer than the target's."""
    file = folder.path / "tokenizer.json"
    if tokenizer is None or not file.is_file() or not hasattr(tokenizer, "get_vocab"):
        return
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # of a kind that has no such table
    if not isinstance(theirs, dict):
        return
    ours = tokenizer.get_vocab()
    wrong = next((token for token, number in theirs.items() if ours.get(token) != number), None)
    if wrong is not None:
        raise ConfigError(
            f"drafter.path={folder.name}: its tokenizer gives {wrong!r} the id {theirs[wrong]}, and the target's gives "
            f"it {ours.get(wrong, 'none')}: it was trained for a target with another tokenizer"
        )
