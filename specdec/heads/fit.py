"""Whether a head fits a target: every problem is one line that names both sides. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specdec.errors import ConfigError
from specdec.heads.folder import Folder
from specdec.heads.shapes import expected_shapes, num_medusa_heads
from specdec.heads.spec import IN_TARGET, MTP_LAYERS, SPECDEC, HeadSpec
from specdec.heads.unsupported import unsupported

MAPS = ("d2t", "t2d")
FLOATS = ("f64", "f32", "f16", "bf16", "float64", "float32", "float16", "bfloat16")
"""As safetensors and torch name them."""


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What a head must fit."""

    name: str
    hidden_size: int
    vocab_size: int
    num_layers: int

    @classmethod
    def of(cls, folder: Folder) -> TargetFacts:
        """Those of a model's folder."""
        config = folder.config.get("text_config") or folder.config
        try:
            sizes = [int(config[name]) for name in ("hidden_size", "vocab_size", "num_hidden_layers")]
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"--target={folder.name}: its config.json is not that of a language model") from None
        return cls(folder.name, *sizes)


def problems(spec: HeadSpec, target: TargetFacts) -> list[str]:
    """Why the head cannot draft for the target; empty if it can."""
    if spec.layout in (SPECDEC, IN_TARGET):
        return _other_sizes(spec, target)
    found = unsupported(spec)
    reads = int(spec.config.get("target_hidden_size") or spec.layer.get("hidden_size", target.hidden_size))
    if reads != target.hidden_size:
        found.append(f"it reads hidden states of {reads} numbers, and those of {target.name} have {target.hidden_size}")
    elif spec.kind != "medusa" and spec.hidden_size != target.hidden_size and "embed_tokens.weight" not in spec.tensors:
        found.append(
            f"it is {spec.hidden_size} wide and has no embeddings of its own, and those of {target.name} have "
            f"{target.hidden_size} numbers"
        )
    if spec.vocab_size and spec.vocab_size != target.vocab_size:
        found.append(f"its vocabulary has {spec.vocab_size} tokens, and that of {target.name} has {target.vocab_size}")
    layers = spec.layer_ids(target.num_layers)
    if beyond := [number for number in layers if not 0 <= number <= target.num_layers]:
        found.append(f"it reads layer {beyond[0]}, and {target.name} has {target.num_layers} layers")
    return found + _other_tensors(spec, reads, len(layers))


def _other_sizes(spec: HeadSpec, target: TargetFacts) -> list[str]:
    """Of what train.py wrote, which recorded the target's sizes, and of a checkpoint that is a target itself."""
    layers = "num_target_layers" if spec.layout == SPECDEC else "num_hidden_layers"
    known = {"hidden_size": target.hidden_size, "vocab_size": target.vocab_size, layers: target.num_layers}
    return [
        f"was trained for a target with {name} {spec.layer.get(name)}; this one has {value}"
        for name, value in known.items()
        if spec.layer.get(name) != value
    ]


def _other_tensors(spec: HeadSpec, target_hidden_size: int, num_hidden: int) -> list[str]:
    if not spec.tensors:
        return []  # they are in a pickle
    expected = expected_shapes(spec, target_hidden_size, num_hidden)
    found = {name: info.shape for name, info in spec.tensors.items()}
    lines = [f"it lacks the tensor {name} {shape_text(expected[name])}" for name in sorted(expected.keys() - found)]
    lines += [f"it has the tensor {name}, which no {spec.kind} head has" for name in sorted(found.keys() - expected)]
    lines += [
        f"its tensor {name} is {shape_text(found[name])}, and its config promises {shape_text(shape)}"
        for name, shape in sorted(expected.items())
        if found.get(name, shape) != shape
    ]
    kinds = {name: info.dtype.removeprefix("torch.").lower() for name, info in spec.tensors.items()}
    lines += [
        f"its tensor {name} holds {kind}, and {'integers' if name in MAPS else 'floating-point numbers'} are needed"
        for name, kind in kinds.items()
        if name in expected and (kind in FLOATS) == (name in MAPS)
    ]
    return lines


def shape_text(shape: tuple[int, ...]) -> str:
    """As people write it: 4096 x 12288."""
    return " x ".join(map(str, shape)) if shape else "scalar"


def settings_line(spec: HeadSpec, target: TargetFacts | None) -> dict[str, Any]:
    """What is worth knowing of a head, for people."""
    lines: dict[str, Any] = {"kind": spec.kind, "layout": spec.layout}
    if spec.layout not in (SPECDEC, IN_TARGET) and spec.kind != "medusa":
        lines["size"] = f"{spec.num_layers} layer{'s' * (spec.num_layers > 1)} of {spec.hidden_size} numbers"
    if spec.layout == IN_TARGET:
        count = next((spec.layer[name] for name in MTP_LAYERS if spec.layer.get(name)), 1)
        lines["layers"] = f"{count}, each drafts one token" if count > 1 else "1, used for every token"
    if spec.kind == "medusa":
        count = spec.config.get("num_heads") if spec.layout == SPECDEC else num_medusa_heads(spec)
        lines["heads"] = count or "in a pickle"
    if spec.vocab_size:
        lines["vocabulary"] = f"{spec.draft_vocab_size or spec.vocab_size} of {spec.vocab_size} tokens"
    if target is not None:
        numbers = spec.hidden_layers(target.num_layers)
        lines["reads"] = ", ".join("the last, normed" if n < 0 else f"the input of layer {n}" for n in numbers)
    if spec.kind == "longspec":
        lines["window"] = f"{spec.config.get('window', '?')} tokens"
    if spec.kind in ("dflash", "dspark", "specblock"):
        lines["block"] = f"{spec.block_size} slots"
    if spec.trained_for:
        lines["trained for"] = spec.trained_for
    return lines
